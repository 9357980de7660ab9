"""The daemon's own log: structlog set up once, the standard library's loggers led into it, one line per fact on stderr.

Nothing a peer said reaches a line as control characters, no secret is shown, and a flood is counted instead of
written. The mail log (events/maillog.py) is apart from this.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, Protocol, TextIO

import orjson
import structlog

HIDDEN = "[hidden]"
PER_MINUTE = 30
"""Lines of one kind within a minute; the rest is counted and told with the next one."""
LONGEST = 4000
"""Characters of one value."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SECRET_KEY = re.compile(r"passw|secret|token|authorization|credentials?_value|private_?key|cookie|api_?key", re.I)
# C0 and C1 controls, line and paragraph separators, bidirectional overrides, lone surrogates
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FEWEST_SECRET = 6
_KINDS = 2000

EventDict = MutableMapping[str, Any]


class LogSettings(Protocol):
    """How to log: the section `log` of a configuration, or what the supervisor has of it."""

    @property
    def format(self) -> str: ...

    @property
    def level(self) -> str: ...


def setup(
    log: LogSettings, *, secrets: Iterable[str] = (), stream: TextIO | None = None, slot: int | None = None
) -> None:
    """Lead all logging of this process to `stream` (standard error). Called again it replaces what was set up.

    `secrets` are values that are blotted out wherever they appear; `slot` marks the lines of one worker.
    """
    out = stream or sys.stderr
    console = is_console(log, out)
    level = _LEVELS[log.level]
    structlog.configure(
        processors=[
            structlog.stdlib.add_logger_name,
            structlog.processors.add_log_level,
            Limiter(),
            _time_and_worker(slot),
            structlog.processors.format_exc_info,
            Cleaner(secrets),
            structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0, timestamp_key="time")
            if console
            else _as_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: Line(out, str(names[0]) if names else "relayd"),
        cache_logger_on_first_use=False,
    )
    _lead_standard_loggers(level)


def is_console(log: LogSettings, stream: TextIO | None = None) -> bool:
    """Whether a person reads along: the log is in colour then, and `serve` says hello."""
    return log.format == "console" or (log.format == "auto" and (stream or sys.stderr).isatty())


class Line:
    """What structlog writes to: one line at a time, and never an error of its own."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.name = name
        self._stream = stream

    def msg(self, line: str) -> None:
        """Write a line. A full disk or a closed pipe loses it: the daemon goes on."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    log = debug = info = warning = error = critical = exception = fatal = warn = msg


class Limiter:
    """A structlog processor: lets `most` lines of a kind (logger, level, event) pass each minute, counts the rest."""

    def __init__(self, most: int = PER_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._seen: dict[tuple[str, str, str], list[float]] = {}  # kind → [begin of its minute, passed, held back]

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        """Raises DropEvent for what is only counted."""
        now = self._clock()
        kind = (str(event.get("logger")), method, str(event.pop("kind", event.get("event"))))
        seen = self._seen.get(kind)
        if seen is None or now - seen[0] >= 60:
            if len(self._seen) >= _KINDS:
                self._seen.clear()
            if seen is not None and seen[2]:
                event["suppressed"] = int(seen[2])
            self._seen[kind] = [now, 1, 0]
            return event
        if seen[1] >= self._most:
            seen[2] += 1
            raise structlog.DropEvent
        seen[1] += 1
        if seen[1] == self._most:
            event["further"] = "counted, not shown, for up to a minute"
        return event


class Cleaner:
    """A structlog processor: hides secrets, writes control characters as escapes, cuts what is long."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """`secrets` shorter than six characters are only hidden by their key: they would blot out ordinary words."""
        known = sorted((secret for secret in secrets if len(secret) >= _FEWEST_SECRET), key=len, reverse=True)
        self._secret = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        clean: dict[str, Any] = {}
        for key, value in event.items():
            if key == "exception":
                # a traceback keeps its lines; what is inside them is cleaned
                lines = str(value)[-5 * LONGEST :].split("\n")
                clean[key] = "\n".join(self._text(line) for line in lines)
            elif _SECRET_KEY.search(key) and value not in (None, "", False, True):
                clean[key] = HIDDEN
            else:
                clean[self._text(key)] = self._value(value, 0)
        return clean

    def _value(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)
        if isinstance(value, Mapping) and depth < 4:
            return {
                self._text(str(key)): HIDDEN if _SECRET_KEY.search(str(key)) else self._value(each, depth + 1)
                for key, each in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset) and depth < 4:
            return [self._value(each, depth + 1) for each in list(value)[:100]]
        return self._text(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))

    def _text(self, text: str) -> str:
        if self._secret is not None:
            text = self._secret.sub(HIDDEN, text)
        if len(text) > LONGEST:
            text = f"{text[:LONGEST]}… ({len(text)} characters)"
        return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def _time_and_worker(slot: int | None) -> Callable[[Any, str, EventDict], EventDict]:
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")

    def add(logger: Any, method: str, event: EventDict) -> EventDict:
        if slot is not None:
            event["worker"] = slot
        return stamp(logger, method, event)

    return add


def _as_json(logger: Any, method: str, event: EventDict) -> str:
    first = {key: event.pop(key) for key in ("time", "level", "logger", "event") if key in event}
    return orjson.dumps(first | dict(event)).decode()


class _Standard(logging.Handler):
    """Hands records of the standard library's logging on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        # kind: the message before its arguments were put in, so that a flood of them counts as one
        facts = {"kind": str(record.msg), "exc_info": record.exc_info} if record.exc_info else {"kind": str(record.msg)}
        structlog.get_logger(record.name).log(record.levelno, text, **facts)


def _lead_standard_loggers(level: int) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Standard):
            root.removeHandler(handler)
    root.addHandler(_Standard())
    root.setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)
    # aiosmtpd tells each command here, uvicorn each request: ours is the mail log, and metrics
    for name in ("mail.log", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
        logger.propagate = True

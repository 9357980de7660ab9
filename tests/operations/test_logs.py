"""The daemon's log: machines get JSON, secrets and control characters get nowhere, floods are counted."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from relayd import logs
from relayd.config.models import Log
from relayd.config.secret import secrets_of
from tests.operations.configs import config


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield io.StringIO()
    structlog.reset_defaults()
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_time_level_logger_and_event_first(stream: io.StringIO) -> None:
    logs.setup(Log(format="json"), stream=stream, slot=3)
    structlog.get_logger("relayd.test").info("something", count=1)
    [line] = lines(stream)
    assert list(line)[:4] == ["time", "level", "logger", "event"]
    assert line["time"].endswith("Z")
    assert (line["level"], line["logger"], line["event"]) == ("info", "relayd.test", "something")
    assert (line["count"], line["worker"]) == (1, 3)


def test_the_level_holds(stream: io.StringIO) -> None:
    logs.setup(Log(format="json", level="warning"), stream=stream)
    structlog.get_logger("relayd.test").info("too much detail")
    structlog.get_logger("relayd.test").warning("worth a line")
    assert [line["event"] for line in lines(stream)] == ["worth a line"]


def test_set_up_twice_writes_each_line_once(stream: io.StringIO) -> None:
    logs.setup(Log(format="json"), stream=stream)
    logs.setup(Log(format="json"), stream=stream)
    logging.getLogger("asyncio").warning("odd")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("name", ["password", "smtp_password", "secret", "api_token", "Authorization", "private_key"])
def test_a_value_under_a_telling_key_is_hidden(stream: io.StringIO, name: str) -> None:
    logs.setup(Log(format="json"), stream=stream)
    structlog.get_logger("relayd.test").warning("login", **{name: "hunter2"}, nested={name: "hunter2"})
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0][name] == logs.HIDDEN


def test_the_secrets_of_the_configuration_are_hidden_wherever_they_turn_up(stream: io.StringIO) -> None:
    upstream = {"host": "smtp.example", "username": "u", "password": "canary-one"}
    settings = config(upstreams={"acme": upstream, "sandbox": {"type": "sandbox"}}, secret="canary-two")
    logs.setup(Log(format="json"), secrets=secrets_of(settings), stream=stream)
    try:
        raise RuntimeError("the peer said canary-one")  # noqa: TRY301
    except RuntimeError:
        structlog.get_logger("relayd.test").exception("failed", text="canary-two!", several=["x canary-one"])
    logging.getLogger("asyncio").error("task %s died", "canary-two")
    assert "canary" not in stream.getvalue()
    assert lines(stream)[0]["text"] == "[hidden]!"


@given(
    st.text(
        st.characters(
            codec=None,
            categories=["Cc", "Cf", "Cs", "Zl", "Zp", "L", "N"],
        )
    )
)
def test_no_control_character_reaches_a_line(text: str) -> None:
    cleaned = logs.Cleaner()(
        None, "info", {"event": text, "nested": {"key": [text]}, "raw": text.encode("utf-8", "replace")}
    )
    flat = str(cleaned["event"]) + cleaned["nested"]["key"][0] + cleaned["raw"]
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029\u202a\u202e\u2066\u2069" for c in flat)
    json.dumps(cleaned).encode()


def test_what_a_console_shows_has_no_escapes_of_a_peer(stream: io.StringIO) -> None:
    logs.setup(Log(format="console"), stream=stream)
    structlog.get_logger("relayd.test").warning("peer said", text="\x1b[2J\x07gone\r\nFAKE LINE")
    assert "\x1b[2J" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_a_long_value_is_cut(stream: io.StringIO) -> None:
    logs.setup(Log(format="json"), stream=stream)
    structlog.get_logger("relayd.test").warning("long", text="x" * 100_000)
    assert len(stream.getvalue()) < 5000
    assert "(100000 characters)" in lines(stream)[0]["text"]


def test_a_flood_of_one_kind_is_counted_and_others_pass(stream: io.StringIO) -> None:
    now = [0.0]
    limiter = logs.Limiter(most=3, clock=lambda: now[0])

    def say(event: str) -> dict[str, Any] | None:
        try:
            return dict(limiter(None, "warning", {"logger": "x", "event": event}))
        except structlog.DropEvent:
            return None

    said = [say("flood") for _ in range(10)]
    assert [line is not None for line in said] == [True] * 3 + [False] * 7
    assert said[2] is not None
    assert "further" in said[2]
    assert say("other") is not None
    now[0] = 60.0
    after = say("flood")
    assert after is not None
    assert after["suppressed"] == 7


def test_a_flood_of_a_librarys_messages_counts_as_one_kind(stream: io.StringIO) -> None:
    logs.setup(Log(format="json"), stream=stream)
    for number in range(logs.PER_MINUTE + 20):
        logging.getLogger("asyncio").warning("socket %d broke", number)
    assert len(lines(stream)) == logs.PER_MINUTE
    assert lines(stream)[0]["event"] == "socket 0 broke"


def test_chatty_libraries_are_quiet(stream: io.StringIO) -> None:
    logs.setup(Log(format="json", level="debug"), stream=stream)
    logging.getLogger("mail.log").info("handling a connection")
    logging.getLogger("uvicorn.access").info("GET /metrics")
    assert not stream.getvalue()


def test_a_closed_log_breaks_nothing(stream: io.StringIO) -> None:
    logs.setup(Log(format="json"), stream=stream)
    stream.close()
    structlog.get_logger("relayd.test").warning("into the void")

"""The kinds of values that relayd.yaml holds: durations, sizes, domains, binds, networks, secrets.

Each reads what operators write, writes it back the same way, and says in plain words what is wrong with a value.
Which keys there are is the work of models.py.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    InstanceOf,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from relayd.config.presets import find, nearest
from relayd.core.bind import Bind
from relayd.core.blocking import default_rules, may_block
from relayd.core.retry import Schedule, parse_schedule
from relayd.core.units import Rate as RateValue
from relayd.core.units import format_duration, format_size, parse_duration, parse_rate, parse_share, parse_size

HIDDEN = "********"
"""What stands for a secret wherever the configuration is shown."""

WRONG = "relayd"
"""Type of the pydantic errors that carry our own words: ctx has `problem` and `remedy`."""

_LONGEST = 100 * 365 * 86400.0
_LARGEST = 2**50
_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FromFile:
    """Validation context of values read from a file (a Config built in Python has none)."""

    directory: Path
    """Relative paths start here."""


def wrong(problem: str, remedy: str) -> PydanticCustomError:
    """A fault of one value, in our words: what is wrong, and what would be right."""
    return PydanticCustomError(WRONG, "{problem}. {remedy}", {"problem": problem, "remedy": remedy})


def _reads(parse: Callable[[str], Any], remedy: str) -> BeforeValidator:
    """Text is parsed; everything else goes on as it is."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except ValueError as error:
            raise wrong(re.split(r": (?:write|use) ", str(error))[0], remedy) from None

    return BeforeValidator(read)


def _needs(unit: str, remedy: str) -> BeforeValidator:
    """A bare number is refused in a file: 40 could be seconds, minutes or days."""

    def check(value: Any, info: ValidationInfo) -> Any:
        bare = isinstance(value, int | float) and not isinstance(value, bool) and value != 0
        if bare and isinstance(info.context, FromFile):
            raise wrong(f"{value} has no {unit}", remedy)
        return value

    return BeforeValidator(check)


def _no_bool(value: Any) -> Any:
    # pydantic takes true for 1
    if isinstance(value, bool):
        raise wrong("must be a number, not true or false", "Write a number")
    return value


_DURATION = "Write a number and a unit, like 30s, 5m, 1h30m or 5d"
_SIZE = "Write a number and B, KB, MB, GB, KiB, MiB or GiB, like 50MiB"
_SHARE = "Write a percentage from 0% to 100%, like 5%"
_RATE = "Write a count and s, min, h or day, like 600/min"
_SCHEDULE = "Write the waits between attempts, like 1m, 5m*2, 15m, 1h*3, 4h*"

# BeforeValidators run from the last one up.
Duration = Annotated[
    float,
    BeforeValidator(_no_bool),
    _reads(parse_duration, _DURATION),
    _needs("unit", _DURATION),
    Field(ge=0, le=_LONGEST, allow_inf_nan=False),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["30s", "5m", "1h30m", "5d"], "x-kind": "duration"}),
]
"""Seconds."""


def _expiry(value: Any, info: ValidationInfo) -> Any:
    remedy = "Write never, or a number and a unit, like 90d"
    if isinstance(value, str) and value != "never":
        try:
            value = parse_duration(value)
        except ValueError as error:
            raise wrong(re.split(r": (?:write|use) ", str(error))[0], remedy) from None
    elif isinstance(value, int | float) and isinstance(info.context, FromFile):
        raise wrong(f"{value} has no unit", remedy)
    if value != "never" and not (isinstance(value, float) and 0 < value <= _LONGEST):
        raise wrong("is not a time that something can last", remedy)
    return value


Expiry = Annotated[
    Literal["never"] | float,
    BeforeValidator(_expiry),
    PlainSerializer(lambda value: value if value == "never" else format_duration(value), return_type=str),
    WithJsonSchema({"type": "string", "examples": ["never", "90d"], "x-kind": "duration"}),
]
"""Seconds, or never."""
Size = Annotated[
    int,
    BeforeValidator(_no_bool),
    _reads(parse_size, _SIZE),
    Field(ge=0, le=_LARGEST),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["998", "64KiB", "50MiB"], "x-kind": "size"}),
]
"""Octets."""
Share = Annotated[
    float,
    BeforeValidator(_no_bool),
    _reads(parse_share, _SHARE),
    _needs("%", _SHARE),
    Field(ge=0, le=1, allow_inf_nan=False),
    PlainSerializer(lambda share: f"{share * 100:g}%", return_type=str),
    WithJsonSchema({"type": "string", "examples": ["5%"], "x-kind": "share"}),
]
"""0 to 1."""
Count = Annotated[int, BeforeValidator(_no_bool), Field(le=_MOST)]


def _is_rate(value: Any) -> RateValue:
    if not isinstance(value, RateValue):
        raise wrong("must be a count and a period", _RATE)
    if not 1 <= value.count <= _MOST:
        raise wrong(f"{value} is outside 1 to {_MOST} messages", _RATE)
    return value


def _is_schedule(value: Any) -> Schedule:
    if not isinstance(value, Schedule):
        raise wrong("must be waits written as one text", _SCHEDULE)
    if max(value.waits) > _LONGEST:
        raise wrong("a wait is longer than 100 years", _SCHEDULE)
    return value


Rate = Annotated[
    InstanceOf[RateValue],
    BeforeValidator(_is_rate),
    _reads(parse_rate, _RATE),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["600/min", "10000/day"], "x-kind": "rate"}),
]
RetrySchedule = Annotated[
    InstanceOf[Schedule],
    BeforeValidator(_is_schedule),
    _reads(parse_schedule, _SCHEDULE),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["1m, 5m*2, 15m, 1h*3, 4h*"], "x-kind": "schedule"}),
]

Secret = Annotated[
    SecretStr,
    PlainSerializer(lambda _: HIDDEN, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "writeOnly": True, "x-kind": "secret"}),
]
"""Never shown: repr, JSON and our own commands write asterisks."""


def _preset(value: Any) -> Any:
    if not isinstance(value, str) or find(value) is None:
        near = nearest(value) if isinstance(value, str) else ""
        remedy = f"Did you mean {near}?" if near else "See relayd upstream presets, or give host and ports instead"
        raise wrong(f"there is no preset {value!r}", remedy)
    return value


PresetName = Annotated[
    str,
    BeforeValidator(_preset),
    WithJsonSchema({"type": "string", "examples": ["office365", "sendgrid", "ses-eu-west-1"], "x-kind": "preset"}),
]
"""A name that presets.py knows."""


def _address(value: str) -> str:
    local, at, domain = value.rpartition("@")
    if not at or not local or _CONTROL.search(value) or " " in value:
        raise wrong(f"{value!r} is not an address", "Write it like info@example.com")
    return f"{local}@{_domain(domain)}"


Address = Annotated[
    str,
    AfterValidator(_address),
    WithJsonSchema({"type": "string", "examples": ["info@example.com"], "x-kind": "address"}),
]
"""A mailbox, its domain in A-labels."""


def _day(value: Any) -> Any:
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise wrong("is not a day", "Write it like 2027-03-31") from None


Day = Annotated[
    datetime.date,
    BeforeValidator(_day),
    WithJsonSchema({"type": "string", "examples": ["2027-03-31"], "x-kind": "day"}),
]


def _block_class(value: Any) -> Any:
    if not isinstance(value, str) or not may_block(value):
        known = ", ".join(sorted(default_rules()))
        raise wrong(f"{value!r} is no class of failure that can block an address", f"Use one of {known}")
    return value


BlockClass = Annotated[str, BeforeValidator(_block_class)]
"""A class of failure that says something about the address."""


_BIND = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[0-9A-Za-z_.-]+)?)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})")


def _bind(value: Any) -> Bind:
    match = _BIND.fullmatch(value) if isinstance(value, str) else None
    try:
        ok = match is not None and int(match["port"]) <= 65535
        if match is not None:
            ipaddress.IPv6Address(match["six"]) if match["six"] else ipaddress.IPv4Address(match["four"])
    except ipaddress.AddressValueError:
        ok = False
    if not ok:
        raise wrong(
            f"{value!r} is not an address to listen on", 'Write "IP:PORT", like "127.0.0.1:2525" or "[::1]:2525"'
        )
    return Bind(value)


BindAddress = Annotated[
    InstanceOf[Bind],
    BeforeValidator(_bind),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["127.0.0.1:2525", "[::]:587"], "x-kind": "IP:PORT"}),
]


def _network(value: Any) -> Any:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        # as text, because ip_network would take the number 10 for 0.0.0.10
        return ipaddress.ip_network(value if isinstance(value, str) else "", strict=False)
    except ValueError:
        remedy = "Write an address or CIDR in quotes, like 192.0.2.0/24 or 2001:db8::/32"
        raise wrong(f"{value!r} is not a network", remedy) from None


Network = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network,
    BeforeValidator(_network),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["192.0.2.0/24", "2001:db8::/32"], "x-kind": "network"}),
]

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PATTERN_LABEL = re.compile(r"[a-z0-9_*?-]{1,63}")
_DOTS = str.maketrans("。．｡", "...")
_DEVIATING = frozenset("ßς\u200c\u200d")
"""Letters that IDNA 2003 and 2008 read differently: the operator says which name is meant."""


def _a_labels(text: Any, what: str, label: re.Pattern[str], example: str = "example.com") -> str:
    """Lower case A-labels (RFC 5890) of a domain that may be written in any script."""
    remedy = f"Write {what}, like {example}, without scheme, port or final dot"
    if not isinstance(text, str):
        raise wrong(f"{text!r} is not {what}", remedy)
    if len(text) > 253:
        raise wrong(f"is longer than {what} may be (253 octets)", remedy)
    labels = text.translate(_DOTS).split(".")
    try:
        labels = [part if part.isascii() else _a_label(part) for part in labels]
    except UnicodeError:
        raise wrong(f"{text!r} is not an internationalised domain", "Write it in A-labels, like xn--...") from None
    domain = ".".join(labels).lower()
    if len(domain) > 253 or not all(label.fullmatch(part) for part in domain.split(".")):
        raise wrong(f"{text!r} is not {what}", remedy)
    return domain


def _a_label(part: str) -> str:
    if _DEVIATING & set(part) or {"*", "?"} & set(part):
        raise UnicodeError
    return part.encode("idna").decode("ascii")


def _domain(value: Any) -> str:
    return _a_labels(value, "a domain", _LABEL)


def _selector(value: Any) -> str:
    return _a_labels(value, "a selector", _LABEL, "r1")


def _domain_pattern(value: Any) -> str:
    return _a_labels(value, "a domain or a pattern of domains", _PATTERN_LABEL)


def _host(value: Any) -> str:
    if isinstance(value, str):
        try:
            return str(ipaddress.ip_address(value.strip("[]")))
        except ValueError:
            pass
    return _a_labels(value, "a host name or an IP address", _LABEL)


_DOMAIN_SCHEMA = {"type": "string", "examples": ["example.com"], "x-kind": "domain"}
Domain = Annotated[str, BeforeValidator(_domain), WithJsonSchema(_DOMAIN_SCHEMA)]
"""In lower case A-labels, however it was written."""
DomainPattern = Annotated[
    str, BeforeValidator(_domain_pattern), WithJsonSchema({**_DOMAIN_SCHEMA, "x-kind": "pattern"})
]
Host = Annotated[str, BeforeValidator(_host), WithJsonSchema({**_DOMAIN_SCHEMA, "x-kind": "host"})]

Selector = Annotated[
    str, BeforeValidator(_selector), WithJsonSchema({"type": "string", "examples": ["r1"], "x-kind": "selector"})
]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _clean(value: str) -> str:
    if _CONTROL.search(value):
        raise wrong("has control characters", "Write it on one line, without tabs")
    return value


Text = Annotated[str, AfterValidator(_clean)]
"""No control characters: it may go to a header, a log or a terminal."""


def _sender(value: str) -> str:
    if not {"@", "*", "?"} & set(value):
        raise wrong(f"{value!r} matches no address", 'Write an address or a pattern, like "*@example.com"')
    return _clean(value)


SenderPattern = Annotated[
    str,
    AfterValidator(_sender),
    WithJsonSchema({"type": "string", "examples": ["*@example.com", "info@example.com"], "x-kind": "pattern"}),
]

_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")


def _header_name(value: str) -> str:
    if not _FIELD_NAME.fullmatch(value):
        raise wrong(f"{value!r} is not the name of a header", "Write the name alone, like X-Relay-Campaign")
    return value


HeaderName = Annotated[str, AfterValidator(_header_name)]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise wrong(
            f"{value!r} is not a name",
            "Write up to 64 letters, digits, dots, hyphens and underscores, beginning with a letter or digit",
        )
    return value


Name = Annotated[str, AfterValidator(_name)]


def _network_name(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return _name(value)
    raise wrong(f"{value!r} is an address, not a name", "Name the network after who is in it, like office")


NetworkName = Annotated[str, AfterValidator(_network_name)]


def _path(value: Path, info: ValidationInfo) -> Path:
    if not str(value).isprintable() or str(value) in ("", "."):
        raise wrong("is not a path", "Write the path of a file")
    if isinstance(info.context, FromFile):
        return info.context.directory / value
    return value


FilePath = Annotated[Path, AfterValidator(_path), WithJsonSchema({"type": "string", "x-kind": "path"})]
"""Relative to the directory of the configuration file; absolute after loading."""
PlainPath = Annotated[Path, WithJsonSchema({"type": "string", "x-kind": "path"})]
"""Left as it was written; its field says where it starts."""


def _url(value: Any) -> str:
    remedy = "Write it like https://example.com/addresses.json"
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        raise wrong("is not a URL", remedy)
    try:
        parts = urllib.parse.urlsplit(value)
        user, host, _ = parts.username, parts.hostname, parts.port
    except ValueError:
        raise wrong("is not a URL", remedy) from None
    if parts.scheme not in ("https", "http") or not host:
        raise wrong("is not a web address", remedy)
    if user is not None:
        raise wrong("holds a user name or password", "Take them out: relayd fetches public lists only")
    return value


def show_url(url: str) -> str:
    """The URL without its query, which may hold a token."""
    parts = urllib.parse.urlsplit(url)
    return url if not (parts.query or parts.fragment) else f"{url.partition('#')[0].partition('?')[0]}?{HIDDEN}"


URL = Annotated[
    str,
    BeforeValidator(_url),
    PlainSerializer(show_url, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["https://example.com/addresses.json"], "x-kind": "URL"}),
]

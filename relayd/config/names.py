"""The names in relayd.yaml: domains, hosts, addresses, headers, patterns; what operators name, and what relayd names.

Domains may be written in any script; they are kept in lower case A-labels (RFC 5890).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from relayd.config.base import wrong
from relayd.config.presets import find, nearest
from relayd.core.blocking import default_rules, may_block

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


def _block_class(value: Any) -> Any:
    if not isinstance(value, str) or not may_block(value):
        known = ", ".join(sorted(default_rules()))
        raise wrong(f"{value!r} is no class of failure that can block an address", f"Use one of {known}")
    return value


BlockClass = Annotated[str, BeforeValidator(_block_class)]
"""A class of failure that says something about the address."""

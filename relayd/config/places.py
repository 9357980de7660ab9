"""The places in relayd.yaml: where to listen, networks, files and URLs. Domains and hosts are names.py's."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, InstanceOf, PlainSerializer, ValidationInfo, WithJsonSchema

from relayd.config.base import HIDDEN, FromFile, wrong
from relayd.core.bind import Bind

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

"""PROXY protocol headers (versions 1 and 2) and XCLIENT attributes, read from octets into values.

Who may send them, and what becomes of the session, is the listener's. Source: haproxy.org, proxy-protocol.txt;
Postfix XCLIENT README.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""The first 12 octets of a version 2 header: no line of SMTP begins so."""
V1_MAX = 107
"""Octets of a version 1 line, CRLF included."""
NOBODY = IPv4Address(0)
"""The client of a proxy that does not know it: in no network, not on this machine, never taken for the proxy itself."""
V2_MAX = 4096
"""Octets that we take behind the fixed part of a version 2 header: addresses need 36, the rest is TLVs, not read."""

_V1 = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})\r\n")
_ADDRESS_SIZE = {0x11: 12, 0x21: 36}  # TCP over IPv4 and over IPv6: two addresses and two ports
_LOCAL, _PROXY = 0, 1
_XTEXT = re.compile(r"\+([0-9A-Fa-f]{2})")
_ATTRIBUTES = frozenset({"NAME", "ADDR", "PORT", "HELO", "PROTO", "LOGIN", "DESTADDR", "DESTPORT"})


class ProxyError(ValueError):
    """A header that breaks the protocol; the connection cannot be trusted and must be closed."""


class NotProxyError(ProxyError):
    """The octets do not begin a PROXY header at all."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A whole header. `source` is None where the proxy speaks for itself (LOCAL), NOBODY where it does not know."""

    length: int
    """Octets of the header; what follows belongs to the client."""
    source: IPv4Address | IPv6Address | None = None
    port: int = 0


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address behind ::ffff:192.0.2.1, and any other address without its scope."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.scope_id is not None:
            return IPv6Address(int(address))
    return address


def parse_proxy(data: bytes) -> ProxyHeader | None:
    """The header that `data` begins with; None when more octets are needed to tell.

    Raises NotProxyError where no header begins, ProxyError where a malformed one does.
    """
    if data[:12] == SIGNATURE[: len(data)] and data:
        return _parse_v2(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _parse_v1(data)
    raise NotProxyError("no PROXY header")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\n", 0, V1_MAX)
    if end < 0:
        if len(data) >= V1_MAX:
            raise ProxyError("the version 1 line is too long")
        return None
    line = data[: end + 1]
    if not line.endswith(b"\r\n"):
        raise ProxyError("the version 1 line does not end in CRLF")
    if line[:13] == b"PROXY UNKNOWN" and line[13:14] in b" \r":
        return ProxyHeader(len(line), NOBODY)
    match = _V1.fullmatch(line)
    if match is None:
        raise ProxyError("the version 1 line is malformed")
    kind = IPv4Address if match[1] == b"TCP4" else IPv6Address
    try:
        source = kind(match[2].decode("ascii"))
        kind(match[3].decode("ascii"))
    except ValueError:
        raise ProxyError("an address of the version 1 line is malformed") from None
    if int(match[4]) > 65535 or int(match[5]) > 65535:
        raise ProxyError("a port of the version 1 line is out of range")
    return ProxyHeader(len(line), unmapped(source), int(match[4]))


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    version, command = data[12] >> 4, data[12] & 0x0F
    family, size = data[13], int.from_bytes(data[14:16], "big")
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise ProxyError("unknown version or command")
    if size > V2_MAX:
        raise ProxyError("the version 2 header is too long")
    if len(data) < 16 + size:
        return None
    if command == _LOCAL:
        return ProxyHeader(16 + size)
    if family in (0x00, 0x31):  # unspecified, or a client on a UNIX socket of the proxy
        return ProxyHeader(16 + size, NOBODY)
    needed = _ADDRESS_SIZE.get(family)
    if needed is None:
        raise ProxyError("the connection is not TCP")
    if size < needed:
        raise ProxyError("the version 2 header is shorter than its addresses")
    width = 4 if family == 0x11 else 16
    source = ipaddress.ip_address(data[16 : 16 + width])
    port = int.from_bytes(data[16 + 2 * width : 18 + 2 * width], "big")
    return ProxyHeader(16 + size, unmapped(source), port)


@dataclass(frozen=True, slots=True)
class XClient:
    """What an XCLIENT command says about the client; None: not said, or [UNAVAILABLE]."""

    address: IPv4Address | IPv6Address
    port: int | None = None
    helo: str | None = None
    esmtp: bool | None = None


def parse_xclient(argument: str) -> XClient:
    """Read the attributes. NAME, LOGIN and the DEST… ones are checked and dropped. Raises ValueError.

    ADDR must be known: else mail of nobody knows whom would pass for the proxy's own.
    """
    attributes: dict[str, str] = {}
    for word in argument.split(" "):
        name, equals, value = word.partition("=")
        name = name.upper()
        if not equals or name not in _ATTRIBUTES or name in attributes:
            raise ValueError("unknown, repeated or empty attribute")
        attributes[name] = _xtext(value)
    known = {name: value for name, value in attributes.items() if value not in ("[UNAVAILABLE]", "[TEMPUNAVAIL]")}
    if "ADDR" not in known:
        raise ValueError("ADDR is missing")
    proto = known.get("PROTO", "").upper()
    if proto not in ("", "SMTP", "ESMTP"):
        raise ValueError("PROTO is SMTP or ESMTP")
    return XClient(
        address=_xclient_address(known["ADDR"]),
        port=_xclient_port(known["PORT"]) if "PORT" in known else None,
        helo=known.get("HELO"),
        esmtp=proto == "ESMTP" if proto else None,
    )


def _xtext(value: str) -> str:
    text = _XTEXT.sub(lambda match: chr(int(match[1], 16)), value)
    if not text or not text.isascii() or not text.isprintable() or len(text) > 255:
        raise ValueError("an attribute value is empty, too long or not printable ASCII")
    return text


def _xclient_address(text: str) -> IPv4Address | IPv6Address:
    if text[:5].upper() == "IPV6:":
        text = text[5:]
    if "%" in text:
        raise ValueError("ADDR carries a scope")
    return unmapped(ipaddress.ip_address(text))


def _xclient_port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise ValueError("PORT is out of range")
    return int(text)

"""PROXY headers and XCLIENT attributes: every whole header is read to the octet, every other input is refused."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.proxy import (
    NOBODY,
    SIGNATURE,
    V1_MAX,
    NotProxyError,
    ProxyError,
    ProxyHeader,
    XClient,
    parse_proxy,
    parse_xclient,
    unmapped,
)

ports = st.integers(0, 65535)


def v1(source: object, port: int) -> bytes:
    kind = "TCP4" if isinstance(source, ipaddress.IPv4Address) else "TCP6"
    target = "192.0.2.1" if kind == "TCP4" else "2001:db8::1"
    return f"PROXY {kind} {source} {target} {port} 25\r\n".encode()


def v2(source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, tlvs: bytes = b"") -> bytes:
    family = 0x11 if source.version == 4 else 0x21
    body = source.packed + bytes(len(source.packed)) + struct.pack(">HH", port, 25) + tlvs
    return SIGNATURE + bytes([0x21, family]) + struct.pack(">H", len(body)) + body


headers = st.one_of(
    st.builds(lambda ip, port: (v1(ip, port), ip, port), st.ip_addresses(), ports),
    st.builds(lambda ip, port, tlvs: (v2(ip, port, tlvs), ip, port), st.ip_addresses(), ports, st.binary(max_size=300)),
)


@given(headers, st.binary(max_size=50))
def test_a_header_is_read_to_the_octet_however_much_of_it_has_come(header: tuple, behind: bytes) -> None:
    octets, source, port = header
    wanted = ProxyHeader(len(octets), unmapped(source), port)
    assert parse_proxy(octets + behind) == wanted
    for length in range(len(octets)):
        assert parse_proxy(octets[:length]) is None, length


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=100).map(lambda b: SIGNATURE + b),
        st.binary(max_size=130).map(lambda b: b"PROXY " + b),
    )
)
def test_no_input_does_more_than_raise_proxy_error(octets: bytes) -> None:
    try:
        header = parse_proxy(octets)
    except ProxyError:
        return
    if header is not None:
        assert 0 < header.length <= len(octets)
    else:
        assert len(octets) < 16 + 4096


@pytest.mark.parametrize("octets", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"])
def test_an_unknown_client_is_not_taken_for_the_proxy(octets: bytes) -> None:
    assert parse_proxy(octets) == ProxyHeader(len(octets), NOBODY)


@pytest.mark.parametrize(
    ("command", "family", "body", "source"),
    [
        (0x20, 0x00, b"", None),
        (0x20, 0x11, b"x" * 12, None),
        (0x21, 0x00, b"tlv", NOBODY),
        (0x21, 0x31, b"x" * 216, NOBODY),
    ],
)
def test_only_local_leaves_the_proxy_as_the_client(
    command: int, family: int, body: bytes, source: ipaddress.IPv4Address | None
) -> None:
    octets = SIGNATURE + bytes([command, family]) + struct.pack(">H", len(body)) + body
    assert parse_proxy(octets + b"EHLO") == ProxyHeader(len(octets), source)


@pytest.mark.parametrize(
    "octets",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 2001:db8::1 192.0.2.2 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY " + b"x" * V1_MAX,
        b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
        SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_malformed_headers_are_refused(octets: bytes) -> None:
    with pytest.raises(ProxyError):
        parse_proxy(octets)


@pytest.mark.parametrize("octets", [b"EHLO app\r\n", b"\x16\x03\x01", b"\r\nX", b"PROXX"])
def test_what_is_no_header_is_told_apart(octets: bytes) -> None:
    with pytest.raises(NotProxyError):
        parse_proxy(octets)


def test_mapped_and_scoped_addresses_lose_both() -> None:
    assert unmapped(ipaddress.ip_address("::ffff:192.0.2.1")) == ipaddress.ip_address("192.0.2.1")
    assert unmapped(ipaddress.ip_address("fe80::1%eth0")) == ipaddress.ip_address("fe80::1")


def test_xclient_attributes() -> None:
    said = parse_xclient("NAME=app.example ADDR=192.0.2.7 PORT=1234 HELO=app+2Eexample PROTO=ESMTP LOGIN=shop")
    assert said == XClient(ipaddress.ip_address("192.0.2.7"), 1234, "app.example", True)
    assert parse_xclient("addr=IPV6:2001:db8::7 NAME=[UNAVAILABLE] PROTO=SMTP") == XClient(
        ipaddress.ip_address("2001:db8::7"), esmtp=False
    )
    assert parse_xclient("ADDR=ipv6:::ffff:192.0.2.7").address == ipaddress.ip_address("192.0.2.7")


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "NAME=x",
        "ADDR=",
        "ADDR=[UNAVAILABLE]",
        "ADDR=192.0.2.7 ADDR=192.0.2.8",
        "ADDR=192.0.2.7  PORT=1",
        "ADDR=fe80::1%eth0",
        "ADDR=192.0.2.7 PORT=65536",
        "ADDR=192.0.2.7 PORT=x",
        "ADDR=192.0.2.7 PROTO=LMTP",
        "ADDR=192.0.2.7 HELO=a+0D+0Ab",
        "ADDR=192.0.2.7 HELO=" + "x" * 256,
        "ADDR=192.0.2.7 WHAT=x",
    ],
)
def test_malformed_xclient_is_refused(argument: str) -> None:
    with pytest.raises(ValueError):
        parse_xclient(argument)


@given(st.text(max_size=100))
def test_xclient_raises_nothing_else(argument: str) -> None:
    try:
        parse_xclient("ADDR=" + argument)
    except ValueError:
        return

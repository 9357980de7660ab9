"""Header surgery: what is found, what is spliced, and that the quick way answers as the careful one does."""

from __future__ import annotations

import email
import email.policy
import email.utils
import re
from collections.abc import Collection
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core import headers
from relayd.core.headers import assembly, date_header, facts, format_date, message_id_header, received, scan
from relayd.core.mail import Origin

ORDINARY = (
    b"Received: from a.example\r\n\tby b.example; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    b"Received: from c.example by a.example; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    b'From: "Shop, The" <Info@Shop.Example.COM>\r\n'
    b"To: someone@example.org\r\n"
    b"Subject: Your order\r\n  has shipped\r\n"
    b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    b"Message-ID: <abc@shop.example.com>\r\n"
    b"X-Relay-Campaign: newsletter\r\n"
    b"X-Team: sales\r\n"
    b"\r\n"
    b"From: not@header.example\r\n\r\nbody\r\n"
)


def assembled(content: bytes, *, prepend: bytes = b"", drop: Collection[str] = ()) -> bytes:
    return b"".join(assembly(content, prepend=prepend, drop=drop))


_pieces = st.sampled_from(
    [
        b"\r\n",
        b"\r",
        b"\n",
        b" ",
        b"\t",
        b":",
        b"From: a@b.example\r\n",
        b"from : c@d.example\r\n",
        b"From nobody Mon Jan 1 00:00:00 2024\r\n",
        b">From x\r\n",
        b"Received: x\r\n",
        b"Subject: =?utf-8?B?5pel5pys?=\r\n =?utf-8?B?6Kqe?=\r\n",
        b"Date: now\r\n",
        b"Message-Id: <x@y>\r\n",
        b"X-Relay-Campaign: c\r\n",
        b"X-Relay-Campaign: second\r\n",
        b"X-Label:\r\n folded\r\n",
        b"junk\r\n",
        b"\r\n\r\n",
        b"\x00",
        b"\xff",
    ]
)
messages = st.one_of(st.lists(_pieces, max_size=14).map(b"".join), st.binary(max_size=60))


def test_facts_of_an_ordinary_header() -> None:
    found = facts(ORDINARY, "X-Relay-Campaign", ["X-Team", "X-Absent"])
    assert found.from_domain == "shop.example.com"
    assert found.message_id == "<abc@shop.example.com>"
    assert found.subject == "Your order has shipped"
    assert found.campaign == "newsletter"
    assert found.received_count == 2
    assert found.has_date
    assert found.has_message_id
    assert found.labels == {"x-team": "sales"}


def test_scan_names_every_field_with_its_octets() -> None:
    block = scan(ORDINARY)
    assert [name for name, _, _ in block.fields] == [
        b"received", b"received", b"from", b"to", b"subject", b"date", b"message-id", b"x-relay-campaign", b"x-team",
    ]  # fmt: skip
    assert b"".join(ORDINARY[start:end] for _, start, end in block.fields) == ORDINARY[: block.end]
    assert ORDINARY[block.end : block.body] == b"\r\n"


@pytest.mark.parametrize(
    ("content", "names", "end", "body"),
    [
        (b"", [], 0, 0),
        (b"\r\n", [], 0, 2),
        (b"\r\nSubject: body\r\n", [], 0, 2),
        (b"Subject: x\r\n", [b"subject"], 12, 12),
        (b"Subject: x", [b"subject"], 10, 10),
        (b"Subject: x\r\n\r\n", [b"subject"], 12, 14),
        (b"Subject : x\r\n\r\n", [b"subject"], 13, 15),
        (b"Subject:\r\n\tx\r\n\r\n", [b"subject"], 14, 16),
        (b"no header at all\r\n", [], 0, 0),
        (b" starts with white space\r\nSubject: x\r\n\r\n", [], 0, 0),
        (b"Subject: x\r\njunk\r\nTo: y\r\n\r\nbody\r\n", [b"subject"], 12, 12),
        (b"From a Mon Jan 1 00:00:00 2024\r\nTo: y\r\n\r\n", [b"to"], 39, 41),
        (b"To: y\r\n>From a Mon\r\n folded\r\nCc: z\r\n\r\n", [b"to", b"cc"], 36, 38),
        (b": no name\r\n\r\n", [], 0, 0),
        (b"S\xc3\xbcbject: x\r\n\r\n", [], 0, 0),
        (b"A: \x00\xff\r\nB: bare\rcr and\nlf: x\r\n\r\n", [b"a", b"b"], 29, 31),
    ],
)
def test_scan_takes_whatever_comes(content: bytes, names: list[bytes], end: int, body: int) -> None:
    block = scan(content)
    assert [name for name, _, _ in block.fields] == names
    assert (block.end, block.body) == (end, body)
    facts(content, "X-Relay-Campaign", ["x-label"])


@pytest.mark.parametrize(
    ("header", "others"),
    [
        (b"From: a@x.example\r\n", ()),
        (b"From: a@x.example, b@Y.example\r\n", ("y.example",)),
        (b"From: a@x.example\r\nTo: c@z.example\r\nFrOm: b@y.example\r\n", ("y.example",)),
        (b"From: a@x.example\r\nFrom : b@y.example, a@x.example\r\n", ("y.example", "x.example")),
        (b"From: a@x.example\r\nFrom:\r\n The Boss\r\n", ("",)),
        (b"From: a@x.example\r\n" * 22, ("x.example", "")),
    ],
)
def test_whoever_else_is_named_as_an_author(header: bytes, others: tuple[str, ...]) -> None:
    found = facts(b"Received: x\r\n" + header + b"\r\nFrom: c@body.example\r\n")
    assert (found.from_domain, found.co_authors, found.received_count) == ("x.example", others, 1)


def test_huge_headers_are_read() -> None:
    many = b"X-A: b\r\n" * 20_000 + b"From: a@late.example\r\n\r\nbody\r\n"
    assert facts(many).from_domain == "late.example"
    assert len(scan(many).fields) == 20_001
    long = b"X-A: " + b"b" * 1_000_000 + b"\r\nFrom: a@late.example\r\n\r\nbody\r\n"
    assert facts(long).from_domain == "late.example"
    no_end = b"x" * 1_000_000
    assert scan(no_end).fields == []


@given(messages)
def test_quick_way_answers_as_the_careful_one(content: bytes) -> None:
    walked = headers._walk(content)
    assert scan(content) == walked
    assert facts(content, "X-Relay-Campaign", ["X-Label", "Received"]) == headers._facts(
        content, walked, "X-Relay-Campaign", ["X-Label", "Received"]
    )


@given(messages)
def test_where_the_facts_call_a_header_plain_there_is_nothing_to_cut_out(content: bytes) -> None:
    ours, names = b"Received: ours\r\n", ["X-Relay-Campaign", "X-Label"]
    if facts(content, names[0], names[1:]).plain:
        assert assembled(content, prepend=ours, drop=names) == ours + content


def test_an_ordinary_header_is_plain_unless_a_field_is_meant_for_us() -> None:
    header = b"From: a@example.com\r\nSubject: x\r\n"
    for field, plain in ((b"", True), (b"X-Label: a\r\n", False), (b"X-Relay-Campaign:\r\n", False)):
        assert facts(header + field + b"\r\nbody\r\n", "X-Relay-Campaign", ["X-Label"]).plain is plain


@given(messages)
def test_quick_assembly_answers_as_the_careful_one(content: bytes) -> None:
    ours, names = b"Received: ours\r\n", {b"x-relay-campaign", b"x-label"}
    out = assembled(content, prepend=ours, drop=["X-Relay-Campaign", "X-Label"])
    block = headers._walk(content)
    kept, end = bytearray(content), block.end
    for name, start, behind in reversed(block.fields):
        if name in names:
            del kept[start:behind]
            end -= behind - start
    others = [name for name, _, _ in block.fields if name not in names]
    # what had no header, and no empty line that ends one, gets that line: else its text would go on with ours
    line = b"\r\n" if not others and block.body == block.end < len(content) else b""
    assert out == ours + bytes(kept[:end]) + line + bytes(kept[end:])
    again = scan(out)
    assert again.fields[0] == (b"received", 0, len(ours))
    assert [name for name, _, _ in again.fields[1:]] == others


@given(messages)
def test_nothing_to_do_changes_nothing(content: bytes) -> None:
    assert assembled(content) == content


def test_assembly_cuts_every_field_of_a_name_with_its_folds() -> None:
    content = b"X-C: a\r\n b\r\nSubject: x\r\nx-c : again\r\n\r\nX-C: body\r\n"
    assert assembled(content, drop=["X-C"]) == b"Subject: x\r\n\r\nX-C: body\r\n"
    assert assembled(content, prepend=b"A: b\r\n", drop=["x-c"]) == b"A: b\r\nSubject: x\r\n\r\nX-C: body\r\n"


def test_a_message_without_header_is_kept_from_becoming_one() -> None:
    assert assembled(b"hello: there\r\n", prepend=b"A: b\r\n") == b"A: b\r\nhello: there\r\n"
    assert assembled(b"hello there\r\n", prepend=b"A: b\r\n") == b"A: b\r\n\r\nhello there\r\n"
    assert assembled(b" hello: there\r\n", prepend=b"A: b\r\n") == b"A: b\r\n\r\n hello: there\r\n"
    assert assembled(b"\r\nhello\r\n", prepend=b"A: b\r\n") == b"A: b\r\n\r\nhello\r\n"


ORIGIN = Origin("submission", "192.0.2.1", "app.example.com", tls="TLSv1.3", protocol="ESMTPSA")
AT = 1_700_000_000_000


def test_received_tells_the_way() -> None:
    assert received(ORIGIN, hostname="relay.example.com", id_text="01hmx0q2v4000", at=AT, recipient="a@b.example") == (
        b"Received: from app.example.com ([192.0.2.1])\r\n"
        b"\tby relay.example.com (relayd submission)\r\n"
        b"\twith ESMTPSA (TLSv1.3) id 01hmx0q2v4000 for <a@b.example>;\r\n"
        b"\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


def test_received_of_ipv6_without_helo_or_tls() -> None:
    line = received(Origin("l", "2001:db8::1"), hostname="h.example", id_text="x", at=AT)
    assert line.startswith(b"Received: from unknown ([IPv6:2001:db8::1])")
    assert b" for " not in line


def test_received_shows_a_utf8_recipient_only_where_the_way_was_utf8() -> None:
    plain = Origin("l", "192.0.2.1", protocol="ESMTP")
    utf8 = Origin("l", "192.0.2.1", protocol="UTF8SMTP")
    assert b" for " not in received(plain, hostname="h", id_text="x", at=AT, recipient="日本@例え.jp")
    assert "for <日本@例え.jp>".encode() in received(utf8, hostname="h", id_text="x", at=AT, recipient="日本@例え.jp")


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=60), st.text(max_size=300))
def test_nothing_gets_into_received(helo: str, peer: str, protocol: str, recipient: str) -> None:
    origin = Origin("li\nst", peer, helo, tls="TLS\r\nv", protocol=protocol)
    line = received(origin, hostname="h\r\nX: y", id_text="i\0d", at=AT, recipient=recipient)
    block = scan(line + b"\r\n")
    assert block.fields == [(b"received", 0, len(line))]
    assert b"\0" not in line
    assert line.count(b"\r") == line.count(b"\n") == line.count(b"\r\n")
    assert all(row[:1] == b"\t" for row in line.split(b"\r\n")[1:-1])
    assert max(map(len, line.split(b"\r\n"))) <= 998
    assert email.message_from_bytes(line + b"\r\n", policy=email.policy.compat32).defects == []


@given(st.integers(0, 4_102_444_800_000))
def test_dates_are_read_back_by_others(at: int) -> None:
    moment = email.utils.parsedate_to_datetime(format_date(at))
    assert moment == datetime.fromtimestamp(at // 1000, UTC)
    assert moment.strftime("%a") == format_date(at)[:3]
    assert date_header(at) == f"Date: {format_date(at)}\r\n".encode()


def test_made_message_id_is_one() -> None:
    line = message_id_header("01hmx0q2v4000", "relay.example.com")
    assert line == b"Message-ID: <01hmx0q2v4000@relay.example.com>\r\n"
    assert b"\n" not in message_id_header("a\nb", "c\rd")[:-2]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b" <a@b>\r\n", "<a@b>"),
        (b"\r\n <folded@b.example>\r\n", "<folded@b.example>"),
        (b" (comment) <a@b> (another)\r\n", "<a@b>"),
        (b" no-brackets@b\r\n", "no-brackets@b"),
        (b"\r\n", ""),
        (b" <with space@b>\r\n", "<with space@b>"),
    ],
)
def test_message_id_values(value: bytes, expected: str) -> None:
    found = facts(b"Message-ID:" + value + b"\r\n")
    assert found.message_id == expected
    assert found.has_message_id


@given(st.binary(max_size=200))
def test_values_carry_no_control_characters(value: bytes) -> None:
    clean = re.sub(rb"\r\n(?![ \t])", b"", value)
    found = facts(
        b"Subject: " + clean + b"\r\nMessage-ID: " + clean + b"\r\nX-L: " + clean + b"\r\n\r\n", "X-L", ["x-l"]
    )
    for text in (found.subject, found.message_id, found.campaign or "", *found.labels.values()):
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text)
    assert len(found.subject) <= 200

"""Accounts: which one carries a mail, who is refused, and what is changed in a mail that goes out as a mailbox."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config.models import Config, Per, Route, SMTPUpstream
from relayd.core.headers import scan
from relayd.core.mail import Envelope, Message, Recipient
from relayd.delivery.accounts import AccountBook, LaneTable, as_mailbox, books_of
from relayd.delivery.plan import build_plan, logins_of
from tests.endtoend.client import Client, send_one
from tests.support.daemon import Daemon, Secret, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.support.mail import CONTENT, make_message


def upstream(**keys: Any) -> SMTPUpstream:
    accounts = [
        {"address": "info@example.jp", "password": "p"},
        {"address": "sales@example.jp", "password": "p"},
        {"domain": "shop.example", "username": "u", "password": "p"},
    ]
    return SMTPUpstream.model_validate({"host": "h", "accounts": accounts, **keys})


def mail(sender: str, *, from_domain: str = "", protocol: str = "ESMTP") -> Message:
    message = make_message(1)
    origin = replace(message.origin, protocol=protocol)
    return replace(message, envelope=Envelope(sender), from_domain=from_domain, origin=origin)


@pytest.mark.parametrize(
    ("sender", "lane"),
    [
        ("info@example.jp", "x/info@example.jp"),
        ("INFO@Example.JP", "x/info@example.jp"),
        ("sales@example.jp", "x/sales@example.jp"),
        ("anyone@shop.example", "x/shop.example"),
        ("other@example.jp", None),
        ("info@elsewhere.example", None),
        ("anyone@sub.shop.example", None),
    ],
)
def test_the_sender_chooses_the_account(sender: str, lane: str | None) -> None:
    assert AccountBook("x", upstream()).lane_for(mail(sender)) == lane


def test_a_null_sender_goes_by_the_from_domain_and_reports_of_ours_always_go() -> None:
    book = AccountBook("x", upstream())
    assert book.lane_for(mail("", from_domain="shop.example")) == "x/shop.example"
    assert book.lane_for(mail("", from_domain="example.jp")) == "x/info@example.jp"
    assert book.lane_for(mail("", from_domain="nowhere.example")) is None
    assert book.lane_for(mail("", from_domain="relay.test", protocol="LOCAL")) == "x/info@example.jp"


def test_where_a_mailbox_stands_in_everybody_has_a_lane() -> None:
    assert AccountBook("x", upstream(rewrite_sender=True)).lane_for(mail("other@e.example")) == "x/info@example.jp"


def test_per_domain_shares_a_login_and_per_address_binds_the_only_one() -> None:
    accounts = [{"address": "info@example.jp", "password": "p"}]
    shared = AccountBook("x", upstream(per=Per.DOMAIN, accounts=accounts))
    assert shared.lane_for(mail("other@example.jp")) == "x/info@example.jp"
    single = AccountBook("x", upstream(per=Per.ADDRESS, accounts=[], username="me@example.jp", password="p"))
    assert single.lane_for(mail("me@example.jp")) == "x"
    assert single.lane_for(mail("you@example.jp")) is None


def test_a_stranger_is_told_from_mail_without_a_route() -> None:
    table = LaneTable([Route(upstream="x")], {"x": AccountBook("x", upstream())})
    assert table.stranger(mail("other@example.jp"), Recipient("a@b.example"))
    assert not table.stranger(mail("info@example.jp"), Recipient("a@b.example"))
    assert LaneTable([Route(upstream="x")], {}).routes != table.routes


def test_each_account_has_its_own_login_and_connections(tmp_path: Any) -> None:
    section = {
        "host": "h",
        "limits": {"connections": 7},
        "accounts": [
            {"address": "info@example.jp", "password": "a"},
            {"address": "sales@example.jp", "username": "s", "password": "b", "limits": {"connections": 2}},
        ],
    }
    config = Config.model_validate(
        {
            "hostname": "relay.test",
            "data_dir": tmp_path,
            "listeners": [{"name": "a", "bind": ["127.0.0.1:0"]}],
            "upstreams": {"x": section},
            "routes": [{"upstream": "x"}],
        }
    )
    plan = build_plan(config, lambda: 0)
    plan.signing.close()
    assert {name: lane.connections for name, lane in plan.upstreams.items()} == {
        "x/info@example.jp": 7,
        "x/sales@example.jp": 2,
    }
    users = [login[1].username for login in logins_of(config).values() if isinstance(login[1], SMTPUpstream)]
    assert users == ["info@example.jp", "s"]
    assert set(books_of(config)) == {"x"}


def test_from_becomes_the_mailbox_and_the_old_one_reply_to() -> None:
    content = (
        b"Subject: s\r\nFrom: Taro\r\n <taro@app.example>\r\nSender: x@y.example\r\nTo: b@c\r\n\r\nFrom: stays\r\n"
    )
    assert as_mailbox(content, "info@example.jp") == (
        b"Subject: s\r\nFrom: <info@example.jp>\r\nReply-To: Taro\r\n <taro@app.example>\r\n"
        b"To: b@c\r\n\r\nFrom: stays\r\n"
    )
    answered = b"Reply-To: r@app.example\r\nFrom: taro@app.example\r\n\r\n"
    assert as_mailbox(answered, "i@e.jp") == b"Reply-To: r@app.example\r\nFrom: <i@e.jp>\r\n\r\n"
    assert as_mailbox(b"Subject: s\r\n\r\nb", "i@e.jp") == b"From: <i@e.jp>\r\nSubject: s\r\n\r\nb"


def test_a_big_one_is_changed_alike() -> None:
    text = b"A line of the text.\r\n" * 40_000
    for header in (b"From: a@b.example\r\nSubject: s\r\n", b"Subject: s\r\n", b""):
        small = as_mailbox(header + b"\r\n", "i@e.jp")
        assert as_mailbox(header + b"\r\n" + text, "i@e.jp") == small + text


@given(
    st.lists(
        st.sampled_from(
            [b"From: a@b\r\n", b"Subject: s\r\n  more\r\n", b"from : c@d\r\n", b"X: y\r\n", b"Sender: q\r\n"]
        )
    ),
    st.binary(max_size=60),
)
def test_nothing_else_is_touched(fields: list[bytes], body: bytes) -> None:
    content = b"".join(fields) + b"\r\n" + body
    out = as_mailbox(content, "info@example.jp")
    assert out.endswith(b"\r\n" + body)
    names = [name for name, _, _ in scan(out).fields]
    assert names.count(b"from") == 1
    assert b"sender" not in names
    assert [field for field in fields if field[:1] in b"SX" and not field.startswith(b"Sender")] == [
        out[start:end] for name, start, end in scan(out).fields if name in (b"subject", b"x")
    ]


def team(fake: FakeUpstream, **keys: Any) -> dict[str, Any]:
    section = smtp_upstream(fake, **keys)
    section.pop("username", None)
    section.pop("password", None)
    section["accounts"] = [
        {"address": "info@example.jp", "password": Secret("info-password")},
        {"address": "sales@example.jp", "password": Secret("sales-password")},
    ]
    return section


USERS = {"info@example.jp": "info-password", "sales@example.jp": "sales-password"}


async def test_a_changed_password_pauses_that_account_alone_and_strangers_are_refused(make_daemon: Any) -> None:
    async with FakeUpstream(tls="starttls", users=USERS, require_auth=True) as fake:
        fake.users["sales@example.jp"] = "changed"
        quick = {"relayd.delivery.gate:FIRST_PAUSE": 150, "relayd.delivery.gate:LONGEST_PAUSE": 300}
        daemon: Daemon = make_daemon({"upstreams": {"team": team(fake)}}, constants=quick)
        async with daemon:
            await send_one(daemon.port, "sales@example.jp", "b@c.example")
            await daemon.wait_for_event("deferred", upstream="team/sales@example.jp")
            await send_one(daemon.port, "info@example.jp", "b@c.example")
            await daemon.wait_for_event("delivered", upstream="team/info@example.jp")
            fake.users["sales@example.jp"] = "sales-password"
            await daemon.wait_for_event("delivered", upstream="team/sales@example.jp")
        assert {one.username for one in fake.accepted} == set(USERS)
    assert {event["attempt"] for event in daemon.events("delivered")} == {1}


async def test_a_sender_without_an_account_is_refused_or_sent_as_the_mailbox(make_daemon: Any) -> None:
    async with FakeUpstream(tls="starttls", users=USERS, require_auth=True) as fake:
        daemon: Daemon = make_daemon({"upstreams": {"team": team(fake)}})
        async with daemon:
            async with Client(daemon.port) as client:
                code, text = await client.send("app@example.jp", ["b@c.example"], CONTENT)
            assert (code, "5.7.1" in text, "<app@example.jp>" in text) == (553, True, True)
        daemon = make_daemon({"upstreams": {"team": team(fake, rewrite_sender=True)}})
        async with daemon:
            await send_one(daemon.port, "app@example.jp", "b@c.example")
            await daemon.wait_for_event("delivered")
    [mail] = fake.accepted
    assert (mail.sender, mail.username) == ("info@example.jp", "info@example.jp")
    assert b"\r\nFrom: <info@example.jp>\r\nReply-To: " in b"\r\n" + mail.content


async def test_the_return_path_can_be_the_account(make_daemon: Any) -> None:
    async with FakeUpstream(tls="starttls", users={"me@example.jp": "canary-password"}, require_auth=True) as fake:
        daemon: Daemon = make_daemon({"upstreams": {"team": smtp_upstream(fake, return_path="account")}})
        async with daemon:
            await send_one(daemon.port, "app@example.com", "b@c.example")
            await daemon.wait_for_event("delivered")
    assert fake.accepted[0].sender == "me@example.jp"
    assert b"me@example.jp" not in fake.accepted[0].content

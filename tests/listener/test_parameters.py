"""The arguments of MAIL and RCPT, form by form: what is taken and with which value, what is refused with which code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.mail import Body, Envelope, Notify, Recipient, Ret
from relayd.listener.ends import Refused
from relayd.listener.parameters import parse_mail, parse_rcpt

HOST = "relay.example.com"


@pytest.mark.parametrize(
    ("argument", "envelope", "size"),
    [
        ("FROM:<a@example.com>", Envelope("a@example.com"), 0),
        ("from:<a@example.com>", Envelope("a@example.com"), 0),
        ("FROM: <a@example.com>", Envelope("a@example.com"), 0),
        ("FROM:<a@example.com> ", Envelope("a@example.com"), 0),
        ("FROM:<>", Envelope(""), 0),
        ("FROM:<> SIZE=12", Envelope(""), 12),
        ("FROM:<@relay.example,@other.example:a@example.com>", Envelope("a@example.com"), 0),
        ('FROM:<"a> b"@example.com> SIZE=1', Envelope('"a> b"@example.com'), 1),
        ('FROM:<"a\\" b"@example.com>', Envelope('"a\\" b"@example.com'), 0),
        ("FROM:<a@[192.0.2.1]>", Envelope("a@[192.0.2.1]"), 0),
        ("FROM:<a@example.com>  SIZE=1  BODY=7BIT", Envelope("a@example.com"), 1),
        ("FROM:<a@example.com> BODY=8bitmime", Envelope("a@example.com", Body.EIGHT_BIT_MIME), 0),
        ("FROM:<ä@example.com> SMTPUTF8", Envelope("ä@example.com", smtputf8=True), 0),
        ("FROM:<a@example.com> RET=FULL", Envelope("a@example.com", ret=Ret.FULL), 0),
        ("FROM:<a@example.com> ENVID=a+3Db", Envelope("a@example.com", envid="a+3Db"), 0),
        ("FROM:<a@example.com> ENVID=" + "x" * 100, Envelope("a@example.com", envid="x" * 100), 0),
        ("FROM:<a@example.com> AUTH=b+40example.com", Envelope("a@example.com"), 0),
    ],
)
def test_mail_that_is_taken(argument: str, envelope: Envelope, size: int) -> None:
    assert parse_mail(argument) == (envelope, size)


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        ("", "501 5.5.2"),
        ("TO:<a@example.com>", "501 5.5.2"),
        ("FROM:a@example.com", "501 5.5.2"),
        ("FROM:<a@example.com", "501 5.5.2"),
        ("FROM:  <a@example.com>", "501 5.5.2"),
        ("FROM:<a@example.com>SIZE=1", "501 5.5.2"),
        ("FROM:<<a@example.com>>", "501 5.5.2"),
        ("FROM:<a b@example.com>", "501 5.1.7"),
        ("FROM:<a>", "501 5.1.7"),
        ("FROM:<a@>", "501 5.1.7"),
        ("FROM:<@example.com>", "501 5.1.7"),
        ("FROM:<a@-example.com>", "501 5.1.7"),
        ("FROM:<" + "a" * 65 + "@example.com>", "501 5.1.7"),
        ("FROM:<ä@example.com>", "553 5.6.7"),
        ("FROM:<a@example.com> SIZE", "501 5.5.4"),
        ("FROM:<a@example.com> SIZE=", "501 5.5.4"),
        ("FROM:<a@example.com> SIZE=-1", "501 5.5.4"),
        ("FROM:<a@example.com> SIZE=1x", "501 5.5.4"),
        ("FROM:<a@example.com> SIZE=१", "501 5.5.4"),
        ("FROM:<a@example.com> SIZE=" + "9" * 21, "501 5.5.4"),
        ("FROM:<a@example.com> SIZE=1 size=1", "501 5.5.4"),
        ("FROM:<a@example.com> BODY=9BIT", "501 5.5.4"),
        ("FROM:<a@example.com> BODY=BINARYMIME", "555 5.5.4"),
        ("FROM:<a@example.com> SMTPUTF8=yes", "501 5.5.4"),
        ("FROM:<a@example.com> RET=SOME", "501 5.5.4"),
        ("FROM:<a@example.com> ENVID=" + "x" * 101, "501 5.5.4"),
        ("FROM:<a@example.com> ENVID=a+0D+0Ab", "501 5.5.4"),
        ("FROM:<a@example.com> ENVID=a+4", "501 5.5.4"),
        ("FROM:<a@example.com> ENVID=a=b", "501 5.5.4"),
        ("FROM:<a@example.com> AUTH=a=b", "501 5.5.4"),
        ("FROM:<a@example.com> NOTIFY=NEVER", "555 5.5.4"),
        ("FROM:<a@example.com> HOLDFOR=1", "555 5.5.4"),
        ("FROM:<a@example.com> =x", "501 5.5.4"),
        ("FROM:<a@example.com> \u00e4=x", "501 5.5.4"),
    ],
)
def test_mail_that_is_refused(argument: str, reply: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_mail(argument)
    assert str(refused.value.reply).startswith(reply)


@pytest.mark.parametrize(
    ("argument", "recipient"),
    [
        ("TO:<a@example.com>", Recipient("a@example.com")),
        ("to: <A@Example.com>", Recipient("A@Example.com")),
        ("TO:<postmaster>", Recipient("postmaster@relay.example.com")),
        ("TO:<@r.example:a@example.com>", Recipient("a@example.com")),
        ("TO:<a@example.com> NOTIFY=never", Recipient("a@example.com", frozenset({Notify.NEVER}))),
        (
            "TO:<a@example.com> NOTIFY=DELAY,success",
            Recipient("a@example.com", frozenset({Notify.DELAY, Notify.SUCCESS})),
        ),
        (
            "TO:<a@example.com> ORCPT=rfc822;A+2B1@Example.com",
            Recipient("a@example.com", orcpt="rfc822;A+2B1@Example.com"),
        ),
        ("TO:<a@example.com> ORCPT=utf-8;\\x{82B1}@e.jp", Recipient("a@example.com", orcpt="utf-8;\\x{82B1}@e.jp")),
        ("TO:<a@example.com> ORCPT=x400;/S=a/", None),
        ("TO:<a@example.com> ORCPT=x400;/S+3Da/", Recipient("a@example.com", orcpt="x400;/S+3Da/")),
    ],
)
def test_rcpt_that_is_taken(argument: str, recipient: Recipient | None) -> None:
    if recipient is None:
        with pytest.raises(Refused):
            parse_rcpt(argument, HOST)
    else:
        assert parse_rcpt(argument, HOST) == recipient


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        ("TO:a@example.com", "501 5.5.2"),
        ("TO:<>", "501 5.1.3"),
        ("TO:<a>", "501 5.1.3"),
        ("TO:<ä@example.com>", "553 5.6.7"),
        ("TO:<a@example.com> NOTIFY=", "501 5.5.4"),
        ("TO:<a@example.com> NOTIFY=NEVER,DELAY", "501 5.5.4"),
        ("TO:<a@example.com> NOTIFY=DELAY,DELAY", "501 5.5.4"),
        ("TO:<a@example.com> NOTIFY=MAYBE", "501 5.5.4"),
        ("TO:<a@example.com> ORCPT=a@example.com", "501 5.5.4"),
        ("TO:<a@example.com> ORCPT=rfc822;", "501 5.5.4"),
        ("TO:<a@example.com> ORCPT=rfc822;a+0Ab", "501 5.5.4"),
        ("TO:<a@example.com> ORCPT=rfc822;" + "a" * 500, "501 5.5.4"),
        ("TO:<a@example.com> ORCPT=utf-8;\\x{0A}", "501 5.5.4"),
        ("TO:<a@example.com> ORCPT=utf-8;\\x{D800}", "501 5.5.4"),
        ("TO:<a@example.com> ORCPT=utf-8;ä@example.com", "501 5.5.4"),
        ("TO:<a@example.com> SIZE=1", "555 5.5.4"),
    ],
)
def test_rcpt_that_is_refused(argument: str, reply: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_rcpt(argument, HOST)
    assert str(refused.value.reply).startswith(reply)


@pytest.mark.parametrize("argument", ["FROM:<a@example.com>", "FROM:<>", "FROM:<a@example.com> AUTH=<>", "FROM:a>"])
@pytest.mark.parametrize("esmtp", [True, False])
def test_a_sender_who_comes_again_is_judged_as_the_first_time(argument: str, esmtp: bool) -> None:
    def outcome() -> object:
        try:
            return parse_mail(argument, esmtp=esmtp)
        except Refused as refused:
            return refused.reply

    parse_mail("FROM:<a@example.com>", esmtp=not esmtp)
    assert outcome() == outcome()
    taken = argument in ("FROM:<a@example.com>", "FROM:<>") or (esmtp and argument.endswith("AUTH=<>"))
    assert isinstance(outcome(), tuple) is taken


def test_parameters_need_ehlo() -> None:
    with pytest.raises(Refused) as refused:
        parse_mail("FROM:<a@example.com> SIZE=1", esmtp=False)
    assert refused.value.reply.code == 555
    assert parse_mail("FROM:<a@example.com>", esmtp=False) == (Envelope("a@example.com"), 0)


words = st.sampled_from(
    [
        "FROM:",
        "TO:",
        "<",
        ">",
        "@",
        "a",
        "example.com",
        '"',
        "\\",
        "SIZE=",
        "1",
        "BODY=",
        "8BITMIME",
        "SMTPUTF8",
        "ENVID=",
        "+3D",
        "ORCPT=",
        "rfc822;",
        "utf-8;",
        "\\x{",
        "}",
        "NOTIFY=",
        "NEVER",
        ",",
        "=",
        "ä",
        "花",
        ":",
        "postmaster",
    ]
) | st.just(" ")


@given(st.lists(words, max_size=14).map("".join) | st.text(max_size=60), st.booleans(), st.booleans())
def test_no_argument_does_more_than_be_refused(argument: str, esmtp: bool, utf8: bool) -> None:
    for prefix in ("", "FROM:<a@example.com>", "FROM:<", "TO:<a@example.com>", "TO:<"):
        for parse in (
            lambda text: parse_mail(text, esmtp=esmtp),
            lambda text: parse_rcpt(text, HOST, esmtp=esmtp, utf8=utf8),
        ):
            try:
                parse(prefix + argument)
            except Refused as refused:
                reply = refused.reply
                assert reply.code in (501, 553, 555)
                assert reply.enhanced
                assert "\n" not in reply.text
                assert reply.text.isascii()


@given(st.integers(0, 60_000))
def test_a_path_of_quotes_is_parsed_in_linear_time(length: int) -> None:
    # a search that backtracks would take for ever here; the time-out of the suite finds it
    with pytest.raises(Refused):
        parse_rcpt("TO:<" + '"\\' * (length // 2), HOST)

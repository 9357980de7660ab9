"""The words of a delivery report for people, in English and then in Japanese.

Says plainly what happened, to whom, why (in the upstream's own words), and what to do. dsn.py puts it into mail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Told:
    """One recipient, as text without control characters."""

    address: str
    reply: str
    """The reply that decided; "" when there was none."""
    remote: str
    """Who said it; "" when we worded it ourselves."""
    temporary: bool
    """The reply said: try again later."""
    until: str | None
    """For delays: the moment we give up."""


@dataclass(frozen=True, slots=True)
class _Words:
    happened: str
    here: str
    subject: str
    arrived: str
    name: str
    said: str
    found: str
    after: str
    after_temporary: str
    until: str


SUBJECTS: Mapping[str, str] = {
    "failed": "Your message could not be delivered",
    "delayed": "Your message is delayed",
    "relayed": "Your message was handed on",
    "delivered": "Your message was delivered",
}

_HERE_EN = "This is the mail relay {hostname}.\nA program wrote this message; nobody reads replies to it."
_HERE_JA = "これはメール中継サーバー {hostname} からの自動通知です。返信されても届きません。"


def _english(happened: str, after: str, after_temporary: str = "", until: str = "") -> _Words:
    return _Words(
        happened,
        _HERE_EN,
        "Subject:     {}",
        "We took it:  {}",
        "Our number:  {}",
        "{remote} said:",
        "We found:",
        after,
        after_temporary or after,
        until,
    )


def _japanese(happened: str, after: str, after_temporary: str = "", until: str = "") -> _Words:
    return _Words(
        happened,
        _HERE_JA,
        "件名:      {}",
        "受付日時:  {}",
        "受付番号:  {}",
        "{remote} からの応答:",
        "こちらで確認した理由:",
        after,
        after_temporary or after,
        until,
    )


_WORDS: Mapping[str, tuple[_Words, _Words]] = {
    "failed": (
        _english(
            "Your message could not be delivered to the address below.\nWe will not try again.",
            "Please check the address, and what was said about it. Then send the message\n"
            "again, or reach the person in another way. If the reason is unclear, ask the\n"
            "administrator of this relay and give our number.",
            "The reason may pass: you can send the message again later. If it keeps\n"
            "failing, ask the administrator of this relay and give our number.",
        ),
        _japanese(
            "次の宛先にメールを配信できませんでした。再送は行いません。",
            "宛先のアドレスと上記の理由をご確認のうえ、もう一度送信するか、別の方法でご連絡ください。\n"
            "理由が分からない場合は、受付番号を添えて中継サーバーの管理者にお問い合わせください。",
            "一時的な理由の可能性があります。しばらくしてから、もう一度送信してください。\n"
            "続けて失敗する場合は、受付番号を添えて中継サーバーの管理者にお問い合わせください。",
        ),
    ),
    "delayed": (
        _english(
            "Your message has not been delivered to the address below yet.\nWe keep trying.",
            "You need not do anything, and you need not send it again.\nWe will tell you if we give up.",
            until="We try until {until}.",
        ),
        _japanese(
            "次の宛先へのメールの配信が遅れています。配信の試行を続けています。",
            "お手続きは不要です。再送信もしないでください。配信を断念した場合は、あらためてお知らせします。",
            until="{until} まで試行を続けます。",
        ),
    ),
    "relayed": (
        _english(
            "You asked to be told: your message to the address below was handed to the\n"
            "next mail server. It does not report delivery, so we can say no more of it.",
            "You need not do anything. If the message fails there, that server will tell.",
        ),
        _japanese(
            "ご依頼の配信確認です。次の宛先へのメールを、次のメールサーバーに引き渡しました。\n"
            "引き渡し先のサーバーは配信結果を通知しないため、お知らせできるのはここまでです。",
            "お手続きは不要です。その先で配信できなかった場合は、引き渡し先のサーバーから通知されます。",
        ),
    ),
    "delivered": (
        _english(
            "You asked to be told: your message was delivered to the address below.",
            "You need not do anything.",
        ),
        _japanese("ご依頼の配信確認です。次の宛先にメールを配信しました。", "お手続きは不要です。"),
    ),
}


def write(kind: str, told: Sequence[Told], *, hostname: str, subject: str, arrived: str, name: str) -> str:
    """The text, lines ending with \\n. `kind` is a value of dsn.Kind."""
    english, japanese = (
        _section(words, told, hostname=hostname, subject=subject, arrived=arrived, name=name) for words in _WORDS[kind]
    )
    return f"{english}\n{'-' * 40}\n\n{japanese}"


def _section(words: _Words, told: Sequence[Told], *, hostname: str, subject: str, arrived: str, name: str) -> str:
    lines = [words.happened, ""]
    for one in told:
        lines += [f"  {one.address}", *_reason(words, one), ""]
    temporary = all(one.temporary for one in told)
    lines += [words.after_temporary if temporary else words.after, ""]
    if subject:
        lines.append(words.subject.format(subject))
    lines += [words.arrived.format(arrived), words.name.format(name), "", words.here.format(hostname=hostname)]
    return "\n".join(lines) + "\n"


def _reason(words: _Words, one: Told) -> list[str]:
    out = []
    if one.reply:
        lead = words.said.format(remote=one.remote) if one.remote else words.found
        out += [f"    {lead}", f"    {one.reply}"]
    if one.until and words.until:
        out.append(f"    {words.until.format(until=one.until)}")
    return out

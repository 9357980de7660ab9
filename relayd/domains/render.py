"""Records for people and programs: a zone file, JSON, and the mail to whoever runs the DNS. Pure.

Tables on a terminal are cli/domain.py's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

from relayd.domains import texts
from relayd.domains.changes import shown
from relayd.domains.expected import strings
from relayd.domains.records import Expected, Finding, Verdict

_SETTLED = {Verdict.VERIFIED, Verdict.NOT_CHECKED}


def record_json(finding: Finding, lang: str = "en") -> dict[str, Any]:
    """One record with its state, for programs."""
    expected = finding.expected
    return {
        "type": expected.type,
        "host": expected.host,
        "value": expected.value,
        "strings": strings(expected.value) if expected.type == "TXT" else None,
        "purpose": expected.purpose.value,
        "required": expected.required,
        "ours": expected.ours,
        "state": finding.verdict.value,
        "cause": finding.cause.value or None,
        "message": texts.message(finding, lang) or None,
        "found": list(finding.found),
        "wait": finding.wait,
        "notes": texts.remarks(finding, lang),
        "note": texts.note(finding, lang) or None,
    }


def zone_lines(findings: Sequence[Finding], *, lang: str = "en", ttl: int = 3600) -> str:
    """Records as lines of a zone file (RFC 1035 5.1). What only the provider knows stands in comments."""
    lines = []
    for finding in findings:
        expected = finding.expected
        about = f"; {texts.purpose(expected.purpose, lang)}"
        lines.append(f"{about} [{texts.verdict(finding.verdict, lang)}]")
        if expected.note:
            lines.append(f"; {texts.note(finding, lang)}")
        replaced = [text for text in finding.found if expected.terms and finding.verdict is Verdict.WRONG]
        lines += [f"; {_replace(lang)} {_printable(text)}" for text in replaced]
        line = f"{expected.host}. {ttl} IN {expected.type} {_rdata(expected)}"
        lines.append(line if expected.checked else f"; {line}")
        lines.append("")
    return "\n".join(lines)


def _replace(lang: str) -> str:
    return "次のレコードを置き換え:" if lang == "ja" else "replaces:"


def _rdata(expected: Expected) -> str:
    match expected.type:
        case "TXT":
            return " ".join(f'"{_escaped(part)}"' for part in strings(expected.value))
        case "MX":
            preference, _, target = expected.value.partition(" ")
            return f"{preference} {target}."
    return f"{expected.value}."


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _printable(text: str) -> str:
    # what strangers wrote into their DNS must not end our comment
    return re.sub(r"[^ -~]", "?", text)


_SUBJECT = ("DNS records for {domain}", "【ご依頼】{domain} のDNSレコード設定")
_GREETING = (
    "Hello,\n\nmail from {domain} is sent through {host}. So that receivers accept it, please publish these records\n"
    "in the DNS. They are attached as a zone file, too.\n",
    "DNSご担当者様\n\n{domain} のメールは {host} から送信されます。\n"
    "受信側で正しく受け取られるよう、以下のDNSレコードの設定をお願いいたします。\nゾーンファイル形式でも添付しております。\n",
)
_CLOSING = (
    "Values must be entered exactly as they stand here. Values over 255 octets are one record of several strings.\n"
    "We check the records ourselves and see when they are there; no answer is needed.\n",
    "値はこのままの形で入力してください。255文字を超える値は、1つのレコードの中で複数の文字列に分けて入力します。\n"
    "設定の反映は当方で自動的に確認いたしますので、ご返信は不要です。\n",
)
_NOW = ("now", "現在の値")
_WHY = ("remark", "備考")


def unverified(findings: Sequence[Finding]) -> list[Finding]:
    """What the owner of the domain still has to do."""
    return [each for each in findings if each.verdict not in _SETTLED and not each.expected.ours]


def request_mail(
    domain: str, findings: Sequence[Finding], *, lang: str, host: str, sender: str, recipient: str
) -> bytes:
    """The mail to the DNS administrator: the unverified records as text, and as a zone file. RFC 5322, CRLF."""
    todo = unverified(findings)
    name = shown(domain)
    mail = EmailMessage(policy=SMTP)
    mail["From"] = sender
    if recipient:
        mail["To"] = recipient
    mail["Subject"] = texts.pick(_SUBJECT, lang).format(domain=name)
    mail["Auto-Submitted"] = "auto-generated"
    parts = [texts.pick(_GREETING, lang).format(domain=name, host=host)]
    parts += [_record_text(number, finding, lang) for number, finding in enumerate(todo, 1)]
    parts.append(texts.pick(_CLOSING, lang))
    mail.set_content("\n".join(parts), cte="base64" if lang == "ja" else "quoted-printable")
    zone = zone_lines(todo, lang=lang)
    mail.add_attachment(zone, subtype="plain", filename=f"{domain}.zone", cte="base64")
    return mail.as_bytes()


def _record_text(number: int, finding: Finding, lang: str) -> str:
    expected = finding.expected
    lines = [
        f"{number}. {texts.purpose(expected.purpose, lang)}",
        f"   TYPE:  {expected.type}",
        f"   HOST:  {expected.host}",
        f"   VALUE: {expected.value}",
    ]
    if finding.found and finding.verdict is Verdict.WRONG:
        lines += [f"   {texts.pick(_NOW, lang)}: {_printable(text)}" for text in finding.found]
    reason = texts.message(finding, lang)
    if reason and finding.verdict is Verdict.WRONG:
        lines.append(f"   {texts.pick(_WHY, lang)}: {reason}")
    return "\n".join(lines) + "\n"

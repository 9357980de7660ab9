"""Accuracy on bounces that no one here wrote, against the verdicts of another parser. Skipped where they are absent."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from relayd.core.bounce.explain import explain
from relayd.core.bounce.verdict import Kind, Verdict

CORPORA = Path(__file__).resolve().parents[4] / "shared/corpora"
pytestmark = pytest.mark.skipif(
    not (CORPORA / "bounces/expected.json").is_file(), reason="no corpora beside the project"
)

OURS = {
    # that parser's reasons → our classes
    "authfailure": "authentication-failed",
    "badreputation": "reputation-blocked",
    "blocked": "reputation-blocked",
    "contenterror": "content-rejected",
    "exceedlimit": "message-too-big",
    "expired": "expired",
    "failedstarttls": "tls-failed",
    "feedback": "complaint",
    "filtered": "filtered",
    "hasmoved": "user-moved",
    "hostunknown": "host-unknown",
    "mailboxfull": "mailbox-full",
    "mailererror": "mailer-error",
    "mesgtoobig": "message-too-big",
    "networkerror": "network-error",
    "norelaying": "relaying-denied",
    "notaccept": "no-such-domain-mail",
    "notcompliantrfc": "content-rejected",
    "onhold": "on-hold",
    "policyviolation": "policy",
    "rejected": "sender-rejected",
    "requireptr": "reverse-dns-missing",
    "securityerror": "policy",
    "spamdetected": "spam-detected",
    "speeding": "rate-limited",
    "suspend": "mailbox-disabled",
    "systemerror": "system-error",
    "systemfull": "system-full",
    "toomanyconn": "too-many-connections",
    "undefined": "unknown",
    "userunknown": "user-unknown",
    "vacation": "vacation",
    "virusdetected": "virus",
}
REAL_REPORTS = {"msg_25.txt", "msg_43.txt"}
"""Of the MIME samples these two are bounces: RFC 3464 reports about recipients, with Action: failed."""


@cache
def score() -> tuple[Counter[str], Counter[str]]:
    """How many rows there are of each question, and how many we answer as that parser does."""
    rows: Counter[str] = Counter()
    equal: Counter[str] = Counter()

    def count(question: str, same: bool) -> None:
        rows[question] += 1
        equal[question] += same

    expected = json.loads((CORPORA / "bounces/expected.json").read_text())
    for name, entry in expected.items():
        verdicts = explain((CORPORA / "bounces" / name).read_bytes())
        for row in entry["expected"]:
            verdict = _about(row, verdicts)
            recipient = row.get("recipient") or ""
            if recipient and not recipient.endswith(".invalid"):  # it makes those up where there is none
                count("recipient", verdict.recipient.lower() == recipient)
            status = row["deliverystatus"]
            if status and not _made_up(status):
                count("status", verdict.status == status)
            count("reply code", str(verdict.reply_code or "") == row["replycode"])
            count("hard", verdict.hard == row["hardbounce"])
            if not entry["contested"]:
                count("class", verdict.cls == OURS[row["reason"]])
    return rows, equal


def _about(row: dict[str, Any], verdicts: list[Verdict]) -> Verdict:
    return next((each for each in verdicts if each.recipient.lower() == row.get("recipient")), verdicts[0])


def _made_up(status: str) -> bool:
    """5.0.911, 4.0.947 and the like: that parser's own numbers for mails without a status."""
    return len(status) == 7 and status[1:4] in (".0.", ".9.")


@pytest.mark.parametrize(
    ("question", "least"),
    [("recipient", 0.98), ("status", 0.95), ("class", 0.90), ("hard", 0.95), ("reply code", 0.95)],
)
def test_accuracy(question: str, least: float) -> None:
    rows, equal = score()
    assert rows[question] >= 200
    assert equal[question] / rows[question] >= least, f"{equal[question]} of {rows[question]}"


@pytest.mark.parametrize("folder", ["not-bounces", "arf", "mime"])
def test_nothing_else_is_taken_for_a_bounce(folder: str) -> None:
    files = [path for path in (CORPORA / folder).iterdir() if path.suffix != ".json" and path.name not in REAL_REPORTS]
    assert files
    taken = [path.name for path in files if any(each.kind is Kind.BOUNCE for each in explain(path.read_bytes()))]
    assert taken == []


def test_the_reports_among_the_mime_samples_are_bounces() -> None:
    for name in REAL_REPORTS:
        verdicts = explain((CORPORA / "mime" / name).read_bytes())
        assert {each.kind for each in verdicts} == {Kind.BOUNCE}
        assert all("@" in each.recipient for each in verdicts)
        assert not any(each.hard for each in verdicts)

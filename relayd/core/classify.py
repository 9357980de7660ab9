"""Judges replies and bounces: which class one belongs to, and what a reply means for a recipient of the attempt.

The rules are rules.py, the classes classes.py. What becomes of the recipient then is lifecycle.py's to say.
"""

from __future__ import annotations

import re
from functools import lru_cache

from relayd.core.classes import ReplyClass
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.phrases import Index, plain
from relayd.core.reply import Reply
from relayd.core.rules import ROWS, Row

_WORDLESS = tuple(place for place, row in enumerate(ROWS) if not row.text)
"""Rows that need no words."""
_OPENING = frozenset({Stage.CONNECT, Stage.TLS, Stage.EHLO, Stage.AUTH})
_LOGIN_CODES = frozenset({530, 534, 535, 538})
_ABOUT_US = frozenset({ReplyClass.RELAYING_DENIED, ReplyClass.SENDER_REJECTED, ReplyClass.LOGIN_REFUSED})
_NOT_OURS = re.compile(r"not owned by user|not logged in|authentication (?:is )?required|must (?:issue|authenticate)")


@lru_cache(maxsize=1)
def index() -> Index:
    """The phrases of all rules, ready to be looked for; made when first asked for."""
    return Index([row.text for row in ROWS])


def find(code: int, enhanced: str, text: str, stage: Stage | None, *, bounce: bool = False) -> Row | None:
    """The rule that decides. For a bounce, code may be 0, enhanced "" and stage None where they are not told."""
    number, words = str(code) if code else "", plain(text)
    phrases = index()
    candidates = phrases.candidates(words)
    for place in sorted([*_WORDLESS, *candidates]):
        row = ROWS[place]
        if (
            (row.bounce is None or row.bounce is bounce)
            and (row.stages is None or stage in row.stages)
            and (row.codes is None or row.codes.fullmatch(number))
            and (row.enhanced is None or row.enhanced.fullmatch(enhanced))
            and (not row.text or phrases.fits(candidates[place], words))
        ):
            return row
    return None


def classify(code: int, enhanced: str, text: str, stage: Stage) -> str:
    """The class id of a reply: one of ReplyClass."""
    row = find(code, enhanced, text, stage)
    return row.cls.value if row else ReplyClass.UNKNOWN.value


def outcome_of(stage: Stage, reply: Reply) -> Outcome:
    """What the upstream's reply at this stage means for the recipient it is about."""
    if stage is Stage.DOT and 200 <= reply.code < 300:
        return Outcome(OutcomeKind.DELIVERED, stage, reply, "delivered")
    return Outcome(_kind(stage, reply), stage, reply, classify(reply.code, reply.enhanced, reply.text, stage))


def _kind(stage: Stage, reply: Reply) -> OutcomeKind:
    if stage in _OPENING:
        # no recipient has been named yet: it cannot be about one
        return OutcomeKind.TROUBLE
    if reply.code < 400:
        # an answer that does not fit the question; behind the dot the mail may have been taken all the same
        return OutcomeKind.UNCERTAIN if stage is Stage.DOT else OutcomeKind.DEFERRED
    if _refuses_us(stage, reply):
        return OutcomeKind.TROUBLE
    if not reply.permanent or (stage is Stage.RCPT and _defers_recipient(reply)):
        return OutcomeKind.DEFERRED
    return OutcomeKind.REJECTED


def _refuses_us(stage: Stage, reply: Reply) -> bool:
    """The reply says that this account may not send (so, or so much), whatever the message."""
    if reply.code in _LOGIN_CODES or (reply.code == 454 and reply.enhanced in ("4.7.0", "")):
        return True
    if not reply.permanent:
        return False
    row = find(reply.code, reply.enhanced, reply.text, stage)
    if row is not None and row.name == "sending-quota":
        return True
    if stage is not Stage.MAIL:
        return False
    if reply.enhanced and reply.code != 503:
        return reply.enhanced.startswith("5.7.")
    return reply.code in (500, 502, 503) or classify(reply.code, "", reply.text, Stage.MAIL) in _ABOUT_US


def _defers_recipient(reply: Reply) -> bool:
    """A 5yz to RCPT that is not about the recipient.

    552 without more words stands for too many recipients and is to be taken as 452 (RFC 5321 4.5.3.1.10). Servers
    that put off all checks until RCPT (as Postfix does) refuse there what they think of sender and login: that must
    not bounce mail, nor may one such recipient halt the upstream.
    """
    cls = classify(reply.code, reply.enhanced, reply.text, Stage.RCPT)
    if reply.code == 552:
        return reply.enhanced in ("", "5.5.3") and not re.search(r"quota|full|size|storage", reply.text, re.IGNORECASE)
    return cls == ReplyClass.RELAYING_DENIED or _NOT_OURS.search(reply.text.lower()) is not None


_WAITED_FOR = {
    Stage.CONNECT: "a connection and its greeting",
    Stage.TLS: "the TLS handshake",
    Stage.EHLO: "its reply to EHLO",
    Stage.AUTH: "its reply to AUTH",
    Stage.MAIL: "its reply to MAIL",
    Stage.RCPT: "its reply to RCPT",
    Stage.DATA: "its reply to DATA",
    Stage.DOT: "its reply after the message",
    Stage.LOCAL: "the upstream",
}


def timeout(stage: Stage) -> Outcome:
    """The upstream said nothing in time. Behind the dot, the mail may have been delivered (RFC 1047)."""
    return _silence(stage, f"The upstream did not answer in time; we waited for {_WAITED_FOR[stage]}")


def dropped(stage: Stage) -> Outcome:
    """The upstream closed the connection, or it broke."""
    return _silence(stage, f"The upstream closed the connection; we waited for {_WAITED_FOR[stage]}")


def _silence(stage: Stage, text: str) -> Outcome:
    if stage is Stage.DOT:
        kind = OutcomeKind.UNCERTAIN
    else:
        kind = OutcomeKind.TROUBLE if stage in _OPENING else OutcomeKind.DEFERRED
    return Outcome(kind, stage, Reply(451, "4.4.2", text), ReplyClass.NETWORK_ERROR.value)

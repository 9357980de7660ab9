"""What a recipient's local part asks the sandbox to act: 550@…, 450-2@…, 552-dot@…, uncertain@… (docs/sandbox.md).

Reads addresses only; sandbox.py acts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from relayd.core.reply import Reply

_SCRIPT = re.compile(
    r"(?:(?P<code>[45][0-9]{2})(?:-(?P<enhanced>[45]\.[0-9]{1,3}\.[0-9]{1,3}))?|(?P<word>uncertain|drop|login))"
    r"(?:-(?P<times>[0-9]{1,2}))?(?P<dot>-dot)?(?:\+.*)?",
    re.IGNORECASE | re.DOTALL,
)

_MEANING = {
    421: ("4.3.2", "The service is going down"),
    450: ("4.2.1", "The mailbox is busy"),
    451: ("4.3.0", "A local error"),
    452: ("4.2.2", "The mailbox is full"),
    550: ("5.1.1", "No such mailbox"),
    551: ("5.1.6", "The mailbox has moved"),
    552: ("5.2.2", "The mailbox is over its quota"),
    553: ("5.1.3", "The address is not allowed"),
    554: ("5.7.1", "The message is not wanted"),
}


class Act(StrEnum):
    """What happens to the transaction."""

    REFUSE = "refuse"
    UNCERTAIN = "uncertain"
    """The message is taken, the reply never comes."""
    DROP = "drop"
    """The connection ends before the final dot."""
    LOGIN = "login"
    """The upstream does not know our credential any more."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One recipient's part."""

    act: Act
    reply: Reply
    """What REFUSE and LOGIN say."""
    at_dot: bool
    times: int | None
    """So many times, then the mail is taken; None: always."""


def rehearsal(address: str) -> Rehearsal | None:
    """What this recipient asks for; None: to be taken like any other."""
    local = address.rpartition("@")[0]
    if local[:1] not in "45uUdDlL":  # nearly all addresses
        return None
    match = _SCRIPT.fullmatch(local)
    if match is None:
        return None
    times = int(match["times"]) if match["times"] else None
    if match["word"]:
        act = Act(match["word"].lower())
        return Rehearsal(act, Reply(535, "5.7.8", "The login is refused"), at_dot=False, times=times)
    code = int(match["code"])
    enhanced, text = _MEANING.get(code, (f"{code // 100}.0.0", "Refused"))
    if match["enhanced"]:
        if match["enhanced"][0] != match["code"][0]:
            return None  # 450-5.1.1 is no reply at all
        enhanced, text = match["enhanced"], "Refused"
    return Rehearsal(Act.REFUSE, Reply(code, enhanced, f"{text} (sandbox)"), match["dot"] is not None, times)

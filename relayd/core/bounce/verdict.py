"""The values that the reading of a returned mail ends in: one Verdict for each recipient it speaks of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from relayd.core.classes import CLASSES, ClassFacts, ReplyClass


class Kind(StrEnum):
    """What sort of mail came back."""

    BOUNCE = "bounce"
    """Tells of a failure (action failed) or of a delay (action delayed)."""
    COMPLAINT = "complaint"
    AUTO_REPLY = "auto-reply"
    DELIVERY_REPORT = "delivery-report"
    """Tells of a success: action delivered, relayed or expanded."""
    NOT_A_REPORT = "not-a-report"


class Action(StrEnum):
    """RFC 3464 2.3.3; none for what is no report of delivery."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"
    NONE = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a returned mail, or one reply, means for one recipient. Texts are a peer's, without controls."""

    recipient: str
    """"" where it could not be found."""
    kind: Kind
    action: Action = Action.NONE
    cls: ReplyClass = ReplyClass.UNKNOWN
    hard: bool = False
    """The class is hard and the failure is final: the address will not work again by itself."""
    status: str = ""
    """RFC 3463: as reported, or that of the class where none was."""
    reply_code: int | None = None
    diagnostic: str = ""
    """The words of the server, in one line."""
    remote_mta: str = ""
    message_id: str = ""
    """Of the mail this is about, with its angle brackets; "" where it was not returned."""

    @property
    def facts(self) -> ClassFacts:
        """The row of the class table."""
        return CLASSES[self.cls]

    def as_json(self) -> dict[str, str | int | bool | None]:
        """What `relayd bounce explain --json` prints."""
        facts = self.facts
        judged = self.kind is not Kind.NOT_A_REPORT
        return {
            "recipient": self.recipient,
            "kind": self.kind.value,
            "action": self.action.value,
            "class": self.cls.value if judged else "",
            "hard": self.hard,
            "status": self.status,
            "reply_code": self.reply_code,
            "diagnostic": self.diagnostic,
            "remote_mta": self.remote_mta,
            "cmc_status": facts.cmc_status if judged else None,
            "anymail_reason": facts.anymail_reason if judged else "",
            "sentence_en": facts.sentence_en if judged else "This is an ordinary mail, not a report.",
            "sentence_ja": facts.sentence_ja if judged else "配信結果の報告ではない、通常のメールです。",
            "message_id": self.message_id,
        }


@dataclass(frozen=True, slots=True)
class Findings:
    """All that one returned mail tells."""

    kind: Kind
    verdicts: tuple[Verdict, ...]
    """At least one."""

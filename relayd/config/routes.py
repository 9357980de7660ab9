"""The shape of `routes` and `rules`: which upstream carries a message, and what is done about certain replies.

Finding faults that need more than one key is check_routes.py's work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, create_model

from relayd.config.base import Model
from relayd.config.choice import ThrottleMatch, UpstreamChoice
from relayd.config.names import DomainPattern, HeaderName, SenderPattern, Text
from relayd.config.quantities import Duration
from relayd.core.priority import Priority


class Match(Model):
    """Conditions of a route; all that are given must hold. Patterns take `*` and `?`; case makes no difference."""

    sender: SenderPattern | None = Field(None, description="Pattern of the envelope sender.")
    sender_domain: DomainPattern | None = Field(
        None, description="Pattern of the envelope sender's domain; of the From header's for the null sender."
    )
    credential: Text | None = Field(None, description="User name the app logged in with.")
    network: Text | None = Field(None, description="Name of the network the app connected from.")
    campaign: Text | None = Field(None, description="Pattern of the campaign header's value.")
    recipient_domain: DomainPattern | None = Field(None, description="Pattern of the recipient's domain.")
    header: dict[HeaderName, str] | None = Field(None, description="Names of headers with patterns of their values.")

    @property
    def everything(self) -> bool:
        """No condition at all is given."""
        return all(getattr(self, name) in (None, {}) for name in type(self).model_fields)


class Route(Model):
    """One rule. The first whose `match` holds carries the message; looked at again on every attempt."""

    match: Match | None = Field(None, description="Conditions. Absent: every message.")
    upstream: UpstreamChoice = Field(
        description="Name of the upstream that carries the message. `[a, b]`: the first that can be used at the moment."
        " `{a: 80, b: 20}`: by weight, each message by its id; the others stand in for one that cannot be used.",
    )
    priority: Priority | None = Field(
        None,
        description="How urgent its mail is, where neither `priority_header` nor the credential says so. `high` goes"
        " first, `bulk` last; of ten mails one is from behind, so that nothing starves. Absent: `normal`. A message to"
        " several recipients has the most urgent of theirs; it is decided when the message is accepted.",
    )

    @property
    def upstreams(self) -> tuple[str, ...]:
        """All that it names, in the order of the file."""
        return (self.upstream,) if isinstance(self.upstream, str) else tuple(self.upstream)

    @property
    def weights(self) -> dict[str, int] | None:
        """The weight of each, where they have weights."""
        return self.upstream if isinstance(self.upstream, dict) else None


class _ThrottleRule(Model):
    """What is done about a reply by which a provider says "too much" or "not now". The first that fits counts."""

    upstream: Text | None = Field(None, description="Name of the upstream. Absent: all.")
    match: ThrottleMatch = Field(
        description="Code, enhanced code and words as they stand in a reply: `452 too many`, `550 5.7.x"
        " suspended`, `4xx throttl-`. `x`: any digit or number; `a|b`: either word; `word-`: any that begins so; `*`:"
        " up to six words. Case and punctuation make no difference; every part may be missing."
    )
    action: Literal["pause", "slow", "defer", "next-upstream"] = Field(
        description="`pause`: nothing goes out by this upstream, or this account, for so long. `slow`: half as many"
        " connections, and no more for so long. `defer`: this mail is not tried again before. `next-upstream`: it goes"
        " by the next upstream that its route names. None of them bounces."
    )

    @property
    def seconds(self) -> float:
        """How long."""
        return float(getattr(self, "for"))


if TYPE_CHECKING:
    ThrottleRule = _ThrottleRule
else:
    # the key is a word of Python's
    ThrottleRule = create_model(
        "ThrottleRule",
        __base__=_ThrottleRule,
        __doc__=_ThrottleRule.__doc__,
        **{"for": (Duration, Field(300.0, gt=0, le=7 * 86400.0, description="How long."))},
    )

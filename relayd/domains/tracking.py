"""Tracking domains: the records of each step, what a check means, which host a mail's links use. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from relayd.core.units import Millis
from relayd.domains import dmarc
from relayd.domains.lifecycle import Policy, wait
from relayd.domains.records import Expected, Finding, Purpose, Verdict, same_name
from relayd.domains.report import to_facts
from relayd.spool.domains import DomainEvent, TrackingDomain, TrackingState

PROOF_WITHIN: Millis = 72 * 3_600_000
"""How long a TLS front waits for the proof of ownership."""
LAST_STEP = 3
_BAD = {Verdict.MISSING, Verdict.WRONG}


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as people see it."""

    number: int
    records: tuple[Expected, ...]
    done: bool
    deadline: Millis | None = None


def steps(tracking: TrackingDomain) -> list[Step]:
    """Every step with its records."""
    verified = tracking.state in {TrackingState.VERIFIED, TrackingState.DEGRADED}
    if tracking.steps == 1:
        return [Step(1, (_plain(tracking), *_mx(tracking)), verified)]
    return [
        Step(1, (_plain(tracking), *_mx(tracking)), tracking.step > 1),
        Step(2, (_proof(tracking),), tracking.proof_seen_at is not None, tracking.deadline),
        Step(3, (_secure(tracking),), verified),
    ]


def expected(tracking: TrackingDomain) -> list[Expected]:
    """The records to look for now."""
    if tracking.steps == 1:
        return [_plain(tracking), *_mx(tracking)]
    proof = _proof(tracking)
    match tracking.step:
        case 1:
            return [_plain(tracking), *_mx(tracking), proof]
        case 2:
            return [proof, *_mx(tracking)]
    # the proof must stay for the certificate to be renewed, but links work without it
    return [_secure(tracking), *_mx(tracking), replace(proof, required=False)]


def _zone(tracking: TrackingDomain) -> str:
    return dmarc.organisational(tracking.name)


def _plain(tracking: TrackingDomain) -> Expected:
    return Expected(Purpose.TRACKING, "CNAME", tracking.name, tracking.target, zone=_zone(tracking))


def _secure(tracking: TrackingDomain) -> Expected:
    note = "rewrite the record of step 1"
    return Expected(Purpose.TRACKING_TLS, "CNAME", tracking.name, tracking.tls_target, zone=_zone(tracking), note=note)


def _mx(tracking: TrackingDomain) -> list[Expected]:
    if not tracking.require_mx:
        return []
    return [Expected(Purpose.TRACKING_MX, "MX", tracking.name, f"10 {tracking.mx}", zone=_zone(tracking))]


def _proof(tracking: TrackingDomain) -> Expected:
    return Expected(
        Purpose.TRACKING_PROOF,
        "CNAME",
        tracking.proof_host,
        tracking.proof_value,
        zone=_zone(tracking),
        lost_underscore=True,
    )


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written. `again`: a step was done, so the next one is worth a look at once."""

    tracking: TrackingDomain
    events: tuple[DomainEvent, ...] = ()
    again: bool = False


def after_check(
    tracking: TrackingDomain,
    findings: Sequence[Finding],
    policy: Policy,
    *,
    now: Millis,
    retry_after: int = 0,
    jitter: float = 0.0,
) -> Change:
    """Apply a check of `expected(tracking)`."""
    events: list[DomainEvent] = []

    def tell(kind: str, **detail: Any) -> None:
        events.append(DomainEvent(tracking.name, now, kind, detail))

    settled = all(finding.verdict is Verdict.VERIFIED for finding in findings)
    changed = replace(
        tracking, checked_at=now, unsettled=0 if settled else tracking.unsettled + 1, report=to_facts(findings)
    )
    if expired(tracking, now):
        changed = replace(changed, state=TrackingState.EXPIRED)
        if tracking.state is not TrackingState.EXPIRED:
            tell("tracking.expired", deadline=tracking.deadline)
    elif tracking.state is TrackingState.PENDING:
        changed = _advance(changed, findings, now)
        if changed.step != tracking.step:
            tell("tracking.step", done=changed.step - 1)
        if changed.state is TrackingState.VERIFIED:
            tell("tracking.verified")
    else:
        changed = _watch(changed, findings)
        if changed.state is not tracking.state:
            tell("tracking.degraded" if changed.state is TrackingState.DEGRADED else "tracking.recovered")
    due = now + wait(policy.recheck, changed.unsettled, retry_after, jitter)
    if changed.deadline is not None and changed.proof_seen_at is None and now < changed.deadline:
        due = min(due, changed.deadline)
    return Change(replace(changed, next_check=due), tuple(events), changed.step != tracking.step)


def expired(tracking: TrackingDomain, now: Millis) -> bool:
    """The proof was not seen in time."""
    late = tracking.deadline is not None and now >= tracking.deadline and tracking.proof_seen_at is None
    return tracking.state is TrackingState.EXPIRED or (tracking.steps == LAST_STEP and late)


def _advance(tracking: TrackingDomain, findings: Sequence[Finding], now: Millis) -> TrackingDomain:
    by_purpose = {finding.expected.purpose: finding for finding in findings}
    mx = by_purpose.get(Purpose.TRACKING_MX)
    mx_there = mx is None or mx.verdict is Verdict.VERIFIED
    plain = by_purpose.get(Purpose.TRACKING)
    if tracking.steps == 1:
        whole = plain is not None and plain.verdict is Verdict.VERIFIED and mx_there
        return replace(tracking, state=TrackingState.VERIFIED, verified_at=now) if whole else tracking
    proof = by_purpose.get(Purpose.TRACKING_PROOF)
    if proof is not None and proof.verdict is Verdict.VERIFIED and tracking.proof_seen_at is None:
        tracking = replace(tracking, proof_seen_at=now)
    if tracking.step == 1 and plain is not None and mx_there and _leads_to_us(plain, tracking):
        tracking = replace(tracking, step=2)
    if tracking.step == 2 and tracking.proof_seen_at is not None:
        tracking = replace(tracking, step=LAST_STEP)
    secure = by_purpose.get(Purpose.TRACKING_TLS)
    if secure is not None and secure.verdict is Verdict.VERIFIED and mx_there:
        tracking = replace(tracking, state=TrackingState.VERIFIED, verified_at=now)
    return tracking


def _leads_to_us(plain: Finding, tracking: TrackingDomain) -> bool:
    """Step 1 is done; whoever wrote the record of step 3 at once has done it, too."""
    if plain.verdict is Verdict.VERIFIED:
        return True
    return bool(plain.found) and all(same_name(target, tracking.tls_target) for target in plain.found)


def _watch(tracking: TrackingDomain, findings: Sequence[Finding]) -> TrackingDomain:
    needed = [finding for finding in findings if finding.expected.required]
    if any(finding.verdict in _BAD for finding in needed):
        return replace(tracking, state=TrackingState.DEGRADED)
    if all(finding.verdict is Verdict.VERIFIED for finding in needed):
        return replace(tracking, state=TrackingState.VERIFIED)
    return tracking


@dataclass(frozen=True, slots=True)
class Choice:
    """Which host the links of a mail use, and why."""

    host: str
    """"" where there is no shared host either."""
    organisation: str
    """The organisational domain of From; "" where there is none."""
    own: bool
    """It is of that organisation; else it is the shared one."""
    passed_over: tuple[TrackingDomain, ...] = ()
    """Hosts of that organisation that are not verified."""


def ready_hosts(tracking: Iterable[TrackingDomain]) -> dict[str, list[str]]:
    """The hosts that links may use now, by organisational domain."""
    ready: dict[str, list[str]] = {}
    for each in tracking:
        if each.state is TrackingState.VERIFIED:
            ready.setdefault(dmarc.organisational(each.name), []).append(each.name)
    return ready


def host_for(from_domain: str, ready: Mapping[str, Sequence[str]], default: str) -> str:
    """The host for links of a mail From this domain: a verified one of the same organisation, else the shared one."""
    own = ready.get(dmarc.organisational(from_domain), ()) if from_domain else ()
    return max(own, key=lambda name: (_common(name, from_domain), name)) if own else default


def choice(from_domain: str, tracking: Sequence[TrackingDomain], default: str) -> Choice:
    """The same, with the reasons."""
    organisation = dmarc.organisational(from_domain) if from_domain else ""
    ready = ready_hosts(tracking)
    over = tuple(
        each
        for each in tracking
        if each.state is not TrackingState.VERIFIED and dmarc.organisational(each.name) == organisation
    )
    return Choice(host_for(from_domain, ready, default), organisation, bool(ready.get(organisation)), over)


def _common(one: str, other: str) -> int:
    """Labels that two names share at their end."""
    count = 0
    for left, right in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if left != right:
            break
        count += 1
    return count

"""What a check means for a sender domain: next state, rotation of keys, what is told, when to look again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from relayd.core.units import Millis
from relayd.domains.records import Finding, Purpose, Verdict
from relayd.domains.report import to_facts
from relayd.spool.domains import DomainEvent, DomainKey, DomainState, KeyState, SenderDomain

_BAD = {Verdict.MISSING, Verdict.WRONG}
_KEY_RECORDS = {Purpose.DKIM, Purpose.DKIM_DELEGATION, Purpose.DKIM_ZONE}
_RETURN_RECORDS = {Purpose.RETURN_PATH, Purpose.RETURN_PATH_SPF}
_LEAST = 60_000
"""Shortest wait (ms) while something is amiss, unless `recheck` is shorter still."""


class GoneError(Exception):
    """The domain was removed while it was checked."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The section `domains` of the configuration, in milliseconds."""

    recheck: Millis
    grace: Millis
    retire_after: Millis


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written."""

    domain: SenderDomain
    keys: tuple[DomainKey, ...] = ()
    """Changed ones."""
    gone: tuple[str, ...] = ()
    """Selectors of keys to be forgotten."""
    events: tuple[DomainEvent, ...] = ()


@dataclass(slots=True)
class _Draft:
    now: Millis
    name: str
    keys: dict[str, DomainKey] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    events: list[DomainEvent] = field(default_factory=list)

    def tell(self, kind: str, **detail: Any) -> None:
        self.events.append(DomainEvent(self.name, self.now, kind, detail))


def after_check(
    domain: SenderDomain,
    keys: Sequence[DomainKey],
    findings: Sequence[Finding],
    policy: Policy,
    *,
    now: Millis,
    retry_after: int = 0,
    jitter: float = 0.0,
) -> Change:
    """Apply a check. `retry_after`: seconds the zone asks to wait; `jitter`: -1 to 1, spreads the checks of many."""
    draft = _Draft(now, domain.name)
    _keys(domain, keys, findings, policy, draft)
    state = _state(domain, findings, policy, draft)
    settled = all(f.verdict is Verdict.VERIFIED for f in findings if f.expected.checked)
    degraded_at = domain.degraded_at
    if state is DomainState.VERIFIED:
        degraded_at = None
    elif state is DomainState.DEGRADED and domain.state is DomainState.VERIFIED:
        degraded_at = now
    changed = replace(
        domain,
        state=state,
        return_path_seen_at=_return_path(domain, findings, draft),
        verified_at=now if state is DomainState.VERIFIED and domain.verified_at is None else domain.verified_at,
        degraded_at=degraded_at,
        checked_at=now,
        unsettled=0 if settled else domain.unsettled + 1,
        report=to_facts(findings),
    )
    due = now + wait(policy.recheck, changed.unsettled, retry_after, jitter)
    if state is DomainState.DEGRADED and degraded_at is not None:
        # the grace ends when it ends, not up to an hour later
        due = min(due, max(degraded_at + policy.grace, now + min(_LEAST, policy.recheck)))
    return Change(replace(changed, next_check=due), tuple(draft.keys.values()), tuple(draft.gone), tuple(draft.events))


def wait(recheck: Millis, unsettled: int, retry_after: int, jitter: float) -> Millis:
    """Until the next look: `recheck` where all is well; else sooner, no sooner than caches forget, longer each time."""
    if unsettled:
        base: int = max(_LEAST, retry_after * 1000) * (1 << min(unsettled - 1, 16))
        return max(1, round(min(base, recheck) * (1 + 0.1 * jitter)))
    return max(1, round(recheck * (1 + 0.1 * jitter)))


def _state(domain: SenderDomain, findings: Sequence[Finding], policy: Policy, draft: _Draft) -> DomainState:
    needed = [finding for finding in findings if finding.expected.required and finding.expected.checked]
    bad = [finding for finding in needed if finding.verdict in _BAD]
    whole = bool(needed) and all(finding.verdict is Verdict.VERIFIED for finding in needed)
    records = [f"{f.expected.type} {f.expected.host}: {f.verdict}" for f in bad]
    if whole and domain.state is not DomainState.VERIFIED:
        draft.tell("domain.verified" if domain.state is DomainState.PENDING else "domain.recovered")
        return DomainState.VERIFIED
    if bad and domain.state is DomainState.VERIFIED:
        draft.tell("domain.degraded", records=records, stops_at=draft.now + policy.grace)
        return DomainState.DEGRADED
    if bad and domain.state is DomainState.DEGRADED and draft.now - (domain.degraded_at or 0) >= policy.grace:
        draft.tell("domain.stopped", records=records)
        return DomainState.STOPPED
    return domain.state


def _keys(
    domain: SenderDomain, keys: Sequence[DomainKey], findings: Sequence[Finding], policy: Policy, draft: _Draft
) -> None:
    for key in keys:
        seen = key_seen(key, findings)
        if key.state is KeyState.ACTIVE and seen and key.seen_at is None:
            draft.keys[key.selector] = replace(key, seen_at=draft.now)
            draft.tell("key.seen", selector=key.selector)
        elif key.state is KeyState.NEXT and seen:
            draft.keys[key.selector] = replace(key, state=KeyState.ACTIVE, seen_at=draft.now)
            draft.tell("key.rotated", selector=key.selector)
            for old in keys:
                if old.state is KeyState.ACTIVE and old.algorithm == key.algorithm:
                    retire_at = draft.now + policy.retire_after
                    draft.keys[old.selector] = replace(old, state=KeyState.RETIRING, retire_at=retire_at)
                    draft.tell("key.retiring", selector=old.selector, retire_at=retire_at)
        elif key.state is KeyState.RETIRING and key.retire_at is not None and draft.now >= key.retire_at:
            _retire(domain, key, draft)


def _retire(domain: SenderDomain, key: DomainKey, draft: _Draft) -> None:
    if domain.delegate:
        spare = DomainKey(key.domain, key.selector, key.algorithm, KeyState.SPARE, created_at=key.created_at)
        draft.keys[key.selector] = spare
        text = "the record in our own zone may be removed; the CNAME to it stays for the next rotation"
    else:
        draft.gone.append(key.selector)
        text = f"the record {key.selector}._domainkey.{key.domain} may be removed"
    draft.tell("key.retired", selector=key.selector, text=text)


def _return_path(domain: SenderDomain, findings: Sequence[Finding], draft: _Draft) -> Millis | None:
    """Since when mail may leave with the custom return path; None: it may not, for bounces would be lost."""
    seen = domain.return_path_seen_at
    records = [f for f in findings if f.expected.purpose in _RETURN_RECORDS and f.expected.host == domain.return_path]
    if not records or any(finding.verdict in _BAD for finding in records):
        if seen is not None:
            draft.tell("return-path.gone", return_path=domain.return_path)
        return None
    if seen is None and all(finding.verdict is Verdict.VERIFIED for finding in records):
        draft.tell("return-path.seen", return_path=domain.return_path)
        return draft.now
    return seen


def key_seen(key: DomainKey, findings: Sequence[Finding]) -> bool:
    """Every record that leads to this key, and the key itself, was found right everywhere."""
    records = [f for f in findings if f.expected.selector == key.selector and f.expected.purpose in _KEY_RECORDS]
    holding = any(f.expected.purpose in {Purpose.DKIM, Purpose.DKIM_ZONE} for f in records)
    return holding and all(finding.verdict is Verdict.VERIFIED for finding in records)

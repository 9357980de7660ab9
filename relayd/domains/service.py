"""Checks that are applied: looks at DNS, then writes what it means, so that nothing done meanwhile is undone.

Used by the daemon's duty and by the commands alike. Who checks when is duty.py's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relayd.config.models import Config, SMTPUpstream
from relayd.core.units import Millis
from relayd.domains import lifecycle, tracking, verify
from relayd.domains.expected import Ours, of_domain
from relayd.domains.lifecycle import GoneError
from relayd.domains.providers import PROVIDERS, provider_of
from relayd.domains.records import Finding, Purpose
from relayd.domains.report import from_facts, standing
from relayd.domains.resolve import Lookup
from relayd.spool.domains import (
    DomainKey,
    DomainStore,
    Editor,
    SenderDomain,
    TrackingDomain,
)


def policy_of(config: Config) -> lifecycle.Policy:
    """The times of the configuration, in milliseconds."""
    section = config.domains
    return lifecycle.Policy(
        round(section.recheck * 1000), round(section.grace * 1000), round(section.retire_after * 1000)
    )


def ours_of(config: Config, domain: SenderDomain) -> Ours:
    """Our side of a domain's records."""
    section = config.domains
    return Ours(section.mail_host or config.hostname, section.zone or "", tuple(section.spf), domain.provider)


def provider_for(config: Config, upstream: str) -> str:
    """The provider behind the name of an upstream (or its own name); "" where none is known."""
    configured = config.upstreams.get(upstream)
    found = provider_of(configured.host) if isinstance(configured, SMTPUpstream) else ""
    return found or (upstream if upstream in PROVIDERS else "")


def lookup_of(config: Config) -> Lookup:
    """A fresh Lookup: it forgets nothing, so each check takes a new one."""
    section = config.domains
    places = [(bind.host, bind.port) for bind in section.resolvers]
    return Lookup(places, port=section.authoritative_port, timeout=section.timeout)


@dataclass(frozen=True, slots=True)
class Checked:
    """A sender domain after its check."""

    domain: SenderDomain
    findings: list[Finding]


class Checker:
    """Checks domains against DNS as the configuration says."""

    def __init__(self, store: DomainStore, config: Config, clock: Callable[[], Millis]) -> None:
        self._store = store
        self.config = config
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - jitter, not secrecy

    async def check_domain(self, name: str) -> Checked:
        """Check a sender domain and write what it means. Raises GoneError, StateError."""
        everything = await self._store.everything()
        domain = next((each for each in everything.domains if each.name == name), None)
        if domain is None:
            raise GoneError(name)
        keys = [key for key in everything.keys if key.domain == name]
        lookup = lookup_of(self.config)
        try:
            examined = await verify.examine_domain(domain, keys, ours_of(self.config, domain), lookup)
        finally:
            await lookup.close()
        jitter = self._random.uniform(-1, 1)

        def work(editor: Editor) -> SenderDomain:
            now = self._clock()
            current = editor.domain(name)
            if current is None:
                raise GoneError(name)
            change = lifecycle.after_check(
                current,
                editor.keys(name),
                examined.findings,
                policy_of(self.config),
                now=now,
                retry_after=examined.retry_after,
                jitter=jitter,
            )
            editor.put_domain(change.domain)
            for key in change.keys:
                editor.put_key(key)
            for selector in change.gone:
                editor.remove_key(name, selector)
            for event in change.events:
                editor.tell(event)
            return change.domain

        return Checked(await self._store.change(work), examined.findings)

    async def check_tracking(self, name: str) -> tuple[TrackingDomain, list[Finding]]:
        """Check a tracking domain, step after step, and write what it means. Raises GoneError, StateError."""
        findings: list[Finding] = []
        for _ in range(tracking.LAST_STEP + 1):
            everything = await self._store.everything()
            current = next((each for each in everything.tracking if each.name == name), None)
            if current is None:
                raise GoneError(name)
            if tracking.expired(current, self._clock()):
                change = await self._apply_tracking(current, [], 0)
                return change.tracking, []
            lookup = lookup_of(self.config)
            try:
                findings = await verify.check(tracking.expected(current), lookup)
                retry_after = await verify.retry_after(name, findings, lookup)
            finally:
                await lookup.close()
            change = await self._apply_tracking(current, findings, retry_after)
            if not change.again:
                break
        return change.tracking, findings

    async def _apply_tracking(
        self, looked_at: TrackingDomain, findings: list[Finding], retry_after: int
    ) -> tracking.Change:
        jitter = self._random.uniform(-1, 1)

        def work(editor: Editor) -> tracking.Change:
            current = editor.tracking(looked_at.name)
            if current is None:
                raise GoneError(looked_at.name)
            if (current.step, current.state, current.added_at) != (
                looked_at.step,
                looked_at.state,
                looked_at.added_at,
            ):
                return tracking.Change(current)  # somebody was quicker: these findings are of the step before
            change = tracking.after_check(
                current, findings, policy_of(self.config), now=self._clock(), retry_after=retry_after, jitter=jitter
            )
            editor.put_tracking(change.tracking)
            for event in change.events:
                editor.tell(event)
            return change

        return await self._store.change(work)


def standing_of(config: Config, domain: SenderDomain, keys: Sequence[DomainKey]) -> list[Finding]:
    """A domain's records with what the last check said of them, without asking DNS."""
    last = from_facts(domain.report)
    there = [text for f in last if f.expected.purpose is Purpose.SPF for text in f.found]
    return standing(of_domain(domain, keys, ours_of(config, domain), there), last)

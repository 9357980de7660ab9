"""Checks records on the real DNS: asks for each, probes for usual mistakes, counts SPF's look-ups, judges alignment.

What the findings mean for the domain is lifecycle.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from relayd.domains import dmarc, spf
from relayd.domains.expected import Ours, of_domain
from relayd.domains.judge import judge, probes, question
from relayd.domains.records import KNOWN, Answer, Expected, Finding, Purpose, Question, Status, Verdict
from relayd.domains.resolve import Lookup
from relayd.spool.domains import DomainKey, SenderDomain

_ROUNDS = 12
"""How deep an SPF record's includes are followed."""
UNREAD = "the SPF record that is there now could not be read: merge this into it by hand"


@dataclass(frozen=True, slots=True)
class Examined:
    """One look at DNS."""

    findings: list[Finding]
    retry_after: int = 0
    """Seconds that the zone asks to wait where something is absent; 0 where unknown."""


async def examine_domain(domain: SenderDomain, keys: Sequence[DomainKey], ours: Ours, lookup: Lookup) -> Examined:
    """Look at every record of a sender domain."""
    there, certain = _spf_of(await lookup.everywhere((domain.name, "TXT")))
    expected = of_domain(domain, keys, ours, there)
    findings = await check(expected, lookup)
    findings = [await _with_advice(finding, domain, lookup, certain=certain) for finding in findings]
    return Examined(findings, await _retry_after(domain.name, findings, lookup))


async def check(expected: Sequence[Expected], lookup: Lookup) -> list[Finding]:
    """The verdict on each record."""
    return list(await asyncio.gather(*(check_one(record, lookup) for record in expected)))


async def check_one(expected: Expected, lookup: Lookup) -> Finding:
    """The verdict on one record; where it is not as it should be, the usual mistakes are looked for."""
    if not expected.checked:
        return judge(expected, {})
    first = question(expected)
    answers: dict[Question, list[Answer]] = {first: await lookup.everywhere(first)}
    finding = judge(expected, answers)
    if finding.verdict not in {Verdict.MISSING, Verdict.WRONG}:
        return finding
    more = [each for each in probes(expected) if each not in answers]
    found = await asyncio.gather(*(lookup.everywhere(each) for each in more))
    return judge(expected, answers | dict(zip(more, found, strict=True)))


async def retry_after(name: str, findings: Sequence[Finding], lookup: Lookup) -> int:
    """How long the zone asks to wait, where something is amiss."""
    return await _retry_after(name, findings, lookup)


async def _retry_after(name: str, findings: Sequence[Finding], lookup: Lookup) -> int:
    unsettled = [finding for finding in findings if finding.verdict not in {Verdict.VERIFIED, Verdict.NOT_CHECKED}]
    if not unsettled:
        return 0
    return max(await lookup.retry_after(name), *(finding.wait for finding in unsettled))


# --- SPF and DMARC: advice beside the verdict ---------------------------------------------------------------------


def _spf_of(answers: Sequence[Answer]) -> tuple[list[str], bool]:
    """The SPF records that are published, and whether that is certain."""
    known = [answer for answer in answers if answer.status in KNOWN]
    # the servers know better than a cache
    best = next((a for a in known if a.authoritative), known[0] if known else None)
    if best is None:
        return [], False
    return [text for text in best.records if spf.is_spf(text)], True


async def _with_advice(finding: Finding, domain: SenderDomain, lookup: Lookup, *, certain: bool) -> Finding:
    match finding.expected.purpose:
        case Purpose.SPF | Purpose.RETURN_PATH_SPF:
            name, value = finding.expected.host, finding.expected.value
            notes = (await spf_cost(name, value, lookup)).warnings
            if not certain and finding.expected.purpose is Purpose.SPF:
                notes.append(UNREAD)
        case Purpose.DMARC:
            policy = dmarc.read(finding.found[0]) if finding.verdict is Verdict.VERIFIED and finding.found else None
            back = domain.return_path or domain.name
            notes = dmarc.align(domain.name, domain.name, back, policy)
        case _:
            return finding
    return replace(finding, notes=(*finding.notes, *notes))


async def spf_cost(name: str, record: str, lookup: Lookup) -> spf.Cost:
    """Count a record's look-ups, with the real answers."""
    answers: dict[Question, Sequence[str] | None] = {}
    total = spf.cost(name, record, answers)
    for _ in range(_ROUNDS):
        wanted = [each for each in dict.fromkeys(total.unknown) if each not in answers]
        if not wanted:
            break
        found = await asyncio.gather(*(lookup.resolver(each) for each in wanted))
        answers |= {each: _values(answer) for each, answer in zip(wanted, found, strict=True)}
        total = spf.cost(name, record, answers)
    return total


def _values(answer: Answer) -> Sequence[str] | None:
    if answer.status is Status.FOUND:
        return answer.records
    return () if answer.status in {Status.NODATA, Status.NXDOMAIN} else None

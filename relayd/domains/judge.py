"""Compares what DNS should hold with what servers answered: a verdict and its usual cause. Pure.

One answer is judged by match.py; here the answers of all servers, and of the probes for usual mistakes, are weighed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from relayd.domains import dmarc
from relayd.domains.match import One, judge_answer
from relayd.domains.records import KNOWN, Answer, Answers, Cause, Expected, Finding, Purpose, Question, Status, Verdict

_PROBE_LABEL = "relayd-wildcard-probe"
_CAUSE_OF = {
    Status.SERVFAIL: Cause.SERVFAIL,
    Status.DNSSEC: Cause.DNSSEC,
    Status.TIMEOUT: Cause.TIMEOUT,
    Status.LAME: Cause.LAME,
    Status.ERROR: Cause.ERROR,
}
_WORST = (Status.DNSSEC, Status.LAME, Status.SERVFAIL, Status.ERROR, Status.TIMEOUT)


@dataclass(frozen=True, slots=True)
class _Judged:
    answer: Answer
    one: One


def question(expected: Expected) -> Question:
    """What to ask first."""
    return (expected.host, expected.type)


def probes(expected: Expected) -> list[Question]:
    """What to ask beside it when the first answer is not as expected: where usual mistakes leave their marks."""
    host, kind = expected.host, expected.type
    asked = [(appended(expected), kind), (f"{_PROBE_LABEL}.{host.partition('.')[2]}", kind)]
    if without_underscore(host) != host:
        asked.append((without_underscore(host), kind))
    if kind == "CNAME":
        asked += [(host, "A"), (host, "TXT")]
    if expected.purpose is Purpose.DMARC:
        parent = organisational_dmarc(expected)
        if parent != host:
            asked.append((parent, "TXT"))
    return asked


def appended(expected: Expected) -> str:
    """Where a record lands that was entered with its whole name into a panel that appends the zone's."""
    return f"{expected.host}.{expected.zone}"


def without_underscore(host: str) -> str:
    """The name as panels make it that refuse underscores."""
    return ".".join(label.removeprefix("_") or label for label in host.split("."))


def organisational_dmarc(expected: Expected) -> str:
    """Where DMARC looks next (RFC 7489 6.6.3)."""
    return f"_dmarc.{dmarc.organisational(expected.host.removeprefix('_dmarc.'))}"


def judge(expected: Expected, answers: Answers) -> Finding:
    """The verdict on one record. Answers to probes are used as far as they are there."""
    if not expected.checked:
        return Finding(expected, Verdict.NOT_CHECKED)
    judged = [_Judged(answer, judge_answer(expected, answer)) for answer in answers.get(question(expected), ())]
    finding = _weigh(expected, judged)
    if finding.verdict in {Verdict.MISSING, Verdict.WRONG}:
        finding = _explain(finding, answers)
    return finding


def _weigh(expected: Expected, judged: Sequence[_Judged]) -> Finding:
    known = [each for each in judged if each.answer.status in KNOWN]
    servers = [each for each in known if each.answer.authoritative]
    caches = [each for each in judged if not each.answer.authoritative]
    if not known:
        return _unknown(expected, judged)
    good = [each for each in servers if each.one.verdict is Verdict.VERIFIED]
    bad = [each for each in servers if each.one.verdict is not Verdict.VERIFIED]
    notes = _notes(judged)
    if good and bad:
        names = ", ".join(each.answer.source for each in bad)
        wait = max(each.answer.ttl for each in bad)
        return _finding(expected, bad[0], Verdict.PROPAGATING, Cause.SOME_SERVERS, notes, detail=names, wait=wait)
    if bad:
        return _finding(expected, bad[0], bad[0].one.verdict, bad[0].one.cause, _cached_note(notes, caches))
    if good:
        return _served(expected, good[0], caches, notes)
    # no server of the zone could be asked: the resolver's word is all there is
    return _finding(expected, known[0], known[0].one.verdict, known[0].one.cause, notes)


def _served(expected: Expected, good: _Judged, caches: Sequence[_Judged], notes: tuple[str, ...]) -> Finding:
    """Every server that answered has the record. What do receivers see?"""
    stale = [c for c in caches if c.answer.status in KNOWN and c.one.verdict is not Verdict.VERIFIED]
    if stale:
        wait = max(each.answer.ttl for each in stale)
        return _finding(expected, stale[0], Verdict.PROPAGATING, Cause.CACHED, notes, wait=wait)
    for status in (Status.DNSSEC, Status.SERVFAIL):
        if caches and all(each.answer.status is status for each in caches):
            # receivers that validate see nothing, however right the servers are
            return _finding(expected, good, Verdict.UNKNOWN, _CAUSE_OF[status], notes)
    return _finding(expected, good, Verdict.VERIFIED, Cause.NONE, notes)


def _unknown(expected: Expected, judged: Sequence[_Judged]) -> Finding:
    statuses = {each.answer.status for each in judged}
    worst = next((status for status in _WORST if status in statuses), Status.TIMEOUT)
    names = ", ".join(dict.fromkeys(each.answer.source for each in judged if each.answer.status is worst))
    return Finding(expected, Verdict.UNKNOWN, _CAUSE_OF[worst], detail=names)


def _finding(
    expected: Expected,
    judged: _Judged,
    verdict: Verdict,
    cause: Cause,
    notes: tuple[str, ...],
    *,
    detail: str = "",
    wait: int = 0,
) -> Finding:
    one = judged.one
    wait = wait or (judged.answer.ttl if verdict in {Verdict.MISSING, Verdict.WRONG} else 0)
    return Finding(expected, verdict, cause, one.found, wait, (*one.notes, *notes), detail or one.detail)


def _notes(judged: Sequence[_Judged]) -> tuple[str, ...]:
    told = {
        Status.TIMEOUT: "did not answer",
        Status.LAME: "is named for the zone but does not serve it",
        Status.SERVFAIL: "answered SERVFAIL",
        Status.ERROR: "gave no usable answer",
        Status.DNSSEC: "finds its DNSSEC signatures broken",
    }
    notes = (f"{each.answer.source} {told[each.answer.status]}" for each in judged if each.answer.status not in KNOWN)
    return tuple(dict.fromkeys(notes))


def _cached_note(notes: tuple[str, ...], caches: Sequence[_Judged]) -> tuple[str, ...]:
    """The servers do not have it, a cache still does: nobody should be lulled by that."""
    still = [c for c in caches if c.answer.status in KNOWN and c.one.verdict is Verdict.VERIFIED]
    if not still:
        return notes
    left = max(each.answer.ttl for each in still)
    return (*notes, f"resolvers may still have it in their caches, for {left} seconds at most")


def _explain(finding: Finding, answers: Answers) -> Finding:
    """Look for the marks of usual mistakes."""
    expected = finding.expected
    inherited = _inherited(finding, answers)
    if inherited is not None:
        return inherited
    kind = expected.type
    if finding.verdict is Verdict.WRONG and finding.found:
        probe = _found(answers, (f"{_PROBE_LABEL}.{expected.host.partition('.')[2]}", kind))
        if probe is not None and set(probe.records) == set(finding.found):
            return replace(finding, cause=Cause.WILDCARD)
        return finding
    if finding.verdict is Verdict.WRONG:
        return finding
    for name, cause in (
        (appended(expected), Cause.ZONE_APPENDED),
        (without_underscore(expected.host), Cause.NO_UNDERSCORE),
    ):
        there = None if name == expected.host else _found(answers, (name, kind))
        if there is not None and judge_answer(expected, there).verdict is Verdict.VERIFIED:
            return replace(finding, verdict=Verdict.WRONG, cause=cause, found=there.records, detail=name)
    return _instead(finding, answers) if kind == "CNAME" else finding


def _instead(finding: Finding, answers: Answers) -> Finding:
    """No CNAME: what is there in its place?"""
    host = finding.expected.host
    if any(answer.status is Status.LOOP for answer in answers.get((host, "A"), ())):
        return replace(finding, verdict=Verdict.WRONG, cause=Cause.LOOP)
    for kind, cause in (("A", Cause.PROXY), ("TXT", Cause.OTHER_TYPE)):
        there = _found(answers, (host, kind))
        if there is not None and not there.chain:
            return replace(finding, verdict=Verdict.WRONG, cause=cause, found=there.records, detail=kind)
    return finding


def _inherited(finding: Finding, answers: Answers) -> Finding | None:
    """DMARC of the organisational domain holds for those below it that have none."""
    expected = finding.expected
    if expected.purpose is not Purpose.DMARC or finding.verdict is not Verdict.MISSING:
        return None
    parent = organisational_dmarc(expected)
    if parent == expected.host:
        return None
    above = judge(replace(expected, host=parent, zone=parent), {(parent, "TXT"): answers.get((parent, "TXT"), ())})
    if above.verdict is Verdict.MISSING or not answers.get((parent, "TXT")):
        return None
    return replace(above, expected=expected, notes=(*above.notes, f"inherited from {parent}"))


def _found(answers: Answers, asked: Question) -> Answer | None:
    return next((answer for answer in answers.get(asked, ()) if answer.status is Status.FOUND), None)

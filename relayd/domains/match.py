"""Judges one server's answer about one expected record. Pure; judge.py weighs several servers against each other."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from relayd.domains import dmarc, spf
from relayd.domains.records import Answer, Cause, Expected, Purpose, Status, Verdict, bare, same_name

_QUOTES = "\"“”„‟'‘’＂"
_KEYS = {Purpose.DKIM, Purpose.DKIM_ZONE}
_MOST_PIECES = 4
"""TXT records of one name that are tried as pieces of one."""


@dataclass(frozen=True, slots=True)
class One:
    """The verdict on one answer."""

    verdict: Verdict
    cause: Cause = Cause.NONE
    found: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    detail: str = ""


def judge_answer(expected: Expected, answer: Answer) -> One:  # noqa: PLR0911 - a list of cases
    """Whether this server has the record, and if not, what it has instead."""
    if answer.status is Status.LOOP:
        return One(Verdict.WRONG, Cause.LOOP, answer.chain, detail=" → ".join(answer.chain))
    if answer.status in {Status.NODATA, Status.NXDOMAIN}:
        if answer.chain and expected.type != "CNAME":
            return One(Verdict.WRONG, Cause.DANGLING, answer.chain, detail=answer.chain[-1])
        return One(Verdict.MISSING, Cause.ABSENT)
    if answer.status is not Status.FOUND:
        return One(Verdict.UNKNOWN)
    match expected.type:
        case "CNAME":
            return _cname(expected, answer.records)
        case "MX":
            return _mx(expected, answer.records)
    if expected.purpose in _KEYS:
        return _dkim(expected, answer.records)
    return _dmarc(answer.records) if expected.purpose is Purpose.DMARC else _spf(expected, answer.records)


def _wrong(cause: Cause, found: Sequence[str], detail: str = "") -> One:
    return One(Verdict.WRONG, cause, tuple(found), detail=detail)


def _spoilt(text: str) -> Cause:
    """What a panel or an editor did to a text, whatever it was to say."""
    decoded = text.encode("latin-1", "replace").decode("utf-8", "replace")
    if any(mark in text or mark in decoded for mark in _QUOTES):
        return Cause.QUOTES
    if "\\;" in text or "\\" in text:
        return Cause.ESCAPED
    return Cause.NONE if text.isascii() else Cause.WIDE


# --- DKIM ------------------------------------------------------------------------------------------------------


def _dkim(expected: Expected, records: Sequence[str]) -> One:
    if len(records) == 1:
        cause, notes = _key(expected.value, records[0])
        if cause is Cause.NONE:
            return One(Verdict.VERIFIED, found=tuple(records), notes=notes)
        return _wrong(cause, records)
    causes = [_key(expected.value, text)[0] for text in records]
    if Cause.NONE in causes:
        # RFC 6376 3.6.2.2: with several records the result is undefined
        return _wrong(Cause.DOUBLED, records)
    if len(records) <= _MOST_PIECES:
        for order in permutations(records):
            if any(_key(expected.value, glue.join(order))[0] is Cause.NONE for glue in ("", " ")):
                return _wrong(Cause.SPLIT, records)
    return _wrong(next((cause for cause in causes if cause is not Cause.NOT_A_KEY), Cause.NOT_A_KEY), records)


def _key(wanted: str, text: str) -> tuple[Cause, tuple[str, ...]]:  # noqa: PLR0911 - a list of cases
    """Whether a TXT record publishes the key (RFC 6376 3.6.1): cause and warnings."""
    ours, theirs = dmarc.parse_tags(wanted)[0], dmarc.parse_tags(text)[0]
    spoilt = _spoilt(text)
    if spoilt is not Cause.NONE:
        return spoilt, ()
    if "p" not in theirs:
        return Cause.NOT_A_KEY, ()
    public, key = "".join(ours["p"].split()), "".join(theirs["p"].split())
    if not key:
        return Cause.REVOKED, ()
    if key != public:
        if public.startswith(key) and len(key) > len(public) // 8:
            return Cause.CUT, ()
        return (Cause.CASE if key.lower() == public.lower() else Cause.OTHER_KEY), ()
    if "v" in theirs and (theirs["v"] != "DKIM1" or next(iter(theirs)) != "v"):
        return Cause.NOT_A_KEY, ()
    if theirs.get("k", "rsa").lower() != ours.get("k", "rsa"):
        return Cause.OTHER_KEY, ()
    hashes = [part.strip().lower() for part in theirs.get("h", "sha256").split(":")]
    services = [part.strip().lower() for part in theirs.get("s", "*").split(":")]
    if "sha256" not in hashes or not {"*", "email"} & set(services):
        return Cause.RESTRICTED, ()
    flags = [part.strip().lower() for part in theirs.get("t", "").split(":")]
    return Cause.NONE, (("t=y: receivers treat the key as a test",) if "y" in flags else ())


# --- SPF and DMARC -------------------------------------------------------------------------------------------------


def _spf(expected: Expected, records: Sequence[str]) -> One:  # noqa: PLR0911 - a list of cases
    claimed = [text for text in records if spf.is_spf(text)]
    if not claimed:
        near = [text for text in records if "v=spf1" in text.lower()]
        if near:
            return _wrong(_spoilt(near[0]) if _spoilt(near[0]) is not Cause.NONE else Cause.SPF_SYNTAX, near)
        return One(Verdict.MISSING, Cause.ABSENT)
    if len(claimed) > 1:
        return _wrong(Cause.TWO_SPF, claimed)
    record = spf.read(claimed[0])
    if record.problems:
        spoilt = _spoilt(claimed[0])
        return _wrong(spoilt if spoilt is not Cause.NONE else Cause.SPF_SYNTAX, claimed, "; ".join(record.problems))
    lacking = spf.lacking(record, expected.terms)
    if not lacking:
        notes = ("+all lets the whole world send as this domain",) if _open(record) else ()
        return One(Verdict.VERIFIED, found=tuple(claimed), notes=notes)
    if spf.behind_all(record, expected.terms):
        return _wrong(Cause.SPF_AFTER_ALL, claimed, " ".join(lacking))
    negated = spf.negated(record, expected.terms)
    if negated:
        return _wrong(Cause.SPF_NEGATED, claimed, negated)
    if any(term in text.split() for term in lacking for text in records if text not in claimed):
        return _wrong(Cause.SPLIT, records)
    return _wrong(Cause.SPF_LACKS, claimed, " ".join(lacking))


def _open(record: spf.Record) -> bool:
    return any(term.name == "all" and term.qualifier in {"", "+"} for term in record.terms)


def _dmarc(records: Sequence[str]) -> One:
    claimed = [text for text in records if dmarc.is_dmarc(text)]
    if not claimed:
        near = [text for text in records if "dmarc1" in text.lower()]
        if near:
            return _wrong(_spoilt(near[0]) if _spoilt(near[0]) is not Cause.NONE else Cause.DMARC_SYNTAX, near)
        return One(Verdict.MISSING, Cause.ABSENT)
    if len(claimed) > 1:
        return _wrong(Cause.TWO_DMARC, claimed)
    problems = dmarc.read(claimed[0]).problems
    if problems:
        spoilt = _spoilt(claimed[0])
        return _wrong(spoilt if spoilt is not Cause.NONE else Cause.DMARC_SYNTAX, claimed, "; ".join(problems))
    return One(Verdict.VERIFIED, found=tuple(claimed))


# --- CNAME and MX -----------------------------------------------------------------------------------------------


def _cname(expected: Expected, records: Sequence[str]) -> One:
    target = records[0]
    wanted = expected.value
    if same_name(target, wanted) or (expected.lost_underscore and same_name(target, wanted.removeprefix("_"))):
        return One(Verdict.VERIFIED, found=tuple(records))
    if same_name(target, f"{bare(wanted)}.{expected.zone}"):
        return _wrong(Cause.VALUE_ZONE_APPENDED, records)
    if same_name(target, expected.host):
        return _wrong(Cause.LOOP, records)
    if bare(target) == bare(wanted).removeprefix("_") or bare(target).replace("_", "") == bare(wanted).replace("_", ""):
        return _wrong(Cause.NO_UNDERSCORE, records)
    return _wrong(Cause.OTHER_TARGET, records)


def _mx(expected: Expected, records: Sequence[str]) -> One:
    wanted = bare(expected.value.split()[-1])
    found = []
    for text in records:
        preference, _, target = text.partition(" ")
        found.append((int(preference) if preference.isdigit() else 0, bare(target)))
    if [target for _, target in found] == [""]:
        return _wrong(Cause.NULL_MX, records)
    ours = [preference for preference, target in found if target == wanted]
    if not ours:
        for _, target in found:
            if target == f"{wanted}.{expected.zone}":
                return _wrong(Cause.VALUE_ZONE_APPENDED, records)
            if _address(target):
                return _wrong(Cause.MX_ADDRESS, records)
        return _wrong(Cause.OTHER_MX, records)
    if min(found)[0] < min(ours):
        return _wrong(Cause.OTHER_MX, records, f"{min(found)[1]} comes first")
    return One(Verdict.VERIFIED, found=tuple(records))


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

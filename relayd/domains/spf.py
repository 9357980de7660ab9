"""SPF records (RFC 7208): read, merged with our part, their look-ups counted. Pure: answers are given.

Whether mail passes is the receiver's question; here it is only whether the record can say so.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_LOOKUPS = 10
MAX_VOIDS = 2
_VERSION = "v=spf1"
_TERM = re.compile(
    r"(?P<qualifier>[+?~-]?)(?P<name>[A-Za-z][A-Za-z0-9_.-]*)(?:(?P<sign>[:=/])(?P<value>\S*))?", re.ASCII
)
_MECHANISMS = {"all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists"}
_NEED_VALUE = {"include", "ip4", "ip6", "exists", "redirect", "exp"}
_COSTLY = {"include", "redirect", "a", "mx", "ptr", "exists"}
_DOMAIN = re.compile(r"[A-Za-z0-9_%{}+./=-]+(?:\.[A-Za-z0-9_%{}+/=-]+)+\.?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Term:
    """One mechanism or modifier."""

    text: str
    qualifier: str
    name: str
    value: str

    @property
    def same(self) -> tuple[str, str, str]:
        """What makes two terms the same."""
        value = self.value.lower().rstrip(".")
        if self.name in {"ip4", "ip6"}:
            with contextlib.suppress(ValueError):
                value = str(ipaddress.ip_network(value, strict=False))
        return (self.qualifier or "+", self.name, value)


@dataclass(frozen=True, slots=True)
class Record:
    """A record that was read. `problems` makes it a permanent error for receivers (RFC 7208 4.6)."""

    terms: tuple[Term, ...]
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([_VERSION, *(term.text for term in self.terms)])

    @property
    def all_at(self) -> int:
        """Where `all` ends the record; its length where there is none."""
        return next((n for n, term in enumerate(self.terms) if term.name == "all"), len(self.terms))


def is_spf(text: str) -> bool:
    """This TXT record claims to be SPF (RFC 7208 4.5)."""
    return text.lower() == _VERSION or text.lower().startswith(_VERSION + " ")


def read(text: str) -> Record:
    """Take a record apart. Never raises: faults are its problems."""
    terms, problems = [], []
    for word in text[len(_VERSION) :].split(" "):
        if not word:
            continue
        term = _term(word)
        problem = f"{word!r} is not a term of SPF" if term is None else _problem(term)
        if problem:
            problems.append(problem)
        if term is not None:
            terms.append(term)
    for name in ("redirect", "exp"):
        if sum(term.name == name for term in terms) > 1:
            problems.append(f"{name}= stands there twice")
    return Record(tuple(terms), tuple(problems))


def _term(word: str) -> Term | None:
    match = _TERM.fullmatch(word)
    if match is None:
        return None
    value = match["value"] or ""
    if match["sign"] == "/":
        value = "/" + value
    return Term(word, match["qualifier"], match["name"].lower(), value)


def _problem(term: Term) -> str:
    modifier = "=" in term.text and term.name not in _MECHANISMS
    if not modifier and term.name not in _MECHANISMS:
        return f"{term.text!r} is not a mechanism of SPF"
    if term.name in _NEED_VALUE and not term.value:
        return f"{term.text!r} lacks its value"
    if term.name in {"ip4", "ip6"}:
        try:
            network = ipaddress.ip_network(term.value, strict=False)
        except ValueError:
            return f"{term.text!r} is not an address"
        if network.version != int(term.name[-1]):
            return f"{term.text!r} is an address of the other protocol"
    if term.name in {"include", "exists", "redirect"} and not _DOMAIN.fullmatch(term.value):
        return f"{term.text!r} does not name a domain"
    return ""


def lacking(record: Record, wanted: Sequence[str]) -> list[str]:
    """Our terms that are not in the record, as far as it is read (up to `all`)."""
    there = {term.same for term in record.terms[: record.all_at]}
    return [text for text in wanted if (term := _term(text)) is None or term.same not in there]


def behind_all(record: Record, wanted: Sequence[str]) -> bool:
    """One of our terms stands where receivers never read it."""
    behind = {term.same for term in record.terms[record.all_at :]}
    return any((term := _term(text)) is not None and term.same in behind for text in lacking(record, wanted))


def negated(record: Record, wanted: Sequence[str]) -> str:
    """Our term that the record has with a minus or the like; "" when none is."""
    ours = {term.same[1:] for text in wanted if (term := _term(text)) is not None}
    there = {term.same for term in record.terms}
    return next(
        (t.text for t in record.terms if t.same[1:] in ours and t.same[0] != "+" and ("+", *t.same[1:]) not in there),
        "",
    )


def merge(existing: Sequence[str], wanted: Sequence[str]) -> str:
    """The one record to publish: theirs kept, ours added in front of `all`. Several of theirs become one."""
    kept: list[Term] = []
    ending: list[Term] = []
    ours = {term.same[1:] for text in wanted if (term := _term(text)) is not None}
    for text in existing:
        for term in read(text).terms:
            if term.name in {"all", "redirect", "exp"}:
                if not any(known.name == term.name for known in ending):
                    ending.append(term)
            elif not any(known.same == term.same for known in kept) and not (
                term.qualifier not in {"", "+"} and term.same[1:] in ours
            ):
                kept.append(term)
    there = Record(tuple(kept))
    added = lacking(there, wanted)
    # redirect counts only where there is no `all` (RFC 7208 6.1), and without both a stranger is neutral
    if any(term.name == "all" for term in ending):
        ending = [term for term in ending if term.name != "redirect"]
    texts = [term.text for term in sorted(ending, key=lambda term: term.name != "all")] or ["~all"]
    if [term.name for term in ending] == ["exp"]:
        texts.insert(0, "~all")
    return " ".join([_VERSION, *(term.text for term in kept), *added, *texts])


@dataclass(slots=True)
class Cost:
    """What a record asks of receivers."""

    lookups: int = 0
    voids: int = 0
    unknown: list[tuple[str, str]] = field(default_factory=list)
    """Questions (name, type) whose answers are needed to go on counting."""
    problems: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What to tell the owner."""
        told = list(self.problems)
        if self.lookups > MAX_LOOKUPS:
            told.append(f"the record takes {self.lookups} DNS look-ups, {MAX_LOOKUPS} are allowed (RFC 7208 4.6.4)")
        if self.voids > MAX_VOIDS:
            told.append(f"{self.voids} of its look-ups find nothing, {MAX_VOIDS} are allowed (RFC 7208 4.6.4)")
        return told


def cost(domain: str, text: str, answers: Mapping[tuple[str, str], Sequence[str] | None]) -> Cost:
    """Count the look-ups of a record (RFC 7208 4.6.4).

    `answers`: what is known: records of (name, type); an empty sequence for "nothing there", None for "no answer".
    """
    total = Cost()
    _count(text, answers, total, (domain.lower(),))
    return total


def _count(
    text: str, answers: Mapping[tuple[str, str], Sequence[str] | None], total: Cost, way: tuple[str, ...]
) -> None:
    for term in read(text).terms:
        if term.name == "all":
            return  # what stands behind it costs nothing; redirect is ignored beside it
        if term.name in _COSTLY:
            total.lookups += 1
        if term.name in {"include", "redirect"}:
            _enter(term, answers, total, way)
        elif term.name in {"a", "exists"}:
            _ask(term, "A", answers, total, way)
        elif term.name == "mx":
            _ask(term, "MX", answers, total, way)


def _target(term: Term, way: tuple[str, ...]) -> str:
    name = term.value.partition("/")[0] if term.name not in {"include", "redirect"} else term.value
    return (name or way[-1]).lower().rstrip(".")


def _ask(
    term: Term,
    kind: str,
    answers: Mapping[tuple[str, str], Sequence[str] | None],
    total: Cost,
    way: tuple[str, ...],
) -> None:
    name = _target(term, way)
    if "%" in name:
        return  # a macro: every sender has its own answer
    if (name, kind) not in answers:
        total.unknown.append((name, kind))
    elif answers[name, kind] is not None and not answers[name, kind]:
        total.voids += 1


def _enter(
    term: Term, answers: Mapping[tuple[str, str], Sequence[str] | None], total: Cost, way: tuple[str, ...]
) -> None:
    name = _target(term, way)
    if "%" in name:
        return
    if name in way:
        total.problems.append(f"{term.text} leads in a circle")
        return
    if total.lookups > 4 * MAX_LOOKUPS:
        return  # more than enough to warn
    if (name, "TXT") not in answers:
        total.unknown.append((name, "TXT"))
        return
    found = answers[name, "TXT"]
    if found is None:
        return
    records = [text for text in found if is_spf(text)]
    if not found:
        total.voids += 1
    if len(records) != 1:
        what = "has no SPF record" if not records else "has more than one SPF record"
        total.problems.append(f"{term.text}: {name} {what}")
        return
    _count(records[0], answers, total, (*way, name))

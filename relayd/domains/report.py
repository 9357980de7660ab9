"""Findings as they are kept in state.db and printed as JSON, and read back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from relayd.domains.records import Cause, Expected, Finding, Purpose, Verdict


def to_facts(findings: Iterable[Finding]) -> dict[str, Any]:
    """What is kept of a check."""
    return {"findings": [_fact(finding) for finding in findings]}


def _fact(finding: Finding) -> dict[str, Any]:
    return asdict(finding)


def from_facts(facts: Mapping[str, Any]) -> list[Finding]:
    """The findings of the last check; what cannot be read is left out."""
    found = []
    for fact in facts.get("findings", ()):
        try:
            expected = dict(fact["expected"])
            expected["purpose"] = Purpose(expected["purpose"])
            expected["terms"] = tuple(expected["terms"])
            rest = {name: fact[name] for name in ("wait", "detail")}
            found.append(
                Finding(
                    Expected(**expected),
                    Verdict(fact["verdict"]),
                    Cause(fact["cause"]),
                    tuple(fact["found"]),
                    notes=tuple(fact["notes"]),
                    **rest,
                )
            )
        except (KeyError, TypeError, ValueError):
            continue  # of another version: the next check writes it anew
    return found


def standing(expected: Sequence[Expected], last: Sequence[Finding]) -> list[Finding]:
    """What is expected now, with what the last check said of it; unknown where it has not been looked at."""
    known = {_name(finding.expected): finding for finding in last}
    found = []
    for record in expected:
        before = known.get(_name(record))
        if not record.checked:
            found.append(Finding(record, Verdict.NOT_CHECKED))
        elif before is None or (before.expected.value != record.value and before.verdict is not Verdict.VERIFIED):
            found.append(Finding(record, Verdict.UNKNOWN))
        else:
            found.append(replace(before, expected=record))
    return found


def _name(record: Expected) -> tuple[str, str, str]:
    return (record.purpose.value, record.type, record.host)

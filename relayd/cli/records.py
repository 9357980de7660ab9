"""What `relayd domain` and `relayd tracking-domain` share: languages, records and history as people read them."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.out import iso, moment, say

if TYPE_CHECKING:
    from relayd.domains.records import Finding
    from relayd.spool.domains import DomainEvent

_STYLES = {"verified": "green", "missing": "red", "wrong": "red", "propagating": "yellow", "unknown": "yellow"}
_STATE_STYLES = {"verified": "green", "degraded": "yellow", "stopped": "red", "expired": "red"}


class Lang(StrEnum):
    """Languages of records and mails."""

    EN = "en"
    JA = "ja"


LangOption = Annotated[
    Lang | None,
    typer.Option("--lang", metavar="en|ja", help="Language. Without it: that of the shell.", show_default=False),
]
NameArgument = Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain, in any script.", show_default=False)]


def spoken(lang: Lang | None) -> Lang:
    """The language that was asked for, else that of the operator's shell."""
    if lang is not None:
        return lang
    shell = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return Lang.JA if shell.startswith("ja") else Lang.EN


def shown(name: str) -> str:
    """A name for people."""
    from relayd.domains import changes

    return changes.shown(name)


def print_state(name: str, state: str, lang: Lang) -> None:
    """Where a domain or host stands."""
    from relayd.domains import texts

    say(f"{shown(name)}: {texts.state(state, lang)}", _STATE_STYLES.get(state, ""))


def print_records(findings: Sequence[Finding], lang: Lang) -> None:
    """TYPE, HOST and VALUE of each record, with purpose, state, and what is wrong."""
    from relayd.cli.out import clean
    from relayd.domains import texts

    for number, finding in enumerate(findings, 1):
        expected = finding.expected
        about = texts.purpose(expected.purpose, lang)
        say(f"{number}. {about} [{texts.verdict(finding.verdict, lang)}]", _STYLES.get(finding.verdict, ""))
        say(f"   TYPE   {expected.type}")
        say(f"   HOST   {expected.host}")
        say(f"   VALUE  {expected.value}")
        for text in finding.found if finding.verdict not in {"verified", "not-checked"} else ():
            say(f"   found  {clean(text)}")
        for text in (texts.message(finding, lang), *texts.remarks(finding, lang), texts.note(finding, lang)):
            if text:
                say(f"   - {clean(text)}")
        say()


def print_zone(findings: Sequence[Finding], lang: Lang) -> None:
    """The same as lines of a zone file."""
    from relayd.domains.render import zone_lines

    say(zone_lines(findings, lang=lang))


def records_json(findings: Sequence[Finding], lang: Lang) -> list[dict[str, Any]]:
    """The same for programs."""
    from relayd.domains.render import record_json

    return [record_json(finding, lang) for finding in findings]


def print_history(history: Iterable[DomainEvent]) -> None:
    """What happened, newest first."""
    from relayd.cli.out import clean

    for event in history:
        say(clean(f"{moment(event.at)}  {event.kind}  {_detail(event.detail)}".rstrip()))


def history_json(history: Iterable[DomainEvent]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [{"at": iso(event.at), "event": event.kind, **event.detail} for event in history]


def _detail(detail: Mapping[str, Any]) -> str:
    parts = []
    for key, value in detail.items():
        text = moment(value) if key.endswith("_at") or key == "deadline" else value
        parts.append(f"{key}: {', '.join(map(str, text)) if isinstance(text, list) else text}")
    return "; ".join(parts)

"""relayd why ADDRESS: what became of the mail for an address, and what to do, as the support desk asks it."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import FAULT, CommandError, ConfigOption, JSONOption, config_path, now_ms
from relayd.cli.out import iso, moment, print_json, say
from relayd.cli.place import data_dir_of, reader_of

if TYPE_CHECKING:
    from relayd.cli.budgets import Budgets
    from relayd.core.blocking import Block
    from relayd.core.telling import Told
    from relayd.spool.store import History

DAY = 86_400_000


class Language(StrEnum):
    """Of the sentences."""

    EN = "en"
    JA = "ja"


_WORDS = {
    "nothing": (
        "No mail to {address} in the last {days} days.",
        "過去{days}日間に {address} 宛てのメールはありません。",
    ),
    "blocked": (
        "Mail to {target} is blocked since {since} ({cls}). {stopped} stopped since. If the cause is gone: "
        "relayd block remove '{target}'",
        "{target} 宛てのメールは {since} からブロックされています({cls})。以後 {stopped} 通を送信していません。"
        "原因が解消したら: relayd block remove '{target}'",
    ),
    "more": ("There is more: --limit.", "ほかにもあります: --limit"),
    "next": ("Next try: {due}", "次回の再送: {due}"),
    "budget": (
        "It waits for the budget of {name}: {kind} {limit}. Free at {due}; nothing needs to be done.",
        "{name} の送信枠({kind} {limit})が空くのを待っています。空く時刻: {due}。対応は不要です。",
    ),
    "answer": ("The other side said", "相手サーバーの応答"),
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(why)


def why(
    context: typer.Context,
    *,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The recipient.", show_default=False)],
    days: Annotated[int, typer.Option("--days", metavar="N", min=1, max=3650, help="How far to look back.")] = 40,
    lang: Annotated[Language, typer.Option("--lang", metavar="LANG", help="en or ja.")] = Language.EN,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many of the newest mails.")] = 50,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Tell what became of the mail for an address, newest first, and what to do.

    Works whether the daemon runs or not. Looks through every message of these days, some two million a second.
    """
    from relayd.cli.block import blocks_of
    from relayd.cli.budgets import budgets_at
    from relayd.core.blocking import key_of

    address = address.strip().removeprefix("<").removesuffix(">")
    if "@" not in address:
        raise CommandError(f"{address!r} is no address", code=FAULT)
    path = config_path(context, config)
    data_dir, budgets = data_dir_of(path), budgets_at(path)
    since = now_ms() - days * DAY
    with reader_of(data_dir) as reader:
        found = list(islice(reader.about(sorted({address, key_of(address)}), since), limit + 1))
    blocks = blocks_of(data_dir, address)
    if as_json:
        print_json(_as_dict(address, blocks, found[:limit], budgets, more=len(found) > limit))
        return
    language = lang.value
    for block in blocks:
        _say("blocked", language, target=block.target, since=moment(block.since), cls=block.cls, stopped=block.stopped)
        if block.reason:
            say(f"  {block.reason}")
        say()
    if not found:
        _say("nothing", language, address=address, days=days)
    for history, n in found[:limit]:
        _tell(history, n, language, budgets)
    if len(found) > limit:
        _say("more", language)


def _say(words: str, language: str, **values: Any) -> None:
    say(_WORDS[words][language == "ja"].format(**values))


def _told(history: History, n: int) -> Told:
    from relayd.core.telling import tell

    waiting = next(each for each in history.recipients if each.n == n)
    return tell(waiting.state, [event for event in history.events if event.n == n])


def _tell(history: History, n: int, language: str, budgets: Budgets | None) -> None:
    from relayd.cli.budgets import budget_of
    from relayd.core.ids import format_id

    message, told = history.message, _told(history, n)
    waiting = next(each for each in history.recipients if each.n == n)
    sender = f"<{message.envelope.sender}>"
    say(f"{moment(told.at)}  {waiting.state.value}  {format_id(message.id)}  {sender}  {message.subject}".rstrip())
    for sentence in told.sentences:
        say(f"  {sentence.of(language)}")
    if left := budget_of(budgets, waiting):
        words = {"name": left.share.name, "kind": left.share.kind.value, "limit": left.limit}
        say(f"  {_WORDS['budget'][language == 'ja'].format(due=moment(left.free_at), **words)}")
    elif waiting.due is not None:
        say(f"  {_WORDS['next'][language == 'ja'].format(due=moment(waiting.due))}")
    if told.reply and waiting.state.value != "delivered":
        say(f"  {_WORDS['answer'][language == 'ja']}: {' '.join(told.reply.split())}")
    say()


def _as_dict(
    address: str, blocks: list[Block], found: list[tuple[History, int]], budgets: Budgets | None, *, more: bool
) -> dict[str, Any]:
    from relayd.cli.block import as_dict

    return {
        "address": address,
        "blocks": [as_dict(block) for block in blocks],
        "mails": [_mail(history, n, budgets) for history, n in found],
        "more": more,
    }


def _mail(history: History, n: int, budgets: Budgets | None) -> dict[str, Any]:
    from relayd.cli.budgets import budget_of
    from relayd.core.ids import format_id

    message, told = history.message, _told(history, n)
    waiting = next(each for each in history.recipients if each.n == n)
    facts = told.facts
    return {
        "id": format_id(message.id),
        "accepted_at": iso(message.accepted_at),
        "at": iso(told.at),
        "recipient": waiting.recipient.address,
        "sender": message.envelope.sender,
        "subject": message.subject,
        "state": waiting.state.value,
        "class": told.cls or None,
        "hard": facts.hard if facts else None,
        "actor": facts.actor.value if facts else None,
        "sentence_en": " ".join(sentence.en for sentence in told.sentences),
        "sentence_ja": "".join(sentence.ja for sentence in told.sentences),
        "reply": told.reply or None,
        "upstream": waiting.lane or None,
        "attempts": waiting.attempts,
        "next_try": iso(waiting.due),
        "waits_for_budget": left.as_dict() if (left := budget_of(budgets, waiting)) else None,
        "events": [
            {"at": iso(event.at), "event": event.kind.value, "class": event.detail.get("class")}
            for event in history.events
            if event.n == n
        ],
    }

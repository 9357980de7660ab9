"""relayd message show: all that is known of one message, from the client's RCPT to the last reply of an upstream."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import FAULT, CommandError, ConfigOption, JSONOption, config_path
from relayd.cli.out import (
    Column,
    iso,
    moment,
    print_json,
    print_pairs,
    print_table,
    say,
    span,
    write_octets,
)
from relayd.cli.place import data_dir_of, reader_of

if TYPE_CHECKING:
    from relayd.core.event import Event
    from relayd.spool.store import Attempt, History, Waiting

app = typer.Typer(help="Look at single messages.", no_args_is_help=True, rich_markup_mode=None)

_SAID_ELSEWHERE = frozenset(
    {"upstream", "endpoint", "tls", "reply", "due", "attempt", "delay_ms", "stage", "class", "upstream_trouble"}
)
"""Details of an event that its line tells in words of its own, or that the attempt tells."""
_MOMENTS = frozenset({"due", "since"})


@app.command()
def show(
    context: typer.Context,
    *,
    message: Annotated[str, typer.Argument(metavar="ID", help="Message id, as logs show it.", show_default=False)],
    content: Annotated[
        bool, typer.Option("--content", help="Print nothing but the kept mail, octet for octet.")
    ] = False,
    headers: Annotated[bool, typer.Option("--headers", help="Print nothing but the kept mail's header.")] = False,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Print the whole history of a message: recipients, events, every SMTP reply, transcripts of failed attempts.

    Works whether the daemon runs or not.
    """
    from relayd.core.ids import parse_id
    from relayd.spool.store import NoSuchMessageError

    try:
        number = parse_id(message)
    except ValueError as error:
        raise CommandError(str(error), code=FAULT) from None
    with reader_of(data_dir_of(config_path(context, config))) as reader:
        try:
            if content or headers:
                octets = reader.content(number)
                write_octets(_header(octets) if headers else octets)
                return
            found = reader.history(number)
        except NoSuchMessageError as error:
            raise CommandError(f"{message}: {error}") from None
    if as_json:
        print_json(as_dict(found))
    else:
        _tell(found)


def _header(octets: bytes) -> bytes:
    """The header, the empty line behind it left out."""
    end = octets.find(b"\r\n\r\n")
    return octets if end < 0 else octets[: end + 2]


def as_dict(found: History) -> dict[str, Any]:
    """A history for programs: moments in RFC 3339, durations in milliseconds."""
    from relayd.core.ids import format_id
    from relayd.core.priority import priority_of

    message, envelope, origin = found.message, found.message.envelope, found.message.origin
    return {
        "id": format_id(message.id),
        "accepted_at": iso(message.accepted_at),
        "size": message.size,
        "sender": envelope.sender,
        "body": envelope.body.value,
        "smtputf8": envelope.smtputf8,
        "ret": envelope.ret.value if envelope.ret else None,
        "envid": envelope.envid,
        "from_domain": message.from_domain,
        "message_id": message.message_id,
        "subject": message.subject,
        "campaign": message.campaign,
        "priority": priority_of(message.priority).value,
        "origin": {
            "listener": origin.listener,
            "peer": origin.peer,
            "helo": origin.helo,
            "credential": origin.credential,
            "network": origin.network,
            "tls": origin.tls,
            "protocol": origin.protocol,
        },
        "has_content": found.has_content,
        "recipients": [recipient_dict(waiting) for waiting in found.recipients],
        "events": [
            {"at": iso(e.at), "recipient": e.recipient, "event": e.kind.value, **_detail(e)} for e in found.events
        ],
        "attempts": [_attempt_dict(attempt, found) for attempt in found.attempts],
    }


def recipient_dict(waiting: Waiting) -> dict[str, Any]:
    """One recipient's standing for programs."""
    return {
        "recipient": waiting.recipient.address,
        "state": waiting.state.value,
        "upstream": waiting.lane or None,
        "attempts": waiting.attempts,
        "due": iso(waiting.due),
        "notify": sorted(word.value for word in waiting.recipient.notify),
        "orcpt": waiting.recipient.orcpt,
        "report_owed": waiting.notice.value if waiting.notice else None,
    }


def _detail(event: Event) -> dict[str, Any]:
    return {
        key: iso(value) if key in _MOMENTS and isinstance(value, int) else value for key, value in event.detail.items()
    }


def _attempt_dict(attempt: Attempt, found: History) -> dict[str, Any]:
    return {
        "at": iso(attempt.at),
        "took_ms": attempt.took,
        "upstream": attempt.upstream,
        "endpoint": attempt.endpoint,
        "tls": attempt.tls,
        "stage": attempt.stage.value,
        "reply": attempt.reply,
        "recipients": _addresses(attempt, found),
        "transcript": attempt.transcript,
    }


def _addresses(attempt: Attempt, found: History) -> list[str]:
    known = {waiting.n: waiting.recipient.address for waiting in found.recipients}
    return [known.get(n, f"#{n}") for n in attempt.recipients]


def _tell(found: History) -> None:
    from relayd.core.ids import format_id
    from relayd.core.priority import priority_of

    message, envelope, origin = found.message, found.message.envelope, found.message.origin
    login = f", logged in as {origin.credential}" if origin.credential else ""
    network = f", network {origin.network}" if origin.network else ""
    print_pairs(
        [
            ("message", format_id(message.id)),
            ("accepted", moment(message.accepted_at)),
            ("from", f"<{envelope.sender}>"),
            ("subject", message.subject),
            ("message-id", message.message_id),
            ("campaign", message.campaign or ""),
            ("priority", priority_of(message.priority).value if message.priority else ""),
            ("size", f"{message.size} octets" + ("" if found.has_content else " (content not kept any more)")),
            ("came by", f"{origin.protocol} on {origin.listener} from {origin.peer} ({origin.helo}){login}{network}"),
            ("secured", origin.tls or "no"),
        ]
    )
    say()
    columns = [Column("recipient", long=True), *(Column(name) for name in ("state", "upstream", "next try"))]
    columns.insert(3, Column("attempts", right=True))
    print_table(
        columns,
        (
            [w.recipient.address, w.state.value, w.lane or "-", str(w.attempts), moment(w.due) or "-"]
            for w in found.recipients
        ),
        empty="no recipients",
    )
    say()
    say("What happened:")
    for event in found.events:
        say(f"  {moment(event.at)}  {event.kind.value:<10} {event.recipient}  {_words(event)}".rstrip())
    for number, attempt in enumerate(found.attempts, 1):
        say()
        _tell_attempt(number, attempt, found)


def _words(event: Event) -> str:
    """An event's details in one line."""
    detail = event.detail if event.kind.value != "accepted" else {}  # what it tells stands above
    parts = []
    if detail.get("upstream"):
        parts.append(f"by {detail['upstream']}")
    if detail.get("reply"):
        parts.append(f"({detail['reply']})")
    if detail.get("upstream_trouble"):
        parts.append("(the upstream's own trouble, no attempt counted)")
    due = detail.get("due")
    if isinstance(due, int):
        parts.append(f"next try {moment(due)}")
    parts += [
        f"{key.replace('_', ' ')}: {moment(value) if key in _MOMENTS and isinstance(value, int) else value}"
        for key, value in detail.items()
        if key not in _SAID_ELSEWHERE and value
    ]
    return " ".join(parts)


def _tell_attempt(number: int, attempt: Attempt, found: History) -> None:
    where = f" ({attempt.endpoint}{', ' + attempt.tls if attempt.tls else ''})" if attempt.endpoint else ""
    say(f"Attempt {number}: {moment(attempt.at)}, {attempt.upstream}{where}, took {span(attempt.took)}")
    say(f"  for     {', '.join(_addresses(attempt, found))}")
    say(f"  came to {attempt.stage.value}: {attempt.reply}")
    for line in (attempt.transcript or "").splitlines():
        say(f"    {line}")

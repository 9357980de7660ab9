"""The filters of `relayd queue`: one wording of the options, and what they mean as a QueueFilter."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from relayd.cli.common import FAULT, CommandError, now_ms

if TYPE_CHECKING:
    from relayd.spool.filter import QueueFilter


class WaitingState(StrEnum):
    """The states of mail that waits, as --state takes them."""

    QUEUED = "queued"
    DEFERRED = "deferred"
    UNCERTAIN = "uncertain"
    HELD = "held"


class AnyState(StrEnum):
    """Every state, as the --state of commands that only look takes them."""

    QUEUED = "queued"
    DEFERRED = "deferred"
    UNCERTAIN = "uncertain"
    HELD = "held"
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    EXPIRED = "expired"
    SUPPRESSED = "suppressed"
    DELETED = "deleted"


IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Message ids.", show_default=False)]
SenderOption = Annotated[
    str | None,
    typer.Option(
        "--sender",
        metavar="PATTERN",
        help='Envelope sender, a pattern like "*@shop.example.com"; "<>" for bounces.',
        show_default=False,
    ),
]
RecipientOption = Annotated[
    str | None,
    typer.Option(
        "--recipient", metavar="PATTERN", help='Recipient, a pattern like "*@example.org".', show_default=False
    ),
]
UpstreamOption = Annotated[
    str | None,
    typer.Option(
        "--upstream", metavar="NAME", help='Name of the upstream; "" for mail that no route fits.', show_default=False
    ),
]
OlderOption = Annotated[
    str | None,
    typer.Option("--older-than", metavar="AGE", help="Accepted longer ago than this: 30m, 4h, 2d.", show_default=False),
]
NewerOption = Annotated[
    str | None,
    typer.Option("--newer-than", metavar="AGE", help="Accepted within this time: 30m, 4h, 2d.", show_default=False),
]
StateOption = Annotated[
    list[WaitingState] | None,
    typer.Option(
        "--state", metavar="STATE", help="queued, deferred, uncertain or held; may be repeated.", show_default=False
    ),
]
AnyStateOption = Annotated[
    list[AnyState] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="queued, deferred, uncertain or held; of finished mail delivered, bounced, expired, suppressed or deleted;"
        " may be repeated. Without it: everything that waits.",
        show_default=False,
    ),
]


def filtered(
    *, upstream: Any = UpstreamOption, state: Any = StateOption
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the arguments and options of a filter, in the place of its parameter `wanted`.

    `upstream` and `state` are what says the upstream and the states; None: this command has no such option, or its own.
    typer reads the signature of a function: what it is shown is the command's own with these put in.
    """
    options = {
        "ids": IdsArgument,
        "sender": SenderOption,
        "recipient": RecipientOption,
        "upstream": upstream,
        "older_than": OlderOption,
        "newer_than": NewerOption,
        "state": state,
    }
    shown = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in options.items()
        if option is not None
    ]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            command(wanted=_read(**{each.name: given.pop(each.name) for each in shown}), **given)

        # QueueFilter is imported where it is used
        types = get_type_hints(command, localns={"QueueFilter": object}, include_extras=True)
        own = signature(command)
        parameters: list[Parameter] = []
        for each in own.parameters.values():
            parameters += shown if each.name == "wanted" else [each.replace(annotation=types[each.name])]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        vars(run)["__signature__"] = own.replace(parameters=parameters, return_annotation=None)
        return run

    return give


def _read(
    *,
    ids: Sequence[str] | None,
    sender: str | None,
    recipient: str | None,
    older_than: str | None,
    newer_than: str | None,
    upstream: str | None = None,
    state: Sequence[WaitingState] | Sequence[AnyState] | None = None,
) -> QueueFilter:
    """What the options mean. Raises CommandError for what cannot be read."""
    from relayd.core.ids import parse_id
    from relayd.core.lifecycle import State
    from relayd.core.units import parse_duration
    from relayd.spool.filter import QueueFilter

    now = now_ms()
    try:
        return QueueFilter(
            sender=sender,
            recipient=recipient,
            upstream=upstream,
            older_than=None if older_than is None else now - round(parse_duration(older_than) * 1000),
            newer_than=None if newer_than is None else now - round(parse_duration(newer_than) * 1000),
            states=frozenset(State(each.value) for each in state or ()),
            ids=frozenset(parse_id(each) for each in ids or ()),
        )
    except ValueError as error:
        raise CommandError(str(error), code=FAULT) from None

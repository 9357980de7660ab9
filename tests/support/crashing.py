"""Changes a relayd process before it runs: ends it at a named step by SIGKILL, shortens its waits. Tests only.

The product has no hook for this: functions of running modules are wrapped from outside, in a process that forking.py
has made. A step concerns the message whose content holds MARK, so that other mail passes it unharmed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MARK = b"doomed"
"""Written in the content of the message at which the process is to die."""

Concerns = Callable[["Watch", tuple[Any, ...], Any], bool]
"""Does this call (its arguments, and its result when it is looked at afterwards) concern the marked message?"""


@dataclass(frozen=True)
class Step:
    """One point in the code: `place` is "module:function" or "module:Class.method"."""

    place: str
    when: Literal["before", "after"]
    concerns: Concerns


@dataclass
class Watch:
    """What a process with a plan knows: the ids of marked messages, and what the writer's thread writes now."""

    marked: set[int] = field(default_factory=set)
    writing: threading.local = field(default_factory=threading.local)


def install(plan: Mapping[str, Any]) -> None:
    """`plan["constants"]`: "module:NAME" → value. `plan["crash"]`: {"step": name, "nth": 1}."""
    for place, value in (plan.get("constants") or {}).items():
        owner, name, _ = _find(place)
        setattr(owner, name, value)
    if crash := plan.get("crash"):
        _arm(STEPS[crash["step"]], int(crash.get("nth", 1)))


def _arm(step: Step, nth: int) -> None:
    """Kill this process at the nth call of the step that concerns the marked message."""
    watch = Watch()
    _remember_marked(watch)
    _remember_writing(watch)
    left = nth

    def reached(arguments: tuple[Any, ...], result: Any = None) -> None:
        nonlocal left
        if step.concerns(watch, arguments, result):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    if step.when == "before":
        _wrap(step.place, before=reached)
    else:
        _wrap(step.place, after=reached)


def _find(place: str) -> tuple[Any, str, Any]:
    """Where a name lives, the name, and what it means now. Raises AttributeError: tests must notice a renaming."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, name, getattr(owner, name)


def _wrap(
    place: str,
    *,
    before: Callable[[tuple[Any, ...]], None] = lambda _: None,
    after: Callable[[tuple[Any, ...], Any], None] = lambda *_: None,
) -> None:
    """Call `before` and `after` around a function, with its arguments and its result (None where it raised)."""
    owner, name, function = _find(place)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*arguments: Any, **named: Any) -> Any:
            before((*arguments, *named.values()))
            result = await function(*arguments, **named)
            after((*arguments, *named.values()), result)
            return result

    else:

        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            before((*arguments, *named.values()))
            result = function(*arguments, **named)
            after((*arguments, *named.values()), result)
            return result

    setattr(owner, name, wrapped)


def _remember_marked(watch: Watch) -> None:
    """Every message that is accepted with the mark, or was and is read back from the spool."""

    def accepted(arguments: tuple[Any, ...]) -> None:
        _, message, _, content = arguments
        if MARK in content:
            watch.marked.add(message.id)

    _wrap("relayd.spool.sqlite:SqliteStore.accept", before=accepted)

    def carried(arguments: tuple[Any, ...]) -> None:
        delivery = arguments[-1]
        if MARK in (delivery.content or delivery.message.subject.encode()):
            watch.marked.add(delivery.message.id)

    _wrap("relayd.delivery.attempt:Attempts.carry", before=carried)


def _remember_writing(watch: Watch) -> None:
    """While the writer's thread is inside a commit: the batch."""

    def begins(arguments: tuple[Any, ...]) -> None:
        watch.writing.batch = arguments[1]

    def ends(arguments: tuple[Any, ...], result: Any) -> None:
        watch.writing.batch = None

    _wrap("relayd.spool.writes:commit", before=begins, after=ends)


# -- what concerns the marked message


def _content(position: int) -> Concerns:
    return lambda watch, arguments, result: MARK in arguments[position]


def _id_in(find: Callable[[tuple[Any, ...]], int]) -> Concerns:
    return lambda watch, arguments, result: find(arguments) in watch.marked


def _prepared(watch: Watch, arguments: tuple[Any, ...], result: Any) -> bool:
    return MARK in result.content


def _batch_has(watch: Watch, batch: Any, kind: str) -> bool:
    if batch is None:
        return False
    if kind == "part":
        return any(message in watch.marked for message, _, _ in batch.parts)
    return any(type(item).__name__ == kind and item.message in watch.marked for item in batch.items)


def _batch(kind: str) -> Concerns:
    """The batch that a call is given holds an item of this kind for the marked message."""
    return lambda watch, arguments, result: _batch_has(watch, arguments[1], kind)


def _inside(kind: str) -> Concerns:
    """The batch that is being written at this moment does."""
    return lambda watch, arguments, result: _batch_has(watch, getattr(watch.writing, "batch", None), kind)


def _reply_waits(watch: Watch, arguments: tuple[Any, ...], result: Any) -> bool:
    from relayd.core.ids import format_id

    written = arguments[1] if len(arguments) > 1 else b"".join(arguments[0]._out)
    return any(format_id(number).encode() in written for number in watch.marked)


def _events_of(*kinds: str) -> Concerns:
    """Store.committed got such an event of the marked message."""
    return lambda watch, arguments, result: any(
        event.message in watch.marked and event.kind.value in kinds for event in arguments[3]
    )


def _always(watch: Watch, arguments: tuple[Any, ...], result: Any) -> bool:
    return True


_SENT = ("delivered", "bounced", "deferred", "uncertain")

ACCEPTING: dict[str, Step] = {
    "the content is whole": Step("relayd.intake.intake:Intake.submit", "before", _content(4)),
    "headers are added": Step("relayd.intake.submission:Preparer.prepare", "after", _prepared),
    "the store is asked": Step("relayd.spool.sqlite:SqliteStore.accept", "before", _content(3)),
    "it waits for the commit": Step("relayd.spool.sqlite:SqliteStore.accept", "after", _content(3)),
    "the commit begins": Step("relayd.spool.writes:commit", "before", _batch("Accept")),
    "the transaction is open": Step("relayd.spool.writes:_Transaction.__enter__", "after", _inside("Accept")),
    "message, body and recipients are written": Step("relayd.spool.writes:Rows.run", "before", _inside("Accept")),
    "all but COMMIT": Step("relayd.spool.writes:_Transaction.__exit__", "before", _inside("Accept")),
    "COMMIT": Step("relayd.spool.writes:_Transaction.__exit__", "after", _inside("Accept")),
    "the loop hears of the commit": Step("relayd.spool.segment:Segment._succeeded", "before", _batch("Accept")),
    "before the mail log": Step("relayd.spool.sqlite:SqliteStore.committed", "before", _events_of("accepted")),
    "behind the mail log": Step("relayd.spool.sqlite:SqliteStore.committed", "after", _events_of("accepted")),
    "before delivery has it": Step(
        "relayd.delivery.dispatch:Dispatcher.push", "before", _id_in(lambda given: given[1].message.id)
    ),
    "delivery has it": Step(
        "relayd.delivery.dispatch:Dispatcher.push", "after", _id_in(lambda given: given[1].message.id)
    ),
    "the reply is made": Step("relayd.intake.intake:Intake.submit", "after", _content(4)),
    "the reply is about to be written": Step("relayd.listener.stream:Stream.flush", "before", _reply_waits),
}
"""From the final dot to 250, in their order."""

LARGE: dict[str, Step] = {
    "a part is about to be committed": Step("relayd.spool.writes:commit", "before", _batch("part")),
    "a part is committed": Step("relayd.spool.writes:commit", "after", _batch("part")),
}
"""What is more for a large message, whose body is written over several commits."""

CARRYING: dict[str, Step] = {
    "before MAIL": Step("relayd.delivery.smtp:SMTPSession.send", "before", _id_in(lambda given: _number(given[1].id))),
    "before the content": Step("relayd.delivery.protocol:ReplyProtocol.content", "before", _content(1)),
    "the upstream's 250 is read": Step("relayd.delivery.protocol:ReplyProtocol.content", "after", _content(1)),
    "the session has reported": Step(
        "relayd.delivery.smtp:SMTPSession.send", "after", _id_in(lambda given: _number(given[1].id))
    ),
    "before it is decided": Step(
        "relayd.delivery.writing:settle_attempt", "before", _id_in(lambda given: given[0].message.id)
    ),
    "before the store is asked": Step(
        "relayd.spool.sqlite:SqliteStore.settle", "before", _id_in(lambda given: given[1].message)
    ),
    "the settlement waits for the commit": Step(
        "relayd.spool.sqlite:SqliteStore.settle", "after", _id_in(lambda given: given[1].message)
    ),
    "the settlement's commit begins": Step("relayd.spool.writes:commit", "before", _batch("Settle")),
    "the settlement is half written": Step("relayd.spool.writes:Rows.run", "before", _inside("Settle")),
    "the settlement, all but COMMIT": Step("relayd.spool.writes:_Transaction.__exit__", "before", _inside("Settle")),
    "the settlement's COMMIT": Step("relayd.spool.writes:_Transaction.__exit__", "after", _inside("Settle")),
    "the loop hears of the settlement": Step("relayd.spool.segment:Segment._succeeded", "before", _batch("Settle")),
    "before the mail log of the settlement": Step(
        "relayd.spool.sqlite:SqliteStore.committed", "before", _events_of(*_SENT)
    ),
    "behind the mail log of the settlement": Step(
        "relayd.spool.sqlite:SqliteStore.committed", "after", _events_of(*_SENT)
    ),
    "before the window has room again": Step(
        "relayd.delivery.lanes:Lane.done", "before", _id_in(lambda given: given[1])
    ),
    "the window has room again": Step("relayd.delivery.lanes:Lane.done", "after", _id_in(lambda given: given[1])),
}
"""From the first command to an upstream to the settlement on disk, in their order."""

REPORTING: dict[str, Step] = {
    "before the report is composed": Step("relayd.delivery.notices:compose", "before", _always),
    "the report is composed": Step("relayd.delivery.notices:compose", "after", _always),
    "the report is about to be committed": Step(
        "relayd.spool.writes:commit", "before", lambda watch, arguments, result: _is_report(arguments[1])
    ),
    "the report is committed": Step(
        "relayd.spool.writes:commit", "after", lambda watch, arguments, result: _is_report(arguments[1])
    ),
    "before the debt is struck out": Step("relayd.spool.sqlite:SqliteStore.noticed", "before", _always),
    "the debt waits to be struck out": Step("relayd.spool.sqlite:SqliteStore.noticed", "after", _always),
    "the debt is about to be struck out": Step(
        "relayd.spool.writes:commit",
        "before",
        lambda watch, arguments, result: any(type(item).__name__ == "Noticed" for item in arguments[1].items),
    ),
    "the debt is struck out": Step(
        "relayd.spool.writes:commit",
        "after",
        lambda watch, arguments, result: any(type(item).__name__ == "Noticed" for item in arguments[1].items),
    ),
}
"""From a final failure to the report about it, in their order."""

STARTING: dict[str, Step] = {
    "key and certificate are written": Step("relayd.listener.certificate:_write", "after", _always),
    "key and certificate are put in place": Step("pathlib:Path.rename", "after", _always),
    "before a segment has its tables": Step("relayd.spool.schema:create_tables", "before", _always),
    "a segment has its tables": Step("relayd.spool.schema:create_tables", "after", _always),
    "a segment is made": Step("relayd.spool.files:make_segment", "after", _always),
    "the spool is open": Step("relayd.spool.sqlite:SqliteStore.open", "after", _always),
    "state.db is open": Step("relayd.spool.state:StateDB.open", "after", _always),
    "lanes are filled": Step("relayd.delivery.dispatch:Dispatcher.start", "after", _always),
}
"""While the daemon starts."""

STEERING: dict[str, Step] = {
    "before an act is decided": Step("relayd.delivery.steering:steer", "before", _always),
    "an act is about to be committed": Step("relayd.spool.writes:commit", "before", _always),
    "an act is committed": Step("relayd.spool.writes:commit", "after", _always),
}
"""While an operator's act is done to mail that waits, and nothing else goes on."""

JUDGING: dict[str, Step] = {
    "a failure is about to be judged": Step("relayd.intake.blocks:BlockBook._case", "before", _always),
    "a block is written, all but COMMIT": Step("relayd.spool.blocklist:add", "after", _always),
}
"""From a failure on disk to the block, in their order."""

STEPS = ACCEPTING | LARGE | CARRYING | REPORTING | STARTING | STEERING | JUDGING


def _number(text: str) -> int:
    from relayd.core.ids import parse_id

    return parse_id(text)


def _is_report(batch: Any) -> bool:
    """A message with a null sender is being accepted."""
    return any(
        type(item).__name__ == "Accept" and b"report-type=delivery-status" in item.content for item in batch.items
    )

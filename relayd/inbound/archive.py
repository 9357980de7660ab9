"""Questions about mail that has left, asked of the worker that has it: who its recipients are, which one has this
Message-ID; and the handing over of facts. How another worker is reached is app.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from relayd.core.feedback import Applied, Fact, FactError
from relayd.core.ids import MessageId, slot_of
from relayd.core.units import Millis
from relayd.spool.state import StateError
from relayd.spool.store import History, NoSuchMessageError, StoreError

PAUSE = 4.0
"""A search through everything is followed by a pause this many times as long."""
MOST_PAUSE = 60.0
MOST_FOUND = 50
"""Messages with one Message-ID that are looked at."""

Verb = Callable[[dict[str, Any]], Awaitable[Any]]
Write = Callable[[Fact], Awaitable[Applied]]
"""Writes a fact down in the segments of this worker (apply.py). Raises FactError where that cannot be done now."""
Remote = Callable[[int, str, dict[str, Any]], Awaitable[Any]]
"""Asks the worker of a slot: verb and arguments. Raises FactError when it does not answer."""


_Wanted = tuple[Millis, "asyncio.Future[list[MessageId]]"]
"""Since when to look for a Message-ID, and who waits for what is found."""


class Spool(Protocol):
    """What is asked of a worker's store."""

    async def history(self, message: MessageId) -> History:
        """Raises NoSuchMessageError, StoreError."""

    async def by_message_id(self, wanted: Sequence[str], since: Millis) -> dict[str, list[MessageId]]:
        """Raises StoreError."""


class Archive:
    """All workers' mail, seen from one of them. Every method raises FactError where an answer cannot be had now."""

    def __init__(self, slot: int, slots: int, store: Spool, write: Write, remote: Remote) -> None:
        self._slot, self._slots = slot, slots
        self._store = store
        self._write = write
        self._remote = remote
        self._locks = [asyncio.Lock() for _ in range(slots)]
        self._search: asyncio.Task[None] | None = None
        self._wanted: dict[str, _Wanted] = {}

    # -- what is asked of us by other workers

    def verbs(self) -> Mapping[str, Verb]:
        """For the control socket."""
        return {"inbound.fact": self._fact, "inbound.recipients": self._recipients, "inbound.find": self._find}

    async def _fact(self, args: dict[str, Any]) -> str:
        return (await self._write(Fact.from_dict(args))).value

    async def _recipients(self, args: dict[str, Any]) -> list[str] | None:
        try:
            history = await self._store.history(int(args["message"]))
        except NoSuchMessageError:
            return None
        if history.message.origin.inbound:
            return None  # it never went out
        return [waiting.recipient.address for waiting in history.recipients]

    async def _find(self, args: dict[str, Any]) -> dict[str, list[MessageId]]:
        found = await self._store.by_message_id([str(text) for text in args["ids"]], int(args["since"]))
        return {text: numbers[:MOST_FOUND] for text, numbers in found.items()}

    # -- what we ask

    async def apply(self, fact: Fact) -> Applied:
        """Hand a fact to the worker whose segment it belongs into."""
        return Applied(await self._ask(slot_of(fact.message) % self._slots, "inbound.fact", fact.to_dict()))

    async def recipients(self, message: MessageId) -> list[str] | None:
        """The addresses of a message, by n; None where it is none that we have sent out."""
        answer = await self._ask(slot_of(message) % self._slots, "inbound.recipients", {"message": message})
        return None if answer is None else [str(address) for address in answer]

    async def find(self, message_id: str, since: Millis) -> list[MessageId]:
        """Messages that carry this Message-ID, accepted since then. Questions that come meanwhile share a search."""
        known = self._wanted.get(message_id)
        if known is None:
            future: asyncio.Future[list[MessageId]] = asyncio.get_running_loop().create_future()
            self._wanted[message_id] = known = (since, future)
        if self._search is None:
            self._search = asyncio.create_task(self._search_all(), name="search for Message-IDs")
        return await asyncio.shield(known[1])

    async def close(self) -> None:
        """Give up searching; those who wait are told."""
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
        self._give_up({})  # a search that was cancelled before its first step could not

    async def _search_all(self) -> None:
        loop = asyncio.get_running_loop()
        batch: dict[str, _Wanted] = {}
        try:
            while self._wanted:
                batch, self._wanted = self._wanted, {}
                begun = loop.time()
                await self._search_for(batch)
                await asyncio.sleep(min((loop.time() - begun) * PAUSE, MOST_PAUSE))
        finally:
            self._give_up(batch)

    def _give_up(self, batch: Mapping[str, _Wanted]) -> None:
        self._search = None
        left, self._wanted = [*batch.values(), *self._wanted.values()], {}
        for _, future in left:
            _fail(future, FactError("the search was given up"))

    async def _search_for(self, batch: Mapping[str, _Wanted]) -> None:
        args = {"ids": list(batch), "since": min(since for since, _ in batch.values())}
        found: dict[str, list[MessageId]] = {}
        try:
            for slot in range(self._slots):
                for text, numbers in (await self._ask(slot, "inbound.find", args)).items():
                    found.setdefault(text, []).extend(numbers)
        except FactError as error:
            for _, future in batch.values():
                _fail(future, error)
            return
        for text, (_, future) in batch.items():
            if not future.done():
                future.set_result(found.get(text, [])[:MOST_FOUND])

    async def _ask(self, slot: int, verb: str, args: dict[str, Any]) -> Any:
        try:
            if slot == self._slot:
                return await self.verbs()[verb](args)
            # one question at a time: a control socket has few seats
            async with self._locks[slot]:
                return await self._remote(slot, verb, args)
        except (StoreError, StateError) as error:
            raise FactError(str(error)) from error


def _fail(future: asyncio.Future[list[MessageId]], error: FactError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever asked may be gone

"""The blocks of one worker: looked up for every recipient in memory, made from what events tell, shared by state.db.

Which failures block is core/blocking.py's, how blocks are kept spool/blocklist.py's. Of what other processes change,
PRAGMA data_version tells once a second.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog

from relayd.config.models import Blocks
from relayd.core.blocking import (
    BY_RULE,
    EVERYTHING,
    Block,
    Rule,
    ScopeKind,
    covers,
    default_rules,
    failure_class,
    key_of,
    scope_of,
    spoken_of_all,
)
from relayd.core.event import Event, EventKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import Stage
from relayd.core.mail import Message
from relayd.core.units import Millis
from relayd.spool import blocklist
from relayd.spool.blocklist import NewBlock, Strike, TooManyBlocksError
from relayd.spool.state import StateDB, StateError
from relayd.spool.store import History, NoSuchMessageError, StoreError

POLL = 1.0
"""Seconds after which what another process changed is seen at the latest."""
UPKEEP = 600.0
BACKLOG = 10_000
"""Failures that wait to be judged; further ones are dropped and counted: such mail fails again and is judged then."""
BATCH = 200
REASON = 300
"""Characters of a reply that a block remembers."""


def rules_of(settings: Blocks) -> dict[str, Rule]:
    """The rule of each class that may block: the defaults, and what the configuration says otherwise."""
    rules = default_rules()
    for cls, said in settings.rules.items():
        rule = rules.get(cls) or Rule(0, 14 * 86_400_000, 30 * 86_400_000)
        expires = rule.expires
        if said.expires is not None:
            expires = None if said.expires == "never" else round(said.expires * 1000)
        rules[cls] = Rule(
            after=rule.after if said.after is None else said.after,
            within=rule.within if said.within is None else round(said.within * 1000),
            expires=expires,
            scope=rule.scope if said.scope is None else said.scope,
        )
    return {cls: rule for cls, rule in rules.items() if rule.after}


@dataclass(frozen=True, slots=True)
class _Failure:
    """An event that may count towards a block. `cls` None: the history has to tell what kept failing."""

    event: Event
    cls: str | None
    again: bool = False
    """It may have been judged before, by a process that was killed."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A failure that counts: its strike, the rule, and the block it may become."""

    strike: Strike
    rule: Rule
    block: NewBlock
    again: bool


class BlockBook:
    """Blocks of one worker, on its event loop."""

    def __init__(
        self,
        settings: Blocks,
        state: StateDB,
        clock: Callable[[], Millis],
        history: Callable[[MessageId], Awaitable[History]],
    ) -> None:
        self._settings = settings
        self._rules = rules_of(settings)
        self._state = state
        self._clock = clock
        self._history = history
        self._addresses: dict[str, tuple[Block, ...]] = {}
        self._domains: dict[str, tuple[Block, ...]] = {}
        """Of *@DOMAIN by DOMAIN, of *@*.DOMAIN by .DOMAIN."""
        self._deep = 0
        """How many domains are blocked with all below them."""
        self._counts: Counter[str] = Counter()
        self._change = 0
        self._version = -1
        self._failures: deque[_Failure] = deque()
        self._stopped: dict[int, tuple[int, Millis]] = {}
        self._wake = asyncio.Event()
        self._judging = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._silent = False
        self.kept = self.judged = 0
        """Failures that came, and those that have been judged."""
        self.dropped = 0
        """Failures that came faster than they could be judged."""
        self._log = structlog.get_logger("relayd.blocks")

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what is blocked, and keep up with it. Raises StateError."""
        await self.refresh()
        self._tasks = [
            asyncio.create_task(self._follow(), name="follow blocks"),
            asyncio.create_task(self._judge(), name="judge failures"),
        ]

    async def stop(self) -> None:
        """Judge and write what is left, and end."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            await self.settle()

    def apply(self, settings: Blocks) -> None:
        """Take over changed rules; blocks stay as they were made."""
        self._settings = settings
        self._rules = rules_of(settings)

    # -- looking up -----------------------------------------------------------------------------------------------

    def find(self, message: Message, address: str) -> Block | None:
        """The block that keeps a message from an address; None as a rule."""
        if not self._addresses and not self._domains:
            return None
        key = address.lower() if address.isascii() else key_of(address)
        found = self._addresses.get(key)
        if found is not None and (block := self._of(found, message)) is not None:
            return block
        if not self._domains:
            return None
        domain = key[key.rfind("@") + 1 :]
        found = self._domains.get(domain)
        if found is not None and (block := self._of(found, message)) is not None:
            return block
        return self._by_domain_above(message, domain) if self._deep else None

    def _by_domain_above(self, message: Message, domain: str) -> Block | None:
        dot = domain.find(".")
        while dot >= 0:
            found = self._domains.get(domain[dot:])
            if found is not None and (block := self._of(found, message)) is not None:
                return block
            dot = domain.find(".", dot + 1)
        return None

    def _of(self, blocks: tuple[Block, ...], message: Message) -> Block | None:
        if not self._settings.enabled:
            return None
        now = self._clock()
        return next((block for block in blocks if block.holds(now) and covers(block.scope, message)), None)

    def counts(self) -> Mapping[str, int]:
        """Blocks by class."""
        return +self._counts

    # -- what others tell -----------------------------------------------------------------------------------------

    def observe(self, events: Sequence[Event]) -> None:
        """A reader of the store's events: keeps failures to be judged, and counts what blocks have stopped."""
        for event in events:
            if event.kind is EventKind.SUPPRESSED:
                self._count(event)
        for failure in self._failures_of(events):
            if len(self._failures) >= BACKLOG:
                self.dropped += 1
                continue
            self._failures.append(failure)
            self.kept += 1
            self._wake.set()

    def _failures_of(self, events: Sequence[Event], *, again: bool = False) -> Iterator[_Failure]:
        if not self._settings.enabled:
            return
        several: Counter[MessageId] | None = None
        for event in events:
            kind = event.kind
            if kind is EventKind.ACCEPTED or kind is EventKind.DELIVERED or kind is EventKind.DEFERRED:
                continue
            if kind is EventKind.EXPIRED:
                yield _Failure(event, None, again)
            elif (cls := failure_class(event)) in self._rules:
                if spoken_of_all(event):
                    if several is None:
                        several = Counter(each.message for each in events if spoken_of_all(each))
                    if several[event.message] > 1 and not _named(event):
                        continue
                yield _Failure(event, cls, again)

    def _count(self, event: Event) -> None:
        number = event.detail.get("block")
        if isinstance(number, int):
            count, _ = self._stopped.get(number, (0, 0))
            self._stopped[number] = (count + 1, event.at)

    # -- judging --------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Judge all that waits, and write what was stopped."""
        while self._failures and await self._judge_some():
            pass
        await self._write_stopped()

    async def _judge(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._failures:
                if not await self._judge_some():
                    await asyncio.sleep(POLL)

    async def _judge_some(self) -> bool:
        """Turn some failures into strikes and blocks; False where state.db fails, and they wait."""
        async with self._judging:
            some = [self._failures[place] for place in range(min(BATCH, len(self._failures)))]
            try:
                await self._record(some)
            except StateError as error:
                self._complain(error)
                return False
            except Exception:  # noqa: BLE001 - one failure that cannot be judged must not end the judging of others
                self._log.exception("failures not judged", count=len(some))
            for _ in some:
                self._failures.popleft()
            self.judged += len(some)
        self._silent = False
        return True

    async def judge_kept(self) -> bool:
        """Judge all that has come so far; False where that cannot be done now."""
        kept = self.kept
        while self.judged < kept:
            if not await self._judge_some():
                return False
        return True

    async def judge_again(self, events: Sequence[Event]) -> None:
        """Judge events that a process may have judged before it was killed. Raises StateError."""
        failures = list(self._failures_of(events, again=True))
        async with self._judging:
            for place in range(0, len(failures), BATCH):
                await self._record(failures[place : place + BATCH])

    async def _record(self, some: Sequence[_Failure]) -> None:
        cases = [case for failure in some for case in [await self._case(failure)] if case is not None]
        made, refused = await self._state.write(lambda db: _record(db, cases)) if cases else ([], 0)
        await self.refresh()
        for block in made:
            self._log.info("address blocked", **{"class": block.cls}, scope=block.scope, reason=block.reason)
        if refused:
            self._log.error("addresses not blocked: the list is full", count=refused, most=blocklist.MOST)

    async def _case(self, failure: _Failure) -> _Case | None:
        event, cls = failure.event, failure.cls
        message: Message | None = None
        rule = self._rules.get(cls or "")
        if cls is None or (rule is not None and rule.scope is not ScopeKind.EVERYTHING):
            try:
                history = await self._history(event.message)
            except (NoSuchMessageError, StoreError):
                return None
            message = history.message
            if cls is None:
                cls, event = _kept_failing(history, event)
        rule = self._rules.get(cls or "")
        if cls is None or rule is None:
            return None
        target = key_of(event.recipient)
        scope = EVERYTHING if message is None else scope_of(rule.scope, message)
        strike = Strike(target, scope, cls, event.message, failure.event.at)
        reason = str(event.detail.get("diagnostic") or event.detail.get("reply") or "")[:REASON]
        until = None if rule.expires is None else failure.event.at + rule.expires
        block = NewBlock(target, scope, cls, reason, BY_RULE, failure.event.at, until, event.message)
        return _Case(strike, rule, block, failure.again)

    # -- keeping up -----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        upkeep = 0.0
        while True:
            await asyncio.sleep(POLL)
            try:
                await self._write_stopped()
                if await self._state.read(blocklist.data_version) != self._version:
                    await self.refresh()
                if loop.time() >= upkeep:
                    upkeep = loop.time() + UPKEEP
                    await self.upkeep()
                self._silent = False
            except StateError as error:
                self._complain(error)

    async def upkeep(self) -> None:
        """End what is past its time. Raises StateError."""
        now = self._clock()
        if await self._state.write(lambda db: blocklist.expire(db, now)):
            await self.refresh()

    async def refresh(self) -> None:
        """Take over what was blocked or lifted since the last time. Raises StateError."""
        self._version = await self._state.read(blocklist.data_version)
        after = self._change
        changed, self._change = await self._state.read(lambda db: blocklist.changes(db, after))
        for block in changed:
            self._take(block)

    def _take(self, block: Block) -> None:
        local, _, domain = block.target.rpartition("@")
        table, key = (self._domains, domain.removeprefix("*")) if local == "*" else (self._addresses, block.target)
        before = table.get(key, ())
        others = tuple([each for each in before if each.id != block.id])
        for each in before:
            self._counts[each.cls] -= each.id == block.id
        if block.ended is None:
            others = (*others, block)
            self._counts[block.cls] += 1
        if local == "*" and key.startswith("."):
            self._deep += bool(others) - bool(before)
        if others:
            table[key] = others
        else:
            table.pop(key, None)

    async def _write_stopped(self) -> None:
        if not self._stopped:
            return
        counts, self._stopped = self._stopped, {}
        try:
            await self._state.write(lambda db: blocklist.stopped(db, counts))
        except StateError as error:
            for number, (count, at) in counts.items():
                later, last = self._stopped.get(number, (0, 0))
                self._stopped[number] = (count + later, max(at, last))
            self._complain(error)

    def _complain(self, error: StateError) -> None:
        if not self._silent:
            self._log.error("blocks cannot be kept up to date", error=str(error))
        self._silent = True


def _record(db: sqlite3.Connection, cases: Sequence[_Case]) -> tuple[list[NewBlock], int]:
    """Count the strikes; the blocks that they have become, and how many found no room."""
    made = []
    refused = 0
    for case in cases:
        strike, rule, block = case.strike, case.rule, case.block
        if case.again and blocklist.covered(db, block):
            continue
        if rule.after > 1:
            if blocklist.strike(db, strike, strike.at - rule.within) < rule.after:
                continue
            blocklist.forget_strikes(db, strike)
        try:
            if blocklist.add(db, [block], keep_longer=True):
                made.append(block)
        except TooManyBlocksError:
            refused += 1
    return made, refused


def _named(event: Event) -> bool:
    """The reply names the recipient."""
    return key_of(event.recipient) in str(event.detail.get("reply", "")).lower()


def _kept_failing(history: History, expired: Event) -> tuple[str | None, Event]:
    """What the last attempts before the lifetime ended said about the address."""
    for event in reversed(history.events):
        if event.n == expired.n and event.kind is EventKind.DEFERRED and not event.detail.get("upstream_trouble"):
            cls, stage = event.detail.get("class"), event.detail.get("stage")
            about = stage == Stage.RCPT or (stage == Stage.DOT and len(history.recipients) == 1)
            return (cls, event) if isinstance(cls, str) and about else (None, event)
    return None, expired

"""One worker, put together: the only place where parts meet. Start, reload, drain and stop, in their order.

What each part does is said in its own file; which processes there are is workers/'s.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog

from relayd.config.models import Config
from relayd.config.secret import resolve_secret
from relayd.control import ControlError, ControlServer, ask_worker, worker_socket
from relayd.core.feedback import Applied, Fact, FactError
from relayd.core.lifecycle import OnUncertain
from relayd.core.mail import INBOUND, Message, Recipient
from relayd.core.priority import Priority
from relayd.core.token import ReturnPaths
from relayd.core.units import Millis
from relayd.delivery.accounts import LaneTable
from relayd.delivery.budget import BudgetBook
from relayd.delivery.clockwatch import ClockWatch
from relayd.delivery.credentials import CredentialWatch
from relayd.delivery.dispatch import Dispatcher
from relayd.delivery.dkim import stored_key
from relayd.delivery.line import Plan, UpstreamPlan
from relayd.delivery.notices import Reporter
from relayd.delivery.plan import build_plan
from relayd.delivery.standings import POLL as _STANDINGS
from relayd.delivery.standings import StandingBook
from relayd.delivery.steering import Steering
from relayd.domains.book import DomainBook
from relayd.domains.duty import DomainDuty
from relayd.domains.issued import Contexts
from relayd.domains.issuing import CertificateDuty
from relayd.doors import Doors
from relayd.duties import Duties
from relayd.events.maillog import MailLog
from relayd.events.metrics import Metrics
from relayd.inbound.apply import FactApplier
from relayd.inbound.desk import InboundDesk
from relayd.intake.auth import PasswordVerifier
from relayd.intake.blocks import BlockBook
from relayd.intake.disk import DiskWatch
from relayd.intake.guesses import GuessLimiter
from relayd.intake.intake import Intake
from relayd.intake.networks import NetworkBook
from relayd.intake.rates import RateBook
from relayd.intake.unjudged import Unjudged
from relayd.listener.tls import context_of, server_context
from relayd.sockets import Sockets
from relayd.spool.budgets import BudgetStore
from relayd.spool.domains import DomainStore
from relayd.spool.files import DAMAGED
from relayd.spool.ledger import Ledger
from relayd.spool.sqlite import SqliteStore
from relayd.spool.state import StateDB
from relayd.verbs import Verbs
from relayd.web.server import Health, Pages
from relayd.web.tls import by_name

_SWEEP = 30.0
"""Seconds between looks for what has expired or waited long."""
_GAUGES = 10.0
_RETAIN = 600.0
_DOMAINS = 1.0
"""Seconds until a change of domains by a command or another worker is seen here."""
_CLOCK = 1.0
_CREDENTIALS = 15.0
"""Seconds between looks at tokens that may end soon."""
_INBOUND_AT_ONCE = 4
"""Mails that came back and are read at the same time, in one worker."""
_DRAIN_SHARE = 0.5
"""Part of `shutdown` that clients get to finish the mail they are sending; delivery gets what is left."""


def now_ms() -> Millis:
    """The clock of everything: milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class App:
    """One worker. `slot` is its number among `slots`."""

    def __init__(self, config: Config, *, slot: int, slots: int, sockets: Sockets) -> None:
        self._config = config
        self._slot, self._slots = slot, slots
        self._log = structlog.get_logger("relayd.app")
        self._duties = Duties()
        self._started_at = now_ms()
        self._serving = False
        self._secret = resolve_secret(config)
        self._owner = f"{slot}-{os.getpid()}"
        """What leases of this worker in state.db are called."""
        self._make_books(config)
        self._make_intake(config)
        self._make_delivery(config)
        self._make_doors(config, sockets)

    def _make_books(self, config: Config) -> None:
        """What is kept, counted and looked up."""
        slot, slots, data_dir = self._slot, self._slots, config.data_dir
        self._metrics = Metrics(slots, data_dir / "run" / "metrics", slot)
        self._maillog = MailLog(config.log.mail, dropped=self._metrics.maillog_dropped)
        self._store = SqliteStore(data_dir / "spool", slot, slots, config.spool, now_ms)
        self._state = StateDB(data_dir / "state.db")
        self._ledger = Ledger(self._state, now_ms)
        self._disk = DiskWatch(data_dir, config.spool.min_free)
        self._networks = NetworkBook(config, self._state, now_ms)
        self._passwords = PasswordVerifier(config, now_ms)
        self._guesses = GuessLimiter(config, now_ms, self._state)
        self._rates = RateBook(config, self._state, now_ms)
        self._book = DomainBook(DomainStore(self._state), config, changed=self._domains_changed)
        self._duty_of_domains = DomainDuty(self._state, config, self._owner, now_ms)
        self._duty_of_certificates = CertificateDuty(self._state, config, self._owner, now_ms)
        self._contexts = Contexts(context_of, lambda: self._book.everything)
        self._credentials = CredentialWatch(self._state, config, self._owner, self._metrics.credential, now_ms)
        self._tokens = self._credentials.use(self._secret)
        self._blocks = BlockBook(config.blocks, self._state, now_ms, self._store.history)
        self._unjudged = Unjudged(self._blocks, self._store, self._state, now_ms)

    def _make_intake(self, config: Config) -> None:
        """What comes in: from clients, and back to us."""
        paths = self._return_paths(config)
        self._intake = Intake(
            config,
            self._store,
            self._networks,
            self._passwords,
            self._guesses,
            self._rates,
            self._disk,
            lane_of=self._lane_of,
            priority_of=self._priority_of,
            on_kept=self._kept,
            observer=self._metrics.intake,
            clock=now_ms,
            return_paths=paths,
            vouching=self._book,
            stranger=self._stranger,
        )
        self._inbound = InboundDesk(
            config,
            paths,
            self._store,
            self._state,
            write=self._write_fact,
            keep=self._intake.submit_fetched,
            remote=self._ask_worker,
            observer=self._metrics.inbound,
            clock=now_ms,
            slot=self._slot,
            slots=self._slots,
        )

    def _make_delivery(self, config: Config) -> None:
        """What goes out, and what is told of it."""
        slot, slots = self._slot, self._slots
        self._plan = self._build_plan(config, self._return_paths(config))
        self._reporter = Reporter(
            self._store,
            self._intake,
            self._plan.policy,
            config.hostname,
            observer=self._metrics.delivery,
            clock=now_ms,
        )
        self._standings = StandingBook(
            self._state, self._metrics.delivery, now_ms, owner=self._owner, slot=slot, slots=slots
        )
        self._budgets = BudgetBook(BudgetStore(self._state), now_ms, slots)
        self._dispatcher = Dispatcher(
            self._store,
            self._intake.memory,
            self._plan,
            observer=self._metrics.delivery,
            clock=now_ms,
            owed=self._reporter.wake,
            blocked=self._blocks.find,
            standings=self._standings,
            run_dir=config.data_dir / "run",
            slot=slot,
            slots=slots,
            budgets=self._budgets,
        )
        self._facts = FactApplier(
            self._store,
            self._dispatcher,
            notify=lambda: self._plan.policy.notify,
            rewrites=self._rewrites,
            owed=self._reporter.wake,
        )
        self._steering = Steering(self._store, self._dispatcher, self._plan.policy, now_ms, self._reporter.wake)

    def _make_doors(self, config: Config, sockets: Sockets) -> None:
        """Where others come to us: clients, browsers, commands."""
        self._doors = Doors(
            config,
            sockets,
            server_context(config.tls, config.data_dir),
            self._intake,
            self._pages,
            observer=self._metrics.listeners,
            slots=self._slots,
        )
        verbs = Verbs(
            self._slot,
            lambda: self._plan,
            self.status,
            now_ms,
            self._intake,
            self._store,
            self._dispatcher,
            self._steering,
            self._reporter,
            self._standings,
            self._book,
        )
        self._control = ControlServer(worker_socket(config.data_dir, self._slot), verbs.handlers(self._inbound.verbs()))

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open everything, recover what waits, and begin to serve. Raises what makes that impossible."""
        self._store.subscribe(self._maillog.events)
        self._store.subscribe(self._metrics.events)
        self._store.subscribe(self._blocks.observe)
        self._store.observe(self._metrics.commit)
        await self._store.open()
        await self._state.open()
        await self._disk.start()
        await self._networks.start()
        await self._guesses.start()
        await self._rates.start()
        await self._blocks.start()
        self._unjudged.start()
        await self._book.start(self._secret)
        self._duty_of_certificates.use(self._secret)
        self._contexts.use(self._secret)
        await self._standings.start()
        await self._dispatcher.start()
        self._reporter.start()
        await self._doors.open()
        await self._control.start()
        await self._inbound.start()
        begin = self._duties.begin
        begin(_SWEEP, "sweep", self._sweep)
        begin(_GAUGES, "gauges", self._gauge)
        begin(_RETAIN, "retention", self._retain)
        begin(_CREDENTIALS, "credentials", self._credentials.tick)
        begin(_DOMAINS, "domains", self._book.poll)
        begin(_STANDINGS, "standings", self._standings.poll)
        begin(_CLOCK, "clock", ClockWatch(self._store, self._dispatcher, now_ms).look)
        begin(_DOMAINS, "domain checks", self._check_domains)
        begin(_DOMAINS, "certificates", self._get_certificates)
        self._serving = True

    async def reload(self, config: Config, sockets: Sockets) -> None:
        """Apply a checked configuration. Raises before anything is changed.

        `sockets` holds those that stay, as the same objects, and new ones; what it lacks is closed here.
        """
        paths = self._return_paths(config)
        plan = self._build_plan(config, paths)
        context = server_context(config.tls, config.data_dir)
        change = await self._doors.prepare(config, sockets, context)
        old, self._config = self._config, config
        self._plan, self._doors.tls = plan, context
        # first of all, for it cannot fail: what intake accepts by the new routes finds its lanes
        await self._dispatcher.apply(plan)
        self._intake.apply(config, paths)
        for part, apply in (
            ("mailboxes", lambda: self._inbound.apply(config, paths)),
            ("connection limits", lambda: self._doors.limit(config)),
            ("spool", lambda: self._store.apply(config.spool)),
            ("domains", lambda: self._book.apply(config)),
            ("logins", lambda: self._credentials.apply(config)),
            ("domain checks", lambda: self._duty_of_domains.apply(config)),
            ("certificates", lambda: self._duty_of_certificates.apply(config)),
            ("signing keys", lambda: self._domains_changed(self._book)),
            ("blocks", lambda: self._blocks.apply(config.blocks)),
            ("mail log", lambda: self._maillog.reopen(config.log.mail)),
            ("reports", lambda: self._reporter.apply(plan.policy, config.hostname)),
            ("listeners", lambda: self._doors.change_listeners(config, change)),
            ("web", lambda: self._doors.change_web(change)),
        ):
            await self._converge(part, apply)
        self._steering.policy = plan.policy
        self._doors.close_unused(change)
        self._log.info("configuration applied", changed=config != old)

    async def _converge(self, part: str, apply: Callable[[], Awaitable[None] | None]) -> None:
        """One step of a reload that has begun: whatever happens in it, the others are made."""
        try:
            done = apply()
            if done is not None:
                await done
        except Exception:  # noqa: BLE001 - a worker half on the old and half on the new configuration helps nobody
            self._log.exception("part of the configuration could not be applied", part=part)

    async def drain_and_stop(self) -> None:
        """Take no more, finish what is under way within `shutdown`, close."""
        deadline = asyncio.get_running_loop().time() + self._config.shutdown
        self._serving = False
        self._intake.draining = True
        await self._doors.drain(self._config.shutdown * _DRAIN_SHARE)
        await self._duties.stop()
        await self._inbound.stop_fetching()
        await self._dispatcher.stop(deadline)
        await self._inbound.close()
        await self._reporter.stop()
        await self._control.close()
        await self._doors.close()
        for part in (self._blocks, self._unjudged, self._rates, self._guesses, self._networks, self._disk):
            await part.stop()
        await self._standings.stop()
        await self._credentials.stop()
        await self._passwords.close()
        await self._store.close()
        await self._state.close()
        self._metrics.flush()
        self._maillog.close()

    # -- what parts ask of each other -----------------------------------------------------------------------------

    def _lane_of(self, message: Message, recipient: Recipient) -> str | None:
        return self._plan.table.upstream_for(message, recipient)

    def _priority_of(self, message: Message, recipient: Recipient) -> Priority | None:
        return self._plan.table.priority_for(message, recipient)

    def _stranger(self, message: Message, recipient: Recipient) -> bool:
        table = self._plan.table
        return isinstance(table, LaneTable) and table.stranger(message, recipient)

    def _rewrites(self, lane: str) -> bool:
        upstream = self._plan.upstreams.get(lane)
        return upstream is not None and upstream.return_path is not None

    def _return_paths(self, config: Config) -> ReturnPaths | None:
        bounces = config.bounces
        if bounces.domain is None:
            return None
        return ReturnPaths(bounces.domain, self._secret, round(bounces.verify_for * 1000), self._takes_returns)

    def _takes_returns(self, domain: str) -> bool:
        return self._book.takes_returns(domain, now_ms())

    def _build_plan(self, config: Config, paths: ReturnPaths | None) -> Plan:
        plan = build_plan(config, now_ms, paths, self._tokens, self._book.return_domain)
        return self._with_inbound(plan, config)

    def _with_inbound(self, plan: Plan, config: Config) -> Plan:
        """The lane of what comes back is there whatever the configuration says: some may wait from before."""
        lane = UpstreamPlan(
            name=INBOUND,
            connector=self._inbound.connector,
            connections=_INBOUND_AT_ONCE * self._slots,
            recipients=config.limits.recipients,
            on_uncertain=OnUncertain.RETRY,
            identity=INBOUND,
            sign=False,
        )
        return replace(plan, upstreams={**plan.upstreams, INBOUND: lane})

    async def _write_fact(self, fact: Fact) -> Applied:
        return await self._facts.apply(fact)

    async def _ask_worker(self, slot: int, verb: str, args: dict[str, Any]) -> Any:
        try:
            return await ask_worker(self._config.data_dir, slot, verb, args)
        except ControlError as error:
            raise FactError(str(error)) from error

    def _pages(self, context: ssl.SSLContext, public_tls: bool) -> Pages:
        tls = by_name(context, self._contexts.of, lambda: self._doors.tls) if public_tls else None
        return Pages(self._metrics.page, self._health, self._duty_of_certificates.challenge, tls)

    def _kept(self, delivery: Any) -> None:
        self._dispatcher.push(delivery)

    def _health(self) -> Health:
        reasons = []
        if not self._serving:
            reasons.append("starting or stopping")
        if self._disk.low:
            reasons.append("disk space is low")
        if self._store.failing:
            reasons.append("the spool cannot be written")
        return Health(alive=True, reasons=tuple(reasons))

    # -- duties ---------------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        if expired := await self._steering.expire():
            self._log.info("recipients expired", count=expired)
        await self._steering.tell_delays()

    async def _gauge(self) -> None:
        self._metrics.queue(await self._store.lanes(), now_ms())
        self._metrics.disk(self._disk.free_octets, self._disk.free_ratio, self._disk.free_inode_ratio)
        self._metrics.memory(self._intake.memory.used, self._intake.memory.limit)
        # the other databases belong to all workers: the first one counts them
        others = list(self._config.data_dir.glob(f"*.db{DAMAGED}")) if self._slot == 0 else []
        self._metrics.damaged(self._store.damaged + len(others))
        self._metrics.blocks(self._blocks.counts())
        self._metrics.budgets(await self._budgets.figures(), self._budgets.waiting())
        now = now_ms()
        self._metrics.certificates({host: (end - now) / 1000 for host, end in self._book.certificates().items()})

    async def _retain(self) -> None:
        await self._store.retain(now_ms(), self._ledger)

    async def _check_domains(self) -> None:
        await self._duty_of_domains.tick(self._book.everything)

    async def _get_certificates(self) -> None:
        await self._duty_of_certificates.tick(self._book.everything, self._contexts.unusable)

    def _domains_changed(self, book: DomainBook) -> None:
        self._plan.signing.signer.use(stored_key(key.domain, key.selector, key.private) for key in book.keys)
        self._metrics.domains(book.states().items())

    def status(self) -> dict[str, Any]:
        """Facts for `relayd status`."""
        reasons = list(self._health().reasons)
        return {
            "slot": self._slot,
            "started_at": self._started_at,
            "draining": self._intake.draining,
            "ready": not reasons,
            "not_ready": reasons,
            "listeners": self._doors.addresses(),
            "connections": self._doors.connections,
            "memory": self._intake.memory.used,
            "disk_free": self._disk.free_octets,
            "upstreams": self._dispatcher.standing(),
        }

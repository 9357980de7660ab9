"""Adding and removing tracking domains in state.db. What a check of one means is tracking.py's."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from relayd.config.models import Config
from relayd.core.units import Millis
from relayd.domains import certificates
from relayd.domains.changes import DomainError, normal, owned, shown
from relayd.domains.tracking import LAST_STEP, PROOF_WITHIN
from relayd.spool.certificates import Certificate, ChallengeStore
from relayd.spool.domains import DomainEvent, DomainStore, Editor, Everything, TrackingDomain


@dataclass(frozen=True, slots=True)
class HostWish:
    """What an operator asks for."""

    name: str
    steps: int = 1
    require_mx: bool = False
    proof: str = ""
    """HOST=VALUE as the TLS front gave it."""


def find(everything: Everything, name: str) -> TrackingDomain:
    """A tracking domain by its name in any script. Raises DomainError that lists what there is."""
    wanted = normal(name, "host")
    for each in everything.tracking:
        if each.name == wanted:
            return each
    known = ", ".join(shown(each.name) for each in everything.tracking)
    raise DomainError(f"there is no tracking host {shown(wanted)}: " + (f"known are {known}" if known else "none yet"))


def planned(wish: HostWish, config: Config, now: Millis) -> TrackingDomain:
    """The host as it would be added. Raises DomainError."""
    name = owned(wish.name)
    section = config.tracking
    if wish.steps not in {1, LAST_STEP}:
        raise DomainError("--steps is 1 or 3")
    if not section.host:
        raise DomainError("where should it lead to? Set tracking.host in the configuration")
    if name == section.host:
        raise DomainError(f"{shown(name)} is the shared host itself")
    mail_host = config.domains.mail_host or config.hostname
    if wish.steps == 1:
        if wish.proof:
            raise DomainError("--proof goes with --steps 3")
        return TrackingDomain(
            name, target=section.host, require_mx=wish.require_mx, mx=mail_host, added_at=now, next_check=now
        )
    host, value = _proof(wish.proof, name, section.proof_zone or section.host)
    return TrackingDomain(
        name,
        steps=wish.steps,
        target=section.host,
        require_mx=wish.require_mx,
        mx=mail_host,
        proof_host=host,
        proof_value=value,
        tls_target=_tls_target(section.tls_host, section.host),
        added_at=now,
        deadline=now + PROOF_WITHIN,
        next_check=now,
    )


def _tls_target(tls_host: str | None, host: str) -> str:
    if not tls_host or tls_host == host:
        raise DomainError("three steps lead to a TLS front: set tracking.tls_host to another host than tracking.host")
    return tls_host


def _proof(given: str, name: str, zone: str) -> tuple[str, str]:
    if not given:
        return f"_{secrets.token_hex(16)}.{name}", f"_{secrets.token_hex(16)}.{zone}"
    left, sign, right = given.partition("=")
    if not sign:
        raise DomainError("--proof is HOST=VALUE, as the TLS front shows them")
    host, value = normal(left, "host"), normal(right, "host")
    if not host.startswith("_") or not host.endswith(f".{name}"):
        raise DomainError(f"the HOST of the proof must begin with _ and end with .{name}: it is {host}")
    return host, value


async def add(wish: HostWish, config: Config, store: DomainStore, clock: Callable[[], Millis]) -> TrackingDomain:
    """Add a tracking host. Raises DomainError, StateError."""
    tracking = planned(wish, config, clock())

    def work(editor: Editor) -> None:
        there = editor.tracking(tracking.name)
        if there is not None:
            what = "is expired: remove it first" if there.state == "expired" else "is there already"
            raise DomainError(f"{shown(tracking.name)} {what}")
        editor.put_tracking(tracking)
        editor.tell(DomainEvent(tracking.name, clock(), "tracking.added", {"steps": tracking.steps}))

    await store.change(work)
    return tracking


async def remove(name: str, store: DomainStore, clock: Callable[[], Millis]) -> None:
    """Forget a tracking host. Raises DomainError, StateError."""

    def work(editor: Editor) -> None:
        tracking = find(editor.everything(), name)
        editor.remove_tracking(tracking.name)
        editor.tell(DomainEvent(tracking.name, clock(), "tracking.removed"))

    await store.change(work)


async def ask_again(
    name: str, config: Config, store: DomainStore, challenges: ChallengeStore, clock: Callable[[], Millis]
) -> None:
    """Have the daemon ask the CA for a certificate at once. Raises DomainError: it has none, or not yet; StateError."""
    host, acme = normal(name, "host"), config.tracking.acme
    if acme is None:
        raise DomainError("tracking.acme is not configured: relayd gets no certificates")
    if host != config.tracking.host:
        tracking = find(await store.everything(), name)
        if tracking.steps == LAST_STEP:
            raise DomainError(f"{shown(host)} leads to a TLS front, which has a certificate of its own")
        if not certificates.wants_one(tracking):
            raise DomainError(
                f"{shown(host)} is {tracking.state}: it gets a certificate once it is verified "
                f"(relayd tracking-domain verify {shown(host)})"
            )
    paused = (await challenges.account(acme.directory)).pause_until
    if paused > clock():
        raise DomainError(f"the CA asked to be left alone until {_clock_time(paused)}")

    def work(editor: Editor) -> None:
        now, known = clock(), editor.certificate(host) or Certificate(host)
        earliest = certificates.earliest(known, now)
        if earliest > now:
            came = f"failed: {known.error}" if known.error else "succeeded"
            raise DomainError(
                f"the last order ({came}) was made less than an hour ago, and CAs count orders: the next one may be "
                f"made at {_clock_time(earliest)}"
            )
        editor.put_certificate(replace(known, due=now))

    await store.change(work)


def _clock_time(at: Millis) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")

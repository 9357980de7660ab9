"""Trial: passwords are guessed over many connections from a /24 and a /64, while somebody else logs in as he may.

The addresses are those that a PROXY header names; TLS is real, and so is the hash. Also measured: whether the time of
an answer tells a user that exists from one that does not.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from argon2 import PasswordHasher

from relayd.intake.guesses import NETWORK_FACTOR
from tests.support.daemon import Daemon, Secret
from tests.torture.trial import Context, Figures, Trial

USER, PASSWORD = "shop", "canary-the-right-password"
WORKERS = 2
FAILURES = 2
"""`limits.auth_failures`."""
NETWORKS = (ip_network("203.0.113.0/24"), ip_network("2001:db8:1:2::/64"))
HOME = "198.51.100.7"
"""Where the valid user is."""
SAMPLES = 20


@dataclass
class Guesser:
    """One network of attackers."""

    network: IPv4Network | IPv6Network
    answers: Counter[str] = field(default_factory=Counter)
    connections: int = 0


def config(hasher: PasswordHasher) -> dict[str, Any]:
    """A relay behind a proxy, with one user."""
    return {
        "workers": WORKERS,
        "listeners": [
            {
                "name": "submissions",
                "bind": ["127.0.0.1:0"],
                "tls": "implicit",
                "access": "auth",
                "proxy_protocol": ["127.0.0.1/32"],
            }
        ],
        "credentials": [{"username": USER, "password": Secret(hasher.hash(PASSWORD))}],
        "limits": {"auth_failures": FAILURES, "auth_window": "1h"},
    }


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the relay's own, self-signed
    return context


TLS = _context()


async def _login(port: int, source: str, username: str, password: str) -> tuple[str, float]:
    """One connection from an address, one login: what was answered at last, and the seconds from AUTH to the answer."""
    family = "TCP6" if ":" in source else "TCP4"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"PROXY {family} {source} {source} 4711 465\r\n".encode())
        await writer.drain()
        await writer.start_tls(TLS)
        greeting = await reader.readline()
        if not greeting.startswith(b"220"):
            return greeting[:3].decode("latin-1"), 0.0
        writer.write(b"EHLO app.test\r\n")
        while (await reader.readline())[3:4] == b"-":
            pass
        began = time.perf_counter()
        blob = base64.b64encode(f"\0{username}\0{password}".encode()).decode()
        writer.write(f"AUTH PLAIN {blob}\r\n".encode())
        answer = await reader.readline()
        return answer[:3].decode("latin-1"), time.perf_counter() - began
    finally:
        writer.transport.abort()


async def _guess(port: int, guesser: Guesser, context: Context) -> None:
    """Guess for ever, from another address each time."""
    while True:
        number = context.rng.randrange(1, min(guesser.network.num_addresses - 1, 1 << 62))
        with suppress(OSError, ssl.SSLError):
            guesser.connections += 1
            answer, _ = await _login(port, str(guesser.network[number]), USER, f"guess {number}")
            guesser.answers[answer] += 1
        await asyncio.sleep(0)


async def _rounds(context: Context) -> Figures:
    long = context.minutes > 0
    guessers = [Guesser(network) for network in NETWORKS]
    before: list[float] = []
    meanwhile: list[float] = []
    hasher = PasswordHasher() if long else PasswordHasher(time_cost=1, memory_cost=1024)
    async with Daemon(context.directory, config(hasher)) as daemon:
        port = daemon.port
        for _ in range(10 if long else 2):
            answer, took = await _login(port, HOME, USER, PASSWORD)
            context.promise(answer == "235", f"the valid user was told {answer}")
            before.append(took)
        tasks = [
            asyncio.create_task(_guess(port, guesser, context), name=f"guess from {guesser.network}")
            for guesser in guessers
            for _ in range(50 if long else 8)
        ]
        try:
            for _ in context.rounds():
                answer, took = await _login(port, HOME, USER, PASSWORD)
                context.promise(answer == "235", f"the valid user was told {answer} while others guess")
                meanwhile.append(took)
                await asyncio.sleep(0.2)
            await daemon.until(lambda: all(each.answers["421"] for each in guessers), "guessers are refused")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        known, unknown = await _timing(port, SAMPLES if long else 1)
        assert await daemon.stop() == 0
    most = FAILURES * NETWORK_FACTOR * WORKERS
    for guesser in guessers:
        looked_at = guesser.answers["535"]
        context.promise(looked_at <= most, f"{looked_at} guesses from {guesser.network} were looked at, above {most}")
        context.promise(not guesser.answers["235"], "a guess was right")
    return {
        "connections of guessers": sum(each.connections for each in guessers),
        **{f"guesses looked at from {each.network} (at most {most})": each.answers["535"] for each in guessers},
        "logins of the valid user meanwhile, all accepted": len(meanwhile),
        "its login before, median ms": statistics.median(before) * 1000,
        "its login meanwhile, median ms": statistics.median(meanwhile) * 1000,
        "a wrong password of a known user, median ms": known * 1000,
        "a wrong password of an unknown user, median ms": unknown * 1000,
    }


async def _timing(port: int, samples: int) -> tuple[float, float]:
    """How long the answer to a wrong password takes, for a user that exists and for others: medians, in seconds.

    Each from a network of its own, so that nobody is slowed for what was before.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(samples):
        for known in (True, False):
            source = f"2001:db8:{2 + number:x}:{int(known)}::1"
            answer, took = await _login(port, source, USER if known else f"user{number}", f"wrong {number}")
            assert answer == "535", answer
            times[known].append(took)
    return statistics.median(times[True]), statistics.median(times[False])


TRIAL = Trial("guessing", 6, "Password guessing is slowed and refused, and locks nobody else out.", _rounds)

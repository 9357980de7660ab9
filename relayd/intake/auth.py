"""Checks passwords (argon2id) off the event loop, with the same work for unknown users, and remembers success briefly.

Who may try at all is guesses.py's; what the client is told is decided in intake.py.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

import structlog
from argon2 import DEFAULT_RANDOM_SALT_LENGTH, Parameters, PasswordHasher, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from argon2.low_level import ARGON2_VERSION, Type

from relayd.config.models import Config, Credential
from relayd.core.units import Millis

THREADS = 2
"""argon2id takes 64 MiB and tens of milliseconds a piece: more at once would only starve the mail."""
MAX_WAITING = 64
"""Logins that are verified or wait for it; more are told to come back. Nobody may have more places than are left."""
CACHE_TTL = 60_000
"""Milliseconds that a success is remembered after its last use: apps that log in for each mail would keep a core busy
with argon2, and be kept waiting by those who guess."""
_DEFAULT = Parameters(Type.ID, ARGON2_VERSION, DEFAULT_RANDOM_SALT_LENGTH, 32, 3, 65536, 4)


class BusyError(Exception):
    """Too many logins wait to be verified."""


@dataclass(frozen=True, slots=True)
class _Login:
    credential: Credential
    encoded: str


@dataclass(frozen=True, slots=True)
class _Remembered:
    digest: bytes
    until: Millis


def decoy(parameters: Parameters) -> str:
    """A hash that no password fits and that takes just as long to check as a real one of these parameters."""

    def random(octets: int) -> str:
        return b64encode(secrets.token_bytes(octets)).rstrip(b"=").decode()

    return (
        f"$argon2id$v={parameters.version}$m={parameters.memory_cost},t={parameters.time_cost},"
        f"p={parameters.parallelism}${random(parameters.salt_len)}${random(parameters.hash_len)}"
    )


class PasswordVerifier:
    """The credentials of the configuration, and who has shown to know their passwords."""

    def __init__(self, config: Config, clock: Callable[[], Millis]) -> None:
        self._clock = clock
        self._hasher = PasswordHasher()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._key = secrets.token_bytes(32)
        self._logins: dict[str, _Login] = {}
        self._decoys: tuple[str, ...] = ()
        self._remembered: dict[str, _Remembered] = {}
        self._checks: dict[tuple[str, bytes], asyncio.Task[bool]] = {}
        self._running: dict[asyncio.Task[bool], int] = {}
        """The checks under way, and for whom."""
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Take over changed credentials, and forget every success."""
        self._remembered.clear()
        self._checks = {}  # those under way look at hashes that may be gone: nobody joins them any more
        self._logins = {}
        decoys = []
        for credential in config.credentials:
            encoded = credential.password.get_secret_value()
            try:
                parameters = extract_parameters(encoded)
            except InvalidHashError:
                # the check of the configuration says so too; here it must not bring the daemon down
                structlog.get_logger("relayd.intake").warning("credential without hash", username=credential.username)
                continue
            self._logins[credential.username] = _Login(credential, encoded)
            decoys.append(decoy(parameters))
        self._decoys = tuple(decoys) or (decoy(_DEFAULT),)

    async def verify(self, username: str, password: str, whose: int = 0) -> Credential | None:
        """The credential, when user name (case counts) and password are right. Raises BusyError.

        `whose`: a number for where the login comes from, so that no network takes all the places.
        """
        secret = password.encode("utf-8", "surrogatepass")
        digest = self._digest(username, secret)
        login = self._logins.get(username)
        known = self._remembered.get(username)
        fresh = known is not None and self._clock() < known.until and hmac.compare_digest(known.digest, digest)
        if login is not None and fresh:
            self._remembered[username] = _Remembered(digest, self._clock() + CACHE_TTL)
            return login.credential
        encoded = login.encoded if login is not None else self._decoy_for(username)
        right = await self._check(username, digest, encoded, secret, whose)
        if not right or login is None or self._logins.get(username) is not login:
            # changed by a reload while we looked: what was right is so no more
            return None
        self._remembered[username] = _Remembered(digest, self._clock() + CACHE_TTL)
        return login.credential

    async def _check(self, username: str, digest: bytes, encoded: str, secret: bytes, whose: int) -> bool:
        """Verify once for all sessions that try the same at the same moment, as an app's pool does when it starts."""
        checks = self._checks
        check = checks.get((username, digest))
        if check is None:
            running = self._running
            if sum(each == whose for each in running.values()) >= MAX_WAITING - len(running):
                raise BusyError
            check = asyncio.create_task(self._verify(encoded, secret), name="verify a password")
            checks[username, digest] = check
            running[check] = whose
            check.add_done_callback(running.pop)
            check.add_done_callback(lambda _: checks.pop((username, digest), None))
        return await asyncio.shield(check)

    async def _verify(self, encoded: str, secret: bytes) -> bool:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, self._hasher.verify, encoded, secret)
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError) as error:
            structlog.get_logger("relayd.intake").warning("password not verified", error=type(error).__name__)
            return False

    def _digest(self, username: str, secret: bytes) -> bytes:
        name = username.encode("utf-8", "surrogatepass")
        return blake2b(len(name).to_bytes(4, "big") + name + secret, key=self._key, digest_size=32).digest()

    def _decoy_for(self, username: str) -> str:
        # always the same one for a name: where real hashes differ in cost, so do the decoys
        number = int.from_bytes(self._digest(username, b"")[:8], "big")
        return self._decoys[number % len(self._decoys)]

    async def close(self) -> None:
        """Finish the checks under way, and end the threads."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)

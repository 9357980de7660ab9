"""DKIM signatures (RFC 6376, RFC 8463), relaxed/relaxed: one for each key of the From domain, in OpenSSL.

Canonical forms are core/canonical.py's, finding fields core/headers.py's; judging key files is the config check's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from relayd.config.models import DKIMKey
from relayd.core.address import AddressError, to_ascii
from relayd.core.canonical import relaxed_field, relaxed_pieces
from relayd.core.headers import FOLD_AT, HeaderBlock, is_short, scan
from relayd.core.units import Millis

if TYPE_CHECKING:
    from relayd.delivery.openssl import PrivateKey

INLINE = 256 * 1024
"""Octets up to which a message with a short header is signed on the event loop; others would hold up other sessions."""
MAX_INSTANCES = 20
"""Fields of one name that are covered; a verifier takes them from the bottom, so do we (RFC 6376 5.4.2)."""

# What a reader sees or a mail program acts upon (RFC 6376 5.4.1), what providers ask to be covered (RFC 8058 for
# List-Unsubscribe-Post, RFC 9477 for CFBL, Feedback-ID). Never trace fields: they change on the way.
COVERED = (
    b"from",
    b"sender",
    b"reply-to",
    b"subject",
    b"date",
    b"message-id",
    b"to",
    b"cc",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
    b"content-id",
    b"content-description",
    b"content-disposition",
    b"content-language",
    b"in-reply-to",
    b"references",
    b"resent-date",
    b"resent-from",
    b"resent-sender",
    b"resent-to",
    b"resent-cc",
    b"resent-message-id",
    b"list-id",
    b"list-help",
    b"list-unsubscribe",
    b"list-unsubscribe-post",
    b"list-subscribe",
    b"list-post",
    b"list-owner",
    b"list-archive",
    b"auto-submitted",
    b"feedback-id",
    b"cfbl-address",
    b"cfbl-feedback-id",
)
_RANK = {name: rank for rank, name in enumerate(COVERED)}


class DKIMKeyError(Exception):
    """A key that cannot sign: unreadable, not PEM, encrypted, neither RSA nor Ed25519, or too short."""


@dataclass(frozen=True, slots=True)
class LoadedKey:
    """A private key, ready to sign for one selector of one domain (both in A-labels, lower case)."""

    domain: str
    selector: str
    algorithm: str
    """rsa-sha256 or ed25519-sha256."""
    _sign: Callable[[bytes], bytes]

    def __repr__(self) -> str:
        return f"LoadedKey({self.selector}._domainkey.{self.domain}, {self.algorithm})"

    def sign(self, data: bytes) -> bytes:
        """The signature of these octets."""
        return self._sign(data)


def load_keys(keys: Iterable[DKIMKey]) -> list[LoadedKey]:
    """Read all key files. It takes tens of milliseconds a key. Raises DKIMKeyError, which names the file."""
    return [load_key(key) for key in keys]


def load_key(key: DKIMKey) -> LoadedKey:
    """Read one key file. Raises DKIMKeyError."""
    from relayd.delivery import openssl  # noqa: PLC0415 - 7 MiB that a worker without keys does without

    try:
        algorithm, sign = openssl.dkim_way(openssl.dkim_private(key.key))
    except openssl.KeyFileError as error:
        raise DKIMKeyError(str(error)) from error
    try:
        return LoadedKey(to_ascii(key.domain), to_ascii(key.selector), algorithm, sign)
    except AddressError as error:
        raise DKIMKeyError(f"{key.selector}._domainkey.{key.domain} is not a domain name") from error


def stored_key(domain: str, selector: str, private: PrivateKey) -> LoadedKey:
    """A key that is kept in state.db (both names in A-labels, lower case)."""
    from relayd.delivery import openssl  # noqa: PLC0415 - as above

    return LoadedKey(domain, selector, *openssl.dkim_way(private))


class Signer:
    """Signs with the keys it was given. Threads may share it."""

    def __init__(self, keys: Iterable[LoadedKey], clock: Callable[[], Millis]) -> None:
        self._clock = clock
        self._configured = tuple(keys)
        self._keys: dict[str, tuple[LoadedKey, ...]] = {}
        self.use(())

    def use(self, stored: Iterable[LoadedKey]) -> None:
        """Sign with these keys of state.db, too, from now on; where a name is configured as well, that key signs."""
        found: dict[str, dict[str, LoadedKey]] = {}
        for key in (*self._configured, *stored):
            found.setdefault(key.domain, {}).setdefault(key.selector, key)
        # one assignment: threads that are signing see the old keys or the new ones
        self._keys = {domain: tuple(by_selector.values()) for domain, by_selector in found.items()}

    def keys_for(self, from_domain: str) -> tuple[LoadedKey, ...]:
        """The keys of this domain, else of the nearest parent that has any; () when there is none.

        A parent's signature is aligned with the From domain in DMARC's relaxed mode (RFC 7489 3.1.1), as long as both
        have the same organisational domain. A key is only ever configured for a domain of one's own, so the search
        needs no list of public suffixes.
        """
        domain = from_domain
        while domain:
            keys = self._keys.get(domain)
            if keys is not None:
                return keys
            domain = domain.partition(".")[2]
        return ()

    def sign(self, content: bytes, from_domain: str) -> bytes:
        """The DKIM-Signature fields to put in front of this message, CRLF included; b"" where no key fits.

        `from_domain` is Message.from_domain: A-labels, lower case.
        """
        keys = self.keys_for(from_domain) if from_domain else ()
        if not keys:
            return b""
        block = scan(content)
        body = hashlib.sha256()
        for piece in relaxed_pieces(content, block.body):
            body.update(piece)
        names, fields = _covered(content, block)
        if b"from" not in names:
            return b""  # RFC 6376 5.4: From must be signed, and this message has none
        common = (_names(tuple(names)), fields, base64.b64encode(body.digest()), self._clock() // 1000)
        return b"".join(_signature(key, *common) for key in keys)


def _covered(content: bytes, block: HeaderBlock) -> tuple[list[bytes], bytes]:
    """Names for h= and the canonical fields they stand for, of each name the last one first."""
    found: list[list[tuple[int, int]] | None] = [None] * len(COVERED)
    for name, start, end in block.fields:
        rank = _RANK.get(name)
        if rank is not None:
            places = found[rank]
            if places is None:
                found[rank] = [(start, end)]
            else:
                places.append((start, end))
    names: list[bytes] = []
    fields: list[bytes] = []
    for name, places in zip(COVERED, found, strict=True):
        if places is not None:
            for start, end in places[: -MAX_INSTANCES - 1 : -1]:
                names.append(name)
                fields.append(relaxed_field(content[start:end]))
            if name == b"from":
                # once more than there are: a second From cannot be added without breaking the signature
                names.append(name)
    return names, b"".join(fields)


def _signature(key: LoadedKey, names: bytes, fields: bytes, body_hash: bytes, seconds: int) -> bytes:
    """One whole DKIM-Signature field."""
    lines = [
        b"DKIM-Signature: v=1; a=%s; c=relaxed/relaxed;" % key.algorithm.encode(),
        b"\td=%s; s=%s; t=%d;" % (key.domain.encode(), key.selector.encode(), seconds),
        names,
        b"\tbh=%s;" % body_hash,
        b"\tb=",
    ]
    head = b"\r\n".join(lines)
    # RFC 6376 3.7: our own field is hashed last, with an empty b= and without its CRLF
    value = base64.b64encode(key.sign(fields + relaxed_field(head + b"\r\n")[:-2]))
    first = FOLD_AT - 3
    rest = [value[place : place + FOLD_AT - 1] for place in range(first, len(value), FOLD_AT - 1)]
    return head + b"\r\n\t".join([value[:first], *rest]) + b"\r\n"


@lru_cache(maxsize=256)
def _names(names: tuple[bytes, ...]) -> bytes:
    """The h= tag, folded at colons. The mails of one app all have the same."""
    lines = [b"\th="]
    for place, name in enumerate(names):
        item = name + (b";" if place == len(names) - 1 else b":")
        if len(lines[-1]) + len(item) > FOLD_AT:
            lines.append(b"\t")
        lines[-1] += item
    return b"\r\n".join(lines)


class SigningPool:
    """Where signing happens: small messages on the loop (or in threads, if so made), big ones always in a thread."""

    def __init__(self, signer: Signer, *, threads: int = 1, inline: int = INLINE) -> None:
        self.signer = signer
        self._inline = inline
        self._closed = False
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="dkim")

    async def signed(self, content: bytes, from_domain: str) -> tuple[bytes, bytes]:
        """Signatures that go in front of the content, and the content; b"" where no key fits.

        Small content has them in it already, big content does without a copy.
        """
        if not from_domain or not self.signer.keys_for(from_domain):
            return b"", content
        if len(content) <= self._inline and is_short(content):
            return b"", self.signer.sign(content, from_domain) + content
        # mail that is under way while a new configuration takes over comes after `close`: it finds a thread elsewhere
        executor = None if self._closed else self._executor
        return await asyncio.get_running_loop().run_in_executor(
            executor, self.signer.sign, content, from_domain
        ), content

    def close(self) -> None:
        """Let the threads end; what they are at is finished first. The pool goes on working, without them."""
        self._closed = True
        self._executor.shutdown(wait=False)

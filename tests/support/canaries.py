"""Secrets that must never be seen, and the search for them in all that the suite puts out.

A secret of a test is planted here, or says MARK; whatever is written for people, or kept on disk, is searched for all
of them in every writing that a careless program might give them. tests/conftest.py searches what tests print,
daemon.py what daemons leave behind.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

MARK = "canary-"
"""Part of secrets of tests, so that those need not be planted."""
SHORTEST = 8
"""Characters of a secret that is looked for: a shorter one may be there by chance."""
LARGEST = 64 << 20
"""Octets of a file that is searched."""

HASH = "$argon2id$v=19$m=8,t=1,p=1$Y2FuYXJ5LWhhc2gtb2YtYS1wYXNzd29yZA$Y2FuYXJ5LWhhc2gtb2YtYS1wYXNzd29yZC4uLi4"
"""Of a password that nobody knows: every daemon has a credential with it."""

_ALWAYS = (b"PRIVATE KEY-----", b"$argon2id$v=")
"""Keys and hashes of passwords, whoever made them."""
_LINE = re.compile(rb"[A-Za-z0-9+/]{40,}={0,2}")

_planted: set[str] = set()


def plant(secret: str) -> str:
    """Look for this one from now on, as long as the process lives; the secret itself."""
    if len(secret) >= SHORTEST:
        _planted.add(secret)
    return secret


def writings(secret: str) -> Iterator[bytes]:
    """How a secret may be written: as it is, escaped, in percent signs, in hex, in base64 wherever it begins there."""
    octets = secret.encode("utf-8", "surrogateescape")
    yield octets
    yield json.dumps(secret)[1:-1].encode()
    yield repr(secret)[1:-1].encode()
    yield quote(secret, safe="").encode()
    yield quote_plus(secret).encode()
    yield octets.hex().encode()
    for before in range(3):
        # only the letters that it has to itself: what stands before and behind it changes the others
        whole = base64.b64encode(b"\0" * before + octets)
        encoded = whole[-(-before * 4 // 3) : (before + len(octets)) * 4 // 3]
        if len(encoded) >= SHORTEST:
            yield encoded
            yield encoded.translate(bytes.maketrans(b"+/", b"-_"))


def keys(paths: Iterable[Path]) -> set[str]:
    """What private keys in these files look like, line by line."""
    found: set[str] = set()
    for path in paths:
        octets = path.read_bytes()
        if b"PRIVATE KEY-----" in octets:
            found |= {line.decode() for line in _LINE.findall(octets)[1:-1]}
    return found


def leaks(octets: bytes, also: Iterable[str] = ()) -> list[str]:
    """Which secrets can be found: planted ones, those with the mark, and `also` these."""
    found = [pattern.decode() for pattern in _ALWAYS if pattern in octets]
    for secret in {MARK, *_planted, *also}:
        if any(writing in octets for writing in set(writings(secret))):
            found.append(secret)
    return found


def leaks_in(paths: Iterable[Path], also: Iterable[str] = ()) -> dict[str, list[str]]:
    """The same for files: name → secrets in it."""
    wanted = list(also)
    out = {}
    for path in paths:
        if path.is_file() and path.stat().st_size <= LARGEST and (found := leaks(path.read_bytes(), wanted)):
            out[str(path)] = found
    return out

"""Adding sender domains, rotating their keys, and their selectors. Raises DomainError with words for an operator.

Callers write what these return; nothing here reads a clock or a file.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from relayd.core.address import AddressError, to_ascii
from relayd.core.units import Millis
from relayd.domains import dmarc, keymaking, keys
from relayd.spool.domains import DomainKey, Everything, KeyState, SenderDomain

_SELECTOR = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")
_DOTS = str.maketrans("。．｡", "...")
_LETTER = {"rsa": "r", "ed25519": "e"}


class DomainError(Exception):
    """What was asked cannot be done; the text tells an operator why."""


def normal(name: str, what: str = "domain") -> str:
    """A name in A-labels and lower case. Raises DomainError."""
    try:
        found = to_ascii(name.strip().translate(_DOTS).rstrip("."))
    except AddressError:
        raise DomainError(f"{name!r} is not a {what} name") from None
    if "." not in found:
        raise DomainError(f"{name!r} is not a whole {what} name: it has one label only")
    return found


def shown(name: str) -> str:
    """A name for people: U-labels where it has any."""
    if "xn--" not in name:
        return name
    try:
        return name.encode("ascii").decode("idna")
    except UnicodeError:
        return name


def owned(name: str) -> str:
    """A domain that somebody can own. Raises DomainError for public suffixes."""
    found = normal(name)
    if dmarc.public_suffix(found):
        raise DomainError(f"{shown(found)} is a public suffix: nobody owns it, so nobody can vouch for it")
    return found


def selectors_for(domain: SenderDomain, given: Sequence[str]) -> dict[str, list[str]]:
    """Algorithm → selectors to make at the start. `given`: one name, or one for RSA and one for Ed25519."""
    if len(given) > 2:
        raise DomainError("give --selector once or twice: the first is for RSA, the second for Ed25519")
    for selector in given:
        if not _SELECTOR.fullmatch(selector):
            raise DomainError(f"{selector!r} cannot be a selector: use small letters, digits, - and . only")
    if domain.delegate:
        base = [given[0], given[-1]] if len(given) == 2 else [f"{given[0]}r", f"{given[0]}e"] if given else ["r", "e"]
        return {name: [f"{base[n]}1", f"{base[n]}2"] for n, name in enumerate(keys.ALGORITHMS)}
    if len(given) == 2:
        if given[0] == given[1]:
            raise DomainError("the two selectors must differ")
        return {"rsa": [given[0]], "ed25519": [given[1]]}
    if given:
        return {"rsa": [given[0]], "ed25519": [f"{given[0]}-ed"]}
    return {name: [] for name in keys.ALGORITHMS}


def fresh_selector(algorithm: str, taken: Iterable[str], now: Millis) -> str:
    """r202611, r202611b, … : the month in which the key was made."""
    month = datetime.fromtimestamp(now / 1000, UTC).strftime("%Y%m")
    used = set(taken)
    for suffix in ["", *string.ascii_lowercase[1:]]:
        selector = f"{_LETTER[algorithm]}{month}{suffix}"
        if selector not in used:
            return selector
    raise DomainError("so many keys in one month? Remove the domain and add it anew")


def first_keys(domain: SenderDomain, given: Sequence[str], vault: keys.Vault, now: Millis) -> list[DomainKey]:
    """The keys of a new domain."""
    made = []
    for algorithm, selectors in selectors_for(domain, given).items():
        names = selectors or [fresh_selector(algorithm, (), now)]
        made.append(keymaking.make(domain.name, names[0], algorithm, KeyState.ACTIVE, now=now, vault=vault))
        made += [DomainKey(domain.name, name, algorithm, KeyState.SPARE, created_at=now) for name in names[1:]]
    return made


def next_keys(domain: SenderDomain, there: Sequence[DomainKey], vault: keys.Vault, now: Millis) -> list[DomainKey]:
    """The keys that take over in a rotation. Raises DomainError while one is under way."""
    waiting = [key.selector for key in there if key.state is KeyState.NEXT]
    if waiting:
        raise DomainError(
            f"a rotation is under way: {', '.join(waiting)} of {shown(domain.name)} wait for their records. "
            f"Run: relayd domain verify {shown(domain.name)}"
        )
    made = []
    for algorithm in keys.ALGORITHMS:
        if domain.delegate:
            spare = next((k for k in there if k.state is KeyState.SPARE and k.algorithm == algorithm), None)
            if spare is None:
                old = next(k for k in there if k.state is KeyState.RETIRING and k.algorithm == algorithm)
                raise DomainError(
                    f"{old.selector} of the last rotation is not retired yet, and only two selectors are delegated"
                )
            selector = spare.selector
        else:
            selector = fresh_selector(algorithm, (key.selector for key in there), now)
        made.append(keymaking.make(domain.name, selector, algorithm, KeyState.NEXT, now=now, vault=vault))
    return made


def find(everything: Everything, name: str) -> SenderDomain:
    """A domain by its name in any script. Raises DomainError that lists what there is."""
    wanted = normal(name)
    for domain in everything.domains:
        if domain.name == wanted:
            return domain
    known = ", ".join(shown(domain.name) for domain in everything.domains)
    raise DomainError(f"there is no sender domain {shown(wanted)}: " + (f"known are {known}" if known else "none yet"))


def without_underscore_cname(domain: SenderDomain) -> SenderDomain:
    """Re-issue the delegating CNAMEs as TXT records. Raises DomainError where there are none."""
    if not domain.delegate:
        raise DomainError(f"{shown(domain.name)} has no CNAMEs: its keys are TXT records already")
    return replace(domain, underscore_cname=False)

"""DMARC (RFC 7489): records read, organisational domains by the public-suffix list, alignment.

What a receiver does with the result is its own affair.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from publicsuffixlist import PublicSuffixList

STARTER = "v=DMARC1; p=none"
"""A record to start with: it asks receivers for nothing but lets them see that there is one."""
_POLICIES = {"none", "quarantine", "reject"}
_TAG = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*=\s*(.*?)\s*", re.DOTALL)


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def organisational(domain: str) -> str:
    """The organisational domain (RFC 7489 3.2): one label below the public suffix; itself where it is one."""
    return _suffixes().privatesuffix(domain.lower().rstrip(".")) or domain.lower().rstrip(".")


def public_suffix(domain: str) -> bool:
    """Nobody can own this one: it is a registry's."""
    return _suffixes().is_public(domain.lower().rstrip("."))


@dataclass(frozen=True, slots=True)
class Policy:
    """A record that was read."""

    problems: tuple[str, ...] = ()
    strict_dkim: bool = False
    strict_spf: bool = False


def is_dmarc(text: str) -> bool:
    """This TXT record claims to be DMARC."""
    return re.match(r"v\s*=\s*DMARC1\s*(;|$)", text.strip()) is not None


def parse_tags(text: str) -> tuple[dict[str, str], list[str]]:
    """A tag list (RFC 6376 3.2), as DKIM and DMARC use it: tags and what is wrong with it."""
    tags: dict[str, str] = {}
    problems: list[str] = []
    for part in text.split(";"):
        if not part.strip():
            continue  # two semicolons in a row are wrong, and every receiver bears them
        match = _TAG.fullmatch(part)
        if match is None:
            problems.append(f"{part.strip()!r} is not of the form tag=value")
        elif match[1] in tags:
            problems.append(f"{match[1]}= stands there twice")
        else:
            tags[match[1]] = match[2]
    return tags, problems


def read(text: str) -> Policy:
    """Take a record apart. Never raises."""
    tags, problems = parse_tags(text)
    if next(iter(tags), "") != "v":
        problems.append("v=DMARC1 must come first")
    if tags.get("p", "").lower() not in _POLICIES:
        problems.append("p= must be none, quarantine or reject" if "p" in tags else "p= is missing")
    if "sp" in tags and tags["sp"].lower() not in _POLICIES:
        problems.append("sp= must be none, quarantine or reject")
    for name in ("adkim", "aspf"):
        if name in tags and tags[name].lower() not in {"r", "s"}:
            problems.append(f"{name}= must be r or s")
    percent = tags.get("pct", "100")
    if not (percent.isascii() and percent.isdigit() and len(percent) < 4 and int(percent) <= 100):
        problems.append("pct= must be 0 to 100")
    for name in ("rua", "ruf"):
        for address in filter(None, (part.strip() for part in tags.get(name, "").split(","))):
            if not address.lower().startswith(("mailto:", "https:")) or "@" not in address:
                problems.append(f"{name}= must hold mailto: addresses, not {address!r}")
    return Policy(tuple(problems), tags.get("adkim", "r").lower() == "s", tags.get("aspf", "r").lower() == "s")


def aligned(one: str, other: str, *, strict: bool) -> bool:
    """Two domains are aligned (RFC 7489 3.1)."""
    if strict:
        return one.lower() == other.lower()
    return organisational(one) == organisational(other)


def align(from_domain: str, dkim_domain: str, return_path: str, policy: Policy | None) -> list[str]:
    """Whether the identities of our mail from this domain will vouch for it, as remarks."""
    strict_dkim = policy is not None and policy.strict_dkim
    strict_spf = policy is not None and policy.strict_spf
    dkim = aligned(from_domain, dkim_domain, strict=strict_dkim)
    spf = aligned(from_domain, return_path, strict=strict_spf)
    notes = []
    if not dkim:
        notes.append(f"DKIM signs as {dkim_domain}, which is not aligned with {from_domain}")
    if not spf:
        mode = "aspf=s demands the very same domain" if strict_spf else "the organisational domains differ"
        notes.append(f"the return path {return_path} is not aligned with {from_domain}: {mode}")
    if dkim and spf:
        notes.append(f"From, DKIM and return path ({return_path}) are aligned: {organisational(from_domain)}")
    return notes

"""Values about DNS records: what is expected, what servers answered, what was found out. Pure.

What to expect is expected.py's, comparing is judge.py's, asking is resolve.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Purpose(StrEnum):
    """What a record is for."""

    DKIM = "dkim"
    DKIM_DELEGATION = "dkim-delegation"
    DKIM_ZONE = "dkim-zone"
    """The key itself in our own zone, where a delegation leads."""
    SPF = "spf"
    DMARC = "dmarc"
    RETURN_PATH = "return-path"
    RETURN_PATH_SPF = "return-path-spf"
    PROVIDER = "provider"
    TRACKING = "tracking"
    TRACKING_MX = "tracking-mx"
    TRACKING_PROOF = "tracking-proof"
    TRACKING_TLS = "tracking-tls"


@dataclass(frozen=True, slots=True)
class Expected:
    """One record that DNS should hold. Names in A-labels, lower case, without the last dot."""

    purpose: Purpose
    type: str
    """TXT, CNAME or MX."""
    host: str
    value: str
    """TXT: the joined text. CNAME: the target. MX: preference and target. Empty: only the provider knows it."""
    required: bool = True
    """The domain is not verified without it."""
    selector: str = ""
    zone: str = ""
    """The domain it belongs to: what DNS panels append to names."""
    ours: bool = False
    """To be published in our own zone, not by the domain's owner."""
    terms: tuple[str, ...] = ()
    """SPF: the terms that must be in the record; the rest of it is theirs."""
    note: str = ""
    lost_underscore: bool = False
    """CNAME: the target may have lost one leading underscore; some DNS panels eat it."""
    checked: bool = True
    """False: shown only, for only the provider knows the value."""


class Status(StrEnum):
    """How one server answered one question."""

    FOUND = "found"
    NODATA = "nodata"
    NXDOMAIN = "nxdomain"
    LOOP = "loop"
    """CNAMEs that lead in a circle, or on and on."""
    SERVFAIL = "servfail"
    DNSSEC = "dnssec"
    """SERVFAIL that goes away when nobody validates: broken signatures."""
    TIMEOUT = "timeout"
    LAME = "lame"
    """A server named for the zone that does not serve it."""
    ERROR = "error"
    """An answer that cannot be read, a refusal, an unreachable server."""


KNOWN = frozenset({Status.FOUND, Status.NODATA, Status.NXDOMAIN, Status.LOOP})
"""Answers that say something about the record. All others never count as missing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one server said."""

    source: str
    """ns1.example.jp, or "resolver"."""
    authoritative: bool
    status: Status
    records: tuple[str, ...] = ()
    """Of the type asked for. TXT: strings joined, octets beyond ASCII as latin-1."""
    chain: tuple[str, ...] = ()
    """The CNAME targets on the way."""
    ttl: int = 0
    """Seconds this answer may be kept, negative answers included (RFC 2308)."""


Question = tuple[str, str]
"""Name and type."""
Answers = Mapping[Question, Sequence[Answer]]


class Verdict(StrEnum):
    """What became of an expected record."""

    VERIFIED = "verified"
    MISSING = "missing"
    WRONG = "wrong"
    PROPAGATING = "propagating"
    UNKNOWN = "unknown"
    NOT_CHECKED = "not-checked"


class Cause(StrEnum):
    """The usual reason for a verdict; texts are texts.py's."""

    NONE = ""
    ABSENT = "absent"
    ZONE_APPENDED = "zone-appended"
    VALUE_ZONE_APPENDED = "value-zone-appended"
    NO_UNDERSCORE = "no-underscore"
    QUOTES = "quotes"
    ESCAPED = "escaped"
    WIDE = "full-width"
    SPLIT = "split"
    TWO_SPF = "two-spf"
    TWO_DMARC = "two-dmarc"
    DOUBLED = "doubled"
    PROXY = "proxy"
    OTHER_TYPE = "other-type"
    OTHER_TARGET = "other-target"
    OTHER_KEY = "other-key"
    CUT = "cut-off"
    CASE = "case"
    REVOKED = "revoked"
    NOT_A_KEY = "not-a-key"
    RESTRICTED = "restricted"
    WILDCARD = "wildcard"
    LOOP = "loop"
    DANGLING = "dangling"
    SPF_LACKS = "spf-lacks"
    SPF_AFTER_ALL = "spf-after-all"
    SPF_NEGATED = "spf-negated"
    SPF_SYNTAX = "spf-syntax"
    DMARC_SYNTAX = "dmarc-syntax"
    NULL_MX = "null-mx"
    OTHER_MX = "other-mx"
    MX_ADDRESS = "mx-address"
    CACHED = "cached"
    SOME_SERVERS = "some-servers"
    SERVFAIL = "servfail"
    DNSSEC = "dnssec"
    TIMEOUT = "timeout"
    LAME = "lame"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one expected record."""

    expected: Expected
    verdict: Verdict
    cause: Cause = Cause.NONE
    found: tuple[str, ...] = ()
    wait: int = 0
    """Seconds until caches have let go of the old answer, where that is known."""
    notes: tuple[str, ...] = ()
    """Warnings beside a verdict."""
    detail: str = ""
    """Which servers, which name, which term."""


def same_name(one: str, other: str) -> bool:
    """Two names are the same, whatever their case and last dot."""
    return one.rstrip(".").lower() == other.rstrip(".").lower()


def bare(name: str) -> str:
    """A name as these values have it."""
    return name.rstrip(".").lower()


def nearest(name: str, known: Callable[[str], object | None]) -> str:
    """The domain itself or its nearest parent that is known; "" for none."""
    while name:
        if known(name) is not None:
            return name
        name = name.partition(".")[2]
    return ""

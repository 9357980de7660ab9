"""Which records a sender domain needs, from its settings and keys. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relayd.domains import dmarc, providers, spf
from relayd.domains.records import Expected, Purpose
from relayd.spool.domains import DomainKey, KeyState, SenderDomain

MAX_STRING = 255
"""Octets of one string in a TXT record (RFC 1035 3.3.14)."""
_NEEDED = {KeyState.ACTIVE}
_RETURN_PATH_PREFERENCE = 10


@dataclass(frozen=True, slots=True)
class Ours:
    """What our side of the records is made of."""

    mail_host: str
    """Takes the bounces that come to custom return paths."""
    zone: str = ""
    """Our own zone, for delegated keys."""
    spf: tuple[str, ...] = ()
    """Terms that let our mail pass: include:…, ip4:…"""
    provider: str = ""
    """The preset of the domain's upstream, where there is one."""


def key_value(key: DomainKey) -> str:
    """The TXT record that publishes a key (RFC 6376 3.6.1, RFC 8463 4)."""
    return f"v=DKIM1; k={key.algorithm}; p={base64.b64encode(key.public).decode()}"


def strings(text: str) -> list[str]:
    """A TXT value in strings as DNS can hold them."""
    return [text[start : start + MAX_STRING] for start in range(0, len(text), MAX_STRING)] or [""]


def delegated_name(domain: str, selector: str, zone: str) -> str:
    """Where a delegated key lives in our own zone."""
    return f"{selector}._domainkey.{domain}.{zone}"


def of_domain(
    domain: SenderDomain, keys: Iterable[DomainKey], ours: Ours, spf_there: Sequence[str] = ()
) -> list[Expected]:
    """Every record of a domain, in the order in which people should read them.

    `spf_there`: the SPF records that are published now, so that ours is merged into them.
    """
    records = [record for key in keys for record in _of_key(domain, key, ours)]
    name = domain.name
    terms = tuple(dict.fromkeys([*ours.spf, *providers.spf_of(ours.provider)]))
    if terms:
        value = spf.merge(spf_there, terms)
        records.append(Expected(Purpose.SPF, "TXT", name, value, zone=name, terms=terms))
    records.append(Expected(Purpose.DMARC, "TXT", f"_dmarc.{name}", dmarc.STARTER, zone=name))
    if domain.return_path:
        back = domain.return_path
        mx = f"{_RETURN_PATH_PREFERENCE} {ours.mail_host}"
        records.append(Expected(Purpose.RETURN_PATH, "MX", back, mx, zone=name))
        if terms:
            value = spf.merge((), terms)
            records.append(Expected(Purpose.RETURN_PATH_SPF, "TXT", back, value, zone=name, terms=terms))
    return [*records, *providers.records_of(ours.provider, name)]


def _of_key(domain: SenderDomain, key: DomainKey, ours: Ours) -> list[Expected]:
    host = f"{key.selector}._domainkey.{domain.name}"
    required = key.state in _NEEDED
    if not (domain.delegate and domain.underscore_cname):
        if key.state is KeyState.SPARE:
            return []
        value = key_value(key)
        return [
            Expected(Purpose.DKIM, "TXT", host, value, required, key.selector, domain.name, note=_note(key)),
        ]
    target = delegated_name(domain.name, key.selector, domain.zone or ours.zone)
    # the pointer of a key that waits for its turn is asked for at once: later rotations then need nobody
    pointer = Expected(Purpose.DKIM_DELEGATION, "CNAME", host, target, True, key.selector, domain.name)
    if key.state is KeyState.SPARE:
        return [pointer]
    zone = domain.zone or ours.zone
    held = Expected(
        Purpose.DKIM_ZONE, "TXT", target, key_value(key), required, key.selector, zone, ours=True, note=_note(key)
    )
    return [pointer, held]


def _note(key: DomainKey) -> str:
    if key.state is KeyState.NEXT:
        return "the next key: mail is signed with it once this record is seen"
    if key.state is KeyState.RETIRING:
        return "the old key: keep the record until it is retired"
    return ""

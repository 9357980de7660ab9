"""What providers demand of a domain in DNS beside our own records: values only they know are named only."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.domains.records import Expected, Purpose

_GET = "get this from the provider"


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider's demands."""

    hosts: tuple[str, ...]
    """Its SMTP servers, or how their names end (with a dot in front)."""
    records: tuple[tuple[str, str, str], ...]
    """Type, host below the domain, what the value looks like."""
    spf: tuple[str, ...] = ()


PROVIDERS = {
    "sendgrid": Provider(
        (".sendgrid.net",),
        (
            ("CNAME", "em<number>", "u<account>.wl<number>.sendgrid.net"),
            ("CNAME", "s1._domainkey", "s1.domainkey.u<account>.wl<number>.sendgrid.net"),
            ("CNAME", "s2._domainkey", "s2.domainkey.u<account>.wl<number>.sendgrid.net"),
        ),
    ),
    "ses": Provider(
        (".amazonaws.com",),
        (
            ("CNAME", "<token 1>._domainkey", "<token 1>.dkim.amazonses.com"),
            ("CNAME", "<token 2>._domainkey", "<token 2>.dkim.amazonses.com"),
            ("CNAME", "<token 3>._domainkey", "<token 3>.dkim.amazonses.com"),
        ),
        ("include:amazonses.com",),
    ),
    "mailgun": Provider(
        (".mailgun.org",), (("TXT", "<selector>._domainkey", "k=rsa; p=<key>"),), ("include:mailgun.org",)
    ),
    "postmark": Provider(
        (".postmarkapp.com",),
        (("TXT", "<date>pm._domainkey", "k=rsa; p=<key>"), ("CNAME", "pm-bounces", "pm.mtasv.net")),
    ),
    "mailjet": Provider(
        (".mailjet.com",), (("TXT", "mailjet._domainkey", "k=rsa; p=<key>"),), ("include:spf.mailjet.com",)
    ),
}


def provider_of(host: str) -> str:
    """The provider that runs this SMTP server; "" where none is known."""
    name = "." + host.lower().rstrip(".")
    return next((key for key, known in PROVIDERS.items() if name.endswith(known.hosts)), "")


def spf_of(provider: str) -> tuple[str, ...]:
    """Terms that let the provider's servers pass."""
    known = PROVIDERS.get(provider)
    return known.spf if known is not None else ()


def records_of(provider: str, domain: str) -> list[Expected]:
    """The provider's own records: to be listed, not checked."""
    known = PROVIDERS.get(provider)
    return [
        Expected(
            Purpose.PROVIDER, kind, f"{host}.{domain}", value, required=False, zone=domain, note=_GET, checked=False
        )
        for kind, host, value in (known.records if known is not None else ())
    ]

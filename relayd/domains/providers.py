"""What providers demand of a domain in DNS beside our own records, by the names of config/presets.py, which knows their
hosts. Values that only they know are named only. Providers that are left out say it in their own console.
"""

from __future__ import annotations

from dataclasses import dataclass

from relayd.config.presets import PRESETS, by_host
from relayd.domains.records import Expected, Purpose

_GET = "get this from the provider"
_TWINS = {
    "mailgun-eu": "mailgun",
    "postmark-broadcast": "postmark",
    "sparkpost-eu": "sparkpost",
    "ses-REGION": "ses",
}
"""Presets that differ in their hosts only."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One provider's demands. SUBDOMAIN stands for what is in its place in the preset's host."""

    records: tuple[tuple[str, str, str], ...] = ()
    """Type, host below the domain, what the value looks like."""
    spf: tuple[str, ...] = ()


DEMANDS = {
    "sendgrid": Demand(
        (
            ("CNAME", "em<number>", "u<account>.wl<number>.sendgrid.net"),
            ("CNAME", "s1._domainkey", "s1.domainkey.u<account>.wl<number>.sendgrid.net"),
            ("CNAME", "s2._domainkey", "s2.domainkey.u<account>.wl<number>.sendgrid.net"),
        ),
    ),
    "ses": Demand(
        tuple(("CNAME", f"<token {n}>._domainkey", f"<token {n}>.dkim.amazonses.com") for n in (1, 2, 3)),
        ("include:amazonses.com",),
    ),
    "mailgun": Demand((("TXT", "<selector>._domainkey", "k=rsa; p=<key>"),), ("include:mailgun.org",)),
    "postmark": Demand(
        (("TXT", "<date>pm._domainkey", "k=rsa; p=<key>"), ("CNAME", "pm-bounces", "pm.mtasv.net")),
    ),
    "mailjet": Demand((("TXT", "mailjet._domainkey", "k=rsa; p=<key>"),), ("include:spf.mailjet.com",)),
    # https://mailchimp.com/developer/release-notes/new-sending-domain-authentication-requirements
    "mandrill": Demand(tuple(("CNAME", f"mte{n}._domainkey", f"dkim{n}.mandrillapp.com") for n in (1, 2))),
    # https://github.com/Domain-Connect/Templates/blob/master/resend.com.mail.json
    "resend": Demand(
        (
            ("TXT", "resend._domainkey", "p=<key>"),
            ("MX", "send", "10 feedback-smtp.<region>.amazonses.com"),
            ("TXT", "send", "v=spf1 include:amazonses.com ~all"),
        ),
    ),
    # https://developers.sparkpost.com/api/sending-domains
    "sparkpost": Demand((("TXT", "<selector>._domainkey", "v=DKIM1; k=rsa; h=sha256; p=<key>"),)),
    # https://smtps.jp/docs/userguide/auth/spf
    "customers-mail-cloud": Demand(spf=("include:spf.SUBDOMAIN.smtps.jp",)),
}
PROVIDERS = (*DEMANDS, *(name for name in PRESETS if name not in DEMANDS and name not in _TWINS))
"""What `--upstream` takes beside the names of upstreams."""


def provider_of(host: str) -> str:
    """The provider that runs this SMTP server, what stands for SUBDOMAIN behind a colon; "" where none is known."""
    name, words = by_host(host)
    subdomain = words.get("SUBDOMAIN", "")
    return f"{_TWINS.get(name, name)}:{subdomain}" if subdomain else _TWINS.get(name, name)


def _demand(provider: str) -> tuple[Demand, str]:
    name, _, subdomain = provider.partition(":")
    return DEMANDS.get(name, Demand()), subdomain


def spf_of(provider: str) -> tuple[str, ...]:
    """Terms that let the provider's servers pass; those that need a subdomain only where it is known."""
    demand, subdomain = _demand(provider)
    return tuple(term.replace("SUBDOMAIN", subdomain) for term in demand.spf if subdomain or "SUBDOMAIN" not in term)


def records_of(provider: str, domain: str) -> list[Expected]:
    """The provider's own records: to be listed, not checked."""
    return [
        Expected(
            Purpose.PROVIDER, kind, f"{host}.{domain}", value, required=False, zone=domain, note=_GET, checked=False
        )
        for kind, host, value in _demand(provider)[0].records
    ]

"""What is known of providers: host, ports, form of login, limits, and how they say "too much", each with its source.

Data only. upstreams.py fills an upstream from it, `relayd upstream presets` and docs/upstreams.md show it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Throttle:
    """A reply by which a provider says "too much" or "not you"."""

    match: str
    """Code, enhanced code and words as they begin in a reply; words may stand anywhere in the text."""
    action: str
    """`slow`: fewer connections and messages. `pause`: nothing goes out by this account for a while."""
    seconds: int
    """How long."""
    source: str


@dataclass(frozen=True, slots=True)
class Preset:
    """One provider. `limits` are keys and values as they are written under `limits` of an upstream."""

    name: str
    title: str
    host: str
    """Upper-case words stand for what the name or the key `subdomain` brings."""
    ports: tuple[int, ...]
    source: str
    """The page of the provider that names host and ports."""
    username: str = ""
    """The user name that everybody logs in with; "": each has its own."""
    login: str = ""
    """What user name and password are, for people."""
    provider: str = ""
    """The OAuth2 provider, where it can be logged in with a token."""
    per: str = ""
    """What a login may send as: `address` or `domain`; "": not bound."""
    basic_retiring: bool = False
    """The provider is about to refuse passwords."""
    limits: Mapping[str, str | int] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    """Limit or fact → the page it is from."""
    throttles: tuple[Throttle, ...] = ()
    setup: tuple[str, ...] = ()
    """What to do on the provider's side, step by step."""

    @property
    def subdomain(self) -> bool:
        """The key `subdomain` is needed."""
        return "SUBDOMAIN" in self.host


_EXCHANGE_LIMITS = "Microsoft Learn: Exchange Online limits"
_SUBMISSION = "Microsoft Learn: How to set up a multifunction device or application to send email using Microsoft 365"
_GMAIL_CLIENT = "Gmail Help: Add Gmail to another email client"
_GMAIL_LIMITS = "Gmail Help: Limits for sending and getting mail"
_WORKSPACE_LIMITS = "Google Workspace Admin Help: Gmail sending limits in Google Workspace"
_RELAY = "Google Workspace Admin Help: Route outgoing SMTP relay messages through Google"
_RELAY_ERRORS = "Google Workspace Admin Help: SMTP relay service error messages"
_SES_PORTS = "Amazon SES Developer Guide: Connecting to an Amazon SES SMTP endpoint"
_SES_ERRORS = "Amazon SES Developer Guide: Errors related to the sending quotas for your Amazon SES account"
_SENDGRID = "SendGrid documentation: Integrating with the SMTP API"

_MINUTE, _HOUR, _DAY = 60, 3600, 86400

OFFICE365 = Preset(
    "office365",
    "Microsoft 365 (Exchange Online)",
    "smtp.office365.com",
    (587,),
    _SUBMISSION,
    login="the mailbox's address, with OAuth2; a password only where basic authentication is still allowed",
    provider="microsoft",
    per="address",
    basic_retiring=True,
    limits={"messages": "30/min", "recipients": "10000/day", "connections": 3},
    figures={
        "30 messages/min": _EXCHANGE_LIMITS,
        "10,000 recipients/day": _EXCHANGE_LIMITS,
        "3 connections": _SUBMISSION,
        "sends only as the mailbox that logs in": _SUBMISSION,
        "550 5.7.30 for passwords": "Microsoft Learn: Deprecation of Basic authentication in Exchange Online",
    },
    throttles=(
        Throttle("432 4.3.2", "slow", _MINUTE, _SUBMISSION),
        Throttle("550 5.7.30", "pause", _HOUR, "Microsoft Learn: Deprecation of Basic authentication"),
    ),
    setup=(
        "In the Microsoft Entra admin centre, register an application.",
        "For a daemon without a person: give it the application permission SMTP.SendAsApp of Office 365 Exchange"
        " Online, have an administrator consent, and make a client secret. In Exchange Online PowerShell register its"
        " service principal (New-ServicePrincipal) and give it the mailbox (Add-MailboxPermission).",
        "For one person's mailbox: allow public client flows, and run `relayd upstream login NAME`.",
        "Turn on authenticated SMTP for the mailbox (Set-CASMailbox -SmtpClientAuthenticationDisabled $false).",
    ),
)

GMAIL = Preset(
    "gmail",
    "Gmail",
    "smtp.gmail.com",
    (465, 587),
    _GMAIL_CLIENT,
    login="the address, with OAuth2 or an app password",
    provider="google",
    limits={"messages": "500/day"},
    figures={
        "500 messages/day": _GMAIL_LIMITS,
        "2,000/day for Workspace accounts (write limits: {messages: 2000/day})": _WORKSPACE_LIMITS,
    },
    setup=(
        "Turn on 2-step verification for the account.",
        "With a password: make an app password, and use it as `password`.",
        "With OAuth2: in the Google Cloud console make a project, a consent screen with the scope"
        " https://mail.google.com/, and an OAuth client of the type desktop app; run `relayd upstream login NAME`.",
        "For many mailboxes of a Workspace: make a service account, and in the Admin console give its client ID"
        " domain-wide delegation for the scope https://mail.google.com/.",
    ),
)

WORKSPACE_RELAY = Preset(
    "workspace-relay",
    "Google Workspace SMTP relay",
    "smtp-relay.gmail.com",
    (587, 465),
    _RELAY,
    login="none where the relay knows our IP address; otherwise an address and its app password or OAuth2",
    provider="google",
    limits={"messages": "10000/day", "recipients_per_message": 100},
    figures={
        "10,000/day per user": _WORKSPACE_LIMITS,
        "100 recipients a transaction": _WORKSPACE_LIMITS,
        "EHLO must be a real domain": _RELAY,
    },
    throttles=(
        Throttle("550 5.4.5", "pause", _DAY, _RELAY_ERRORS),
        Throttle("450 4.2.1", "slow", 10 * _MINUTE, _RELAY_ERRORS),
    ),
    setup=(
        "In the Admin console: Apps, Google Workspace, Gmail, Routing, SMTP relay service.",
        "Allow our public IP address, or require SMTP authentication, or both; require TLS.",
        "Set `hostname` (of the file or of this upstream) to a real domain of yours: EHLO with another is refused.",
    ),
)

SENDGRID = Preset(
    "sendgrid",
    "Twilio SendGrid",
    "smtp.sendgrid.net",
    (587, 2525, 465),
    _SENDGRID,
    username="apikey",
    login="the word apikey, and an API key as password",
    limits={"messages_per_connection": 5000},
    figures={"5,000 messages a connection": _SENDGRID},
    setup=(
        "Make an API key with the permission Mail Send, and use it as `password`.",
        "Authenticate your sender domain; `relayd domain add` shows the records that are asked for.",
    ),
)

_MAILGUN_PAGE = "Mailgun documentation: Sending messages with SMTP"
_KEY_OF_DOMAIN = "Add and verify your domain; `relayd domain add` shows the records that are asked for."
_SHOWN_THERE = "Add your domain there, and publish the records that it shows, beside those of `relayd domain add`."
MAILGUN = Preset(
    "mailgun",
    "Mailgun (US region)",
    "smtp.mailgun.org",
    (587, 2525, 465),
    _MAILGUN_PAGE,
    login="the SMTP credential of each sending domain",
    per="domain",
    figures={"a credential per domain": _MAILGUN_PAGE},
    setup=(_KEY_OF_DOMAIN, "Under the domain's SMTP credentials make a user; its password is shown once."),
)

_POSTMARK_PAGE = "Postmark developer documentation: Send email with SMTP"
POSTMARK = Preset(
    "postmark",
    "Postmark, transactional stream",
    "smtp.postmarkapp.com",
    (587, 2525),
    _POSTMARK_PAGE,
    login="the server API token, as user name and as password",
    figures={"X-PM-Message-Stream names another stream": _POSTMARK_PAGE},
    setup=(
        "Make a server, and use its API token as `username` and as `password` (both by !env or !file).",
        "Verify the sender domain or signature. Mail for another message stream has the header X-PM-Message-Stream,"
        " which apps set themselves.",
    ),
)

_SPARKPOST_PAGE = "SparkPost documentation: SMTP API"
SPARKPOST = Preset(
    "sparkpost",
    "SparkPost",
    "smtp.sparkpostmail.com",
    (587, 2525),
    _SPARKPOST_PAGE,
    username="SMTP_Injection",
    login="the word SMTP_Injection, and an API key as password",
    per="domain",
    figures={"a key per sending domain": _SPARKPOST_PAGE},
    setup=("Make an API key with the permission Send via SMTP, one for each sending domain.", _KEY_OF_DOMAIN),
)

SES = Preset(
    "ses-REGION",
    "Amazon SES",
    "email-smtp.REGION.amazonaws.com",
    (587, 2587, 465, 2465),
    _SES_PORTS,
    login="SMTP credentials made in the SES console (not the AWS access key itself)",
    figures={"454 Throttling failure: up to 10 min back-off": _SES_ERRORS},
    throttles=(Throttle("454 Throttling failure", "slow", 10 * _MINUTE, _SES_ERRORS),),
    setup=(
        "Verify the sender domain in the region that you use, and ask to leave the sandbox of SES.",
        "Under SMTP settings make SMTP credentials: they are good for one region.",
    ),
)

_CMC_PAGE = "Customers Mail Cloud documentation: SMTP"


def _simple(  # noqa: PLR0917 - one line of the table
    name: str,
    title: str,
    host: str,
    ports: tuple[int, ...],
    source: str,
    login: str,
    step: str,
    domain: str = _SHOWN_THERE,
) -> Preset:
    return Preset(name, title, host, ports, source, login=login, setup=(domain, step))


_ALL = (
    OFFICE365,
    GMAIL,
    WORKSPACE_RELAY,
    SENDGRID,
    MAILGUN,
    replace(MAILGUN, name="mailgun-eu", title="Mailgun (EU region)", host="smtp.eu.mailgun.org"),
    POSTMARK,
    replace(
        POSTMARK,
        name="postmark-broadcast",
        title="Postmark, broadcast stream",
        host="smtp-broadcasts.postmarkapp.com",
    ),
    _simple(
        "mailjet",
        "Mailjet",
        "in-v3.mailjet.com",
        (587, 2525, 465),
        "Mailjet developer documentation: SMTP relay, configuration",
        "the API key as user name, the secret key as password",
        "Copy API key and secret key from the account's API key management.",
        _KEY_OF_DOMAIN,
    ),
    SPARKPOST,
    replace(SPARKPOST, name="sparkpost-eu", title="SparkPost EU", host="smtp.eu.sparkpostmail.com"),
    _simple(
        "mandrill",
        "Mailchimp Transactional (Mandrill)",
        "smtp.mandrillapp.com",
        (587, 465, 2525),
        "Mailchimp Transactional documentation: Send email with SMTP",
        "any user name, and an API key as password",
        "Make an API key, and use it as `password`.",
        _KEY_OF_DOMAIN,
    ),
    SES,
    _simple(
        "brevo",
        "Brevo",
        "smtp-relay.brevo.com",
        (587, 2525, 465),
        "Brevo developer documentation: SMTP relay integration",
        "the login shown under SMTP & API, and an SMTP key as password",
        "Make an SMTP key (not an API key), and use it as `password`.",
    ),
    Preset(
        "resend",
        "Resend",
        "smtp.resend.com",
        (587, 465, 2587, 2465),
        "Resend documentation: Send emails with SMTP",
        username="resend",
        login="the word resend, and an API key as password",
        setup=(_KEY_OF_DOMAIN, "Make an API key with sending access, and use it as `password`."),
    ),
    Preset(
        "customers-mail-cloud",
        "Customers Mail Cloud",
        "SUBDOMAIN.smtps.jp",
        (587,),
        _CMC_PAGE,
        login="API user and API key",
        setup=(
            "Set `subdomain:` to that of your contract; `te` is the trial environment, `sandbox` the sandbox.",
            "Make an API user in the control panel, and use its name and key.",
        ),
    ),
    _simple(
        "mailersend",
        "MailerSend",
        "smtp.mailersend.net",
        (587, 2525),
        "MailerSend Help: SMTP relay",
        "the SMTP user of a domain",
        "Under the domain make an SMTP user.",
    ),
    _simple(
        "smtp2go",
        "SMTP2GO",
        "mail.smtp2go.com",
        (587, 2525),
        "SMTP2GO support: Setting up SMTP",
        "an SMTP user",
        "Make an SMTP user under Sending.",
    ),
    _simple(
        "mailtrap",
        "Mailtrap",
        "live.smtp.mailtrap.io",
        (587, 2525),
        "Mailtrap documentation: SMTP integration",
        "the credentials of the sending domain",
        "Copy user name and password from the domain's SMTP integration.",
    ),
)

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}
"""By name; `ses-REGION` stands for one preset per region."""

BUDGETS = ("messages", "recipients")
"""Limits over time."""
_SES_NAME = re.compile(r"ses-([a-z]{2,}(?:-[a-z]+)+-[0-9]{1,2})")


def find(name: str) -> Preset | None:
    """The preset of this name; that of an SES region is made from the name."""
    region = _SES_NAME.fullmatch(name)
    if region is not None:
        return replace(SES, name=name, host=SES.host.replace("REGION", region[1]))
    return PRESETS.get(name) if name != SES.name else None


def by_host(host: str) -> tuple[str, dict[str, str]]:
    """The preset whose server this is, and what stands in its host for REGION or SUBDOMAIN; "" where none is."""
    for preset in _ALL:
        pattern = re.sub("REGION|SUBDOMAIN", lambda word: f"(?P<{word[0]}>[a-z0-9-]+)", re.escape(preset.host))
        if found := re.fullmatch(pattern, host.lower().rstrip(".")):
            return preset.name, found.groupdict()
    return "", {}


def nearest(name: str) -> str:
    """The name that was probably meant; "" where none is near."""
    if name.startswith(("ses", "amazon")):
        return "ses-eu-west-1 (with your own region)"
    near = difflib.get_close_matches(name.lower(), PRESETS, 1)
    return near[0] if near else ""


def fill(given: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The keys of an upstream with those of its preset where they are not given. Unknown presets fill nothing.

    `known` are the limits that upstreams have.
    """
    preset = find(given["preset"]) if isinstance(given.get("preset"), str) else None
    if preset is None:
        return given
    subdomain = given.get("subdomain")
    out = dict(given)
    if not preset.subdomain or isinstance(subdomain, str):
        out.setdefault("host", preset.host.replace("SUBDOMAIN", str(subdomain)))
    if "port" not in out:
        out.setdefault("ports", list(preset.ports))
    accounts = out.get("accounts")
    limits = {name: value for name, value in preset.limits.items() if name in known}
    if isinstance(accounts, list):
        # a provider counts what each mailbox sends: its budgets are those of each account, not of all together
        each = {name: limits.pop(name) for name in BUDGETS if name in limits} if accounts else {}
        out["accounts"] = [
            _limited(_login(account, preset), each) if isinstance(account, dict) else account for account in accounts
        ]
    else:
        out = _login(out, preset)
    if preset.per == "address" or (preset.per and accounts):
        out.setdefault("per", preset.per)
    return _limited(out, limits)


def _limited(given: dict[str, Any], limits: Mapping[str, str | int]) -> dict[str, Any]:
    """An upstream or account with these limits where it has none of its own."""
    own = given.get("limits", {})
    return {**given, "limits": {**limits, **own}} if limits and isinstance(own, dict) else given


def _login(given: dict[str, Any], preset: Preset) -> dict[str, Any]:
    """A login with what the preset knows of it."""
    out = dict(given)
    oauth = out.get("oauth")
    if isinstance(oauth, dict):
        if preset.provider and "token_url" not in oauth:
            out["oauth"] = {"provider": preset.provider} | oauth
    elif preset.username:
        out.setdefault("username", preset.username)
    return out

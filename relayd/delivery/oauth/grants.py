"""What a configured OAuth2 login asks of its token server, and what the answers mean. Pure, save for the key file.

Asking is exchange.py's, keeping keeper.py's, a person's own login login.py's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from relayd.config.models import OAuth

_MICROSOFT = "https://login.microsoftonline.com"
GOOGLE_TOKENS = "https://oauth2.googleapis.com/token"
GOOGLE_SCOPE = "https://mail.google.com/"
OUTLOOK_DEFAULT = "https://outlook.office365.com/.default"
OUTLOOK_SMTP = "https://outlook.office.com/SMTP.Send offline_access"
DEFAULT_LIFE = 3600.0
_JWT_LIFE = 3600
_LONGEST = 90 * 86400.0
_WORD = re.compile(r"[a-z_]{1,40}")
_AADSTS = re.compile(r"AADSTS[0-9]{4,9}")


class TokenError(Exception):
    """No token is to be had; the text says why and what to do, and holds no secret."""

    def __init__(self, text: str, *, refused: bool) -> None:
        super().__init__(text)
        self.refused = refused
        """The server said no: waiting alone will not help."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One account's way to its tokens."""

    upstream: str
    account: str
    """"" where the upstream has only one login."""
    flow: str
    provider: str
    token_url: str
    scope: str
    client_id: str
    subject: str
    """The mailbox."""
    client_secret: str = field(default="", repr=False)
    refresh: str = field(default="", repr=False)
    """From the configuration; one that was stored counts where there is none."""
    key_file: Path | None = None

    @property
    def title(self) -> str:
        """How it is named to people."""
        return f"{self.upstream}, account {self.account}" if self.account else self.upstream

    @property
    def command(self) -> str:
        """What a person runs to log in again."""
        return f"relayd upstream login {self.upstream}" + (f" --account {self.account}" if self.account else "")

    @property
    def origin(self) -> str:
        """A digest of all that a kept token depends on; not of the client's secret, which may be renewed."""
        parts = (self.flow, self.token_url, self.scope, self.client_id, self.subject, self.refresh, str(self.key_file))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Issued:
    """What a token server gave. Times in seconds from now."""

    access: str = field(repr=False)
    life: float
    refresh: str = field(default="", repr=False)
    refresh_life: float | None = None


def grant_of(upstream: str, account: str, username: str, oauth: OAuth) -> Grant:
    """From the configuration."""
    provider = oauth.provider or ("google" if oauth.flow == "service-account" else "")
    url, scope = oauth.token_url or "", oauth.scope
    if provider == "microsoft":
        url = url or f"{_MICROSOFT}/{oauth.tenant or 'organizations'}/oauth2/v2.0/token"
        default = OUTLOOK_DEFAULT if oauth.flow == "client-credentials" else OUTLOOK_SMTP
        scope = default if scope is None else scope
    elif provider == "google":
        url, scope = url or GOOGLE_TOKENS, GOOGLE_SCOPE if scope is None else scope
    return Grant(
        upstream,
        account,
        oauth.flow,
        provider,
        url,
        scope or "",
        oauth.client_id or "",
        username,
        oauth.client_secret.get_secret_value() if oauth.client_secret else "",
        oauth.refresh_token.get_secret_value() if oauth.refresh_token else "",
        oauth.key_file,
    )


def form_of(grant: Grant, refresh: str, now: float) -> tuple[str, dict[str, str]]:
    """Where to ask, and the form to send (RFC 6749 4.4.2 and 6, RFC 7523 2.1). `now` in seconds since the epoch.

    Raises TokenError: there is nothing to ask with.
    """
    if grant.flow == "service-account":
        return _assertion(grant, now)
    form = {"client_id": grant.client_id}
    if grant.client_secret:
        form["client_secret"] = grant.client_secret
    if grant.flow == "client-credentials":
        form |= {"grant_type": "client_credentials"}
    else:
        refresh = refresh or grant.refresh
        if not refresh:
            raise TokenError(f"nobody has logged in for {grant.title} yet: run {grant.command}", refused=True)
        form |= {"grant_type": "refresh_token", "refresh_token": refresh}
    if grant.scope and not (grant.provider == "google" and grant.flow == "refresh-token"):
        form["scope"] = grant.scope
    return grant.token_url, form


def _assertion(grant: Grant, now: float) -> tuple[str, dict[str, str]]:
    """A JWT signed by the service account's key (RFC 7515, RFC 7523 3)."""
    from relayd.delivery import openssl  # noqa: PLC0415 - 7 MiB that few workers need

    problem = f"the key file of {grant.title} cannot be used: download the JSON key of the service account again"
    try:
        facts = orjson.loads((grant.key_file or Path()).read_bytes())
        issuer, url = str(facts["client_email"]), grant.token_url or str(facts["token_uri"])
        sign = openssl.rs256(str(facts["private_key"]).encode())
    except (OSError, ValueError, TypeError, KeyError, openssl.KeyFileError):
        raise TokenError(problem, refused=True) from None
    header: dict[str, Any] = {"alg": "RS256", "typ": "JWT"}
    if facts.get("private_key_id"):
        header["kid"] = str(facts["private_key_id"])
    issued = int(now)
    claims = {
        "iss": issuer,
        "sub": grant.subject,
        "scope": grant.scope,
        "aud": url,
        "iat": issued,
        "exp": issued + _JWT_LIFE,
    }
    signed = f"{_base64url(orjson.dumps(header))}.{_base64url(orjson.dumps(claims))}"
    signature = sign(signed.encode())
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": f"{signed}.{_base64url(signature)}",
    }
    return url, form


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")


def answer_of(grant: Grant, status: int, body: bytes) -> Issued:
    """What the token server said (RFC 6749 5). Raises TokenError."""
    try:
        facts = orjson.loads(body)
    except (orjson.JSONDecodeError, binascii.Error):
        facts = None
    if not isinstance(facts, dict):
        raise TokenError(f"the token server of {grant.title} answers no JSON (HTTP {status})", refused=False)
    access = facts.get("access_token")
    if status == 200 and isinstance(access, str) and access.isascii() and access.isprintable() and access:
        refresh, refresh_life = facts.get("refresh_token"), facts.get("refresh_token_expires_in")
        return Issued(
            access,
            _seconds(facts.get("expires_in")) or DEFAULT_LIFE,
            refresh if isinstance(refresh, str) else "",
            _seconds(refresh_life),
        )
    raise refusal_of(grant, status, facts)


def refusal_of(grant: Grant, status: int, facts: dict[str, Any]) -> TokenError:
    """The server's error, in words that say what to do."""
    given = facts.get("error")
    error = given if isinstance(given, str) and _WORD.fullmatch(given) else f"HTTP {status}"
    found = _AADSTS.search(str(facts.get("error_description", "")))
    shown = f"{error}, {found[0]}" if found else error
    if status >= 500 or status == 429 or error in ("temporarily_unavailable", "slow_down"):
        return TokenError(f"the token server of {grant.title} is in trouble ({shown})", refused=False)
    if error == "invalid_grant" and grant.flow == "refresh-token":
        what = f"the consent was revoked, the password changed, or the token ran out: run {grant.command}"
    elif error in ("invalid_client", "unauthorized_client") and grant.flow != "service-account":
        what = "the application or its secret is wrong or has run out: look at client_id and client_secret"
    elif grant.flow == "service-account":
        what = f"look at the domain-wide delegation of the service account, and that {grant.subject} exists"
    else:
        what = "look at tenant, client_id, scope and the permissions that were consented to"
    return TokenError(f"no token for {grant.title} ({shown}): {what}", refused=True)


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return min(seconds, _LONGEST * 8) if seconds > 0 else None

"""A person's login, once: the device-code flow (RFC 8628), or the browser and a redirect to loopback (RFC 8252).

Both end with a refresh token, which the command stores. Asking is exchange.py's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from relayd.delivery.oauth.exchange import Exchange
from relayd.delivery.oauth.grants import Grant, Issued, TokenError, answer_of, refusal_of

GOOGLE_AUTHORIZE = "https://accounts.google.com/o/oauth2/v2/auth"
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_LONGEST = 900.0
"""Seconds that a person gets."""

Sleep = Callable[[float], Awaitable[None]]
Tell = Callable[[str, str], None]
"""Shows a person where to go, and the code to type there ("" for none)."""


def device_url(grant: Grant) -> str:
    """Where Microsoft hands out device codes: beside where it issues tokens."""
    return grant.token_url.removesuffix("/token") + "/devicecode"


async def by_device(exchange: Exchange, grant: Grant, url: str, tell: Tell, sleep: Sleep = asyncio.sleep) -> Issued:
    """Ask for a code, show it, and wait until the person has typed it somewhere. Raises TokenError."""
    form = {"client_id": grant.client_id, "scope": grant.scope}
    facts = _facts(grant, *await exchange.post(grant.title, url, form))
    where, code, device = (str(facts.get(key) or "") for key in ("verification_uri", "user_code", "device_code"))
    if not where or not code or not device:
        raise TokenError(f"the token server of {grant.title} gives no device code", refused=False)
    tell(where, code)
    interval, left = max(float(facts.get("interval") or 5), 0.01), min(float(facts.get("expires_in") or 900), _LONGEST)
    form = {"grant_type": _DEVICE_GRANT, "client_id": grant.client_id, "device_code": device}
    if grant.client_secret:
        form["client_secret"] = grant.client_secret
    while left > 0:
        await sleep(interval)
        left -= interval
        status, body = await exchange.post(grant.title, grant.token_url, form)
        error = _error_in(body)
        if error == "slow_down":
            interval += 5
        elif error != "authorization_pending":
            return _with_refresh(grant, answer_of(grant, status, body))
    raise TokenError("nobody entered the code in time: run the command again", refused=True)


async def by_redirect(exchange: Exchange, grant: Grant, url: str, tell: Tell, patience: float = _LONGEST) -> Issued:
    """Send the person's browser to the provider, and take the code that it brings back to loopback (PKCE, RFC 7636).

    Raises TokenError.
    """
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def arrive(request: web.Request) -> web.Response:
        if not secrets.compare_digest(request.query.get("state", ""), state):
            return web.Response(status=400, text="This is not the login that relayd waits for.")
        if not answer.done():
            answer.set_result(request.query.get("code", ""))
        return web.Response(text="relayd has what it needs. You can close this window.")

    application = web.Application()
    application.router.add_get("/", arrive)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        redirect = f"http://127.0.0.1:{port}/"
        query = {
            "client_id": grant.client_id,
            "redirect_uri": redirect,
            "response_type": "code",
            "scope": grant.scope,
            "access_type": "offline",
            "prompt": "consent",
            "login_hint": grant.subject,
            "state": state,
            "code_challenge": digest,
            "code_challenge_method": "S256",
        }
        tell(f"{url}?{urllib.parse.urlencode(query)}", "")
        try:
            code = await asyncio.wait_for(answer, patience)
        except TimeoutError:
            raise TokenError("nobody logged in in time: run the command again", refused=True) from None
    finally:
        await runner.cleanup()
    if not code:
        raise TokenError("the consent was not given", refused=True)
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "client_id": grant.client_id,
        "redirect_uri": redirect,
        "code_verifier": verifier,
    }
    if grant.client_secret:
        form["client_secret"] = grant.client_secret
    status, body = await exchange.post(grant.title, grant.token_url, form)
    return _with_refresh(grant, answer_of(grant, status, body))


def _with_refresh(grant: Grant, issued: Issued) -> Issued:
    if not issued.refresh:
        raise TokenError(f"{grant.title} got no refresh token: ask for offline access in scope", refused=True)
    return issued


def _facts(grant: Grant, status: int, body: bytes) -> dict[str, Any]:
    try:
        facts = orjson.loads(body)
    except orjson.JSONDecodeError:
        facts = None
    if status != 200 or not isinstance(facts, dict):
        raise refusal_of(grant, status, facts if isinstance(facts, dict) else {})
    return facts


def _error_in(body: bytes) -> str:
    try:
        facts = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    return str(facts.get("error", "")) if isinstance(facts, dict) else ""

"""Logins by token: how tokens are got, shared, renewed and refused, and that none of them is ever shown."""

from __future__ import annotations

import asyncio
import base64
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relayd.config.models import OAuth
from relayd.core.session import ConnectFailedError
from relayd.delivery.credentials import expiry
from relayd.delivery.oauth import login
from relayd.delivery.oauth.exchange import Exchange
from relayd.delivery.oauth.grants import Grant, TokenError, form_of, grant_of
from relayd.delivery.oauth.keeper import Bearer, TokenKeeper, stored
from relayd.delivery.smtp import SMTPConnector
from relayd.delivery.tls import ClientContexts
from relayd.spool.state import StateDB
from relayd.spool.tokens import StoredToken, TokenStore
from relayd.spool.vault import LockedError
from tests.support.fake_upstream import FakeUpstream
from tests.support.token_server import TokenServer

SECRET = b"s" * 32
USER = "info@example.jp"


class Site:
    """A state.db, a clock and keepers, as several workers have them."""

    def __init__(self, state: StateDB) -> None:
        self.state = state
        self.now = 1_800_000_000_000
        self.exchange = Exchange()

    def keeper(self, owner: str = "0-1") -> TokenKeeper:
        return TokenKeeper(TokenStore(self.state, SECRET), self.exchange, owner, lambda: self.now)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    state = StateDB(tmp_path / "state.db")
    await state.open()
    made = Site(state)
    yield made
    await made.exchange.close()
    await state.close()


def grant(server: TokenServer, account: str = "", **keys: Any) -> Grant:
    settings = {"client_id": "c", "refresh_token": "canary-first", "token_url": server.url, **keys}
    return grant_of("team", account, USER, OAuth.model_validate(settings))


async def test_a_token_is_fetched_once_for_all_workers(site: Site) -> None:
    async with TokenServer() as server:
        server.slow.clear()
        asked = [asyncio.create_task(site.keeper(f"{n}-1").token(grant(server))) for n in range(4)]
        while not server.forms:  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0.01)
        server.slow.set()
        assert len(set(await asyncio.gather(*asked))) == 1
    assert len(server.forms) == 1
    assert server.forms[0] == {"client_id": "c", "grant_type": "refresh_token", "refresh_token": "canary-first"}


async def test_a_rotated_refresh_token_is_kept_and_outlives_the_process(site: Site) -> None:
    async with TokenServer(rotate=True) as server:
        server.valid_refresh = "canary-first"
        await site.keeper().token(grant(server))
        site.now += 3_600_000
        await site.keeper("another").token(grant(server))
        assert [form["refresh_token"] for form in server.forms] == ["canary-first", "canary-refresh-1"]
        # another token in the configuration counts more than the kept one
        server.valid_refresh = "new"
        await site.keeper().token(grant(server, refresh_token="new"))
    assert server.forms[-1]["refresh_token"] == "new"


async def test_tokens_in_use_are_renewed_ahead_of_their_end(site: Site) -> None:
    async with TokenServer() as server:
        keeper = site.keeper()
        first = await keeper.token(grant(server))
        await keeper.renew()
        assert len(server.forms) == 1
        site.now += 3_100_000
        await keeper.renew()
        assert len(server.forms) == 2
        assert await keeper.token(grant(server)) != first
        assert len(server.forms) == 2


async def test_what_is_on_disk_is_locked_by_the_secret(site: Site, tmp_path: Path) -> None:
    async with TokenServer(rotate=True) as server:
        await site.keeper().token(grant(server))
    raw = await asyncio.to_thread(lambda: b"".join(path.read_bytes() for path in tmp_path.iterdir()))
    assert b"oauth_token" in raw
    assert b"canary" not in raw
    with pytest.raises(LockedError, match="secret"):
        await TokenStore(site.state, b"other" * 8).get("team", "")


@pytest.mark.parametrize(
    ("keys", "answer", "said", "refused"),
    [
        (
            {},
            {"error": "invalid_grant", "error_description": "AADSTS50173 canary"},
            "run relayd upstream login team",
            True,
        ),
        ({}, {"error": "invalid_client"}, "look at client_id", True),
        ({}, {"error": "temporarily_unavailable"}, "in trouble", False),
        ({}, {"error": "canary with spaces"}, "HTTP 400", True),
        ({"flow": "client-credentials", "client_secret": "canary"}, {"error": "invalid_scope"}, "permissions", True),
    ],
)
async def test_a_refusal_says_what_to_do_and_nothing_secret(
    site: Site, keys: dict[str, Any], answer: dict[str, Any], said: str, refused: bool
) -> None:
    async with TokenServer() as server:
        server.refuse = answer
        with pytest.raises(TokenError, match=said) as failed:
            await site.keeper().token(grant(server, **keys))
    assert failed.value.refused is refused
    assert "canary" not in str(failed.value)


async def test_a_server_that_is_away_or_redirects_is_no_refusal(site: Site) -> None:
    async with TokenServer() as server:
        pass
    with pytest.raises(TokenError, match="cannot be reached") as failed:
        await site.keeper().token(grant(server))
    assert not failed.value.refused


async def test_nobody_has_logged_in_yet(site: Site) -> None:
    async with TokenServer() as server:
        with pytest.raises(TokenError, match=r"relayd upstream login team --account info@example\.jp"):
            await site.keeper().token(grant(server, USER, refresh_token=None))
    assert server.forms == []


async def test_client_credentials_of_microsoft(site: Site) -> None:
    oauth = OAuth.model_validate(
        {"flow": "client-credentials", "provider": "microsoft", "tenant": "t", "client_id": "c", "client_secret": "s"}
    )
    made = grant_of("team", "", USER, oauth)
    url, form = form_of(made, "", 0.0)
    assert url == "https://login.microsoftonline.com/t/oauth2/v2.0/token"
    assert form == {
        "client_id": "c",
        "client_secret": "s",
        "grant_type": "client_credentials",
        "scope": "https://outlook.office365.com/.default",
    }
    assert "client_secret" not in repr(made).replace("client_secret_expires", "")


def test_a_service_account_signs_for_the_mailbox(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    path = tmp_path / "google.json"
    path.write_bytes(orjson.dumps({"client_email": "s@p.example", "private_key": pem, "private_key_id": "k1"}))
    made = grant_of("team", "", USER, OAuth.model_validate({"flow": "service-account", "key_file": path}))
    url, form = form_of(made, "", 1_000_000.5)
    assert url == "https://oauth2.googleapis.com/token"
    header, claims, signature = (base64.urlsafe_b64decode(part + "==") for part in form["assertion"].split("."))
    assert orjson.loads(header) == {"alg": "RS256", "typ": "JWT", "kid": "k1"}
    assert orjson.loads(claims) == {
        "iss": "s@p.example",
        "sub": USER,
        "scope": "https://mail.google.com/",
        "aud": url,
        "iat": 1_000_000,
        "exp": 1_003_600,
    }
    key.public_key().verify(signature, form["assertion"].rpartition(".")[0].encode(), PKCS1v15(), SHA256())
    path.write_text("{}")
    with pytest.raises(TokenError, match="key file"):
        form_of(made, "", 0.0)


def connector(fake: FakeUpstream, bearer: Bearer, **keys: Any) -> SMTPConnector:
    section = {"username": USER, "password": None, **keys}
    return SMTPConnector("team", fake.config(**section), "relay.test", ClientContexts(), bearer)


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
async def test_the_token_is_shown_and_never_told(site: Site, mechanism: str) -> None:
    async with TokenServer() as server, FakeUpstream(tls="starttls", users={USER: "-"}, auth=[mechanism]) as fake:
        bearer = Bearer(grant(server), site.keeper())
        fake.users[USER] = await bearer.token()
        session = await connector(fake, bearer).open()
        seen = session.seen()
        await session.close()
    assert [(one.mechanism, one.username) for one in fake.logins] == [(mechanism, USER)]
    assert seen.mechanism == mechanism
    assert "canary" not in str(seen)
    assert base64.b64encode(b"user=")[:6].decode() not in seen.transcript


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
async def test_a_token_that_is_refused_is_not_used_again(site: Site, mechanism: str) -> None:
    with structlog.testing.capture_logs() as logs:
        async with TokenServer() as server, FakeUpstream(tls="starttls", users={USER: "-"}, auth=[mechanism]) as fake:
            bearer = Bearer(grant(server), site.keeper())
            with pytest.raises(ConnectFailedError) as failed:
                await connector(fake, bearer).open()
            assert failed.value.outcome.reply.code == 535
            with pytest.raises(ConnectFailedError):
                await connector(fake, bearer).open()
        assert len(server.tokens) == 2
    # the fake upstream repeats the token in its refusal
    told = failed.value.transcript + str(failed.value) + str(failed.value.outcome) + str(logs)
    assert "canary" not in told
    assert "********" in told


async def test_no_token_no_login(site: Site) -> None:
    async with TokenServer() as server, FakeUpstream(tls="starttls", users={USER: "-"}, auth=["XOAUTH2"]) as fake:
        server.refuse = {"error": "invalid_grant"}
        bearer = Bearer(grant(server), site.keeper())
        with pytest.raises(ConnectFailedError, match="relayd upstream login team"):
            await connector(fake, bearer).open()
        assert fake.logins == []
        with pytest.raises(ConnectFailedError, match="does not offer OAUTHBEARER"):
            await connector(fake, Bearer(grant(server), site.keeper(), "OAUTHBEARER")).open()


async def test_a_device_code_is_shown_until_it_is_entered(site: Site) -> None:
    shown: list[tuple[str, str]] = []
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with TokenServer() as server:
        server.pending = 2
        made = grant(server, refresh_token=None, scope="SMTP.Send")
        assert login.device_url(made) == server.device_url
        issued = await login.by_device(
            site.exchange, made, server.device_url, lambda where, code: shown.append((where, code)), sleep
        )
        await TokenStore(site.state, SECRET).put("team", "", stored(made, issued, site.now))
        assert await site.keeper().token(made) == issued.access
    assert shown == [("https://example.com/device", "ABCD-EFGH")]
    assert waits == [5.0, 5.0, 5.0]
    assert "canary" not in repr(issued)


async def test_the_browser_brings_the_code_to_loopback(site: Site) -> None:
    shown: asyncio.Queue[str] = asyncio.Queue()
    async with TokenServer() as server, aiohttp.ClientSession() as browser:
        made = grant(server, refresh_token=None, provider="google", client_secret="s")
        task = asyncio.create_task(
            login.by_redirect(site.exchange, made, "https://a.example/auth", lambda where, _: shown.put_nowait(where))
        )
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(await shown.get()).query))
        async with browser.get(query["redirect_uri"], params={"state": "forged", "code": "x"}) as answer:
            assert answer.status == 400
        async with browser.get(query["redirect_uri"], params={"state": query["state"], "code": "the-code"}) as answer:
            assert answer.status == 200
        issued = await task
    form = server.forms[-1]
    assert (form["code"], form["redirect_uri"], query["access_type"]) == ("the-code", query["redirect_uri"], "offline")
    assert form["code_verifier"]
    assert issued.refresh == "canary-refresh-1"


def test_the_first_end_counts() -> None:
    kept = StoredToken(until=5, refresh="r", refresh_until=7)
    assert expiry(OAuth(), None) is None
    assert expiry(OAuth(), StoredToken(until=5)) == 5
    assert expiry(OAuth(), kept) == 7
    expiring = OAuth.model_validate({"client_secret_expires": "1970-01-02"})
    assert expiry(expiring, kept) == 7
    assert expiry(expiring, None) == 86_400_000

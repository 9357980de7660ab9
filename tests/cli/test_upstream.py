"""relayd upstream: what is configured, and what a real server shows step by step. No mail is sent."""

from __future__ import annotations

import asyncio

import pytest

from tests.cli.conftest import CANARY, Site
from tests.support.daemon import Finished
from tests.support.fake_upstream import DROP, FakeUpstream, ca_file

pytestmark = pytest.mark.usefixtures("secret")
USERS = {"u": CANARY}


def point_at(site: Site, upstream: FakeUpstream, *, tls: str = "required") -> None:
    """Have `acme` mean this server."""
    trust = f", ca_file: {ca_file()}" if tls == "required" else ""
    implicit = str(upstream.implicit).lower()
    site.config.write_text(
        site.config.read_text().replace(
            "host: smtp.acme.example, port: 587",
            f"host: localhost, port: {upstream.port}, tls: {tls}{trust}, implicit_tls: {implicit}",
        )
    )


async def tested(site: Site, *args: str) -> Finished:
    return await asyncio.to_thread(site.run, "upstream", "test", "acme", *args)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_every_step_is_told(site: Site, tls: str) -> None:
    async with FakeUpstream(tls=tls, users=USERS) as upstream:  # type: ignore[arg-type]
        point_at(site, upstream)
        done = await tested(site)
        assert done.code == 0, done
        found = (await tested(site, "--json")).json
    assert "TLSv1.3" in done.out
    assert "issued by" in done.out
    assert "offers      PIPELINING" in done.out
    assert "logged in   as u by PLAIN" in done.out
    assert found["ok"] is True
    assert found["certificate"]["until"]
    assert found["endpoint"] == f"localhost:{upstream.port}"
    assert upstream.mails == []
    assert upstream.commands[-1] == "QUIT"
    assert CANARY not in done.out + done.err + str(found)


async def test_a_wrong_password_is_told_without_telling_the_password(site: Site) -> None:
    async with FakeUpstream({"AUTH": f"535 5.7.8 {CANARY} is wrong"}, tls="starttls", users=USERS) as upstream:
        point_at(site, upstream)
        done = await tested(site)
        found = (await tested(site, "--json")).json
    assert done.code == 1
    assert "The login failed: 535 5.7.8" in done.err
    assert "EHLO" in done.out
    assert (found["ok"], found["stage"]) == (False, "auth")
    assert CANARY not in done.out + done.err + str(found)


async def test_an_expired_certificate_ends_it_before_any_secret(site: Site) -> None:
    async with FakeUpstream(tls="starttls", users=USERS, certificate="expired") as upstream:
        point_at(site, upstream)
        done = await tested(site)
    assert done.code == 1
    assert "could not be secured" in done.err
    assert upstream.logins == []


async def test_a_server_that_hangs_up(site: Site) -> None:
    async with FakeUpstream({"greeting": DROP}) as upstream:
        point_at(site, upstream)
        done = await tested(site)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1


async def test_what_the_server_says_does_not_steer_the_terminal(site: Site) -> None:
    async with FakeUpstream({"greeting": b"220 \x1b[2Jfake \x9b\r\n"}, tls="starttls", users=USERS) as upstream:
        point_at(site, upstream)
        done = await tested(site)
    assert "\x1b" not in done.out + done.err
    assert "\x9b" not in done.out + done.err


async def test_the_secrets_of_others_are_not_needed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeUpstream(tls="starttls", users=USERS) as upstream:
        point_at(site, upstream)
        text = site.config.read_text()
        other = "  other: {host: smtp.other.example, username: u, password: !env NOWHERE_TO_BE_HAD}\n"
        site.config.write_text(text.replace("upstreams:\n", f"upstreams:\n{other}", 1))
        done = await tested(site)
        assert done.code == 0, done
        listed = site.run("upstream", "list", "--json")
        assert [entry["name"] for entry in listed.json if entry["name"] == "other"] == ["other"]
        mine = await asyncio.to_thread(site.run, "upstream", "test", "other")
        assert mine.code == 2
        assert "NOWHERE_TO_BE_HAD" in mine.err
        monkeypatch.delenv("RELAYD_TEST_SECRET")
        assert (await tested(site)).code == 2


def test_the_list_tells_what_is_left_of_budgets(site: Site) -> None:
    team = (
        "  team:\n    preset: office365\n    limits: {messages: 40/min}\n    accounts:\n"
        "      - {address: a@example.jp, password: !env RELAYD_TEST_SECRET}\n"
        "      - {address: b@example.jp, password: !env RELAYD_TEST_SECRET, limits: {messages: [10/min, 50/day]}}\n"
    )
    site.config.write_text(site.config.read_text().replace("upstreams:\n", f"upstreams:\n{team}", 1))
    found = {entry["name"]: entry for entry in site.run("upstream", "list", "--json").json}["team"]
    assert [(each["of"], each["limit"], each["left"]) for each in found["budgets"]] == [("team", "40/min", 40)]
    budgets = [[(each["kind"], each["limit"]) for each in account["budgets"]] for account in found["accounts"]]
    assert budgets == [
        [("messages", "30/min"), ("recipients", "10000/day")],
        [("messages", "10/min"), ("messages", "50/day"), ("recipients", "10000/day")],
    ]
    assert (found["queue"], found["through"], found["throughput"], found["ports"]) == (0, None, None, [587])
    told = site.run("upstream", "list").out
    assert "messages of team/b@example.jp" in told
    assert "team/a@example.jp" in told


def test_the_sandbox_needs_no_test(site: Site) -> None:
    done = site.run("upstream", "test", "sandbox")
    assert done.code == 0
    assert "sandbox" in done.out


def test_an_unknown_name(site: Site) -> None:
    done = site.run("upstream", "test", "acne")
    assert done.code == 2
    assert "known are sandbox, acme" in done.err


def test_the_list_names_routes_and_no_secret(site: Site) -> None:
    done = site.run("upstream", "list")
    assert done.code == 0
    assert "smtp.acme.example:587" in done.out
    assert "#1, #2" in done.out
    found = {entry["name"]: entry for entry in site.run("upstream", "list", "--json").json}
    assert found["sandbox"]["routes"] == [3]
    assert CANARY not in done.out + str(found)

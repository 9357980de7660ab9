"""relayd domain, tracking-domain and sender as an operator uses them, on real DNS servers, without a daemon."""

from __future__ import annotations

import email
import email.policy
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.zone
import pytest

from tests.cli.conftest import run
from tests.domains.sites import config_for
from tests.support.daemon import Finished
from tests.support.dns_world import World, Zone

DOMAIN = "example.co.jp"


@dataclass
class Operator:
    """Types commands."""

    path: Path
    world: World

    def run(self, *args: str) -> Finished:
        return run("--config", str(self.path), *args)

    def ok(self, *args: str) -> Finished:
        done = self.run(*args)
        assert done.code == 0, done.out + done.err
        return done

    def records(self, name: str = DOMAIN) -> list[dict[str, Any]]:
        return list(self.ok("domain", "records", name, "--format", "json").json)

    def publish(self, zone: Zone, *purposes: str) -> None:
        """Everything (or what serves these purposes) as it is printed."""
        for record in self.records(zone.name):
            if record["state"] == "not-checked" or (purposes and record["purpose"] not in purposes):
                continue
            if record["purpose"] == "spf":
                there = zone.records.get(record["host"], [])
                zone.records[record["host"]] = [each for each in there if "v=spf1" not in each.value]
            value = tuple(record["strings"]) if record["type"] == "TXT" else record["value"]
            zone.add(record["type"], record["host"], value)


@pytest.fixture
def world() -> Iterator[World]:
    with World() as running:
        running.zone("relay.test").add("TXT", "_spf.relay.test", "v=spf1 ip4:192.0.2.1 -all")
        yield running


@pytest.fixture
def zone(world: World) -> Zone:
    return world.zone(DOMAIN).add("TXT", DOMAIN, "v=spf1 mx -all").add("MX", DOMAIN, "10 mail.example.co.jp")


@pytest.fixture
def operator(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    config_for(world, tmp_path)
    return Operator(tmp_path / "relayd.yaml", world)


def test_from_adding_to_verified(operator: Operator, zone: Zone) -> None:
    added = operator.ok("domain", "add", DOMAIN, "--return-path", f"bounce.{DOMAIN}", "--upstream", "sendgrid")
    assert "v=spf1 mx include:_spf.relay.test -all" in added.out  # theirs is kept
    assert "found  v=spf1 mx -all" in added.out
    assert "s1.domainkey.u<account>" in added.out
    assert "get this from the provider" in added.out
    assert "require_verified_domain: false" in added.err
    assert "no upstream has return_path: verp" in added.err
    assert operator.run("domain", "verify", DOMAIN).code == 1
    operator.publish(zone)
    verified = operator.ok("domain", "verify", DOMAIN, "--lang", "ja")
    assert "設定完了" in verified.out
    assert f"Return-Path(bounce.{DOMAIN})のドメインは一致しています: {DOMAIN}" in verified.out
    assert "値は配信事業者の管理画面で" in verified.out
    assert "確認済み" in verified.out
    assert operator.ok("domain", "list", "--json").json[0]["state"] == "verified"
    shown = operator.ok("domain", "show", DOMAIN)
    assert "domain.verified" in shown.out
    assert f"return path (bounce.{DOMAIN}) are aligned: {DOMAIN}" in shown.out
    assert "return-path.seen" in shown.out
    assert operator.ok("domain", "request-mail", DOMAIN).out.startswith(f"{DOMAIN}: every record is verified")


def test_zone_format_is_a_zone_file_that_verifies(operator: Operator, zone: Zone) -> None:
    operator.ok("domain", "add", DOMAIN, "--return-path", f"bounce.{DOMAIN}")
    text = operator.ok("domain", "records", DOMAIN, "--format", "zone").out
    assert operator.ok("domain", "show", DOMAIN, "--format", "zone").out == text
    assert operator.ok("domain", "list", "--format", "zone").out == text
    for command in (("list",), ("show", DOMAIN)):
        as_json = operator.ok("domain", *command, "--format", "json").json
        assert as_json == operator.ok("domain", *command, "--json").json
    parsed = dns.zone.from_text(text, origin=f"{DOMAIN}.", check_origin=False, relativize=False)
    keys = [rdata for name, _, rdata in parsed.iterate_rdatas("TXT") if "_domainkey" in name.to_text()]
    assert len(keys) == 2
    assert all(len(piece) <= 255 for rdata in keys for piece in rdata.strings)
    assert max(len(rdata.strings) for rdata in keys) == 2
    [(name, _, mx)] = parsed.iterate_rdatas("MX")
    assert (name.to_text(), mx.to_text()) == (f"bounce.{DOMAIN}.", "10 relay.test.")


def test_the_request_names_the_unverified_records_only(operator: Operator, zone: Zone) -> None:
    operator.ok("domain", "add", DOMAIN)
    operator.publish(zone, "dkim", "dmarc")
    operator.run("domain", "verify", DOMAIN)
    raw = operator.ok("domain", "request-mail", DOMAIN, "--lang", "ja", "--to", "dns@example.co.jp").out
    mail = email.message_from_string(raw, policy=email.policy.default)
    assert mail["To"] == "dns@example.co.jp"
    assert DOMAIN in mail["Subject"]
    text, attached = list(mail.iter_parts())
    body = text.get_content()
    assert "設定をお願いいたします" in body
    assert "v=spf1 mx include:_spf.relay.test -all" in body
    assert "現在の値: v=spf1 mx -all" in body
    assert "_domainkey" not in body
    assert "_dmarc" not in body
    assert attached.get_filename() == f"{DOMAIN}.zone"
    assert "IN TXT" in attached.get_content()
    assert "dnsadmin" not in raw
    assert operator.run("domain", "request-mail", DOMAIN, "--send").code == 2
    nobody = operator.run("domain", "request-mail", DOMAIN, "--send", "--to", "dns@example.co.jp", "--yes")
    assert nobody.code == 1
    assert "no relayd is running" in nobody.err


def test_keys_are_kept_locked(operator: Operator, zone: Zone) -> None:
    operator.ok("domain", "add", DOMAIN)
    with sqlite3.connect(operator.path.parent / "data/state.db") as db:
        rows = db.execute("SELECT selector, private FROM domain_key").fetchall()
    assert len(rows) == 2
    for _, private in rows:
        assert b"\x02\x01\x00\x30" not in private[:40]  # the beginning of PKCS #8
    db.close()
    (operator.path.parent / "data/secret").write_text("another secret, as long as the first\n")
    # nothing opens the keys to show them, and rotation makes new ones
    operator.ok("domain", "show", DOMAIN)


def test_nothing_is_asked_of_spf_where_no_terms_are_known(operator: Operator, zone: Zone, tmp_path: Path) -> None:
    text = operator.path.read_text()
    operator.path.write_text(text.replace("  spf:\n  - include:_spf.relay.test\n", ""))
    assert operator.path.read_text() != text
    assert "domains.spf is empty" in operator.ok("domain", "add", DOMAIN).err


def test_idn_and_delegation_without_underscores(operator: Operator, world: World) -> None:
    zone = world.zone("xn--r8jz45g.jp")
    added = operator.ok("domain", "add", "例え.jp", "--delegate", "--selector", "s", "--json").json
    pointers = [r for r in added["records"] if r["type"] == "CNAME"]
    assert [r["host"] for r in pointers] == [f"s{x}._domainkey.xn--r8jz45g.jp" for x in ("r1", "r2", "e1", "e2")]
    assert pointers[0]["value"] == "sr1._domainkey.xn--r8jz45g.jp.keys.relay.test"
    again = operator.ok("domain", "records", "例え.jp", "--no-underscore-cname", "--format", "json").json
    assert {r["type"] for r in again} == {"TXT"}
    assert {r["state"] for r in again} == {"missing"}  # looked at at once
    assert "domain.reissued" in operator.ok("domain", "show", "例え.jp").out
    operator.publish(zone)
    assert operator.run("domain", "verify", "例え.jp").code == 0
    assert "例え.jp" in operator.ok("domain", "list").out


def test_rotation_by_commands_alone(operator: Operator, zone: Zone) -> None:
    operator.ok("domain", "add", DOMAIN, "--selector", "a", "--selector", "b")
    operator.publish(zone)
    operator.ok("domain", "verify", DOMAIN)
    rotated = operator.ok("domain", "rotate", DOMAIN, "--json").json
    assert {key["state"] for key in rotated["keys"]} == {"active", "next"}
    assert len(rotated["records"]) == 2
    twice = operator.run("domain", "rotate", DOMAIN)
    assert twice.code == 2
    assert "under way" in twice.err
    for record in rotated["records"]:
        zone.add("TXT", record["host"], tuple(record["strings"]))
    operator.ok("domain", "verify", DOMAIN)
    states = {key["selector"]: key["state"] for key in operator.ok("domain", "show", DOMAIN, "--json").json["keys"]}
    assert states["a"] == states["b"] == "retiring"
    assert sorted(states.values()) == ["active", "active", "retiring", "retiring"]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("co.jp",), "public suffix"),
        (("localhost",), "one label"),
        (("exa mple.jp",), "not a domain"),
        ((DOMAIN, "--upstream", "nobody"), "known are sandbox"),
        ((DOMAIN, "--selector", "Ä"), "small letters"),
        ((DOMAIN, "--selector", "a", "--selector", "a"), "must differ"),
        ((DOMAIN, "--return-path", DOMAIN), "another domain"),
        ((DOMAIN, "--return-path", "bounce.other.jp"), "alignment"),
        ((DOMAIN, "--no-underscore-cname"), "--delegate"),
    ],
)
def test_what_cannot_be_added(operator: Operator, args: tuple[str, ...], problem: str) -> None:
    done = operator.run("domain", "add", *args)
    assert done.code == 2
    assert problem in done.err
    assert operator.ok("domain", "list", "--json").json == []


def test_adding_twice_and_removing(operator: Operator, zone: Zone) -> None:
    operator.ok("domain", "add", DOMAIN)
    assert "there already" in operator.run("domain", "add", DOMAIN.upper()).err
    assert f"known are {DOMAIN}" in operator.run("domain", "verify", "other.jp").err
    unknown = operator.run("domain", "remove", "nowhere.example", "--yes")
    assert (unknown.code, "nowhere.example" in unknown.err, "internal" in unknown.err) == (2, True, False)
    operator.ok("domain", "remove", DOMAIN, "--yes")
    assert operator.ok("domain", "list", "--json").json == []
    operator.ok("domain", "add", DOMAIN)


def test_an_spf_record_of_too_many_lookups_is_told(operator: Operator, zone: Zone) -> None:
    zone.records[DOMAIN][0].value = "v=spf1 " + " ".join(f"include:i{n}.{DOMAIN}" for n in range(10)) + " -all"
    for n in range(10):
        zone.add("TXT", f"i{n}.{DOMAIN}", "v=spf1 ip4:192.0.2.1 -all")
    assert "takes 11 DNS look-ups" in operator.ok("domain", "add", DOMAIN).out


def test_sender_accounts(operator: Operator, zone: Zone) -> None:
    early = operator.run("sender", "add", "news", "--address", f"maildm@{DOMAIN}")
    assert "none is verified yet" in early.err
    operator.ok("domain", "add", DOMAIN)
    operator.publish(zone)
    operator.ok("domain", "verify", DOMAIN)
    assert operator.ok("sender", "add", "news", "--address", f"maildm@{DOMAIN}").err == ""
    for wrong, reason in [
        ("ne#ws", "'#' is a character"),
        ("n\uff45ws", "full-width"),
        ("", "needs an id"),
        ("x" * 65, "64"),
    ]:
        done = operator.run("sender", "add", wrong, "--address", f"a@{DOMAIN}")
        assert done.code == 2
        assert reason in done.err
    other = operator.run("sender", "add", "x", "--address", "a@other.jp")
    assert f"verified are {DOMAIN}" in other.err
    assert "already" in operator.run("sender", "add", "news", "--address", f"b@{DOMAIN}").err
    no_mx = operator.ok("sender", "add", "sub", "--address", f"b@news.{DOMAIN}")
    assert "no MX" in no_mx.err
    assert [a["id"] for a in operator.ok("sender", "list", "--json").json] == ["news", "sub"]
    assert "remove news first" in operator.run("domain", "remove", DOMAIN, "--yes").err
    operator.ok("sender", "remove", "news", "--yes")
    assert "known are sub" in operator.run("sender", "remove", "news", "--yes").err


def test_tracking_domains(operator: Operator, zone: Zone, world: World) -> None:
    host = f"link.{DOMAIN}"
    proof = f"_t.{host}=_v.proof.relay.test"
    added = operator.ok("tracking-domain", "add", host, "--steps", "3", "--proof", proof)
    assert "Step 2 of 3: waits, to be seen until" in added.out
    assert operator.run("tracking-domain", "verify", host).code == 1
    zone.add("CNAME", host, "link.relay.test").add("CNAME", f"_t.{host}", "v.proof.relay.test")
    world.zones["relay.test"].add("A", "link.relay.test", "192.0.2.1").add("A", "tls.relay.test", "192.0.2.1")
    half = operator.run("tracking-domain", "verify", host)
    assert "Step 3 of 3: to be done" in half.out
    zone.records[host][0].value = "tls.relay.test"
    assert "設定完了" in operator.ok("tracking-domain", "verify", host, "--lang", "ja").out
    assert operator.ok("tracking-domain", "list", "--json").json[0]["state"] == "verified"
    assert "tracking.verified" in operator.ok("tracking-domain", "show", host).out
    operator.ok("tracking-domain", "remove", host, "--yes")
    assert operator.ok("tracking-domain", "list", "--json").json == []

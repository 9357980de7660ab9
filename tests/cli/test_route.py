"""relayd route explain: the rule, the reasons, the keys and the limits, as delivery would decide them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.cli.conftest import Site

pytestmark = pytest.mark.usefixtures("secret")


def explain(site: Site, *args: str) -> dict[str, object]:
    found: dict[str, object] = site.run("route", "explain", "--json", *args).json
    return found


@pytest.mark.parametrize(
    ("args", "rule", "upstream"),
    [
        (["--from", "a@shop.example.com", "--to", "b@example.org"], 3, "sandbox"),
        (["--from", "a@shop.example.com", "--to", "b@example.org", "--campaign", "newsletter"], 1, "acme"),
        (
            ["--from", "a@shop.example.com", "--to", "b@example.org", "--header", "X-Relay-Campaign=newsletter"],
            1,
            "acme",
        ),
        (["--from", "info@EXAMPLE.co.jp", "--to", "b@example.org"], 2, "acme"),
        (["--from", "", "--to", "b@example.org"], 3, "sandbox"),
    ],
)
def test_the_first_rule_that_matches(site: Site, args: list[str], rule: int, upstream: str) -> None:
    found = explain(site, *args)
    assert (found["rule"], found["upstream"]) == (rule, upstream)


def test_why_earlier_rules_do_not_match(site: Site) -> None:
    done = site.run("route", "explain", "--from", "a@shop.example.com", "--to", "b@example.org")
    assert done.code == 0
    assert "rule 1 (to acme) does not match: campaign is not given, wanted newsletter" in done.out
    assert "rule 2 (to acme) does not match: sender is a@shop.example.com, wanted *@example.co.jp" in done.out
    assert "rule 3 matches: goes to sandbox" in done.out


def test_no_rule_at_all(site: Site) -> None:
    site.config.write_text(site.config.read_text().replace("  - upstream: sandbox\n", ""))
    done = site.run("route", "explain", "--from", "a@example.com", "--to", "b@example.org")
    assert done.code == 1
    assert "no rule matches" in done.out


def test_a_credential_brings_its_limits_and_its_senders(site: Site) -> None:
    fine = explain(site, "--from", "a@shop.example.com", "--to", "b@example.org", "--credential", "shop")
    assert fine["limits"]["rate of the credential"] == "600/min"  # type: ignore[index]
    assert fine["refused"] is None
    done = site.run("route", "explain", "--from", "a@other.example", "--to", "b@example.org", "--credential", "shop")
    assert done.code == 1
    assert "may only send from *@shop.example.com" in done.out


def test_the_keys_of_the_from_domain_or_of_the_one_above_it(site: Site) -> None:
    key: Path = site.directory / "shop.pem"
    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    site.config.write_text(site.config.read_text() + "dkim:\n  - {domain: example.com, selector: r1, key: shop.pem}\n")
    found = explain(site, "--from", "a@shop.example.com", "--to", "b@example.org")
    assert found["dkim"] == [{"domain": "example.com", "selector": "r1", "algorithm": "ed25519-sha256"}]
    other = ["--from", "a@shop.example.com", "--to", "b@example.org", "--header", "From=Shop <x@elsewhere.example>"]
    assert explain(site, *other)["dkim"] == []
    assert "not signed: no DKIM key for elsewhere.example" in site.run("route", "explain", *other).out


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--from", "a@b", "--to", "no-address"], "--to"),
        (["--from", "a b", "--to", "c@d"], "--from"),
        (["--from", "a@b", "--to", "c@d", "--credential", "nobody"], "--credential"),
        (["--from", "a@b", "--to", "c@d", "--header", "novalue"], "--header"),
        (["--from", "a@b"], "--to"),
    ],
)
def test_what_cannot_be_asked(site: Site, args: list[str], word: str) -> None:
    done = site.run("route", "explain", *args)
    assert done.code == 2
    assert word in done.err
    assert "Traceback" not in done.err

"""Presets: the table they come from, what they fill, what can be said otherwise, and how a wrong name is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.config.load import examine
from relayd.config.models import Per, SMTPUpstream
from relayd.config.preset_pages import reference
from relayd.config.presets import PRESETS, find
from relayd.domains.providers import provider_of, records_of

ROOT = Path(__file__).parents[2]
TABLE = {
    "office365": ("smtp.office365.com", (587,)),
    "gmail": ("smtp.gmail.com", (465, 587)),
    "workspace-relay": ("smtp-relay.gmail.com", (587, 465)),
    "sendgrid": ("smtp.sendgrid.net", (587, 2525, 465)),
    "mailgun": ("smtp.mailgun.org", (587, 2525, 465)),
    "mailgun-eu": ("smtp.eu.mailgun.org", (587, 2525, 465)),
    "postmark": ("smtp.postmarkapp.com", (587, 2525)),
    "postmark-broadcast": ("smtp-broadcasts.postmarkapp.com", (587, 2525)),
    "mailjet": ("in-v3.mailjet.com", (587, 2525, 465)),
    "sparkpost": ("smtp.sparkpostmail.com", (587, 2525)),
    "sparkpost-eu": ("smtp.eu.sparkpostmail.com", (587, 2525)),
    "mandrill": ("smtp.mandrillapp.com", (587, 465, 2525)),
    "ses-REGION": ("email-smtp.REGION.amazonaws.com", (587, 2587, 465, 2465)),
    "brevo": ("smtp-relay.brevo.com", (587, 2525, 465)),
    "resend": ("smtp.resend.com", (587, 465, 2587, 2465)),
    "customers-mail-cloud": ("SUBDOMAIN.smtps.jp", (587,)),
    "mailersend": ("smtp.mailersend.net", (587, 2525)),
    "smtp2go": ("mail.smtp2go.com", (587, 2525)),
    "mailtrap": ("live.smtp.mailtrap.io", (587, 2525)),
}


def filled(**keys: object) -> SMTPUpstream:
    return SMTPUpstream.model_validate(keys)


def test_hosts_and_ports_are_those_of_the_table() -> None:
    assert {name: (preset.host, preset.ports) for name, preset in PRESETS.items()} == TABLE


def test_every_limit_and_throttle_has_a_source() -> None:
    for preset in PRESETS.values():
        assert preset.source
        assert preset.setup, preset.name
        assert not preset.limits or preset.figures, preset.name
        assert all(throttle.source and throttle.seconds > 0 for throttle in preset.throttles)


def test_what_a_preset_says_of_records_is_shown() -> None:
    for preset in PRESETS.values():
        promised = any("shows the records that are asked for" in step for step in preset.setup)
        assert not promised or records_of(provider_of(preset.host), "example.jp"), preset.name


@pytest.mark.parametrize(("name", "host"), [(name, host) for name, (host, _) in TABLE.items() if host.islower()])
def test_a_preset_fills_host_and_ports(name: str, host: str) -> None:
    upstream = filled(preset=name)
    assert (upstream.host, upstream.every_port) == (host, TABLE[name][1])


def test_a_region_is_part_of_the_name() -> None:
    assert filled(preset="ses-ap-northeast-1").host == "email-smtp.ap-northeast-1.amazonaws.com"
    assert find("ses-REGION") is None
    assert find("ses-../evil") is None


def test_limits_user_and_binding_are_filled_and_each_can_be_said_otherwise() -> None:
    assert filled(preset="office365").limits.connections == 3
    assert filled(preset="office365", limits={"connections": 1}).limits.connections == 1
    assert filled(preset="office365", username="a@example.jp").per is Per.ADDRESS
    assert filled(preset="sendgrid", password="k").username == "apikey"
    assert filled(preset="sendgrid").limits.messages_per_connection == 5000
    assert filled(preset="workspace-relay").limits.recipients_per_message == 100
    assert filled(preset="sendgrid", username="other", port=465).every_port == (465,)
    assert filled(preset="sendgrid", host="127.0.0.1").host == "127.0.0.1"
    accounts = [{"domain": "example.jp", "password": "k"}]
    assert filled(preset="sparkpost", accounts=accounts).accounts[0].username == "SMTP_Injection"
    assert filled(preset="gmail", username="a@example.jp", oauth={}).oauth.provider == "google"  # type: ignore[union-attr]


HEAD = """\
hostname: relay.example.com
listeners: [{name: a, bind: ["127.0.0.1:0"], tls: none, access: network, networks: [127.0.0.1]}]
routes: [{upstream: x}]
upstreams:
  x:
"""


def problems(tmp_path: Path, *lines: str) -> list[str]:
    path = tmp_path / "relayd.yaml"
    path.write_text(HEAD + "".join(f"    {line}\n" for line in lines))
    (tmp_path / "p").write_text("geheim-geheim")
    (tmp_path / "p").chmod(0o600)
    return [fault.written("") for fault in examine(path, {}).faults]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["preset: ofice365"], "Did you mean office365?"),
        (["preset: ses"], "ses-eu-west-1"),
        (["preset: customers-mail-cloud"], "needs subdomain"),
        (["preset: sendgrid", "password: !file p", "ports: [25]"], "port 25"),
        (["host: h.example", "ports: [587, 465]", "port: 465"], "different things"),
        (["preset: office365", "username: a@example.jp", "password: !file p"], "5.7.30"),
        (["preset: office365", "username: a@example.jp", "oauth: {flow: client-credentials}"], "needs client_id"),
        (["host: h.example", "per: domain"], "needs accounts"),
        (["host: h.example", "accounts: [{address: a@example.jp}]"], "has no login"),
        (["host: h.example", "accounts: [{username: u, password: !file p}]"], "is for nobody"),
        (["host: h.example", "rewrite_sender: true"], "no mailbox to send as"),
        (["host: h.example", "return_path: account"], "needs the address"),
        (["host: h.example", "username: u", "oauth: {client_id: c}"], "who issues the tokens"),
        (["host: h.example", "username: u", "oauth: {client_id: c, token_url: 'http://t.example/'}"], "in the clear"),
        (["type: sandbox", "return_path: account"], "a sandbox logs in nowhere"),
    ],
)
def test_what_cannot_be_is_named_by_the_check(tmp_path: Path, lines: list[str], said: str) -> None:
    found = problems(tmp_path, *lines)
    assert any(said in fault for fault in found), found
    assert len(found) <= 3, found


def test_what_is_right_has_no_fault(tmp_path: Path) -> None:
    assert problems(tmp_path, "preset: customers-mail-cloud", "subdomain: te") == []
    assert problems(tmp_path, "preset: sendgrid", "password: !file p") == []


def test_the_page_is_current() -> None:
    assert (ROOT / "docs/upstreams.md").read_text() == reference(), "run scripts/generate-docs"
    assert all(f"### {name}:" in reference() for name in PRESETS)


def test_what_providers_demand_of_dns_goes_by_the_names_of_presets() -> None:
    from relayd.domains.providers import DEMANDS, PROVIDERS, provider_of, records_of, spf_of

    assert set(DEMANDS) - {"ses"} <= set(PRESETS)
    assert set(PROVIDERS) == {name.removesuffix("-REGION") for name in PRESETS} - {
        "mailgun-eu",
        "postmark-broadcast",
        "sparkpost-eu",
    }
    for host, provider in [
        ("smtp.sendgrid.net", "sendgrid"),
        ("SMTP.EU.Mailgun.org.", "mailgun"),
        ("email-smtp.eu-west-1.amazonaws.com", "ses"),
        ("te.smtps.jp", "customers-mail-cloud:te"),
        ("smtp.resend.com", "resend"),
        ("a.te.smtps.jp", ""),
        ("smtp.example.jp", ""),
    ]:
        assert provider_of(host) == provider
    assert spf_of("customers-mail-cloud:te") == ("include:spf.te.smtps.jp",)
    assert spf_of("customers-mail-cloud") == spf_of("resend") == spf_of("") == ()
    assert spf_of("ses") == ("include:amazonses.com",)
    assert [record.host for record in records_of("ses", "example.jp")] == [
        f"<token {n}>._domainkey.example.jp" for n in (1, 2, 3)
    ]

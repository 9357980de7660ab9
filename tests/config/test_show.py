"""What is shown is the effective configuration, can be read back, and never holds a secret."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from relayd.config.diff import changes
from relayd.config.load import examine, load
from relayd.config.models import Config
from relayd.config.show import render
from tests.support.config_files import HASH, ISSUE_EXAMPLE, faults_of, minimal, private_key, written


def test_defaults_are_filled_in_and_units_are_those_of_operators(tmp_path: Path) -> None:
    shown = yaml.safe_load(render(load(written(tmp_path, minimal()), {})))
    assert shown["data_dir"] == str(tmp_path / "var")
    assert shown["limits"]["message_size"] == "50MiB"
    assert shown["limits"]["idle"] == "5m"
    assert shown["retry"] == {
        "schedule": "1m, 5m*2, 15m, 1h*3, 4h*",
        "lifetime": "5d",
        "held_lifetime": "30d",
        "delay_notice": "4h",
    }
    assert shown["spool"]["min_free"] == "5%"
    assert shown["listeners"][0]["bind"] == ["127.0.0.1:0"]


def test_what_is_shown_can_be_read_back(tmp_path: Path) -> None:
    key = private_key(tmp_path / "k.pem")
    text = minimal(
        f"dkim: [{{domain: example.com, selector: r1, key: {key}}}]\nworkers: 3\ncampaign_header: X-K\n"
        "networks: {n: {url: 'https://example.com/l.json', fallback: ['::1', 192.0.2.0/24]}, m: [10.0.0.0/8]}\n"
        "retry: {schedule: '90s, 1h*'}\nlimits: {min_rate: 0, line_length: 1000}\nspool: {keep: 36h}\n",
        routes="routes:\n  - match: {header: {X-A: 'no', X-B: '12'}, campaign: 'true'}\n    upstream: sandbox\n"
        "  - {upstream: sandbox}\n",
    )
    config = load(written(tmp_path, text), {})
    again = load(written(tmp_path, render(config)), {})
    assert again == config
    assert changes(config, again) == []


def test_secrets_are_asterisks(tmp_path: Path) -> None:
    text = ISSUE_EXAMPLE.format(data_dir=tmp_path / "data", key=private_key(tmp_path / "shop.pem"))
    shown = yaml.safe_load(render(load(written(tmp_path, text), {"ACME_PASSWORD": "geheim"})))
    assert shown["upstreams"]["acme"]["password"] == shown["credentials"][0]["password"] == "********"
    assert "secret" not in shown


def test_the_query_of_a_url_is_hidden(tmp_path: Path) -> None:
    config = load(written(tmp_path, minimal("networks: {n: {url: 'https://example.com/l?token=geheim#x'}}\n")), {})
    assert "https://example.com/l?********" in render(config)
    assert "geheim" not in render(config)


def test_a_url_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    [fault] = faults_of(tmp_path, minimal("networks: {n: {url: 'https://u:geheim@example.com/l'}}\n"))
    assert "holds a user name or password" in fault.problem
    assert "geheim" not in str(fault)


# no letters that occur in what is shown anyway
_CANARY = st.text(alphabet="ÄÖÜŸ€ЖΩ漢字'\"\\#:{[*&!%@`$ ", min_size=6, max_size=30).map(lambda text: f"Ж{text}Ω")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(secret=_CANARY, password=_CANARY, other=_CANARY, hashed=_CANARY)
def test_no_secret_is_ever_shown(tmp_path: Path, secret: str, password: str, other: str, hashed: str) -> None:
    canaries = {"S": secret, "P": password, "O": other, "H": f"$argon2id${hashed}"}
    text = minimal(
        "secret: !env S\ncredentials: [{username: u, password: !env H}]\n",
        upstreams="upstreams:\n  sandbox: {type: sandbox}\n  a: {host: h, username: u, password: !env P}\n",
    )
    path = written(tmp_path, text)
    old = examine(path, canaries)
    new = examine(path, {**canaries, "P": other, "S": hashed * 2, "H": HASH})
    assert old.config is not None
    assert new.config is not None
    differ = changes(old.config, new.config)
    outputs = [render(old.config), repr(old.config), str(old.config), old.config.model_dump_json(), *differ]
    outputs += [str(fault) for fault in [*old.faults, *new.faults]]
    for output in outputs:
        for canary in (secret, password, other, hashed):
            assert canary not in output
    if secret != hashed * 2:
        assert "secret: changed (needs a restart)" in differ
    if password != other:
        assert "upstreams.a.password: changed" in differ


@pytest.mark.parametrize(
    "text",
    [
        "upstreams: {a: {host: h, pasword: GEHEIM}}",
        "upstreams: {a: {host: h, password: [GEHEIM]}}",
        "upstreams: {a: {host: h, password: {GEHEIM: x}}}".replace("GEHEIM: x", "x: GEHEIM"),
        "upstreams: {a: {host: !env E, port: !env E, tls: !env E, implicit_tls: !env E}}",
        "upstreams: {a: {host: h, timeouts: {dot: !env E}, limits: {connections: !env E}}}",
        "limits: {idle: !env E, message_size: !env E}\nretry: {schedule: !env E}\nworkers: !env E",
        "credentials: [{username: [GEHEIM], password: GEHEIM, rate: !env E}]",
        "secret: [GEHEIM]",
        "listeners: [{name: !env E, bind: [!env E]}]\nnetworks: {n: [!env E], m: {url: !env E}}",
    ],
)
def test_no_fault_shows_a_secret(tmp_path: Path, text: str) -> None:
    faults = faults_of(tmp_path, text, E="GEHEIM !")
    assert faults
    assert not [str(fault) for fault in faults if "GEHEIM" in str(fault)]


def test_an_error_of_a_config_made_in_python_shows_no_value() -> None:
    with pytest.raises(ValidationError) as raised:
        Config(hostname="h", listeners=[], upstreams={"a": {"host": "h", "password": ["GEHEIM"]}}, routes=[])
    assert "GEHEIM" not in str(raised.value)

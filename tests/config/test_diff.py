"""Differences between two configurations are told by names, with secrets hidden and restarts marked."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.config.diff import changes
from relayd.config.load import load
from relayd.config.models import Config
from tests.support.config_files import HASH, minimal, private_key, written

LISTENERS = (
    "listeners:\n"
    "  - {name: a, bind: ['127.0.0.1:0'], tls: none, access: network, networks: [127.0.0.0/8]}\n"
    "  - {name: b, bind: ['127.0.0.1:0'], tls: none, access: network, networks: [127.0.0.0/8]}\n"
)
ACME = "upstreams:\n  sandbox: {type: sandbox}\n  acme: {host: acme.example, username: u, password: !env PW}\n"


def config(directory: Path, extra: str = "", *, pw: str = "geheim", **sections: str) -> Config:
    sections = {"listeners": LISTENERS, "upstreams": ACME, **sections}
    return load(written(directory, minimal(extra, **sections)), {"PW": pw})


def compared(directory: Path, extra: str = "", *, before: str = "", pw: str = "geheim", **sections: str) -> list[str]:
    return list(changes(config(directory, before), config(directory, extra, pw=pw, **sections)))


def test_nothing_changes(tmp_path: Path) -> None:
    assert compared(tmp_path) == []
    assert compared(tmp_path, "limits: {idle: 300s, message_size: 51200KiB}\n") == []


@pytest.mark.parametrize(
    ("find", "put", "expected"),
    [
        ("host: acme.example", "host: acme.example, port: 2525", ["upstreams.acme.port: 587 → 2525"]),
        ("acme.example", "acme2.example", ["upstreams.acme.host: acme.example → acme2.example"]),
        ("password: !env PW", "password: !env PW, limits: {connections: 3}",
         ["upstreams.acme.limits.connections: 10 → 3"]),
        (", username: u, password: !env PW", "",
         ["upstreams.acme.username: u → (none)", "upstreams.acme.password: removed"]),
        ("password: !env PW", "password: !env PW, implicit_tls: true",
         ["upstreams.acme.implicit_tls: (none) → true"]),
        ("acme:", "acme2:", ["upstreams.acme: removed", "upstreams.acme2: added"]),
    ],
)  # fmt: skip
def test_upstreams_are_named(tmp_path: Path, find: str, put: str, expected: list[str]) -> None:
    assert compared(tmp_path, upstreams=ACME.replace(find, put)) == expected


def test_a_changed_secret_is_only_said_to_have_changed(tmp_path: Path) -> None:
    assert compared(tmp_path, pw="anders") == ["upstreams.acme.password: changed"]


def test_values_are_written_in_units(tmp_path: Path) -> None:
    assert compared(tmp_path, "limits: {idle: 1h, message_size: 1MiB, min_rate: 0}\nspool: {min_free: 10%}\n") == [
        "limits.message_size: 50MiB → 1MiB",
        "limits.idle: 5m → 1h",
        "limits.min_rate: 100B → 0B",
        "spool.min_free: 5% → 10%",
    ]


def test_listeners_are_known_by_name(tmp_path: Path) -> None:
    changed = LISTENERS.replace(
        "name: a, bind: ['127.0.0.1:0']", "name: a, bind: ['127.0.0.2:0'], bare_newlines: normalise"
    )
    assert compared(tmp_path, listeners=changed) == [
        "listeners.a.bind: [127.0.0.1:0] → [127.0.0.2:0]",
        "listeners.a.bare_newlines: refuse → normalise",
    ]
    assert compared(tmp_path, listeners=LISTENERS.replace("name: b", "name: c")) == [
        "listeners.b: removed",
        "listeners.c: added",
    ]


def test_the_order_of_listeners_alone_is_told_as_such(tmp_path: Path) -> None:
    head, first, second, _ = LISTENERS.split("\n")
    assert compared(tmp_path, listeners=f"{head}\n{second}\n{first}\n") == ["listeners: other order"]


def test_what_needs_a_restart_says_so(tmp_path: Path) -> None:
    found = changes(
        config(tmp_path),
        config(
            tmp_path, "workers: 2\nweb: {bind: ['127.0.0.1:1']}\nlog: {level: debug}\n", data_dir="data_dir: other\n"
        ),
    )
    assert [(change.key, change.restart) for change in found] == [
        ("data_dir", True),
        ("workers", True),
        ("web.bind", False),
        ("log.level", False),
    ]


def test_credentials_keys_networks_and_routes(tmp_path: Path) -> None:
    key = private_key(tmp_path / "k.pem")
    before = f"credentials: [{{username: u, password: '{HASH}'}}]\nnetworks: {{n: [192.0.2.1]}}\n"
    after = (
        f"credentials: [{{username: u, password: '{HASH.replace('t=3', 't=4')}', rate: 5/s}}, "
        f"{{username: v, password: '{HASH}'}}]\n"
        "networks: {n: [192.0.2.1, 192.0.2.2], m: [192.0.2.3]}\n"
        f"dkim: [{{domain: example.com, selector: r1, key: {key}}}]\n"
    )
    routes = "routes:\n  - {match: {campaign: x, header: {X-A: b}}, upstream: acme}\n  - {upstream: sandbox}\n"
    assert compared(tmp_path, after, before=before, routes=routes) == [
        "networks.n: [192.0.2.1/32] → [192.0.2.1/32, 192.0.2.2/32]",
        "networks.m: [192.0.2.3/32] added",
        "credentials.u.password: changed",
        "credentials.u.rate: (none) → 5/s",
        "credentials.v: added",
        "routes[0].match: (none) → {campaign: x, header: {X-A: b}}",
        "routes[0].upstream: sandbox → acme",
        "routes[1]: added",
        "dkim.example.com/r1: added",
    ]

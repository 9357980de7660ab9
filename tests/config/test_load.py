"""Right files load as they are meant; faulty ones are told everything that is wrong with them, at once."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.config.fault import Fault, Severity
from relayd.config.load import STAND_INS, ConfigError, examine, load
from relayd.config.models import Config, FetchedNetwork, OnUncertain, SandboxUpstream, SMTPUpstream
from relayd.config.schema import all_models
from relayd.core.units import Rate
from tests.support.config_files import HASH, ISSUE_EXAMPLE, faults_of, minimal, private_key, written


def test_the_whole_example_of_the_issue_loads(tmp_path: Path) -> None:
    text = ISSUE_EXAMPLE.format(data_dir=tmp_path / "data", key=private_key(tmp_path / "shop.pem"))
    examined = examine(written(tmp_path, text), {"ACME_PASSWORD": "geheim"})
    # `$argon2id$...` stands for a hash, and the certificate is made on first start
    assert [(fault.key, fault.severity) for fault in examined.faults] == [
        ("tls.certificate", Severity.WARNING),
        ("credentials[0].password", Severity.WARNING),
    ]
    config = examined.config
    assert config is not None
    assert config.secret is None
    assert config.certificate_path == tmp_path / "data/fullchain.pem"
    assert config.worker_count >= 1
    fetched = config.networks["customerio"]
    assert isinstance(fetched, FetchedNetwork)
    assert (fetched.refresh, fetched.keep_removed) == (3600, 7 * 86400)
    assert fetched.fallback == [ipaddress.ip_network("35.188.196.183")]
    assert [(bind.host, bind.port) for bind in config.listeners[0].bind] == [("0.0.0.0", 587), ("::", 587)]
    assert config.credentials[0].rate == Rate(600, 60.0)
    assert config.limits.message_size == 50 * 1024**2
    acme = config.upstreams["acme"]
    assert isinstance(acme, SMTPUpstream)
    assert acme.password is not None
    assert (acme.password.get_secret_value(), acme.limits.connections) == ("geheim", 20)
    assert isinstance(config.upstreams["sandbox"], SandboxUpstream)
    assert config.routes[0].match is not None
    assert config.routes[0].match.campaign == "newsletter"
    assert config.retry.schedule.waits[:4] == (60, 300, 300, 900)
    assert config.spool.keep == 40 * 86400


def test_the_smallest_file_loads_with_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, minimal()), {})
    assert config.data_dir == tmp_path / "var"
    assert config.certificate_path == tmp_path / "var/tls/fullchain.pem"
    assert config.key_path == tmp_path / "var/tls/privkey.pem"
    assert config.upstreams["sandbox"].on_uncertain is OnUncertain.RETRY
    assert config.shutdown == 30


def test_relative_paths_start_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    private_key(tmp_path / "etc/k.pem")
    text = minimal(
        "dkim: [{domain: example.com, selector: r1, key: k.pem}]\nlog: {mail: m.log}\n", data_dir="data_dir: ../d\n"
    )
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "etc", text)
    config = load(Path("etc/relayd.yaml"), {})
    assert config.dkim[0].key == tmp_path / "etc/k.pem"
    assert config.log.mail == tmp_path / "etc/m.log"
    assert config.data_dir.resolve() == tmp_path / "d"


def test_absolute_paths_stay(tmp_path: Path) -> None:
    text = minimal("tls: {certificate: /a/c.pem, key: /a/k.pem}\n", data_dir="data_dir: /d\n")
    config = load(written(tmp_path, text), {})
    assert (config.data_dir, config.certificate_path, config.key_path) == (
        Path("/d"),
        Path("/a/c.pem"),
        Path("/a/k.pem"),
    )


@pytest.mark.parametrize("secret", ["!file gone", "!credential secret"])
def test_a_secret_that_is_not_there_yet_is_no_fault(tmp_path: Path, secret: str) -> None:
    config = load(written(tmp_path, minimal(f"secret: {secret}\n")), {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")})
    assert config.secret is None


def test_a_secret_that_is_there_is_used(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("x" * 32 + "\n")
    (tmp_path / "s").chmod(0o600)
    examined = examine(written(tmp_path, minimal("secret: !file s\n")), {})
    assert examined.faults == []
    assert examined.config is not None
    assert examined.config.secret is not None
    assert examined.config.secret.get_secret_value() == "x" * 32


def test_an_absent_environment_variable_is_a_fault_even_for_the_secret(tmp_path: Path) -> None:
    [fault] = faults_of(tmp_path, minimal("secret: !env GONE\n"))
    assert "GONE is not set" in fault.problem


def test_sections_with_every_entry_commented_out_count_as_absent(tmp_path: Path) -> None:
    config = load(written(tmp_path, minimal("networks:\n#  a: []\ncredentials:\ndkim: ~\nlimits:\n")), {})
    assert (config.networks, config.credentials, config.dkim) == ({}, [], [])


def test_a_required_section_with_nothing_in_it_is_missing_at_its_line(tmp_path: Path) -> None:
    [fault] = faults_of(tmp_path, minimal(routes="routes:\n"))
    assert (fault.line, fault.key, fault.problem) == (7, "routes", "is missing")


def test_numbers_may_come_from_the_environment(tmp_path: Path) -> None:
    text = minimal(
        "shutdown: !env S\n", upstreams="upstreams:\n  sandbox: {type: sandbox, limits: {connections: !env N}}\n"
    )
    config = load(written(tmp_path, text), {"N": "7", "S": "5s"})
    assert (config.upstreams["sandbox"].limits.connections, config.shutdown) == (7, 5)


def test_domains_are_kept_as_a_labels(tmp_path: Path) -> None:
    text = minimal(
        f"dkim: [{{domain: BÜCHER.example, selector: R1, key: {private_key(tmp_path / 'k')}}}]\n",
        hostname="hostname: Mail。例え.jp\n",
        routes='routes: [{match: {sender_domain: "*.Bücher.example"}, upstream: sandbox}, {upstream: sandbox}]\n',
    )
    config = load(written(tmp_path, text), {})
    assert config.hostname == "mail.xn--r8jz45g.jp"
    assert (config.dkim[0].domain, config.dkim[0].selector) == ("xn--bcher-kva.example", "r1")
    assert config.routes[0].match is not None
    assert config.routes[0].match.sender_domain == "*.xn--bcher-kva.example"


FAULTY = """\
hostnam: relay.example.com
workers: 0
data_dir: var
networks:
  office: [192.0.2.0/24, nonsense]
listeners:
  - {name: submission, bind: ["0.0.0.0:587", "::1:587"], acces: network-or-auth, networks: [ofice]}
  - {name: submission, bind: ["0.0.0.0:588"], access: auth, tls: none}
credentials:
  - {username: shop, password: geheim-eins, senders: [info], rate: 600}
limits: {message_size: 50XB, idle: 40, min_free: 5%}
upstreams:
  acme: {host: "smtp.acme.example:587", port: 25, username: u, pasword: geheim-zwei}
  other: {host: smtp.acme.example, port: 25, username: u, password: geheim-drei}
  third: {type: smpt}
routes:
  - {match: {sender_domian: x}, upstream: acmee}
  - {upstream: third}
dkim:
  - {domain: shop.example.com, selector: r1, key: gone.pem}
retry: {schedule: 1x, delay_notice: 9d, lifetime: 5d}
spool: {keep: 1d, keep_body: 2d}
"""


def test_every_fault_is_told_at_once_with_line_and_key(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, FAULTY)
    assert [(fault.line, fault.key) for fault in faults] == [
        (1, "hostnam"),
        (2, "workers"),
        (5, "networks.office[1]"),
        (7, "listeners[0].bind[1]"),
        (7, "listeners[0].acces"),
        (7, "listeners[0].networks[0]"),
        (8, "listeners[1].name"),
        (8, "listeners[1].tls"),
        (10, "credentials[0].password"),
        (10, "credentials[0].senders[0]"),
        (10, "credentials[0].rate"),
        (11, "limits.message_size"),
        (11, "limits.idle"),
        (11, "limits.min_free"),
        (13, "upstreams.acme.host"),
        (13, "upstreams.acme.port"),
        (13, "upstreams.acme.pasword"),
        (14, "upstreams.other.port"),
        (14, "upstreams.other.password"),
        (15, "upstreams.third.type"),
        (17, "routes[0].match.sender_domian"),
        (17, "routes[0].upstream"),
        (20, "dkim[0].key"),
        (21, "retry.schedule"),
        (21, "retry.delay_notice"),
        (22, "spool.keep_body"),
    ]
    assert all(fault.severity is Severity.ERROR for fault in faults)
    remedies = {fault.key: fault.remedy for fault in faults}
    assert remedies["hostnam"] == "Did you mean hostname?"
    assert remedies["listeners[0].networks[0]"] == "Did you mean office?"
    assert remedies["routes[0].upstream"] == "Did you mean acme?"
    assert remedies["limits.min_free"] == "It belongs under spool"
    assert "relayd config hash-password" in remedies["credentials[0].password"]
    assert "geheim" not in "".join(map(str, faults))


def test_nothing_false_is_concluded_from_what_is_faulty(tmp_path: Path) -> None:
    text = (
        minimal(
            listeners='listeners:\n  - {name: a, bind: ["0.0.0.0:1"], access: network, networks: [1]}\n'
            '  - {name: b, bind: ["0.0.0.0:2"], acess: network, networks: [n]}\n',
            upstreams="upstreams:\n  acme: {host: 5}\n",
            routes="routes:\n  - {match: {sendr: x}, upstream: acme}\n  - {upstream: {acme: 0}}\n",
        )
        + "networks:\n  n: 3\ncredentials: 7\n"
    )
    assert [(fault.line, fault.key) for fault in faults_of(tmp_path, text)] == [
        (4, "listeners[0].networks[0]"),
        (5, "listeners[1].acess"),
        (7, "upstreams.acme.host"),
        (9, "routes[0].match.sendr"),
        (10, "routes[1].upstream"),
        (12, "networks.n"),
        (13, "credentials"),
    ]


def test_a_missing_variable_is_told_once_and_does_not_count_as_a_missing_key(tmp_path: Path) -> None:
    text = minimal(
        f"credentials:\n  - {{username: a, password: !env GONE}}\n  - {{username: a, password: '{HASH}'}}\n",
        upstreams="upstreams:\n  sandbox: {host: h, username: u, password: !file gone}\n",
    )
    assert [(fault.line, fault.key) for fault in faults_of(tmp_path, text)] == [
        (6, "upstreams.sandbox.password"),
        (10, "credentials[0].password"),
        (11, "credentials[1].username"),
    ]


def test_load_raises_with_every_fault_and_prints_them_as_lines(tmp_path: Path) -> None:
    path = written(tmp_path, minimal("bogus: 1\nworkers: 0\n"))
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    assert [fault.key for fault in raised.value.faults] == ["bogus", "workers"]
    lines = [fault.written(path) for fault in examine(path, {}).faults]
    assert str(raised.value) == "\n".join(lines)
    assert lines[1] == (
        f"{path}:10:1: error: workers: 0 is not a number of processes. Write auto, or a number from 1 to 512."
    )


def test_warnings_do_not_keep_a_file_from_loading(tmp_path: Path) -> None:
    path = written(tmp_path, minimal("secret: an-open-secret-of-some-length\n"))
    assert load(path, {}).secret is not None
    assert [fault.severity for fault in examine(path, {}).warnings] == [Severity.WARNING]


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "42", "!env X"])
def test_a_file_without_keys_is_a_fault(tmp_path: Path, text: str) -> None:
    assert "the file has no keys" in faults_of(tmp_path, text, X="1")[0].problem


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: no such file or directory"):
        load(tmp_path / "gone.yaml", {})


def test_every_required_key_has_a_stand_in_with_which_its_section_can_be_checked() -> None:
    required = {
        name
        for model in all_models()
        for name, field in model.model_fields.items()
        if model is not Config and field.is_required()
    }
    assert required == set(STAND_INS)


_JARGON = (
    "input",
    "valid",
    "dictionary",
    "instance",
    "tag '",
    "<smtp>",
    "literal",
    "pydantic",
    "parsing",
    "ctx",
    "NoneType",
)
_BAD: list[Any] = [
    "-1", "1.5", "true", "~", '""', "nonsense", '"two\\nlines"', "[]", "[~]", "[[]]", "[true]", "{}", "{x: 1}",
    "{x: {y: ~}}", "[{}]", "[{x: 1}]", "9999999999999999999999", "1e400", ".nan", "10000000000d", "0",
]  # fmt: skip


def _sections() -> list[tuple[str, str]]:
    """(text around %s, name) for every key of every section."""
    around = {
        "Config": "%s",
        "TLSFiles": "tls: {%s}",
        "FetchedNetwork": "networks: {n: {url: 'https://a.example', %s}}",
        "Listener": "listeners: [{name: a, bind: ['127.0.0.1:1'], %s}]",
        "Credential": "credentials: [{username: u, password: p, %s}]",
        "Limits": "limits: {%s}",
        "UpstreamLimits": "upstreams: {s: {host: h, limits: {%s}}}",
        "UpstreamTimeouts": "upstreams: {s: {host: h, timeouts: {%s}}}",
        "SMTPUpstream": "upstreams: {s: {host: h, %s}}",
        "Storm": "upstreams: {s: {host: h, storm: {%s}}}",
        "ThrottleRule": "rules: [{match: '452', action: slow, %s}]",
        "OAuth": "upstreams: {s: {host: h, username: u, oauth: {%s}}}",
        "Account": "upstreams: {s: {host: h, accounts: [{address: a@example.jp, password: p, %s}]}}",
        "SandboxUpstream": "upstreams: {s: {type: sandbox, %s}}",
        "Match": "routes: [{upstream: s, match: {%s}}]",
        "Route": "routes: [{upstream: s, %s}]",
        "DKIMKey": "dkim: [{domain: d, selector: s, key: k, %s}]",
        "Domains": "domains: {%s}",
        "Tracking": "tracking: {%s}",
        "Acme": "tracking: {acme: {%s}}",
        "Retry": "retry: {%s}",
        "Mailbox": "bounces: {mailboxes: [{name: b, host: h, username: u, password: p, %s}]}",
        "Bounces": "bounces: {%s}",
        "BlockRule": "blocks: {rules: {mailbox-full: {%s}}}",
        "Blocks": "blocks: {%s}",
        "Spool": "spool: {%s}",
        "Web": "web: {%s}",
        "Log": "log: {%s}",
    }
    return [(around[model.__name__], name) for model in all_models() for name in model.model_fields]


@pytest.mark.parametrize(("around", "name"), _sections())
def test_no_value_makes_loading_fail_or_speak_in_jargon(tmp_path: Path, around: str, name: str) -> None:
    assert around
    refused = 0
    for bad in _BAD:
        text = around.replace(f"{name}: ", "overridden: ", 1) % f"{name}: {bad}"
        faults = faults_of(tmp_path, text)
        refused += any(fault.key.startswith(_key(faults, name)) for fault in faults)
        for fault in faults:
            said = f"{fault.problem} {fault.remedy}"
            assert not any(word in said.replace("invalid", "") for word in _JARGON), said
            assert "something else" not in said, said
            assert fault.line == 1
            assert fault.remedy
            assert str(fault).isprintable()
    assert refused > 5, "hardly anything is refused here"


_KEYS = sorted({name for model in all_models() for name in model.model_fields} | {"acme", "bogus"})
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["5m", "1GiB", "5/s", "5%", "none", "starttls", "auth", "network", "sandbox", "acme"]),
)  # fmt: skip
_DATA = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=25,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(list(Config.model_fields)), _DATA, max_size=8))
def test_no_contents_make_loading_fail(tmp_path: Path, data: dict[str, Any]) -> None:
    base = yaml.safe_load(minimal())
    examined = examine(written(tmp_path, yaml.safe_dump({**base, **data}, allow_unicode=False)), {})
    errors = [fault for fault in examined.faults if fault.severity is Severity.ERROR]
    assert (examined.config is None) == bool(errors)
    for fault in examined.faults:
        assert str(fault).isprintable()
        assert fault.line > 0


def _key(faults: list[Fault], name: str) -> str:
    """The way to the key, where a fault names it."""
    found = [fault.key for fault in faults if name in fault.key.replace("[", ".").split(".")]
    return found[0] if found else "\0"

"""Keys that contradict each other: one row per rule, what trips it, and that its neighbour does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.config.check import check
from relayd.config.fault import Severity
from relayd.config.models import Config
from tests.support.config_files import HASH, faults_of, minimal

E, W = Severity.ERROR, Severity.WARNING


def listener(*texts: str) -> dict[str, str]:
    return {"listeners": "listeners:\n" + "".join(f"  - {{{text}}}\n" for text in texts)}


def upstream(text: str) -> dict[str, str]:
    return {"upstreams": f"upstreams:\n  sandbox: {{host: smtp.acme.example, {text}}}\n"}


def routes(*texts: str) -> dict[str, str]:
    return {"routes": "routes:\n" + "".join(f"  - {{{text}}}\n" for text in texts)}


def acme(text: str = "agree_terms: true", web: str = "public: ['0.0.0.0:80'], public_tls: ['0.0.0.0:443']") -> str:
    return f"tracking: {{host: link.example.com, acme: {{{text}}}}}\nweb: {{{web}}}\n"


CREDENTIAL = f"credentials:\n  - {{username: shop, password: '{HASH}'}}\n"
A = "name: a, bind: ['127.0.0.1:1']"
OUT = "name: a, bind: ['0.0.0.0:1']"
BOUNCE_DOMAIN = "bounces: {domain: bounce.example.com}\n"
LOCAL = "access: network, networks: [127.0.0.1]"

# sections, text behind them, and the faults as "severity key: words of the problem"
ROWS: list[tuple[str, dict[str, str], str, list[str]]] = [
    ("port 25", upstream("port: 25"), "", ["error upstreams.sandbox.port: port 25 is for servers"]),
    ("port 25 by name", upstream("port: 25, allow_port_25: true"), "", []),
    ("other ports", upstream("port: 2525"), "", []),
    ("acme", {}, acme(), []),
    ("acme whose terms nobody agreed to", {}, acme(""),
     ["error tracking.acme: the CA issues nothing before you agree"]),
    ("acme whose terms are not agreed to", {}, acme("agree_terms: false"),
     ["error tracking.acme.agree_terms: the CA issues nothing before you agree"]),
    ("acme without TLS", {}, acme("agree_terms: true, directory: 'http://ca.example/dir'"),
     ["error tracking.acme.directory: is asked without TLS"]),
    ("acme on this machine", {}, acme("agree_terms: true, directory: 'http://127.0.0.1:1/dir'"), []),
    ("acme that nobody could reach", {}, acme(web="public_tls: ['0.0.0.0:443']"),
     ["error tracking.acme: the CA looks at port 80"]),
    ("acme whose certificates nobody shows", {}, acme(web="bind: ['0.0.0.0:80']"),
     ["error tracking.acme: it gets certificates, and nothing shows them"]),
    ("acme without a host", {}, acme().replace("host: link.example.com, ", ""),
     ["error tracking.acme: there is no tracking.host"]),
    ("acme with a CA file that is not there", {}, acme("agree_terms: true, ca_file: /nowhere.pem"),
     ["error tracking.acme.ca_file: /nowhere.pem is not there"]),
    ("web twice at one place", {}, "web: {public: ['127.0.0.1:81'], public_tls: ['127.0.0.1:81']}\n",
     ["error web.public_tls[0]: 127.0.0.1:81 is taken by web.public already"]),
    ("inbound without a domain", listener("name: mx, role: inbound, bind: ['0.0.0.0:1']"), "",
     ["error listeners[0].role: role: inbound needs bounces.domain"]),
    ("inbound", listener("name: mx, role: inbound, bind: ['0.0.0.0:1'], tls: none"), BOUNCE_DOMAIN, []),
    ("inbound with access", listener("name: mx, role: inbound, bind: ['0.0.0.0:1'], access: auth"), BOUNCE_DOMAIN,
     ["warning listeners[0].access: says nothing with role: inbound"]),
    ("inbound with require_tls and no TLS",
     listener("name: mx, role: inbound, bind: ['0.0.0.0:1'], tls: none, require_tls: true"), BOUNCE_DOMAIN,
     ["error listeners[0].require_tls: needs tls: starttls"]),
    ("verp without a domain", upstream("return_path: verp"), "",
     ["error upstreams.sandbox.return_path: return_path: verp needs bounces.domain"]),
    ("verp", upstream("return_path: verp"), BOUNCE_DOMAIN, []),
    ("mailbox with its password in the file", {},
     "bounces: {mailboxes: [{name: a, host: imap.example, username: u, password: p}]}\n",
     ["error bounces.mailboxes[0].password: the password is written in the file itself"]),
    ("mailbox in the clear", {},
     "bounces: {mailboxes: [{name: a, host: imap.example, username: u, password: !env PW, tls: none}]}\n",
     ["warning bounces.mailboxes[0].tls: the password crosses the network in the clear"]),
    ("mailbox on this machine", {},
     "bounces: {mailboxes: [{name: a, host: 127.0.0.1, username: u, password: !env PW, tls: none}]}\n", []),
    ("mailbox twice", {},
     "bounces: {mailboxes: [{name: a, host: h, username: u, password: !env PW},"
     " {name: a, host: i, username: u, password: !env PW}]}\n",
     ["error bounces.mailboxes[1].name: 'a' is there already"]),
    ("unknown upstream", routes("upstream: sandbx"), "", ["error routes[0].upstream: there is no upstream 'sandbx'"]),
    ("unknown network of a listener", listener(f"{A}, tls: none, access: network, networks: [offce]"),
     "networks: {office: [192.0.2.1]}\n", ["error listeners[0].networks[0]: there is no network 'offce'"]),
    ("known network", listener(f"{A}, tls: none, access: network, networks: [office, '::1/128']"),
     "networks: {office: [192.0.2.1]}\n", []),
    ("unknown network of a route", routes("match: {network: office}, upstream: sandbox", "upstream: sandbox"), "",
     ["error routes[0].match.network: there is no network 'office'"]),
    ("unknown credential", routes("match: {credential: shp}, upstream: sandbox", "upstream: sandbox"), CREDENTIAL,
     ["error routes[0].match.credential: there is no credential 'shp'"]),
    ("pattern of credentials", routes("match: {credential: 'x*'}, upstream: sandbox", "upstream: sandbox"), CREDENTIAL,
     []),
    ("username twice", {}, CREDENTIAL + f"  - {{username: shop, password: '{HASH}'}}\n",
     ["error credentials[1].username: 'shop' is there already in line 10"]),
    ("listener name twice", listener(f"{A}, tls: none, {LOCAL}", f"name: a, bind: ['127.0.0.1:2'], tls: none, {LOCAL}"),
     "", ["error listeners[1].name: 'a' is there already"]),
    ("bind twice",
     listener(f"{A}, tls: none, {LOCAL}", f"name: b, bind: ['[::1]:1', '127.0.0.1:1'], tls: none, {LOCAL}"),
     "", ["error listeners[1].bind[1]: 127.0.0.1:1 is taken by the listener a"]),
    ("bind twice, written otherwise", listener(f"name: a, bind: ['[::1]:1', '[0::1]:1'], tls: none, {LOCAL}"), "",
     ["error listeners[0].bind[1]: [0::1]:1 is taken"]),
    ("web on a listener's port", listener(f"{A}, tls: none, {LOCAL}"), "web: {bind: ['127.0.0.1:1']}\n",
     ["error web.bind[0]: 127.0.0.1:1 is taken"]),
    ("any free port, twice", listener(f"name: a, bind: ['127.0.0.1:0', '127.0.0.1:0'], tls: none, {LOCAL}"), "", []),
    ("access without networks", listener(f"{A}, access: network"), "",
     ["error listeners[0].access: access: network needs networks"]),
    ("access needing both", listener(f"{A}, access: network-and-auth"), "",
     ["error listeners[0].access: access: network-and-auth needs credentials",
      "error listeners[0].access: access: network-and-auth needs networks"]),
    ("access by auth without credentials", listener(f"{A}, access: auth"), "",
     ["error listeners[0].access: access: auth needs credentials"]),
    ("access by auth", listener(f"{A}, access: auth"), CREDENTIAL, []),
    ("access by neither", listener(f"{A}, access: network-or-auth"), "",
     ["error listeners[0].access: there are neither networks nor credentials"]),
    ("access by network or auth, no networks", listener(f"{A}, access: network-or-auth"), CREDENTIAL,
     ["warning listeners[0].access: no networks are given"]),
    ("access by network or auth, no credentials",
     listener(f"{A}, access: network-or-auth, networks: [127.0.0.1]"), "", []),
    ("auth without TLS from outside", listener(f"{OUT}, tls: none, access: auth"), CREDENTIAL,
     ["error listeners[0].tls: AUTH is offered only under TLS or on loopback"]),
    ("network and auth without TLS from outside",
     listener(f"{OUT}, tls: none, access: network-and-auth, networks: [192.0.2.1]"), CREDENTIAL,
     ["error listeners[0].tls: AUTH is offered only under TLS or on loopback"]),
    ("network or auth without TLS from outside",
     listener(f"{OUT}, tls: none, access: network-or-auth, networks: [192.0.2.1]"), CREDENTIAL,
     ["warning listeners[0].tls: AUTH is offered only under TLS or on loopback"]),
    ("auth without TLS on loopback",
     listener("name: a, bind: ['127.0.0.1:1', '[::1]:1'], tls: none, access: auth"), CREDENTIAL, []),
    ("network without TLS from outside", listener(f"{OUT}, tls: none, access: network, networks: [192.0.2.1]"), "", []),
    ("require_tls without STARTTLS", listener(f"{A}, tls: none, require_tls: true, {LOCAL}"), "",
     ["error listeners[0].require_tls: needs tls: starttls"]),
    ("require_tls", listener(f"{A}, tls: starttls, require_tls: true, {LOCAL}"), "", []),
    ("open to everyone", listener(f"{OUT}, access: network, networks: ['0.0.0.0/0']"), "",
     ["warning listeners[0].networks[0]: the whole internet may send"]),
    ("every peer a proxy", listener(f"{A}, {LOCAL}, proxy_protocol: ['::/0']"), "",
     ["warning listeners[0].proxy_protocol[0]: any client may claim"]),
    ("plain-text password", {}, "credentials: [{username: u, password: geheim}]\n",
     ["error credentials[0].password: is a plain-text password"]),
    ("another hash", {}, "credentials: [{username: u, password: $2b$12$abcdefghijklmnopqrstuv}]\n",
     ["error credentials[0].password: is a hash of another kind"]),
    ("half a hash", {}, "credentials: [{username: u, password: $argon2id$v=19$m=65536}]\n",
     ["warning credentials[0].password: is no complete argon2id hash"]),
    ("a hash", {}, CREDENTIAL, []),
    ("upstream password in the file", upstream("username: u, password: geheim"), "",
     ["error upstreams.sandbox.password: the password is written in the file"]),
    ("upstream password by env", upstream("username: u, password: !env PW"), "", []),
    ("username without password", upstream("username: u"), "",
     ["error upstreams.sandbox.username: there is a username"]),
    ("password without username", upstream("password: !env PW"), "",
     ["error upstreams.sandbox.password: there is a password but no username"]),
    ("upstream in the clear", upstream("tls: none"), "",
     ["warning upstreams.sandbox.tls: mail crosses the network in"]),
    ("upstream login in the clear", upstream("tls: none, username: u, password: !env PW"), "",
     ["warning upstreams.sandbox.tls: mail and password cross the network in the clear"]),
    ("upstream opportunistic", upstream("tls: opportunistic, username: u, password: !env PW"), "",
     ["warning upstreams.sandbox.tls: mail and password cross the network in the clear where TLS is not offered"]),
    ("upstream in the clear on this machine",
     {"upstreams": "upstreams: {sandbox: {host: 127.0.0.1, tls: none}}\n"}, "", []),
    ("implicit TLS and none", upstream("tls: none, implicit_tls: true"), "",
     ["error upstreams.sandbox.implicit_tls: implicit_tls: true and tls: none", "warning upstreams.sandbox.tls: mail"]),
    ("a name no one verifies", upstream("tls: opportunistic, tls_name: x.example"), "",
     ["warning upstreams.sandbox.tls: mail", "warning upstreams.sandbox.tls_name: does nothing"]),
    ("limits over time", upstream("limits: {messages: 30/min, recipients: [100/min, 10000/day]}"), "", []),
    ("a limit without a period", upstream("limits: {messages: 30}"), "",
     ["error upstreams.sandbox.limits.messages: 30 has no period: per second, minute, hour or day?"]),
    ("a limit without a period, in words", upstream("limits: {recipients: '500'}"), "",
     ["error upstreams.sandbox.limits.recipients: 500 has no period"]),
    ("a limit of nothing", upstream("limits: {messages: 0/day}"), "",
     ["error upstreams.sandbox.limits.messages: 0/day lets nothing through"]),
    ("a limit of an unknown period", upstream("limits: {messages: 30/fortnight}"), "",
     ["error upstreams.sandbox.limits.messages: 'fortnight' in 30/fortnight is no period"]),
    ("a limit that is none", upstream("limits: {messages: lots}"), "",
     ["error upstreams.sandbox.limits.messages: 'lots' is not a limit over time"]),
    ("a limit that is true", upstream("limits: {messages: true}"), "",
     ["error upstreams.sandbox.limits.messages: True is not a limit over time"]),
    ("more in a minute than in a day", upstream("limits: {messages: [500/day, 600/min]}"), "",
     ["error upstreams.sandbox.limits.messages: 600/min can never be reached, because 500/day allows fewer"]),
    ("two limits for one period", upstream("limits: {messages: [30/min, 40/min]}"), "",
     ["error upstreams.sandbox.limits.messages: 30/min and 40/min are two limits for one period"]),
    ("no limit by name", upstream("preset: gmail, limits: {messages: []}"), "", []),
    ("more messages than recipients", upstream("limits: {messages: 50/min, recipients: 20/min}"), "",
     ["warning upstreams.sandbox.limits.messages: 50/min can never be reached, because a message has a recipient"]),
    ("more at once than connections", upstream("limits: {connections: 2, concurrency: 3}"), "",
     ["error upstreams.sandbox.limits.concurrency: is more than connections (2)"]),
    ("an account beyond its upstream",
     upstream("limits: {messages: 20/min}, accounts: [{address: a@x.example, password: !env PW,"
              " limits: {messages: 30/min}}]"), "",
     ["warning upstreams.sandbox.accounts[0].limits.messages: 30/min can never be reached, because all accounts"]),
    ("a priority", routes("upstream: sandbox, priority: bulk"), "", []),
    ("an unknown priority", routes("upstream: sandbox, priority: urgent"), "", ["error routes[0].priority:"]),
    ("no catch-all", routes("match: {campaign: x}, upstream: sandbox"), "",
     ["warning routes[0]: no route takes everything"]),
    ("behind the catch-all", routes("upstream: sandbox", "match: {campaign: x}, upstream: sandbox"), "",
     ["error routes[1]: this route is never reached, because the route in line 8 takes everything"]),
    ("behind an empty match", routes("match: {}, upstream: sandbox", "upstream: sandbox"), "",
     ["error routes[1]: this route is never reached"]),
    ("the same match twice",
     routes("match: {campaign: x}, upstream: sandbox", "match: {campaign: X}, upstream: sandbox", "upstream: sandbox"),
     "",
     ["error routes[1]: this route is never reached, because the route in line 8 has the same match"]),
    ("limits that fit nothing", {}, "limits: {line_length: 2KiB, line_length_max: 1KiB, memory: 16MiB}\n",
     ["error limits.line_length: is more than line_length_max", "error limits.memory: is less than message_size"]),
    ("a limit that limits nothing", {}, "limits: {connections: 10, connections_per_ip: 20}\n",
     ["warning limits.connections_per_ip: is more than connections"]),
    ("few connections", {}, "limits: {connections: 10}\n", []),
    ("bodies kept longer", {}, "spool: {keep: 1d, keep_body: 2d}\n",
     ["error spool.keep_body: is longer than keep (1d)"]),
    ("a short keep alone", {}, "spool: {keep: 1d}\n", []),
    ("a notice after the end", {}, "retry: {lifetime: 1h, delay_notice: 2h}\n",
     ["error retry.delay_notice: is longer than lifetime (1h)"]),
    ("held for less than it may wait", {}, "retry: {lifetime: 5d, held_lifetime: 2d}\n",
     ["error retry.held_lifetime: is less than lifetime (5d), so holding mail would end it sooner"]),
    ("a long lifetime alone", {}, "retry: {lifetime: 60d}\n", []),
    ("a short lifetime alone", {}, "retry: {lifetime: 1h}\n", []),
    ("list over http", {}, "networks: {n: {url: http://example.com/}}\n",
     ["error networks.n.url: is fetched without TLS"]),
    ("list from this machine", {}, "networks: {n: {url: 'http://127.0.0.1:8/'}}\n", []),
    ("a secret in the file", {}, "secret: short\n",
     ["warning secret: is short enough to be guessed", "warning secret: is written in the file itself"]),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "extra", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_rule(tmp_path: Path, sections: dict[str, str], extra: str, expected: list[str]) -> None:
    faults = faults_of(tmp_path, minimal(extra, **sections), PW="geheim")
    found = sorted(f"{fault.severity} {fault.key}: {fault.problem}" for fault in faults)
    assert len(found) == len(expected), found
    for line, start in zip(found, sorted(expected), strict=True):
        assert line.startswith(start)
    for fault in faults:
        assert fault.line > 0
        assert fault.remedy
        assert "geheim" not in str(fault)


def test_dkim_selectors_are_there_once(tmp_path: Path) -> None:
    text = minimal("dkim:\n" + "  - {domain: Example.com, selector: r1, key: gone}\n" * 2)
    assert [
        (fault.line, fault.key) for fault in faults_of(tmp_path, text) if "already in line 10" in fault.problem
    ] == [(11, "dkim[1].selector")]


def test_the_nearest_name_is_the_remedy(tmp_path: Path) -> None:
    [fault] = faults_of(tmp_path, minimal(**routes("upstream: sandbx")))
    assert fault.remedy == "Did you mean sandbox?"


def test_a_config_without_a_file_is_checked_too() -> None:
    config = Config(
        hostname="h",
        listeners=[{"name": "a", "bind": ["127.0.0.1:0"], "access": "auth"}],
        upstreams={"u": {"host": "h", "port": 25, "username": "u", "password": "p"}},
        routes=[{"upstream": "v"}],
    )
    faults = check(config)
    assert [fault.key for fault in faults] == ["listeners[0].access", "routes[0].upstream", "upstreams.u.port"]
    assert all((fault.line, fault.column) == (0, 0) for fault in faults)

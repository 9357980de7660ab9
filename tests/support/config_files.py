"""Configuration files for tests: a smallest right one, changes to it, the issue's example with its files in place."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relayd.config.fault import Fault
from relayd.config.load import examine

HASH = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$RdescudvJCsgt3ub+b0dWRWJTmaaJObGAAAAAAAAAAA"

SECTIONS = {
    "hostname": "hostname: relay.example.com\n",
    "data_dir": "data_dir: var\n",
    "listeners": "listeners:\n"
    '  - {name: local, bind: ["127.0.0.1:0"], tls: none, access: network, networks: [127.0.0.0/8]}\n',
    "upstreams": "upstreams:\n  sandbox: {type: sandbox}\n",
    "routes": "routes:\n  - {upstream: sandbox}\n",
}

ISSUE_EXAMPLE = """\
hostname: relay.example.com
data_dir: {data_dir}
workers: auto                       # one process per core; 1 = a single process
secret: !file /run/credentials/relayd.service/secret   # made on first start where absent

tls: {{certificate: fullchain.pem, key: privkey.pem}}    # re-read on reload; self-signed on first start if absent

networks:                           # named source allowlists, CIDR, IPv4 and IPv6
  office: [192.0.2.0/24, "2001:db8::/32"]
  customerio:                       # kept current from a URL
    url: https://api.customer.io/v1/info/ip_addresses
    path: ip_addresses
    refresh: 1h
    keep_removed: 7d                # an address that vanishes stays allowed this long
    fallback: [35.188.196.183]

listeners:
  - {{name: submission, bind: ["0.0.0.0:587", "[::]:587"], tls: starttls, access: network-or-auth, networks: [office]}}
  - {{name: smtps, bind: ["0.0.0.0:465"], tls: implicit, access: auth}}
  - {{name: local, bind: ["127.0.0.1:2525"], tls: none, access: network, networks: [127.0.0.0/8]}}
  # access: network | auth | network-or-auth | network-and-auth
  # proxy_protocol: [10.0.0.5]  XCLIENT/PROXY only from these

credentials:
  - {{username: shop, password: "$argon2id$...", senders: ["*@shop.example.com", "info@example.com"], rate: 600/min}}

limits: {{message_size: 50MiB, recipients: 1000, connections: 1000, connections_per_ip: 50, line_length: 998,
  received_headers: 50}}

upstreams:
  sandbox: {{type: sandbox}}
  acme: {{host: smtp.acme.example, port: 587, username: u, password: !env ACME_PASSWORD, limits: {{connections: 20}}}}
  # tls: required (default: STARTTLS on 587/2525, implicit on 465, certificate verified) | opportunistic | none

routes:                             # first match wins; looked at again on every attempt
  - match: {{sender_domain: shop.example.com, campaign: newsletter}}
    upstream: acme
  - match: {{sender: "*@example.co.jp"}}    # sender, sender_domain, credential, network, campaign, header
    upstream: acme
  - upstream: sandbox

dkim:
  - {{domain: shop.example.com, selector: r1, key: {key}}}   # RSA and Ed25519; several per domain sign all

retry: {{schedule: "1m, 5m*2, 15m, 1h*3, 4h*", lifetime: 5d, delay_notice: 4h}}
bounces: {{notify: sender}}           # sender | none: a null sender never gets a bounce
spool: {{segment: 1d, keep: 40d, keep_body: 40d}}
web: {{bind: ["127.0.0.1:8025"]}}
log: {{format: auto, level: info}}
"""


def minimal(extra: str = "", **sections: str) -> str:
    """The smallest right file, with sections replaced, left out (empty text) or added behind it."""
    return "".join({**SECTIONS, **sections}.values()) + extra


def written(directory: Path, text: str) -> Path:
    """The text as a file."""
    path = directory / "relayd.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(directory: Path, text: str, **environ: str) -> list[Fault]:
    """What is wrong with a file of this text."""
    return examine(written(directory, text), environ).faults


def private_key(path: Path, kind: str = "ed25519", bits: int = 2048, mode: int = 0o600) -> Path:
    """A PEM file with a new key."""
    key = Ed25519PrivateKey.generate() if kind == "ed25519" else generate_private_key(65537, bits)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(mode)
    return path

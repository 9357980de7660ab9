"""Files that the configuration names: absent, open to all, or not what they should be."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, PublicFormat

from tests.support.config_files import HASH, faults_of, minimal, private_key


def said(directory: Path, text: str, **environ: str) -> list[str]:
    faults = faults_of(directory, text, **environ)
    assert all(fault.remedy and fault.line for fault in faults)
    return [f"{fault.severity} {fault.key}: {fault.problem}" for fault in faults]


DKIM = "dkim:\n  - {domain: example.com, selector: r1, key: k.pem}\n"


@pytest.mark.parametrize(
    ("kind", "bits", "expected"),
    [
        ("ed25519", 0, []),
        ("rsa", 2048, []),
        ("rsa", 1024, ["warning dkim[0].key: the RSA key has 1024 bits; not all receivers take it for good"]),
    ],
)
def test_dkim_keys_are_rsa_or_ed25519(tmp_path: Path, kind: str, bits: int, expected: list[str]) -> None:
    private_key(tmp_path / "k.pem", kind, bits)
    assert said(tmp_path, minimal(DKIM)) == expected


def test_a_dkim_key_that_everyone_can_read_is_a_fault(tmp_path: Path) -> None:
    private_key(tmp_path / "k.pem", mode=0o644)
    [fault] = faults_of(tmp_path, minimal(DKIM))
    assert "can be read by every user of this machine" in fault.problem
    assert "chmod 600" in fault.remedy


def test_a_group_may_read_a_key(tmp_path: Path) -> None:
    private_key(tmp_path / "k.pem", mode=0o640)
    assert said(tmp_path, minimal(DKIM)) == []


def test_what_is_no_key_is_a_fault(tmp_path: Path) -> None:
    key = generate_private_key(SECP256R1())
    path = tmp_path / "k.pem"
    cases = {
        b"": "holds no private key in PEM",
        b"geheim": "holds no private key in PEM",
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo): "holds no private key in PEM",
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")): "is encrypted with a pass",
        trustme.CA(key_type=trustme.KeyType.ECDSA).private_key_pem.bytes(): "is neither an RSA nor an Ed25519 key",
    }
    for raw, problem in cases.items():
        path.write_bytes(raw)
        path.chmod(0o600)
        [line] = said(tmp_path, minimal(DKIM))
        assert problem in line
        assert "geheim" not in line


def test_absent_keys_and_directories_are_faults(tmp_path: Path) -> None:
    assert said(tmp_path, minimal(DKIM)) == [f"error dkim[0].key: {tmp_path}/k.pem is not there"]
    (tmp_path / "k.pem").mkdir()
    assert said(tmp_path, minimal(DKIM)) == [f"error dkim[0].key: {tmp_path}/k.pem is not a plain file"]


def test_a_file_that_brings_a_secret_is_private(tmp_path: Path) -> None:
    for name, text in (("s", "x" * 32), ("p", "geheim"), ("h", HASH), ("harmless", "relay.example.com")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644)
    text = minimal(
        "secret: !file s\ncredentials: [{username: u, password: !file h}]\n",
        hostname="hostname: !file harmless\n",
        upstreams="upstreams: {sandbox: {host: h, username: u, password: !file p}}\n",
    )
    assert said(tmp_path, text) == [
        f"error upstreams.sandbox.password: {tmp_path}/p can be read by every user of this machine",
        f"error secret: {tmp_path}/s can be read by every user of this machine",
        f"error credentials[0].password: {tmp_path}/h can be read by every user of this machine",
    ]


def test_the_secret_that_was_made_is_private(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var/secret").write_text("x" * 64)
    (tmp_path / "var/secret").chmod(0o644)
    [fault] = faults_of(tmp_path, minimal())
    assert (fault.key, fault.line) == ("secret", 1)


TLS = "tls: {certificate: c.pem, key: k.pem}\n"


def certificate(directory: Path, name: str = "relay.example.com", **options: datetime.datetime) -> None:
    directory.mkdir(exist_ok=True)
    made = trustme.CA().issue_cert(name, **options)
    made.cert_chain_pems[0].write_to_path(directory / "c.pem")
    made.private_key_pem.write_to_path(directory / "k.pem")
    (directory / "k.pem").chmod(0o600)


def test_a_certificate_and_its_key_are_right(tmp_path: Path) -> None:
    certificate(tmp_path / "var")
    assert said(tmp_path, minimal(TLS)) == []


def test_without_both_files_a_certificate_is_made(tmp_path: Path) -> None:
    assert said(tmp_path, minimal()) == []
    assert said(tmp_path, minimal(TLS)) == [
        f"warning tls.certificate: {tmp_path}/var/c.pem is not there; a self-signed certificate is made"
    ]


def test_one_file_without_the_other_is_a_fault(tmp_path: Path) -> None:
    certificate(tmp_path / "var")
    (tmp_path / "var/c.pem").rename(tmp_path / "var/other.pem")
    assert said(tmp_path, minimal(TLS)) == [f"error tls.certificate: {tmp_path}/var/c.pem is not there"]
    (tmp_path / "var/other.pem").rename(tmp_path / "var/c.pem")
    (tmp_path / "var/k.pem").unlink()
    assert said(tmp_path, minimal(TLS)) == [f"error tls.key: {tmp_path}/var/k.pem is not there"]


def test_a_key_of_another_certificate_is_a_fault(tmp_path: Path) -> None:
    certificate(tmp_path / "var")
    private_key(tmp_path / "var/k.pem")
    [line] = said(tmp_path, minimal(TLS))
    assert "is not the key of the first certificate" in line


def test_an_expired_certificate_is_a_warning(tmp_path: Path) -> None:
    certificate(tmp_path / "var", not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    assert said(tmp_path, minimal(TLS)) == ["warning tls.certificate: the certificate expired on 2020-01-01"]


def test_an_open_or_broken_key_is_a_fault(tmp_path: Path) -> None:
    certificate(tmp_path / "var")
    (tmp_path / "var/k.pem").chmod(0o644)
    (tmp_path / "var/c.pem").write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    assert said(tmp_path, minimal(TLS)) == [
        f"error tls.certificate: {tmp_path}/var/c.pem holds no certificate in PEM",
        f"error tls.key: {tmp_path}/var/k.pem can be read by every user of this machine",
    ]


def test_a_ca_file_holds_certificates(tmp_path: Path) -> None:
    text = minimal(upstreams="upstreams: {sandbox: {host: h, ca_file: ca.pem}}\n")
    assert said(tmp_path, text) == [f"error upstreams.sandbox.ca_file: {tmp_path}/ca.pem is not there"]
    (tmp_path / "ca.pem").write_text("nothing")
    assert said(tmp_path, text) == [f"error upstreams.sandbox.ca_file: {tmp_path}/ca.pem holds no certificate in PEM"]
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    assert said(tmp_path, text) == []

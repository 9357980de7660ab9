"""What holds of every mail that went through relayd, in the eyes of others: opendkim, dkimpy, the standard library."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage

import dkim

from relayd.core.headers import scan
from tests.support import opendkim
from tests.support.dns import ZoneServer


def parsed(content: bytes) -> EmailMessage:
    """As the standard library reads it."""
    message = email.message_from_bytes(content, policy=email.policy.SMTP)
    assert isinstance(message, EmailMessage)
    return message


def assert_signed(content: bytes, domain: str, selectors: tuple[str, ...], dns: ZoneServer) -> None:
    """opendkim verifies every signature, dkimpy those by RSA (it reads Ed25519 with PyNaCl only)."""
    found = opendkim.verdicts(content, dns)
    assert {(verdict.domain, verdict.selector, verdict.result) for verdict in found} == {
        (domain, selector, "pass") for selector in selectors
    }
    assert len(found) == len(selectors)
    assert_dkimpy(content, dns)


def assert_dkimpy(content: bytes, dns: ZoneServer) -> None:
    """dkimpy verifies all RSA signatures, and there is one."""
    signatures = [value for name, value in dkim.rfc822_parse(content)[0] if name.lower() == b"dkim-signature"]
    rsa = [place for place, value in enumerate(signatures) if b"a=rsa-sha256" in value]
    assert rsa
    for place in rsa:
        assert dkim.DKIM(content).verify(idx=place, dnsfunc=dns.txt)


def first_fields(content: bytes, count: int) -> list[str]:
    """Names of the first fields, as they stand on top."""
    return [name.decode() for name, _, _ in scan(content).fields[:count]]

"""Envelope addresses (RFC 5321 4.1.2, RFC 6531 3.3): checked, taken apart, compared with patterns.

Addresses in headers are author.py's; what may be sent by whom is admission's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from relayd.core.reply import Reply

MAX_LOCAL = 64
"""Octets of a local part (RFC 5321 4.5.3.1.1)."""
MAX_DOMAIN = 255
MAX_ADDRESS = 254
"""A path is 256 octets at most, its angle brackets included (RFC 5321 4.5.3.1.3)."""
MAX_LABEL = 63

# Underscores are no part of RFC 5321's domains, but hosts with them exist and receive mail.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_COMMON = re.compile(rf"[{_ATEXT}]+(?:\.[{_ATEXT}]+)*@{_LABEL}(?:\.{_LABEL})*")
_DOT_STRING = re.compile(rf"[{_ATEXT}\u0080-\U0010ffff]+(?:\.[{_ATEXT}\u0080-\U0010ffff]+)*")
_QUOTED = re.compile(r'"(?:[ !#-\[\]-~\u00a0-\U0010ffff]|\\[ -~])*"')
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DOTS = str.maketrans("\u3002\uff0e\uff61", "...")


class AddressError(ValueError):
    """Not an address that mail can be sent to or from; `problem` says why, without repeating the input."""

    def __init__(self, problem: str, *, needs_smtputf8: bool = False) -> None:
        super().__init__(problem)
        self.problem = problem
        self.needs_smtputf8 = needs_smtputf8

    def reply(self, *, sender: bool) -> Reply:
        """What to answer MAIL (`sender`) or RCPT: 553 5.6.7 (RFC 6531 3.5), 501 5.1.7 or 501 5.1.3 (RFC 3463 3.2)."""
        if self.needs_smtputf8:
            return Reply(553, "5.6.7", self.problem)
        return Reply(501, "5.1.7" if sender else "5.1.3", self.problem)


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox, in its parts as written."""

    local: str
    """With its quotes, where it has them."""
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"


def validate(text: str, *, utf8: bool = False) -> None:
    """Check an address without angle brackets; `utf8`: the client said SMTPUTF8. Raises AddressError."""
    # the form nearly all addresses have; `parse` gives the same answer, slower
    if len(text) <= MAX_LOCAL and _COMMON.fullmatch(text):
        return
    parse(text, utf8=utf8)


def parse(text: str, *, utf8: bool = False) -> Address:
    """Local part and domain of an address without angle brackets (RFC 5321 4.1.2). Raises AddressError."""
    if _UNSEEN.search(text):
        raise AddressError("The address contains control characters")
    if not text.isascii() and not utf8:
        raise AddressError("The address has non-ASCII characters; say SMTPUTF8 in MAIL", needs_smtputf8=True)
    local, domain = _split(text)
    if not (_DOT_STRING.fullmatch(local) or _QUOTED.fullmatch(local)):
        raise AddressError("The local part of the address is malformed")
    if len(local.encode()) > MAX_LOCAL:
        raise AddressError(f"The local part of the address is longer than {MAX_LOCAL} octets")
    if domain.startswith("["):
        _check_literal(domain)
    else:
        to_ascii(domain)
    if len(text.encode()) > MAX_ADDRESS:
        raise AddressError(f"The address is longer than {MAX_ADDRESS} octets")
    return Address(local, domain)


def _split(text: str) -> tuple[str, str]:
    quoted = _QUOTED.match(text)
    at = quoted.end() if quoted else text.find("@")
    if at < 0 or text[at : at + 1] != "@":
        raise AddressError("The address has no @" if "@" not in text else "The local part of the address is malformed")
    if at == 0:
        raise AddressError("The address has no local part")
    if at + 1 == len(text):
        raise AddressError("The address has no domain")
    return text[:at], text[at + 1 :]


def _check_literal(domain: str) -> None:
    inner = domain[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(inner[5:])
        else:
            ipaddress.IPv4Address(inner)
        correct = domain[-1] == "]" and "%" not in inner  # a scope is no part of RFC 5321's literals
    except ValueError:
        correct = False
    if not correct:
        raise AddressError("The address literal is neither [192.0.2.1] nor [IPv6:2001:db8::1]")


def to_ascii(domain: str) -> str:
    """The domain in A-labels (RFC 5890) and lower case. Raises AddressError where it is none."""
    if not domain.isascii():
        domain = _a_labels(domain)
    if len(domain) > MAX_DOMAIN:
        raise AddressError(f"The domain of the address is longer than {MAX_DOMAIN} octets")
    if not _DOMAIN.fullmatch(domain):
        if any(len(label) > MAX_LABEL for label in domain.split(".")):
            raise AddressError(f"A label of the domain is longer than {MAX_LABEL} octets")
        raise AddressError("The domain of the address is malformed")
    return domain.lower()


def _a_labels(domain: str) -> str:
    if len(domain) > MAX_DOMAIN:  # before the codec, which takes its time over long input
        raise AddressError(f"The domain of the address is longer than {MAX_DOMAIN} octets")
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        raise AddressError("The domain of the address is not an internationalised domain name") from None


def domain_of(address: str) -> str:
    """The part behind the last @, in A-labels and lower case; as written where it is no domain. Never raises."""
    domain = address.rpartition("@")[2] if "@" in address else ""
    if domain.isascii():
        return domain.lower()
    try:
        return to_ascii(domain)
    except AddressError:
        return domain.lower()


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """A matcher for patterns like *@shop.example.com: * is any run, ? one character, case and U-labels are alike.

    Takes any text, not only addresses. Time is linear in the text for each * of the pattern.
    """
    wanted = _comparable(pattern)
    if "*" not in wanted and "?" not in wanted:
        return lambda text: _comparable(text) == wanted
    if wanted == "*":
        return lambda text: True
    if wanted[0] == "*" and "*" not in wanted[1:] and "?" not in wanted:
        ending = wanted[1:]
        return lambda text: _comparable(text).endswith(ending)
    return _glob(wanted)


def _glob(pattern: str) -> Callable[[str], bool]:
    first, *rest = [re.escape(part).replace(r"\?", ".") for part in pattern.split("*")]
    source = first
    if rest:
        # atomic groups: the shortest match of each part is as good as any other, so nothing is tried twice
        source += "".join(f"(?>.*?{part})" for part in rest[:-1] if part) + f".*{rest[-1]}"
    regex = re.compile(source, re.DOTALL)
    return lambda text: regex.fullmatch(_comparable(text)) is not None


def _comparable(text: str) -> str:
    if text.isascii():
        return text.lower()
    local, at, domain = text.rpartition("@")
    labels = domain.translate(_DOTS).split(".")
    return local.lower() + at + ".".join(_comparable_label(label) for label in labels)


def _comparable_label(label: str) -> str:
    if label.isascii() or "*" in label or "?" in label or len(label) > MAX_LABEL:
        return label.lower()
    try:
        return label.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return label.lower()

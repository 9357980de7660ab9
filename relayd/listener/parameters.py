"""The arguments of MAIL and RCPT: path and ESMTP parameters, read into values or refused with a reply.

Pure. Case is kept, so that ENVID and ORCPT (RFC 3461) reach the upstream as they came. Whether the client may send is
intake's question.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from relayd.core.address import AddressError, validate
from relayd.core.mail import Body, Envelope, Notify, Recipient, Ret
from relayd.core.reply import Reply
from relayd.listener.ends import Refused

MAX_ENVID = 100
"""Characters of ENVID (RFC 3461 4.4)."""
MAX_ORCPT = 500
"""Characters of ORCPT (RFC 3461 4.2)."""

# One path in angle brackets, where a > may stand in a quoted local part. Clients that put a space behind the colon
# are many, and nothing else can be meant.
_PATH = re.compile(r' ?<((?>[^<>"\\]|"(?>[^"\\]|\\.)*")*)>')
_SOURCE_ROUTE = re.compile(r"@[A-Za-z0-9.-]+(?:,@[A-Za-z0-9.-]+)*:")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[2-6][0-9A-F]|\+7[0-9A-E])+")
"""RFC 3461 4, without escapes for control characters: they could only do harm in reports and logs."""
_UTF8_XTEXT = re.compile(
    r"(?:[!-*,-<>-\[\]-~\u00a1-\u2027\u202a-\ud7ff\ue000-\U0010ffff]|\+[2-6][0-9A-F]|\\x\{[0-9A-F]{2,6}\})+"
)
"""RFC 6533 3: the forms of an internationalised original recipient."""
_EMBEDDED = re.compile(r"\\x\{([0-9A-F]+)\}")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*/?^_`{|}~-]+")
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")

_T = TypeVar("_T")
_BODIES = {"7BIT": Body.SEVEN_BIT, "8BITMIME": Body.EIGHT_BIT_MIME}
_RETS = {"FULL": Ret.FULL, "HDRS": Ret.HDRS}
_NOTIFIES = {"SUCCESS": Notify.SUCCESS, "FAILURE": Notify.FAILURE, "DELAY": Notify.DELAY}

SYNTAX_MAIL = Reply(501, "5.5.2", "Write MAIL FROM:<sender@example.com>")
SYNTAX_RCPT = Reply(501, "5.5.2", "Write RCPT TO:<recipient@example.com>")
_NO_ESMTP = Reply(555, "5.5.4", "Parameters need EHLO")
_MALFORMED = Reply(501, "5.5.4", "Malformed parameters")
_NO_NULL = Reply(501, "5.1.3", "The null address is no recipient")
_BINARY = Reply(555, "5.5.4", "BODY=BINARYMIME is not offered")


def parse_mail(argument: str, *, esmtp: bool = True) -> tuple[Envelope, int]:
    """The envelope and the declared SIZE (0: none) of what follows the verb MAIL. Raises Refused."""
    if argument.endswith(">"):  # no SIZE, so the same sender's next mail is likely to say just this
        return _parse_mail_again(argument, esmtp)
    return _parse_mail(argument, esmtp)


def _parse_mail(argument: str, esmtp: bool) -> tuple[Envelope, int]:
    path, parameters = _split(argument, "FROM:", SYNTAX_MAIL, esmtp)
    if not parameters:
        if path:
            _check(path, utf8=False, sender=True)
        return Envelope(path), 0
    said = {name: _read(_MAIL, "MAIL", name, value) for name, value in parameters.items()}
    utf8 = "SMTPUTF8" in said
    if path:
        _check(path, utf8=utf8, sender=True)
    body = said.get("BODY", Body.SEVEN_BIT)
    return Envelope(path, body, utf8, said.get("RET"), said.get("ENVID")), said.get("SIZE", 0)


_parse_mail_again = lru_cache(maxsize=256)(_parse_mail)


def parse_rcpt(argument: str, hostname: str, *, esmtp: bool = True, utf8: bool = False) -> Recipient:
    """The recipient that follows the verb RCPT. `utf8`: MAIL said SMTPUTF8. Raises Refused.

    A bare <postmaster> is taken for postmaster at our own host name (RFC 5321 4.5.1 wants it accepted): it is
    routed like any other mail.
    """
    path, parameters = _split(argument, "TO:", SYNTAX_RCPT, esmtp)
    if not path:
        raise Refused(_NO_NULL)
    if path.lower() == "postmaster":
        path = f"{path}@{hostname}"
    _check(path, utf8=utf8, sender=False)
    if not parameters:
        return Recipient(path)
    said = {name: _read(_RCPT, "RCPT", name, value) for name, value in parameters.items()}
    orcpt = said.get("ORCPT")
    if orcpt is not None and not (utf8 or orcpt.isascii()):
        raise _bad("ORCPT")
    return Recipient(path, said.get("NOTIFY", frozenset()), orcpt)


def _check(path: str, *, utf8: bool, sender: bool) -> None:
    try:
        validate(path, utf8=utf8)
    except AddressError as error:
        raise Refused(error.reply(sender=sender)) from None


def _split(argument: str, keyword: str, syntax: Reply, esmtp: bool) -> tuple[str, dict[str, str | None]]:
    """Path without brackets and source route, and the parameters by upper-case name."""
    if argument[: len(keyword)].upper() != keyword:
        raise Refused(syntax)
    match = _PATH.match(argument, len(keyword))
    if match is None:
        raise Refused(syntax)
    path = match[1]
    if path.startswith("@"):
        route = _SOURCE_ROUTE.match(path)
        if route is not None:  # must be accepted and should be ignored (RFC 5321 4.1.1.3, appendix C)
            path = path[route.end() :]
    rest = argument[match.end() :]
    if not rest:
        return path, {}
    if not rest.startswith(" "):
        raise Refused(syntax)
    if not esmtp:
        raise Refused(_NO_ESMTP)
    return path, _words(rest)


def _words(text: str) -> dict[str, str | None]:
    parameters: dict[str, str | None] = {}
    for word in text.split(" "):
        if not word:
            continue
        name, equals, value = word.partition("=")
        if not _KEYWORD.fullmatch(name) or (equals and not value):
            raise Refused(_MALFORMED)
        name = name.upper()
        if name != "ORCPT" and not value.isascii():  # the one value that may be UTF-8 (RFC 6533 3)
            raise _bad(name[:40])
        if name in parameters:
            raise Refused(Reply(501, "5.5.4", f"{name[:40]} is given twice"))
        parameters[name] = value if equals else None
    return parameters


def _read(readers: dict[str, Callable[[str], Any]], verb: str, name: str, value: str | None) -> Any:
    reader = readers.get(name)
    if reader is None:
        raise Refused(Reply(555, "5.5.4", f"{verb} has no parameter {name[:40]}"))
    return reader(value or "")


def _size(value: str) -> int:
    if not (value.isascii() and value.isdecimal()) or len(value) > 20:
        raise _bad("SIZE")
    return int(value)


def _body(value: str) -> Body:
    if value.upper() == "BINARYMIME":
        raise Refused(_BINARY)
    return _one_of(_BODIES, "BODY", value)


def _smtputf8(value: str) -> bool:
    if value:
        raise _bad("SMTPUTF8")
    return True


def _ret(value: str) -> Ret:
    return _one_of(_RETS, "RET", value)


def _envid(value: str) -> str:
    if len(value) > MAX_ENVID or not _XTEXT.fullmatch(value):
        raise _bad("ENVID")
    return value


def _auth(value: str) -> None:
    # RFC 4954 5: whom the client vouches for. We vouch for nobody, so it is checked and dropped.
    if value != "<>" and not _XTEXT.fullmatch(value):
        raise _bad("AUTH")


def _one_of(choices: dict[str, _T], name: str, value: str) -> _T:
    choice = choices.get(value.upper())
    if choice is None:
        raise _bad(name)
    return choice


def _notify(value: str) -> frozenset[Notify]:
    words = value.upper().split(",")
    if words == ["NEVER"]:
        return frozenset({Notify.NEVER})
    if len(words) != len(set(words)) or not all(word in _NOTIFIES for word in words):
        raise _bad("NOTIFY")
    return frozenset(_NOTIFIES[word] for word in words)


def _orcpt(value: str) -> str:
    kind, semicolon, address = value.partition(";")
    if not semicolon or len(value) > MAX_ORCPT or not _ADDRESS_TYPE.fullmatch(kind):
        raise _bad("ORCPT")
    if kind.lower() == "utf-8":
        if not _UTF8_XTEXT.fullmatch(address) or not all(_shown(point) for point in _EMBEDDED.findall(address)):
            raise _bad("ORCPT")
    elif not _XTEXT.fullmatch(address):
        raise _bad("ORCPT")
    return value


def _shown(hexadecimal: str) -> bool:
    """Whether the code point is one that may stand in an address: no control character, no surrogate."""
    point = int(hexadecimal, 16)
    return 0x20 <= point < 0x7F or (0xA0 < point < 0x110000 and not 0xD800 <= point < 0xE000)


def _bad(name: str) -> Refused:
    return Refused(Reply(501, "5.5.4", f"The value of {name} is malformed"))


_MAIL: dict[str, Callable[[str], Any]] = {
    "SIZE": _size,
    "BODY": _body,
    "SMTPUTF8": _smtputf8,
    "RET": _ret,
    "ENVID": _envid,
    "AUTH": _auth,
}
_RCPT: dict[str, Callable[[str], Any]] = {"NOTIFY": _notify, "ORCPT": _orcpt}

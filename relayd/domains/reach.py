"""Looks whether the port that a CA will look at leads to us: an order that cannot succeed is better not made.

Says what is in the way, in words for an operator; what follows from it is issuing.py's.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence

import aiohttp

from relayd.domains.records import KNOWN, Answer, Status
from relayd.domains.resolve import Lookup

_TIMEOUT = aiohttp.ClientTimeout(total=10)
_LONGEST = 1024
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""This machine has no way there at all (no IPv6, say): that says nothing about others."""


async def trouble(host: str, port: int, path: str, content: str, lookup: Lookup) -> str:
    """Why http://host:port/path does not give this content for everybody; "" where it does."""
    answers = await asyncio.gather(*(lookup.resolver((host, kind)) for kind in ("A", "AAAA")))
    addresses = [address for answer in answers if answer.status is Status.FOUND for address in answer.records]
    if not addresses:
        return f"{host} has no address: {_silence(answers)}"
    seen = False
    for address in addresses:
        what = await _wrong(host, address, port, path, content)
        if what:
            return f"port {port} of {host} does not lead here: {what}"
        seen = seen or what is not None
    if not seen:
        return f"port {port} of {host} cannot be looked at: this machine has no way to {', '.join(addresses)}"
    return ""


def _silence(answers: Sequence[Answer]) -> str:
    if all(answer.status in KNOWN for answer in answers):
        return "DNS has neither an A nor an AAAA record where it leads"
    return "DNS gave no answer"


def _reason(error: OSError) -> str:
    # asyncio writes the address into strerror; TLS and DNS errors have other numbers than errno's, or none
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else "no connection"


async def _wrong(  # noqa: PLR0911 - a list of cases
    host: str, address: str, port: int, path: str, content: str
) -> str | None:
    """What is wrong with one address; "" for nothing, None where it cannot be told from here."""
    place = f"[{address}]" if ":" in address else address
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, headers={"Host": host}) as session,
            session.get(f"http://{place}:{port}{path}", allow_redirects=False) as response,
        ):
            if response.status in {301, 302, 303, 307, 308}:
                return ""  # CAs follow redirections; where to is their business
            found = await response.content.read(_LONGEST)
            if response.status == 200 and found.strip() == content.encode():
                return ""
            return f"{address} answers {response.status}, and not by this relayd"
    except TimeoutError:
        return f"{address} does not answer"
    except aiohttp.ClientConnectorError as error:
        if error.os_error.errno in _UNREACHABLE:
            return None
        return f"{address} does not take the connection ({_reason(error.os_error)})"
    except aiohttp.ClientError as error:
        return f"{address} does not speak HTTP ({type(error).__name__})"

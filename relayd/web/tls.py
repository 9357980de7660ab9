"""Picks the certificate that a client is shown by the name it asks for (SNI, RFC 6066 3), anew for every handshake.

Where certificates come from is said by the callables it is handed.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

_LONGEST = 253


def by_name(
    like: ssl.SSLContext, of: Callable[[str], ssl.SSLContext | None], otherwise: Callable[[], ssl.SSLContext]
) -> ssl.SSLContext:
    """A context that passes each handshake on: to the one `of` the name, else to what `otherwise` gives then.

    `like` gives the settings that hold before the name is known, such as the least version.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = like.minimum_version
    context.options = like.options

    def pick(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        found = of(name.lower().rstrip(".")) if name and len(name) <= _LONGEST else None
        connection.context = found or otherwise()

    context.sni_callback = pick
    return context

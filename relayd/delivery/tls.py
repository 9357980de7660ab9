"""TLS contexts for upstreams: verified against the system's CAs or the upstream's own, TLS 1.2 at least.

Which upstream needs TLS, and what follows when it is not to be had, is smtp.py's.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from relayd.config.models import SMTPUpstream, UpstreamTLS


def client_context(upstream: SMTPUpstream) -> ssl.SSLContext:
    """A context for this upstream. Raises OSError (ssl.SSLError included) when its ca_file cannot be used.

    `opportunistic` takes any certificate: it guards against listeners on the line, not against impostors (RFC 7435).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if upstream.tls is UpstreamTLS.OPPORTUNISTIC:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif upstream.ca_file is not None:
        context.load_verify_locations(cafile=upstream.ca_file)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


class ClientContexts:
    """Contexts by what they depend on, loaded once: reading the system's CAs takes tens of milliseconds.

    Make a new one for a new configuration, so that a changed ca_file is read again.
    """

    def __init__(self) -> None:
        self._contexts: dict[tuple[Path | None, UpstreamTLS], ssl.SSLContext] = {}

    async def get(self, upstream: SMTPUpstream) -> ssl.SSLContext:
        """The context for this upstream, made off the loop at its first use. Raises OSError as `client_context`."""
        key = (upstream.ca_file, upstream.tls)
        context = self._contexts.get(key)
        if context is None:
            context = await asyncio.to_thread(client_context, upstream)
            self._contexts[key] = context
        return context


def server_name(upstream: SMTPUpstream) -> str:
    """The name that the certificate must carry, and that SNI tells."""
    return (upstream.tls_name or upstream.host).rstrip(".")

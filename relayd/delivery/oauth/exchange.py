"""Asks token servers over HTTPS: one form, one JSON answer, no redirects, and nothing of it in any log.

What is asked and what answers mean is grants.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from relayd.delivery.oauth.grants import TokenError

if TYPE_CHECKING:
    import aiohttp

TIMEOUT = 30.0
_LARGEST = 256 * 1024


class Exchange:
    """One HTTP client, made at the first question."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def post(self, title: str, url: str, form: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body. Raises TokenError: not to be reached. Its text names no address with secrets in it."""
        import aiohttp  # noqa: PLC0415 - 5 MiB in every worker, and few have upstreams with tokens

        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT), headers={"Accept": "application/json"}
            )
        try:
            # a redirect would carry our secrets to a place that nobody configured
            async with self._session.post(url, data=dict(form), allow_redirects=False) as response:
                body = await response.content.read(_LARGEST)
                while len(body) < _LARGEST and (more := await response.content.read(_LARGEST - len(body))):
                    body += more
                return response.status, body
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            kind = "does not answer in time" if isinstance(error, TimeoutError) else "cannot be reached"
            raise TokenError(f"the token server of {title} {kind}", refused=False) from None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

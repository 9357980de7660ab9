"""A scriptable OAuth2 token server on loopback: it remembers every form, rotates refresh tokens, refuses on demand."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from aiohttp import web


class TokenServer:
    """Enter it; `url` is where tokens are issued, `device_url` where device codes are."""

    def __init__(self, *, life: float = 3600, rotate: bool = False) -> None:
        self.life = life
        self.rotate = rotate
        self.refuse: dict[str, Any] | None = None
        """Answer this with HTTP 400."""
        self.pending = 0
        """So often a device code is not entered yet."""
        self.forms: list[dict[str, str]] = []
        self.tokens: list[str] = []
        self.valid_refresh: str | None = None
        """When set, any other refresh token is refused."""
        self.slow = asyncio.Event()
        self.slow.set()
        self._runner: web.AppRunner | None = None
        self.url = self.device_url = ""

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_post("/token", self._token)
        application.router.add_post("/devicecode", self._device)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.url, self.device_url = f"{base}/token", f"{base}/devicecode"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _token(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.forms.append(form)
        await self.slow.wait()
        if self.refuse is not None:
            return web.json_response(self.refuse, status=400)
        if form["grant_type"].endswith("device_code") and self.pending > 0:
            self.pending -= 1
            return web.json_response({"error": "authorization_pending"}, status=400)
        if self.valid_refresh is not None and form.get("refresh_token", self.valid_refresh) != self.valid_refresh:
            return web.json_response({"error": "invalid_grant", "error_description": "AADSTS50173: x"}, status=400)
        token = f"canary-access-{len(self.tokens)}-{'x' * 40}"
        self.tokens.append(token)
        answer: dict[str, Any] = {"access_token": token, "token_type": "Bearer", "expires_in": self.life}
        if self.rotate or "code" in form or "device_code" in form:
            self.valid_refresh = answer["refresh_token"] = f"canary-refresh-{len(self.tokens)}"
        return web.json_response(answer)

    async def _device(self, request: web.Request) -> web.Response:
        self.forms.append({name: str(value) for name, value in (await request.post()).items()})
        return web.json_response(
            {
                "device_code": "canary-device",
                "user_code": "ABCD-EFGH",
                "verification_uri": "https://example.com/device",
                "expires_in": 900,
                "interval": 5,
            }
        )

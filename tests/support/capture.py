"""The end of the line: an SMTP server on loopback that keeps every mail octet by octet and judges nothing.

fake_upstream.py is for what upstreams can do wrong; this is for what arrives. Runs in a thread of its own.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Captured:
    """One mail as it arrived: parameters as written, content without dot-stuffing."""

    mail: str
    rcpts: tuple[str, ...]
    content: bytes


class Capture:
    """Takes any mail. `wait(n)` gives the first n once they are there."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.mails: list[Captured] = []
        self._arrived = threading.Condition()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, name="capture", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.server_address[1])

    def keep(self, mail: Captured) -> None:
        with self._arrived:
            self.mails.append(mail)
            self._arrived.notify_all()

    def wait(self, count: int = 1, timeout: float = 60) -> list[Captured]:
        """The first `count` mails. Raises TimeoutError when they do not come."""
        return self.wait_for(lambda _: True, count, timeout)

    def wait_for(self, wanted: Callable[[Captured], bool], count: int = 1, timeout: float = 60) -> list[Captured]:
        """The first `count` mails that are `wanted`. Raises TimeoutError when they do not come."""

        def found() -> list[Captured]:
            return [mail for mail in self.mails if wanted(mail)]

        with self._arrived:
            if not self._arrived.wait_for(lambda: len(found()) >= count, timeout):
                raise TimeoutError(f"{len(found())} of {count} mails arrived within {timeout} s")
            return found()[:count]


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.address_family = socket.AF_INET6 if ":" in capture.host else socket.AF_INET
        super().__init__((capture.host, 0), _Session)


class _Session(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        self._say("220 capture.test ESMTP")
        mail = ""
        rcpts: list[str] = []
        while line := self.rfile.readline(65536):
            command = line.rstrip(b"\r\n").decode("utf-8", "replace")
            match command[:4].upper():
                case "EHLO":
                    self._say(
                        "250-capture.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250 SIZE 0"
                    )
                case "MAIL":
                    mail, rcpts = command[10:], []
                    self._say("250 2.1.0 Ok")
                case "RCPT":
                    rcpts.append(command[8:])
                    self._say("250 2.1.5 Ok")
                case "DATA":
                    self._say("354 Go on")
                    content = self._content()
                    if content is None:
                        return
                    self.server.capture.keep(Captured(mail, tuple(rcpts), content))
                    self._say("250 2.0.0 Kept")
                case "QUIT":
                    self._say("221 2.0.0 Bye")
                    return
                case _:
                    self._say("250 2.0.0 Ok")

    def _content(self) -> bytes | None:
        """Up to CRLF.CRLF exactly; a line is what ends with CRLF, so stray CR and LF show in what was kept."""
        lines: list[bytes] = []
        pending = b""
        while part := self.rfile.readline():
            pending += part
            if not pending.endswith(b"\r\n"):
                continue
            if pending == b".\r\n":
                return b"".join(lines)
            lines.append(pending[1:] if pending.startswith(b".") else pending)
            pending = b""
        return None

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

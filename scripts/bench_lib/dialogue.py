"""Reading SMTP replies as fast as Python can: shared by the generator and whoever asks the sink for its count."""

from __future__ import annotations

import socket
import ssl

NUMBER = b"X-Bench-Number: "
"""Header of a numbered mail, at its very top."""


def final_lines(buffer: bytearray) -> list[bytes]:
    """Take every complete reply out of `buffer`; the last line of each."""
    replies = []
    start = 0
    while (end := buffer.find(b"\n", start)) >= 0:
        line = bytes(buffer[start:end])
        start = end + 1
        if line[3:4] != b"-":
            replies.append(line)
    del buffer[:start]
    return replies


def _connect(port: int, *, tls: bool) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    return ssl._create_unverified_context().wrap_socket(client) if tls else client


def sink_count(port: int, *, tls: bool = False) -> int:
    """How many mails the sink (our own) has taken: its answer to VRFY."""
    with _connect(port, tls=tls) as client:
        client.sendall(b"VRFY count\r\n")
        buffer = bytearray()
        replies: list[bytes] = []
        while len(replies) < 2:
            data = client.recv(4096)
            if not data:
                raise ConnectionError("the sink went away")
            buffer += data
            replies += final_lines(buffer)
        return int(replies[1].split()[1])

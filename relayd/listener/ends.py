"""The ways a command or a session ends early, as exceptions: raised deep in a command, caught by the command loop.

What intake decides is no exception: those replies are returned and said.
"""

# ruff: noqa: N818 - none of these is an error of ours

from __future__ import annotations

from relayd.core.reply import Reply
from relayd.listener.observer import ListenerRefusal


class Refused(Exception):
    """The command is refused by the listener itself; the session goes on."""

    def __init__(self, reply: Reply, refusal: ListenerRefusal = ListenerRefusal.COMMAND) -> None:
        super().__init__()
        self.reply = reply
        self.refusal = refusal


class Goodbye(Exception):
    """End the session with this reply; None where the client could not read one."""

    def __init__(self, reply: Reply | None, refusal: ListenerRefusal | None = None) -> None:
        super().__init__()
        self.reply = reply
        self.refusal = refusal


class Gone(Exception):
    """The client has closed the connection, or it broke."""

"""The time that a client has: for a line, the next octets of a message, all of the session, reading our replies.

One timer serves a whole connection: it is re-armed when it fires, not with each command. What is late is said by
`interrupt`, which is stream.py's.
"""

from __future__ import annotations

import asyncio
import math
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, cast

from aiosmtpd.smtp import SMTP

from relayd.listener import replies
from relayd.listener.ends import Goodbye
from relayd.listener.observer import ListenerRefusal

if TYPE_CHECKING:
    from relayd.listener.server import ListenerServer


class Phase(Enum):
    """What a session waits for: time-outs and draining depend on it."""

    OPENING = auto()
    """PROXY header or TLS handshake."""
    COMMAND = auto()
    CONTENT = auto()
    OURS = auto()
    """Nothing from the client: intake is at work."""
    CLOSING = auto()


class Deadlines(SMTP):
    """The part of a connection that looks at the clock."""

    # A connection has more attributes than the 30 that Python (3.11) keeps in shared form: each would have a dictionary
    # of its own, and every look at an attribute or a method would be a search in it. So these classes name theirs.
    __slots__ = (
        "_content_octets",
        "_deadline",
        "_paused",
        "_time",
        "_timer",
        "_window_octets",
        "_window_start",
        "loop",
        "lost",
        "phase",
        "server",
        "wire",
    )

    def __init__(self, server: ListenerServer) -> None:
        # SMTP.__init__ looks up hooks and methods by reflection; per connection that costs more than a whole mail.
        # No StreamReader either: stream.py takes the octets itself. Of what they prepare, only this is used.
        self._paused = False
        self.server = server
        self.loop = server.loop
        self.wire: asyncio.Transport = cast(Any, None)
        self.phase = Phase.OPENING
        self.lost = False
        """The socket is gone."""
        self._time = server.loop.time
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._window_start = 0.0
        self._window_octets = 0
        self._content_octets = 0

    def overdue(self, now: float) -> bool:
        """Whether the session has lasted its time."""
        raise NotImplementedError

    def interrupt(self, reason: Exception) -> None:
        """Raise this in the session's task where it waits for the client, or as soon as it does."""
        raise NotImplementedError

    def start_timer(self) -> None:
        """Begin to watch deadlines. Called once; the timer re-arms itself until the connection is lost."""
        self._timer = self.loop.call_later(self.server.tick, self._tick)

    def _tick(self) -> None:
        # No wait is shorter than a tick, so whoever starts one only writes down its deadline: no timer is
        # cancelled or made per command.
        now = self._time()
        tick = self.server.tick
        if now >= self._deadline:
            self._deadline = math.inf
            self._expired()
        elif self.phase is Phase.CONTENT:
            self._check_rate(now)
        elif self.phase is Phase.COMMAND and self.overdue(now):
            self.interrupt(Goodbye(replies.SESSION_OVER, ListenerRefusal.SESSION))
        if not self.lost:
            wait = min(tick, max(self._deadline - now, 0.001))
            self._timer = self.loop.call_later(wait, self._tick)

    def _expired(self) -> None:
        if self.phase is Phase.CLOSING:
            self.wire.abort()
        elif self._paused:
            self.interrupt(Goodbye(None, ListenerRefusal.UNREAD_REPLIES))
        elif self.phase is Phase.CONTENT:
            self.interrupt(Goodbye(replies.DATA_TIMED_OUT, ListenerRefusal.DATA_IDLE))
        else:
            self.interrupt(Goodbye(replies.TIMED_OUT, ListenerRefusal.IDLE))

    def expect_line(self) -> None:
        """A line has to be whole within `limits.idle` from now on, however slowly its octets come."""
        self.phase = Phase.COMMAND
        self._deadline = self._time() + self.server.limits.idle

    def line_taken(self) -> None:
        """It is here: what takes time now is ours."""
        self.phase = Phase.OURS
        self._deadline = math.inf

    def begin_content(self) -> None:
        """Octets of a message come now: `data_idle` and `min_rate` hold."""
        now = self._time()
        self.phase = Phase.CONTENT
        self._deadline = now + self.server.limits.data_idle
        self._window_start = now
        self._window_octets = self._content_octets = 0

    def progress(self, octets: int) -> None:
        """So many octets of the message came."""
        self._content_octets += octets
        self._deadline = self._time() + self.server.limits.data_idle

    def end_content(self) -> None:
        """The message or chunk is whole."""
        self.phase = Phase.OURS
        self._deadline = math.inf

    def _check_rate(self, now: float) -> None:
        elapsed = now - self._window_start
        if elapsed < self.server.rate_window:
            return
        if self._content_octets - self._window_octets < self.server.limits.min_rate * elapsed:
            self.interrupt(Goodbye(replies.TOO_SLOW, ListenerRefusal.MIN_RATE))
        self._window_start, self._window_octets = now, self._content_octets

    def end_within(self, seconds: float) -> None:
        """Cut the connection off after this time, if it is there still."""
        self._deadline = self._time() + seconds
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._tick)

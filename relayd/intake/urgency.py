"""How urgent an accepted message is: by its header, its credential, or the routes of its recipients. Pure.

What the priorities do in the queue is delivery/turns.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from relayd.config.models import Config
from relayd.core.mail import Message, Recipient
from relayd.core.priority import Priority, read_priority

RoutePriority = Callable[[Message, Recipient], Priority | None]
"""What the route of a recipient says."""


class Urgency:
    """What a configuration says about priorities, made ready for the hot path."""

    def __init__(self, config: Config, by_route: RoutePriority | None) -> None:
        self.header = config.priority_header.lower()
        self._credentials = {each.username: each.priority for each in config.credentials if each.priority is not None}
        self._by_route = by_route if any(route.priority is not None for route in config.routes) else None

    def of(self, message: Message, header: str | None, recipients: Iterable[Recipient]) -> int:
        """The header speaks first, but never for more than the credential has; then the credential; then the route of
        the recipient that has the most.
        """
        if header is None and not self._credentials and self._by_route is None:
            return 0
        by_route = self._by_route if not message.origin.inbound else None
        return urgency_of(
            None if header is None else read_priority(header),
            self._credentials.get(message.origin.credential or ""),
            () if by_route is None else (by_route(message, recipient) for recipient in recipients),
        )


def urgency_of(header: Priority | None, credential: Priority | None, routes: Iterable[Priority | None]) -> int:
    """What the three together say."""
    if header is not None:
        return header.urgency if credential is None else min(header.urgency, credential.urgency)
    if credential is not None:
        return credential.urgency
    return max((0 if priority is None else priority.urgency for priority in routes), default=0)

"""The parts of inbound for one worker, put together: the lane's connector, the mailboxes, what other workers ask.

What facts change is apply.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from relayd.config.models import Config
from relayd.core.bounce.verdict import Findings
from relayd.core.token import ReturnPaths
from relayd.core.units import Millis
from relayd.inbound.archive import Archive, Remote, Spool, Verb, Write
from relayd.inbound.filing import Filing
from relayd.inbound.mailboxes import Keep, Mailboxes, State
from relayd.inbound.match import Matcher
from relayd.inbound.observer import InboundObserver
from relayd.inbound.session import InboundConnector


def _examine(content: bytes) -> Findings:
    """What a mail that came back says. Raises nothing."""
    from relayd.core.bounce.explain import examine  # noqa: PLC0415 - its tables are 2 MiB, loaded when mail comes back

    return examine(content)


class InboundDesk:
    """Call from the event loop only. `start` before mail is delivered, `stop_fetching` before delivery stops."""

    def __init__(
        self,
        config: Config,
        paths: ReturnPaths | None,
        store: Spool,
        state: State,
        *,
        write: Write,
        keep: Keep,
        remote: Remote,
        observer: InboundObserver,
        clock: Callable[[], Millis],
        slot: int,
        slots: int,
    ) -> None:
        """`write` writes facts down; `keep` takes fetched mail in; `remote` asks another worker."""
        self._config = config
        self._archive = Archive(slot, slots, store, write, remote)
        self._filing = Filing(config.data_dir / "inbound.db", clock)
        self._mailboxes = Mailboxes(state, keep, observer, clock)
        self.connector = InboundConnector(_examine, self._matcher(paths), self._archive, self._filing, observer)
        """What the lane "@inbound" delivers to."""

    def _matcher(self, paths: ReturnPaths | None) -> Matcher:
        return Matcher(self._archive, paths, self._config.hostname, round(self._config.bounces.verify_for * 1000))

    def verbs(self) -> Mapping[str, Verb]:
        """What other workers ask on the control socket. They raise FactError, StoreError, ValueError."""
        return self._archive.verbs()

    async def start(self) -> None:
        """Begin to read the mailboxes."""
        await self._mailboxes.apply(self._config.bounces.mailboxes, self._config.bounces.verify_for)

    async def apply(self, config: Config, paths: ReturnPaths | None) -> None:
        """Take over a changed configuration."""
        self._config = config
        self.connector.matcher = self._matcher(paths)
        await self._mailboxes.apply(config.bounces.mailboxes, config.bounces.verify_for)

    async def stop_fetching(self) -> None:
        """Take no more mail from mailboxes."""
        await self._mailboxes.stop()

    async def close(self) -> None:
        """Delivery has stopped: let go of everything."""
        await self._archive.close()
        await self._filing.close()

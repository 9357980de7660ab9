"""What is left of the budgets, as commands tell it: read from state.db, whether a daemon runs or not."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relayd.cli.common import CommandError, now_ms
from relayd.cli.out import iso, moment

if TYPE_CHECKING:
    from relayd.config.models import Config
    from relayd.core.permits import Share, Usage, Window
    from relayd.core.units import Millis
    from relayd.spool.store import Waiting

_MINUTE = 60_000


@dataclass(frozen=True, slots=True)
class Left:
    """One window of one budget."""

    share: Share
    window: Window
    used: int
    free_at: Millis | None
    """When there is room again; None: there is."""

    @property
    def limit(self) -> str:
        """As it is written."""
        from relayd.core.units import Rate

        return str(Rate(self.window.count, self.window.span / 1000))

    @property
    def left(self) -> int:
        """Permits."""
        return max(self.window.count - self.used, 0)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "of": self.share.name,
            "kind": self.share.kind.value,
            "limit": self.limit,
            "used": self.used,
            "left": self.left,
            "free_at": iso(self.free_at),
        }


class Budgets:
    """The budgets of all lanes at one moment."""

    def __init__(self, config: Config, data_dir: Path) -> None:
        """Raises CommandError where state.db cannot be read."""
        from relayd.delivery.allowance import shares_of
        from relayd.spool.budgets import read_usages
        from relayd.spool.state import StateError

        self.now = now_ms()
        self.lanes = shares_of(config)
        every = list(dict.fromkeys(share for shares in self.lanes.values() for share in shares))
        try:
            usages = read_usages(data_dir / "state.db", every) if every else []
        except (StateError, OSError) as error:
            raise CommandError(str(error)) from None
        self._usages: dict[Share, Usage] = dict(zip(every, usages, strict=True))
        for share, usage in self._usages.items():
            usage.tidy(self.now, share.windows)

    def of(self, shares: Iterable[Share]) -> list[Left]:
        """What is left of these budgets, window by window."""
        out = []
        for share in shares:
            usage = self._usages[share]
            for window in share.windows:
                used = usage.used(self.now, window)
                free_at = usage.free_at(self.now, [window])[0] if used >= window.count else None
                out.append(Left(share, window, used, free_at))
        return out

    def named(self, name: str) -> list[Left]:
        """Those of an upstream or account itself."""
        return self.of(share for share in self._usages if share.name == name)

    def in_the_way(self, lane: str) -> Left | None:
        """The exhausted budget that mail of a lane waits for."""
        spent = [left for left in self.of(self.lanes.get(lane, ())) if left.free_at is not None]
        return max(spent, key=lambda left: left.free_at or 0, default=None)

    def through(self, lanes: Sequence[str], recipients: int, throughput: float) -> Millis | None:
        """When so many recipients will be through: so many a minute, but no sooner than the budgets allow.

        None where nothing waits, or nothing tells.
        """
        if not recipients:
            return None
        shares = {share for lane in lanes for share in self.lanes.get(lane, ())}
        moments = [self._usages[share].through(self.now, recipients, share.windows) for share in shares]
        if throughput:
            moments.append(self.now + round(recipients / throughput * _MINUTE))
        return max(moments, default=None)


def budgets_at(path: Path) -> Budgets | None:
    """The budgets of a configuration; None where it has faults: those who tell of something else do not need them."""
    from relayd.cli.upstreams import upstreams_of
    from relayd.config.fault import ConfigError

    try:
        whole = upstreams_of(path)
        return Budgets(whole, whole.data_dir)
    except (ConfigError, CommandError):
        return None


def budget_of(budgets: Budgets | None, waiting: Waiting) -> Left | None:
    """The exhausted budget that a recipient waits for, where its time has come."""
    due = waiting.due is not None and waiting.due <= now_ms()
    return budgets.in_the_way(waiting.lane) if due and budgets is not None else None


def waits_for(left: Left) -> str:
    """The same in words."""
    return f"waits for the budget of {left.share.name} ({left.share.kind} {left.limit}), free at {moment(left.free_at)}"

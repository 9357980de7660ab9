"""All trials, in the order of docs/reliability.md."""

from __future__ import annotations

from tests.torture import backlog, reload, restart
from tests.torture.trial import Trial

TRIALS: tuple[Trial, ...] = (
    backlog.TRIAL,
    reload.TRIAL,
    restart.TRIAL,
)

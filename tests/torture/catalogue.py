"""All trials, in the order of docs/reliability.md."""

from __future__ import annotations

from tests.torture import (
    backlog,
    disk,
    fuzz,
    greedy,
    guessing,
    injection,
    kill,
    relaying,
    reload,
    restart,
    smuggling,
    soak,
    starttls,
    wedged,
)
from tests.torture.trial import Trial

TRIALS: tuple[Trial, ...] = (
    smuggling.TRIAL,
    starttls.TRIAL,
    injection.TRIAL,
    relaying.TRIAL,
    greedy.TRIAL,
    guessing.TRIAL,
    fuzz.TRIAL,
    kill.TRIAL,
    disk.TRIAL,
    wedged.TRIAL,
    backlog.TRIAL,
    reload.TRIAL,
    restart.TRIAL,
    soak.TRIAL,
)

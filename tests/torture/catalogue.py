"""All trials, in the order of docs/reliability.md."""

from __future__ import annotations

from tests.torture import reload
from tests.torture.trial import Trial

TRIALS: tuple[Trial, ...] = (reload.TRIAL,)

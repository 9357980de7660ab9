"""What a trial is: a promise, and a way to try to break it for as long as it is given. Running them is __main__'s.

To add one: a module below tests/torture with, say,

    async def _rounds(context: Context) -> Figures:
        count = 0
        for _ in context.rounds():  # one round at least, then until the time is up
            context.promise(await one_mail(context.rng) == 250, "a good client was refused")
            count += 1
        return {"mails": count}

    TRIAL = Trial("greedy", 5, "Greedy clients do not keep others from being served.", _rounds)

and its TRIAL in TRIALS of catalogue.py. A round takes a second or two where that is possible: then the fast part of
the suite (tests/operations/test_torture.py) runs one round with a fixed seed by itself, so that the trial cannot rot.
What takes longer says `quick=False`. Everything random comes from `context.rng`; everything written goes below
`context.directory`; the promise and the figures go to its section of docs/reliability.md, which must name the trial.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Figures = Mapping[str, str | int | float]
"""What was measured: what it is (with its unit) → the figure. They become rows of the table."""

Run = Callable[["Context"], Awaitable[Figures]]

SHOWN, LONGEST = 20, 500
"""Broken promises that are told one by one, and characters of each."""


@dataclass
class Context:
    """What a trial gets. `say` tells whoever watches how it goes."""

    seed: int
    minutes: float
    """The time it may take; 0: one round."""
    directory: Path
    """Its own, empty at the start."""
    say: Callable[[str], None]
    rng: random.Random = field(init=False)
    broken: list[str] = field(init=False, default_factory=list)
    """Promises that did not hold."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._began = time.monotonic()

    @property
    def timed(self) -> bool:
        """Are waits judged? Not in a single round: the fast part of the suite shares its machine with other tests."""
        return self.minutes > 0

    @property
    def left(self) -> float:
        """Seconds until its time is up; never below 0."""
        return max(0.0, self._began + self.minutes * 60 - time.monotonic())

    def rounds(self, most: int | None = None) -> Iterator[int]:
        """0, 1, 2, …: at least one round, then until the time is up, or `most` of them are done."""
        number = 0
        while number == 0 or (self.left and (most is None or number < most)):
            yield number
            number += 1

    def promise(self, kept: object, otherwise: str) -> None:
        """Note a broken promise and go on. What makes going on senseless is raised as AssertionError."""
        if not kept:
            self.broken.append(otherwise[:LONGEST])
            if len(self.broken) <= SHOWN:
                self.say(f"BROKEN: {self.broken[-1]}")


@dataclass(frozen=True, slots=True)
class Trial:
    """One promise, and how it is tried."""

    name: str
    item: int
    """Its item of docs/reliability.md."""
    promise: str
    """In one sentence."""
    run: Run
    quick: bool = True
    """One round takes a second or two: the fast part of the suite runs it, too."""
    grace: float = 300.0
    """Seconds beyond its time after which it counts as hung: start, the last round, the final look."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a trial."""

    trial: Trial
    figures: Figures
    broken: tuple[str, ...]
    seconds: float


async def attempt(trial: Trial, context: Context) -> Result:
    """Run one. A broken promise, a failed assertion, a trial that hangs or falls over: all of them are results."""
    began = time.monotonic()
    figures: Figures = {}
    try:
        async with asyncio.timeout(context.minutes * 60 + trial.grace):
            figures = await trial.run(context)
    except AssertionError as error:
        context.promise(False, str(error) or "an assertion without words")
    except TimeoutError:
        context.promise(False, f"it did not end within {trial.grace:g} s of its time")
    except Exception as error:  # noqa: BLE001 - whatever a trial stumbles over, the others still run, and this one failed
        context.promise(False, f"{type(error).__name__}: {error}")
        traceback.print_exc()
    return Result(trial, figures, tuple(context.broken), time.monotonic() - began)

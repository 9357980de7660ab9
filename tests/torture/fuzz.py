"""Trial: random octets, made by mutation of ordinary input, for all that takes octets from outside (tests/fuzz)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from tests.fuzz.targets import TARGETS, timed
from tests.support.log_lines import STEERING, log_lines
from tests.torture.trial import Context, Figures, Trial

INPUTS = 60
"""For each target in one round."""
LONGEST = 8192


def mutated(rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """A seed, changed in some places."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8, 20))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[place:place] = rng.choice(words)
            case 1:
                del data[place : place + rng.choice((1, 2, 5, 20))]
            case 2:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case 3:
                data[place:place] = rng.choice(words) * rng.choice((2, 10, 100))
            case 4:
                other = rng.choice(seeds)
                data[place:] = other[rng.randrange(len(other) + 1) :]
            case _:
                begin = rng.randrange(len(data) + 1)
                data[place:place] = data[begin : begin + rng.randrange(1, 60)]
    return bytes(data[:LONGEST])


async def _rounds(context: Context) -> Figures:
    with log_lines() as log:
        figures = await _inputs(context)
    context.promise(not STEERING.search(log.text), "a control character is in the log")
    context.promise(not log.errors, f"the log tells of errors: {log.errors[:3]}")
    return figures


async def _inputs(context: Context) -> Figures:
    count: Counter[str] = Counter()
    for _ in context.rounds():
        for name, target in TARGETS.items():
            for _ in range(INPUTS):
                data = mutated(context.rng, target.seeds, target.words)
                count[name] += 1
                try:
                    # on a busy machine, beside other tests, no time is a promise
                    await (timed(target, data) if context.minutes else target.one(data))
                except Exception as error:  # noqa: BLE001 - whatever it is, it should not be raised: that is the trial
                    context.promise(False, f"{name}: {type(error).__name__} for {data!r}: {error}"[:2000])
    return {f"inputs for {name}": number for name, number in count.items()}


TRIAL = Trial(
    "fuzz", 9, "Whatever octets come from outside, nothing raises, hangs, or lets control characters on.", _rounds
)

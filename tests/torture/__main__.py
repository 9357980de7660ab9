"""`scripts/torture`: which trials, for how long, with which seed; a table of figures in Markdown on standard output."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.torture.catalogue import TRIALS
from tests.torture.trial import SHOWN, Context, Result, Trial, attempt

EPILOG = """\
Every trial tries to break one promise of docs/reliability.md, on the loopback only, for as long as --minutes says. The
command ends with 0 when all promises held, with 1 when one was broken, with 2 when the command line is wrong. The same
seed makes the same choices; who comes first on a busy machine may still differ.

examples:
  scripts/torture --list
  scripts/torture reload --minutes 1
  scripts/torture --seed 7 --minutes 10            all of them, ten minutes each
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="scripts/torture",
        description="Tries to break what relayd promises: faults, abuse, load, for a long time.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("trials", nargs="*", metavar="TRIAL", help="by name; none: all of them")
    made.add_argument("--list", action="store_true", help="name all trials with their promises")
    made.add_argument("--seed", type=int, help="of everything that is left to chance (a new one, which is shown)")
    made.add_argument("--minutes", type=float, default=2.0, help="for each trial; 0: one round (2)")
    made.add_argument(
        "--directory", type=Path, help="where spools are made: the disk that is tried (the temporary one)"
    )
    made.add_argument("--keep", action="store_true", help="leave what the trials wrote, and say where")
    return made


def main(argv: Sequence[str]) -> int:
    """Run them; the exit status."""
    options = parser()
    args = options.parse_args(argv)
    if args.list:
        width = max(len(trial.name) for trial in TRIALS)
        sys.stdout.writelines(f"{t.name:{width}}  {t.item:2}  {t.promise}\n" for t in TRIALS)
        return 0
    unknown = set(args.trials) - {trial.name for trial in TRIALS}
    if unknown:
        options.error(f"no trial is called {', '.join(sorted(unknown))}: see --list")
    if not 0 <= args.minutes < 24 * 60:
        options.error("--minutes: from 0 to a day")
    seed = random.SystemRandom().randrange(1_000_000) if args.seed is None else args.seed
    chosen = [trial for trial in TRIALS if not args.trials or trial.name in args.trials]
    results = []
    for trial in chosen:
        with _directory(trial, args) as directory:
            context = Context(seed, args.minutes, directory, _sayer(trial))
            context.say(f"{trial.promise} (seed {seed}, {args.minutes:g} min)")
            with contextlib.redirect_stdout(sys.stderr):  # a failed wait of tests/support tells the log there
                results.append(asyncio.run(attempt(trial, context)))
    sys.stdout.write(table(results, seed, args.minutes))
    return int(any(result.broken for result in results))


def table(results: Sequence[Result], seed: int, minutes: float) -> str:
    """The figures in Markdown, and below it what was broken."""
    lines = [f"Seed {seed}, {minutes:g} minutes for each trial.", "", "| trial | what | measured |", "|---|---|---|"]
    for result in results:
        facts = {
            "promise": "kept" if not result.broken else f"BROKEN {len(result.broken)} ×",
            "seconds": round(result.seconds),
        }
        for what, figure in (facts | dict(result.figures)).items():
            shown = (
                f"{figure:,}" if isinstance(figure, int) else f"{figure:,.3g}" if isinstance(figure, float) else figure
            )
            lines.append(f"| {result.trial.name} | {what} | {shown} |")
    broken = [f"- {result.trial.name}: {each}" for result in results for each in result.broken[:SHOWN]]
    return "\n".join([*lines, *(["", "Broken:", "", *broken] if broken else []), ""])


def _sayer(trial: Trial) -> Callable[[str], None]:
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"{trial.name} {time.monotonic() - began:6.1f} s  {text}\n")
        sys.stderr.flush()

    return say


@contextlib.contextmanager
def _directory(trial: Trial, args: argparse.Namespace) -> Iterator[Path]:
    """One that vanishes with the trial, unless it is to be kept."""
    if args.directory is not None:
        args.directory.mkdir(parents=True, exist_ok=True)
    prefix = f"relayd-torture-{trial.name}-"
    if args.keep:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=args.directory))
        yield made
        sys.stderr.write(f"{trial.name}: kept in {made}\n")
    else:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=args.directory, ignore_cleanup_errors=True) as path:
            yield Path(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

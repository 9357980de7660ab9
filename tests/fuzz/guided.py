"""Fuzzes one target of targets.py, guided by coverage. Not part of the suite: it needs atheris.

In a venv of its own, with the project's dependencies: pip install atheris, then
`python tests/fuzz/guided.py TARGET [DIRECTORY…] -max_total_time=600`. The first directory collects what it finds;
files in the others are seeds. Options are libFuzzer's. What it finds becomes a test.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import structlog

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
atheris: Any = importlib.import_module("atheris")
with atheris.instrument_imports(include=["relayd"]):
    from tests.fuzz.targets import TARGETS, timed


def _escaped(word: bytes) -> str:
    return "".join(rf"\x{octet:02x}" for octet in word)


def main(argv: list[str]) -> None:
    """Fuzz until the time is up or something breaks."""
    if len(argv) < 2 or argv[1] not in TARGETS:
        sys.exit(f"usage: guided.py {'|'.join(TARGETS)} [DIRECTORY…] [-max_total_time=SECONDS]")
    target = TARGETS[argv[1]]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(prefix="relayd-seeds-") as seeds:
        for number, seed in enumerate(target.seeds):
            (Path(seeds) / f"seed-{number}").write_bytes(seed)
        words = Path(seeds) / "words.dict"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        options = [option for option in argv[2:] if option.startswith("-")]
        own = [option for option in argv[2:] if not option.startswith("-")] or [
            tempfile.mkdtemp(prefix="relayd-found-")
        ]
        atheris.Setup(
            [argv[0], *own, seeds, f"-dict={words}", *options],
            lambda data: loop.run_until_complete(timed(target, data)),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)

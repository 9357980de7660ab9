"""Fuzzes the understanding of returned mails, guided by coverage. Not part of the suite: it needs atheris.

In a venv of its own: pip install atheris, then `python tests/fuzz/bounces.py DIRECTORY… -max_total_time=600`. The first
directory collects what it finds; mails in the others are seeds. Options are libFuzzer's. What it finds becomes a test.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
atheris: Any = importlib.import_module("atheris")
with atheris.instrument_imports(include=["relayd.core"]):
    from relayd.core.bounce.explain import examine, explain_reply
    from relayd.core.bounce.verdict import Kind

SLOW = 0.4
"""Seconds of CPU: some eight times what is allowed, for counting coverage costs that much."""


def one(data: bytes) -> None:
    """Any mail has a verdict, soon; nothing raises."""
    begun = time.process_time()
    findings = examine(data)
    took = time.process_time() - begun
    if took > SLOW:
        raise RuntimeError(f"{took:.2f} s of CPU for {len(data)} octets")
    for verdict in findings.verdicts:
        shown = verdict.diagnostic + verdict.recipient + verdict.message_id + verdict.remote_mta
        if verdict.kind not in Kind or any(ord(letter) < 32 for letter in shown):
            raise RuntimeError(f"not fit to be shown: {verdict}")
        shown.encode()
        verdict.as_json()
    with contextlib.suppress(ValueError):  # it starts with no reply code
        explain_reply(data[:600].decode("utf-8", "replace"))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()

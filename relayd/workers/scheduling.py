"""How the kernel shares the processor between us and everybody else; set once, for all processes of the daemon."""

from __future__ import annotations

import contextlib
import os
import sys


def interrupt_nobody() -> None:
    """Have whoever runs finish first where there is work for us: the policy SCHED_BATCH of sched(7).

    A reply, a command or a commit's end would else stop the process that just sent it, and each of them all the others:
    more is done with what the caches hold where everybody goes on until nothing is left to do. Our share of the
    processor stays the same. Threads and processes that begin later have this policy, too. Any other one was
    somebody's choice, and stays.
    """
    if sys.platform == "linux":
        # a filter on system calls may forbid it: our systemd unit does, and asks for this policy itself
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(0) == os.SCHED_OTHER:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

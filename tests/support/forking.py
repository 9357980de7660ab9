"""Starts `relayd` processes quickly: a helper imports everything once, and each start is a fork of it.

The child is the same program with the same arguments as `python -m relayd ARGS`, in a session of its own. What it is
started for is daemon.py's business, what may be changed in it before it runs is crashing.py's.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
POLL = 0.01
LIMIT = 256 * 1024


class Process:
    """A running child, seen by its status pipe: first its pid, then how it ended."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._text = b""
        while b"\n" not in self._text:
            part = os.read(status, 64)
            if not part:
                raise RuntimeError("the helper that starts daemons is gone: see its standard error")
            self._text += part
        self.pid = int(self._text.partition(b"\n")[0])
        os.set_blocking(status, False)
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), None while it runs."""
        if self._code is None:
            with contextlib.suppress(BlockingIOError):
                self._text += os.read(self._status, 64)
            rest = self._text.partition(b"\n")[2]
            if rest.endswith(b"\n"):
                self._code = int(rest)
                os.close(self._status)
        return self._code

    async def wait(self, timeout: float = 60.0) -> int:
        """The exit status, once it has ended."""
        async with asyncio.timeout(timeout):
            while (code := self.poll()) is None:  # noqa: ASYNC110 - a pipe read in another loop each time
                await asyncio.sleep(POLL)
        return code

    def signal_group(self, number: int) -> None:
        """Send a signal to it and to all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Executed(Process):
    """The same for a child that was really executed (`python -m relayd`), not forked off the helper."""

    def __init__(self, argv: Sequence[str], out: Path, err: Path, cwd: Path, env: Mapping[str, str]) -> None:
        with out.open("ab") as stdout, err.open("ab") as stderr:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "relayd", *argv],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def poll(self) -> int | None:
        return self._popen.poll()


def start(
    argv: Sequence[str],
    out: Path,
    err: Path,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    plan: Mapping[str, Any] | None = None,
) -> Process:
    """Run `relayd ARGV` in a fork of the helper; `plan` is for crashing.install. Its output is appended to files."""
    request = {"argv": list(argv), "cwd": str(cwd), "env": dict(env or {}), "plan": plan}
    ours, theirs = os.pipe()
    with out.open("ab") as stdout, err.open("ab") as stderr:
        try:
            socket.send_fds(_helper(), [json.dumps(request).encode()], [stdout.fileno(), stderr.fileno(), theirs])
        except OSError:
            _helper.cache_clear()  # relayd may have been mended meanwhile: the next start tries again
            raise RuntimeError("the helper that starts daemons is gone: see its standard error") from None
        finally:
            os.close(theirs)
    return Process(ours)


@functools.cache
def _helper() -> socket.socket:
    """One helper for this process; it ends, and kills what it has started, when this process ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    helper = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forking", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        helper.wait()

    atexit.register(end)
    return ours


# -- the helper


@dataclass(frozen=True)
class Job:
    """What a child is to do."""

    argv: list[str]
    plan: dict[str, Any] | None


def _serve(sock: socket.socket) -> Job | None:
    """Fork for every request. In a child the job comes back; in the helper None, when nobody needs it any more."""
    children: dict[int, int] = {}
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([sock.fileno(), wake], [], [])
        if wake in ready:
            os.read(wake, 512)
            _reap(children)
        if sock.fileno() not in ready:
            continue
        data, fds, _, _ = socket.recv_fds(sock, LIMIT, 3)
        if not data:
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            return None
        request = json.loads(data)
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (sock.detach(), wake, woken, fds[2], *children.values()):
                os.close(fd)
            _become(request, fds)
            return Job(request["argv"], request["plan"])
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # here too: whoever is told the pid may signal the group at once
        children[pid] = fds[2]
        os.write(fds[2], b"%d\n" % pid)
        os.close(fds[0])
        os.close(fds[1])


def _reap(children: dict[int, int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        pipe = children.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(pipe)


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """From here on the child is like one that a shell has started."""
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    os.close(fds[0])
    os.close(fds[1])
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    random.seed()
    sys.argv = ["relayd", *request["argv"]]


def main(fd: int) -> None:
    """The helper: import what daemon and commands need, then fork."""
    import relayd.app
    import relayd.cli.main
    import relayd.cli.offline
    import relayd.web.server
    import relayd.workers.alone
    import relayd.workers.daemon
    import relayd.workers.start
    from tests.support import crashing

    gc.freeze()
    job = _serve(socket.socket(fileno=fd))
    if job is not None:
        if job.plan:
            crashing.install(job.plan)
        try:
            relayd.cli.main.main()
        except SystemExit as end:
            _leave(end.code)


def _leave(code: Any) -> None:
    """End as the interpreter would, save for taking all modules apart: that takes longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main(int(sys.argv[1]))

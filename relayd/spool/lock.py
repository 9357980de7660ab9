"""One daemon per data directory: a lock that ends with the process, however it ends. Holds the pid for people."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType


class AlreadyRunningError(Exception):
    """Another daemon uses the data directory."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"{path.parent} is in use by {who}: stop it first, or give this daemon another data_dir")
        self.pid = pid


class DataLock:
    """The lock file data_dir/lock. It stays there: removing it would let two daemons lock two different files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    @classmethod
    def adopt(cls, path: Path, handle: int) -> DataLock:
        """The lock that this process took before it executed itself anew; `handle` was its `fileno`."""
        os.set_inheritable(handle, False)
        lock = cls(path)
        lock._handle = handle
        return lock

    def acquire(self) -> None:
        """Take the lock. Raises AlreadyRunningError naming the holder, OSError."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(handle, 32, 0).strip()
            os.close(handle)
            raise AlreadyRunningError(self._path, int(text) if text.isdigit() else None) from None
        except OSError:
            os.close(handle)
            raise
        os.ftruncate(handle, 0)
        os.pwrite(handle, b"%d\n" % os.getpid(), 0)
        self._handle = handle

    def fileno(self) -> int:
        """The descriptor that holds the lock: while any process has it open, nobody else gets the lock."""
        if self._handle is None:
            raise ValueError("the lock is not held")
        return self._handle

    def release(self) -> None:
        """Let go of it."""
        if self._handle is not None:
            with contextlib.suppress(OSError):  # the disk may be full or read-only by now
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> DataLock:
        if self._handle is None:
            self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

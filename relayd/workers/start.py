"""`relayd serve`: the configuration is checked, the data directory made and locked; then the daemon runs, alone or as a
supervisor in a fresh process image.

What runs then is daemon.py's.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import sys
from pathlib import Path
from typing import NoReturn

import structlog

from relayd import logs
from relayd.config.load import ConfigError, examine
from relayd.config.models import Config
from relayd.config.secret import secrets_of
from relayd.spool.lock import AlreadyRunningError, DataLock
from relayd.spool.store import StoreError
from relayd.workers.channel import write_memory
from relayd.workers.groundwork import prepare
from relayd.workers.interpreter import command
from relayd.workers.orders import Handover
from relayd.workers.sealing import seal

FAILED = 1


def serve(config_path: Path, *, greet: bool = False) -> int:
    """Run the daemon in the foreground; the exit status. Raises ConfigError when the file is faulty.

    `greet`: say where it listens and how to send a first mail even where the log is no terminal. With several workers
    it does not return.
    """
    config_path = config_path.absolute()
    examined = examine(config_path)
    config = examined.config
    if config is None:
        raise ConfigError(config_path, examined.faults)
    logs.setup(config.log, secrets=secrets_of(config))
    for fault in examined.warnings:
        structlog.get_logger("relayd.daemon").warning("configuration", fault=fault.written(config_path))
    # a reload that is asked for before we listen is satisfied by the start itself; by default it would end us
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _raise_file_limit()
    try:
        config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with DataLock(config.data_dir / "lock") as lock:
            prepare(config)
            if config.worker_count > 1:
                _become_supervisor(config, config_path, lock, greet=greet)
            return _serve_alone(config, config_path, greet=greet)
    except (AlreadyRunningError, StoreError, OSError) as error:
        structlog.get_logger("relayd.daemon").error("cannot_start", reason=str(error))
        return FAILED


def _serve_alone(config: Config, config_path: Path, *, greet: bool) -> int:
    # what a worker is made of, which a supervisor has no use for
    from relayd.app import App  # noqa: PLC0415
    from relayd.workers.alone import Alone  # noqa: PLC0415
    from relayd.workers.daemon import run  # noqa: PLC0415

    return run(lambda sockets: Alone(config, App, sockets=sockets), seal(config), config_path, greet=greet)


def _become_supervisor(config: Config, config_path: Path, lock: DataLock, *, greet: bool) -> NoReturn:
    """Go on as a fresh interpreter, in the same process: what reading a configuration and making the data directory
    took, two thirds of our memory, is of no use to a supervisor. Raises OSError.
    """
    handover = Handover(seal(config), config_path, greet, sys.argv[0], lock.fileno())
    fd = write_memory(pickle.dumps(handover))
    for kept in (fd, lock.fileno()):
        os.set_inheritable(kept, True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command("daemon", str(fd), str(config_path)))  # noqa: S606 - our own program, without a shell


def _raise_file_limit() -> None:
    """Shells give a process 1,024 files; the hard limit is what the administrator allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

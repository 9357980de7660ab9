"""relayd serve, reload, status: the daemon itself. What it does is that of workers/ and app.py."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from typing import Annotated, Any

import typer

from relayd.cli.common import FAILED, OK, ConfigOption, JSONOption, config_path
from relayd.cli.out import Column, age, moment, print_json, print_pairs, print_table, say, span, warn
from relayd.cli.place import data_dir_of

GreetOption = Annotated[
    bool,
    typer.Option(
        "--greet",
        help="Say where it listens and how to send a first mail; without it only on a terminal.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(serve)
    app.command()(reload)
    app.command()(status)


def serve(context: typer.Context, *, greet: GreetOption = False, config: ConfigOption = None) -> None:
    """Run the daemon in the foreground.

    SIGTERM or Ctrl-C ends it once what is in flight is finished. SIGHUP (or `relayd reload`) applies a changed
    configuration without dropping a connection.
    """
    import structlog

    from relayd.config.fault import ConfigError
    from relayd.workers.start import serve as run

    path = config_path(context, config)
    try:
        code = run(path, greet=greet)
    except ConfigError:
        raise
    except Exception as error:
        # nobody sits before a daemon to run it again with --debug: its log has to tell where it broke
        structlog.get_logger("relayd.daemon").exception("crashed")
        raise typer.Exit(FAILED) from error
    raise typer.Exit(code)


def reload(context: typer.Context, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Make the daemon apply its changed file.

    No connection is dropped. A faulty file changes nothing, and its faults are printed.
    """
    from relayd.control import call

    [changes] = call(data_dir_of(config_path(context, config)), "reload", slots="lead")
    if as_json:
        print_json({"changes": changes})
        return
    if not changes:
        say("Reloaded: nothing had changed.")
        return
    say("Reloaded:")
    for change in changes:
        say(f"  {change}")


def status(context: typer.Context, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Say whether the daemon runs, and how it does. Exit code 1 when it does not run."""
    from relayd.control import NotRunningError, call

    data_dir = data_dir_of(config_path(context, config))
    try:
        [answer] = call(data_dir, "status", slots="lead", timeout=30.0)
    except NotRunningError:
        if as_json:
            print_json({"running": False, "data_dir": str(data_dir)})
        else:
            warn(f"not running on {data_dir}")
        raise typer.Exit(1) from None
    if as_json:
        print_json({"running": True, "data_dir": str(data_dir), "status": answer})
        raise typer.Exit(OK)
    say(f"Running on {data_dir}.", style="green")
    _tell(answer)


def _tell(answer: dict[str, Any]) -> None:
    """What workers/ and app.py report, for a person. A worker that does not answer reports little."""
    workers: list[dict[str, Any]] = answer.get("workers", [])
    print_pairs((name, ", ".join(addresses)) for name, addresses in answer.get("listening", {}).items())
    say()
    columns = [Column(name) for name in ("worker", "state", "for", "connections", "memory", "disk free")]
    columns.append(Column("remark", long=True))
    print_table(columns, (_worker_row(worker) for worker in workers), empty="no workers")
    say()
    columns = [Column("upstream"), *(Column(name, right=True) for name in ("sending", "connections", "in memory"))]
    print_table([*columns, Column("state", long=True)], _upstream_rows(workers), empty="no upstreams are known yet")


def _worker_row(worker: dict[str, Any]) -> list[str]:
    remarks = [str(reason) for reason in worker.get("not_ready") or ()]
    if worker.get("draining"):
        remarks.append("draining")
    if worker.get("restarts"):
        times = "once" if worker["restarts"] == 1 else f"{worker['restarts']} times"
        remarks.append(f"restarted {times}, last because: {worker.get('last_fault') or 'unknown'}")
    return [
        str(worker.get("worker", worker.get("slot", "?"))),
        str(worker.get("state", "")),
        span(round(worker.get("seconds") or 0) * 1000),
        str(worker.get("connections", "")),
        _mebibytes(worker.get("memory")),
        _mebibytes(worker.get("disk_free")),
        "; ".join(remarks),
    ]


def _mebibytes(octets: Any) -> str:
    return f"{octets / 1024**2:.1f} MiB" if isinstance(octets, int) else ""


def _upstream_rows(workers: list[dict[str, Any]]) -> list[list[str]]:
    """One line for each upstream, summed over the workers."""
    lanes: dict[str, list[dict[str, Any]]] = {}
    for worker in workers:
        for name, lane in (worker.get("upstreams") or {}).items():
            lanes.setdefault(name, []).append(lane)
    rows = []
    for name, parts in lanes.items():
        sums = [str(sum(int(part.get(key) or 0) for part in parts)) for key in ("sending", "connections", "in_memory")]
        paused = next((part for part in parts if part.get("paused")), None)
        state = "open" if paused is None else f"paused: {paused.get('reason')}, tried again {_soon(paused)}"
        waits = next((part["waits_for"] for part in parts if part.get("waits_for")), None)
        if waits is not None and paused is None:
            state = f"waits for {waits['kind']} {waits['limit']} of {waits['budget']}, free at {moment(waits['until'])}"
        rows.append([name or "(no route)", *sums, state])
    return rows


def _soon(lane: dict[str, Any]) -> str:
    until = lane.get("next_probe")
    return age(until) if isinstance(until, int) and until else "soon"

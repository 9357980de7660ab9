"""relayd upstream list: each upstream and account, how it stands, what is left of its budgets, when it is through."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from relayd.cli import standing
from relayd.cli.common import ConfigOption, JSONOption, config_path
from relayd.cli.out import Column, iso, print_json, print_table, say
from relayd.cli.upstreams import upstreams_of

if TYPE_CHECKING:
    from relayd.cli.budgets import Budgets
    from relayd.config.models import Config


def list_upstreams(context: typer.Context, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """List the upstreams and their accounts.

    How each stands, where it is spoken to, what is left of its budgets, what waits, how much goes out (recipients a
    minute, over the last ten), and when the queue will be through like that. Works whether the daemon runs or not;
    throughput and open connections are known to a running daemon alone.
    """
    from relayd.cli.budgets import Budgets

    whole = upstreams_of(config_path(context, config))
    facts = _Facts(whole, Budgets(whole, whole.data_dir))
    entries = [facts.upstream(name) for name in whole.upstreams]
    if as_json:
        print_json(entries)
    else:
        _tell(entries)


class _Facts:
    """All that is known at this moment, from the configuration, state.db, the spool and the daemon."""

    def __init__(self, config: Config, budgets: Budgets) -> None:
        from relayd.delivery.plan import logins_of

        self._config, self._budgets = config, budgets
        self._standings = standing.standings_at(config.data_dir)
        self._logins = logins_of(config)
        self._depths = _depths(config.data_dir)
        self._live = _live(config.data_dir)

    def upstream(self, name: str) -> dict[str, Any]:
        """One upstream, its accounts within."""
        from relayd.config.models import SMTPUpstream

        upstream = self._config.upstreams[name]
        entry: dict[str, Any] = {
            "name": name,
            "type": upstream.type,
            "address": "sandbox",
            "ports": [],
            "tls": "-",
            "username": None,
        }
        if isinstance(upstream, SMTPUpstream):
            entry |= {
                "address": f"{upstream.host}:{upstream.port}",
                "ports": list(upstream.every_port),
                "tls": upstream.tls.value,
                "username": upstream.username,
            }
        entry["connections"] = upstream.limits.connections
        entry["routes"] = [place for place, route in enumerate(self._config.routes, 1) if name in route.upstreams]
        lanes = [lane for lane, (owner, _, _) in self._logins.items() if owner == name]
        entry |= self._lanes(name, lanes)
        accounts = [(lane, account) for lane, (owner, _, account) in self._logins.items() if owner == name and account]
        entry["accounts"] = [
            {"name": lane, "username": account.username or account.address} | self._lanes(lane, [lane])
            for lane, account in accounts
        ]
        return entry

    def _lanes(self, name: str, lanes: list[str]) -> dict[str, Any]:
        live = [self._live[lane] for lane in lanes if lane in self._live]
        depth = sum(self._depths.get(lane, 0) for lane in lanes)
        throughput = round(sum(each["throughput"] for each in live), 1)
        blocked = self._budgets.in_the_way(lanes[0]) if len(lanes) == 1 else None
        return {
            **standing.standing_of(self._standings, name),
            "endpoints": sorted({each["endpoint"] for each in live if each["endpoint"]}),
            "open_connections": sum(each["connections"] for each in live) if live else None,
            "budgets": [left.as_dict() for left in self._budgets.named(name)],
            "waits_for": blocked.as_dict() if blocked is not None and depth else None,
            "queue": depth,
            "throughput": throughput if live else None,
            "through": iso(self._budgets.through(lanes, depth, throughput)),
        }


def _depths(data_dir: Path) -> dict[str, int]:
    """Recipients that wait, by lane; held ones do not."""
    from relayd.spool.reader import SpoolReader

    if not (data_dir / "spool").is_dir():
        return {}
    out: dict[str, int] = {}
    with SpoolReader(data_dir / "spool") as reader:
        for each in reader.stats().depths:
            if each.state.value != "held":
                out[each.lane] = out.get(each.lane, 0) + each.count
    return out


def _live(data_dir: Path) -> dict[str, dict[str, Any]]:
    """What the running workers say of each lane, summed up; nothing where none runs."""
    from relayd.control import ControlError, ask

    out: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(ControlError, OSError):
        for answer in ask(data_dir, "worker.status", timeout=10.0):
            for lane, facts in ((answer.result or {}).get("upstreams") or {}).items():
                known = out.setdefault(lane, {"throughput": 0.0, "connections": 0, "endpoint": ""})
                known["throughput"] += facts.get("throughput", 0.0)
                known["connections"] += facts.get("connections", 0)
                known["endpoint"] = facts.get("endpoint") or known["endpoint"]
    return out


def _tell(entries: list[dict[str, Any]]) -> None:
    rows = [(entry, each) for entry in entries for each in (entry, *entry["accounts"])]
    columns = [Column(name, long=name == "address") for name in ("name", "state", "address", "tls")]
    columns += [Column(name, right=True) for name in ("connections", "queue", "throughput")]
    print_table(
        [*columns, Column("through"), Column("routes")],
        (
            [
                each["name"],
                each["state"],
                ", ".join(each["endpoints"]) or (entry["address"] if each is entry else ""),
                entry["tls"] if each is entry else "",
                _connections(entry, each),
                str(each["queue"]),
                "-" if each["throughput"] is None else f"{each['throughput']:g}/min",
                each["through"] or "-",
                _rules(entry["routes"]) if each is entry else "",
            ]
            for entry, each in rows
        ),
        empty="no upstreams",
    )
    budgets = [(each, budget) for _, each in rows for budget in each["budgets"]]
    if not budgets:
        return
    say()
    print_table(
        [Column("budget"), *(Column(name, right=True) for name in ("limit", "used", "left")), Column("free again")],
        (
            [
                f"{budget['kind']} of {budget['of']}",
                budget["limit"],
                str(budget["used"]),
                str(budget["left"]),
                budget["free_at"] or "",
            ]
            for _, budget in budgets
        ),
        empty="",
    )


def _connections(entry: dict[str, Any], each: dict[str, Any]) -> str:
    known = each["open_connections"]
    return f"{'-' if known is None else known} of {entry['connections']}"


def _rules(places: list[int]) -> str:
    return ", ".join(f"#{place}" for place in places) or "none"

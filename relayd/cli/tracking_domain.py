"""relayd tracking-domain …: branded hosts for links and opens, step by step. relayd/domains/tracking.py decides."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import FAILED, ConfigOption, JSONOption, YesOption, confirm
from relayd.cli.domain import LangOption, default_lang
from relayd.cli.out import Column, iso, moment, print_json, print_json_list, print_pairs, print_table, say, warn

if TYPE_CHECKING:
    from relayd.cli.domains_place import Site
    from relayd.domains.records import Finding
    from relayd.spool.domains import TrackingDomain

app = typer.Typer(help="Set up branded hosts for links and opens.", no_args_is_help=True, rich_markup_mode=None)
NameArgument = Annotated[
    str, typer.Argument(metavar="HOST", help="The host, like link.example.co.jp.", show_default=False)
]


@app.command()
def add(
    context: typer.Context,
    name: NameArgument,
    *,
    steps: Annotated[
        int, typer.Option("--steps", metavar="1|3", help="1: a CNAME to us. 3: for a TLS front that wants a proof.")
    ] = 1,
    require_mx: Annotated[
        bool, typer.Option("--require-mx", help="The MX record must be there as well, else it is not verified.")
    ] = False,
    proof: Annotated[
        str | None,
        typer.Option(
            "--proof",
            metavar="HOST=VALUE",
            help="The validation CNAME that the TLS front gave you (three steps). Without it one is made.",
            show_default=False,
        ),
    ] = None,
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Add a tracking host and print the records to publish, step by step."""
    from relayd.cli import domains_place
    from relayd.domains.hosts import HostWish
    from relayd.domains.hosts import add as add_host

    wish = HostWish(name, steps, require_mx, proof or "")

    async def work(site: Site) -> TrackingDomain:
        return await add_host(wish, site.config, site.store, domains_place.now_ms)

    tracking = domains_place.run(context, config, work)
    if as_json:
        print_json(_entry(tracking))
        return
    _print(tracking, (), lang or default_lang())
    say(f"When they are published: relayd tracking-domain verify {_shown(tracking.name)}")


@app.command()
def verify(
    context: typer.Context,
    name: NameArgument,
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Check the records of the present step on the real DNS. Exit code 1 unless the host is verified."""
    from relayd.cli import domains_place
    from relayd.domains.hosts import find

    async def work(site: Site) -> tuple[TrackingDomain, list[Finding]]:
        found = find(await site.store.everything(), name)
        return await site.checker.check_tracking(found.name)

    tracking, findings = domains_place.run(context, config, work)
    if as_json:
        print_json(_entry(tracking))
    else:
        _print(tracking, findings, lang or default_lang())
    if tracking.state != "verified":
        raise typer.Exit(FAILED)


@app.command("list")
def list_hosts(
    context: typer.Context, lang: LangOption = None, config: ConfigOption = None, as_json: JSONOption = False
) -> None:
    """List the tracking hosts."""
    from relayd.cli import domains_place
    from relayd.domains.texts import state

    async def work(site: Site) -> tuple[TrackingDomain, ...]:
        return (await site.store.everything()).tracking

    hosts = domains_place.run(context, config, work)
    if as_json:
        print_json_list(_entry(tracking) for tracking in hosts)
        return
    spoken = lang or default_lang()
    print_table(
        [Column("host"), Column("state", long=True), Column("step"), Column("deadline"), Column("checked")],
        (
            [
                _shown(each.name),
                state(each.state, spoken),
                f"{each.step} of {each.steps}",
                "" if each.proof_seen_at else moment(each.deadline),
                moment(each.checked_at),
            ]
            for each in hosts
        ),
        empty="There is no tracking host yet: relayd tracking-domain add HOST",
    )


@app.command()
def show(
    context: typer.Context,
    name: NameArgument,
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show where a tracking host stands: its steps as last checked, its history."""
    from relayd.cli import domains_place
    from relayd.cli.domain import _detail
    from relayd.domains.hosts import find
    from relayd.domains.report import from_facts

    async def work(site: Site) -> tuple[TrackingDomain, list[Any]]:
        found = find(await site.store.everything(), name)
        return found, await site.store.history(found.name)

    tracking, history = domains_place.run(context, config, work)
    if as_json:
        print_json(_entry(tracking) | {"history": [{"at": iso(e.at), "event": e.kind, **e.detail} for e in history]})
        return
    _print(tracking, from_facts(tracking.report), lang or default_lang())
    print_pairs(
        [
            ("added", moment(tracking.added_at)),
            ("verified", moment(tracking.verified_at)),
            ("checked", moment(tracking.checked_at)),
            ("next check", moment(tracking.next_check)),
        ]
    )
    for event in history:
        say(f"{moment(event.at)}  {event.kind}  {_detail(event.detail)}".rstrip())


@app.command()
def remove(context: typer.Context, name: NameArgument, config: ConfigOption = None, yes: YesOption = False) -> None:
    """Forget a tracking host: links use the shared host from then on."""
    from relayd.cli import domains_place
    from relayd.domains.hosts import find
    from relayd.domains.hosts import remove as remove_host

    async def look(site: Site) -> TrackingDomain:
        return find(await site.store.everything(), name)

    tracking = domains_place.run(context, config, look)
    confirm(f"Forget {_shown(tracking.name)}? Links in mail that was sent still lead to it.", yes=yes)

    async def work(site: Site) -> None:
        await remove_host(tracking.name, site.store, domains_place.now_ms)

    domains_place.run(context, config, work)
    say(f"{_shown(tracking.name)} is removed.")


def _shown(name: str) -> str:
    from relayd.domains.changes import shown

    return shown(name)


def _entry(tracking: TrackingDomain) -> dict[str, Any]:
    from relayd.domains.render import record_json
    from relayd.domains.report import from_facts, standing
    from relayd.domains.tracking import steps

    last = from_facts(tracking.report)
    return {
        "host": tracking.name,
        "name": _shown(tracking.name),
        "state": tracking.state.value,
        "step": tracking.step,
        "steps": [
            {
                "step": step.number,
                "done": step.done,
                "deadline": iso(step.deadline),
                "records": [record_json(finding) for finding in standing(step.records, last)],
            }
            for step in steps(tracking)
        ],
        "added_at": iso(tracking.added_at),
        "verified_at": iso(tracking.verified_at),
        "checked_at": iso(tracking.checked_at),
    }


def _print(tracking: TrackingDomain, findings: Sequence[Finding], lang: str) -> None:
    from relayd.cli.domain import print_records
    from relayd.domains.report import standing
    from relayd.domains.texts import state
    from relayd.domains.tracking import steps

    say(f"{_shown(tracking.name)}: {state(tracking.state, lang)}")
    if tracking.state == "expired":
        warn(f"run: relayd tracking-domain remove {tracking.name}, then add it again with a new proof")
    for step in steps(tracking):
        what = "done" if step.done else "to be done" if step.number == tracking.step else "waits"
        until = f", to be seen until {moment(step.deadline)}" if step.deadline and not step.done else ""
        say(f"Step {step.number} of {tracking.steps}: {what}{until}")
        print_records(standing(step.records, findings), lang)

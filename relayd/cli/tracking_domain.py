"""relayd tracking-domain …: branded hosts for links and opens, step by step. relayd/domains/tracking.py decides."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.certificate import certificate_json, certificate_words, print_certificate
from relayd.cli.common import FAILED, ConfigOption, JSONOption, YesOption, confirm, now_ms
from relayd.cli.out import Column, iso, moment, print_json, print_json_list, print_pairs, print_table, say, warn
from relayd.cli.records import (
    LangOption,
    history_json,
    print_history,
    print_records,
    print_state,
    records_json,
    shown,
    spoken,
)

if TYPE_CHECKING:
    from relayd.cli.domains_place import Site
    from relayd.cli.records import Lang
    from relayd.domains.records import Finding
    from relayd.domains.tracking import Choice
    from relayd.spool.certificates import Certificate
    from relayd.spool.domains import DomainEvent, Everything, TrackingDomain

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
        return await add_host(wish, site.config, site.store, now_ms)

    tracking = domains_place.run(context, config, work)
    if as_json:
        print_json(_entry(tracking))
        return
    _print(tracking, (), spoken(lang))
    say(f"When they are published: relayd tracking-domain verify {shown(tracking.name)}")


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
        _print(tracking, findings, spoken(lang))
    if tracking.state != "verified":
        raise typer.Exit(FAILED)


@app.command("list")
def list_hosts(
    context: typer.Context, lang: LangOption = None, config: ConfigOption = None, as_json: JSONOption = False
) -> None:
    """List the tracking hosts with their certificates, the shared one first."""
    from relayd.cli import domains_place
    from relayd.domains.texts import state

    async def work(site: Site) -> tuple[Site, Everything]:
        return site, await site.store.everything()

    site, everything = domains_place.run(context, config, work)
    known = {each.host: each for each in everything.certificates}
    section = site.config.tracking
    if as_json:
        shared = [_shared_entry(section.host, known.get(section.host))] if section.acme and section.host else []
        print_json_list([*shared, *(_entry(each, known.get(each.name)) for each in everything.tracking)])
        return
    rows = [
        [
            shown(each.name),
            state(each.state, spoken(lang)),
            f"{each.step} of {each.steps}",
            "" if each.proof_seen_at else moment(each.deadline),
            moment(each.checked_at),
            certificate_words(known.get(each.name), each, section),
        ]
        for each in everything.tracking
    ]
    if section.acme and section.host:
        rows.insert(0, [section.host, "shared", "", "", "", certificate_words(known.get(section.host), None, section)])
    columns = [Column("host"), Column("state", long=True), Column("step"), Column("deadline"), Column("checked")]
    print_table(
        [*columns, Column("certificate", long=True)],
        rows,
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
    """Show where a tracking host stands: its steps as last checked, its certificate, its history."""
    from relayd.cli import domains_place
    from relayd.domains.changes import normal
    from relayd.domains.hosts import find
    from relayd.domains.report import from_facts

    async def work(site: Site) -> tuple[Site, TrackingDomain | None, Certificate | None, list[DomainEvent]]:
        everything, host = await site.store.everything(), normal(name, "host")
        found = None if host == site.config.tracking.host else find(everything, name)
        certificate = next((each for each in everything.certificates if each.host == host), None)
        return site, found, certificate, await site.store.history(host)

    site, tracking, certificate, history = domains_place.run(context, config, work)
    section = site.config.tracking
    if as_json:
        shared = _shared_entry(section.host or "", certificate)
        entry = shared if tracking is None else _entry(tracking, certificate)
        print_json(entry | {"history": history_json(history)})
        return
    if tracking is None:
        say(f"{section.host}: the shared host, used where no tracking domain fits")
    else:
        _print(tracking, from_facts(tracking.report), spoken(lang))
        print_pairs(
            [
                ("added", moment(tracking.added_at)),
                ("verified", moment(tracking.verified_at)),
                ("checked", moment(tracking.checked_at)),
                ("next check", moment(tracking.next_check)),
            ]
        )
    print_certificate(certificate, tracking, section)
    print_history(history)


@app.command()
def host(
    context: typer.Context,
    from_domain: Annotated[
        str, typer.Argument(metavar="FROM_DOMAIN", help="Domain (or address) of the From header.", show_default=False)
    ],
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Tell which host links and opens of mail From a domain use, and why."""
    from relayd.cli import domains_place
    from relayd.domains.certificates import secure
    from relayd.domains.changes import normal
    from relayd.domains.tracking import choice

    async def work(site: Site) -> tuple[Choice, bool]:
        everything = await site.store.everything()
        found = choice(normal(from_domain.rpartition("@")[2]), everything.tracking, site.config.tracking.host or "")
        return found, secure(found.host, everything, now_ms())

    found, https = domains_place.run(context, config, work)
    if as_json:
        over = [{"host": each.name, "state": each.state.value} for each in found.passed_over]
        facts = {"host": found.host or None, "own": found.own, "organisation": found.organisation, "https": https}
        print_json({"from": normal(from_domain.rpartition("@")[2])} | facts | {"passed_over": over})
        return
    say(shown(found.host) if found.host else "none")
    organisation = shown(found.organisation)
    if found.own:
        say(f"   - it is verified, and of the organisation of From ({organisation})")
    elif found.host:
        say(f"   - the shared host, for no tracking domain of {organisation} is verified")
    else:
        say("   - there is no shared host either: set tracking.host in the configuration")
    for each in found.passed_over:
        say(f"   - {shown(each.name)} is {each.state}: relayd tracking-domain show {shown(each.name)}")
    if found.host:
        say("   - it has a certificate: links may be https" if https else "   - it has no certificate: links are http")


@app.command()
def renew(context: typer.Context, name: NameArgument, config: ConfigOption = None) -> None:
    """Have the running relayd ask for a certificate now, as after what was in the way is mended.

    Otherwise it does so by itself, later and later after each failure. At most one order an hour for each host.
    """
    from relayd.cli import domains_place
    from relayd.domains.hosts import ask_again

    async def work(site: Site) -> None:
        await ask_again(name, site.config, site.store, site.challenges, now_ms)

    domains_place.run(context, config, work)
    say(f"relayd asks for it now, if it runs. What came of it: relayd tracking-domain show {name}")


@app.command()
def remove(context: typer.Context, name: NameArgument, config: ConfigOption = None, yes: YesOption = False) -> None:
    """Forget a tracking host: links use the shared host from then on."""
    from relayd.cli import domains_place
    from relayd.domains.hosts import find
    from relayd.domains.hosts import remove as remove_host

    async def look(site: Site) -> TrackingDomain:
        return find(await site.store.everything(), name)

    tracking = domains_place.run(context, config, look)
    confirm(f"Forget {shown(tracking.name)}? Links in mail that was sent still lead to it.", yes=yes)

    async def work(site: Site) -> None:
        await remove_host(tracking.name, site.store, now_ms)

    domains_place.run(context, config, work)
    say(f"{shown(tracking.name)} is removed.")


def _shared_entry(host: str, certificate: Certificate | None) -> dict[str, Any]:
    return {"host": host, "name": shown(host), "state": "shared", "certificate": certificate_json(certificate)}


def _entry(tracking: TrackingDomain, certificate: Certificate | None = None) -> dict[str, Any]:
    from relayd.cli.records import Lang
    from relayd.domains.report import from_facts, standing
    from relayd.domains.tracking import steps

    last = from_facts(tracking.report)
    return {
        "host": tracking.name,
        "name": shown(tracking.name),
        "state": tracking.state.value,
        "step": tracking.step,
        "steps": [
            {
                "step": step.number,
                "done": step.done,
                "deadline": iso(step.deadline),
                "records": records_json(standing(step.records, last), Lang.EN),
            }
            for step in steps(tracking)
        ],
        "added_at": iso(tracking.added_at),
        "verified_at": iso(tracking.verified_at),
        "checked_at": iso(tracking.checked_at),
        "certificate": certificate_json(certificate),
    }


def _print(tracking: TrackingDomain, findings: Sequence[Finding], lang: Lang) -> None:
    from relayd.domains.report import standing
    from relayd.domains.tracking import steps

    print_state(tracking.name, tracking.state, lang)
    if tracking.state == "expired":
        warn(f"run: relayd tracking-domain remove {tracking.name}, then add it again with a new proof")
    for step in steps(tracking):
        what = "done" if step.done else "to be done" if step.number == tracking.step else "waits"
        until = f", to be seen until {moment(step.deadline)}" if step.deadline and not step.done else ""
        say(f"Step {step.number} of {tracking.steps}: {what}{until}")
        print_records(standing(step.records, findings), lang)

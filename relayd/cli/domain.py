"""relayd domain …: sender domains, their records, keys and history. What is decided, relayd/domains/ decides."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import FAILED, ConfigOption, JSONOption, YesOption, confirm, now_ms
from relayd.cli.domain_request import request_mail
from relayd.cli.out import (
    Column,
    iso,
    moment,
    print_json,
    print_json_list,
    print_pairs,
    print_table,
    say,
    warn,
)
from relayd.cli.records import (
    LangOption,
    NameArgument,
    history_json,
    print_history,
    print_records,
    print_state,
    print_zone,
    records_json,
    shown,
    spoken,
)

if TYPE_CHECKING:
    from relayd.cli.domains_place import Site
    from relayd.domains.records import Finding
    from relayd.spool.domains import DomainKey, Everything, SenderDomain

app = typer.Typer(
    help="Set up the domains that mail is sent from, and see that their DNS records are right.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Form(StrEnum):
    """How records are written."""

    TABLE = "table"
    ZONE = "zone"
    JSON = "json"


FormOption = Annotated[Form, typer.Option("--format", metavar="table|zone|json", help="How it is written.")]
UpstreamOption = Annotated[
    str | None,
    typer.Option(
        "--upstream",
        metavar="NAME",
        help="Upstream that carries its mail, by its name in the configuration, or a provider's name: "
        "what the provider demands is listed, too.",
        show_default=False,
    ),
]
SelectorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--selector",
        metavar="NAME",
        help="DKIM selector. Twice: for RSA, for Ed25519. Without it: r and e with the month.",
        show_default=False,
    ),
]
ReturnPathOption = Annotated[
    str | None,
    typer.Option("--return-path", metavar="DOMAIN", help="Custom domain of the return path.", show_default=False),
]
DelegateOption = Annotated[
    bool, typer.Option("--delegate", help="DKIM by CNAMEs to our own zone: later keys need no change at the domain.")
]
NoUnderscoreOption = Annotated[
    bool,
    typer.Option(
        "--no-underscore-cname", help="With --delegate: its DNS takes no _ in a CNAME's host, so use TXT records."
    ),
]


@app.command()
def add(
    context: typer.Context,
    name: NameArgument,
    *,
    upstream: UpstreamOption = None,
    selector: SelectorOption = None,
    return_path: ReturnPathOption = None,
    delegate: DelegateOption = False,
    no_underscore_cname: NoUnderscoreOption = False,
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Add a sender domain: make its keys, look at its DNS, and print the records to publish."""
    from relayd.cli import domains_place
    from relayd.domains.adding import Wish
    from relayd.domains.adding import add as add_domain

    wish = Wish(name, upstream or "", tuple(selector or ()), return_path or "", delegate, not no_underscore_cname)

    async def work(site: Site) -> tuple[SenderDomain, list[Finding], bool, bool]:
        first = not (await site.store.everything()).domains
        made = await add_domain(wish, site.config, site.store, site.vault, now_ms)
        checked = await site.checker.check_domain(made.name)
        verp = any(each.return_path == "verp" for each in site.config.upstreams.values())
        return checked.domain, checked.findings, first, verp

    domain, findings, first, verp = domains_place.run(context, config, work, secret=True)
    language = spoken(lang)
    if as_json:
        print_json(_entry(domain) | {"records": records_json(findings, language)})
        return
    print_state(domain.name, domain.state, language)
    print_records(findings, language)
    say(f"When they are published: relayd domain verify {shown(domain.name)}")
    if not any(finding.expected.purpose == "spf" for finding in findings):
        warn("domains.spf is empty, and the provider's terms are not known: no SPF record is asked for, or checked")
    if domain.return_path and not verp:
        warn(f"no upstream has return_path: verp, so no mail leaves with a return path at {shown(domain.return_path)}")
    if first:
        warn(
            "from now on mail From other domains is refused (550 5.7.1), unless require_verified_domain: false "
            "is configured"
        )


@app.command()
def verify(
    context: typer.Context,
    name: NameArgument,
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Check every record on the real DNS now. Exit code 1 unless the domain is verified."""
    from relayd.cli import domains_place
    from relayd.domains.changes import find

    async def work(site: Site) -> tuple[SenderDomain, list[Finding]]:
        domain = find(await site.store.everything(), name)
        checked = await site.checker.check_domain(domain.name)
        return checked.domain, checked.findings

    domain, findings = domains_place.run(context, config, work)
    language = spoken(lang)
    if as_json:
        print_json(_entry(domain) | {"records": records_json(findings, language)})
    else:
        print_records(findings, language)
        print_state(domain.name, domain.state, language)
    if domain.state != "verified":
        raise typer.Exit(FAILED)


@app.command("list")
def list_domains(
    context: typer.Context,
    *,
    form: FormOption = Form.TABLE,
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """List the sender domains; as a zone file: the records of all of them."""
    from relayd.cli import domains_place
    from relayd.domains.texts import state

    async def zone(site: Site) -> list[Finding]:
        names = [domain.name for domain in (await site.store.everything()).domains]
        return [finding for name in names for finding in (await domains_place.standing(site, name))[2]]

    if form is Form.ZONE:
        print_zone(domains_place.run(context, config, zone), spoken(lang))
        return
    everything = domains_place.run(context, config, _everything)
    if as_json or form is Form.JSON:
        print_json_list(_entry(domain) for domain in everything.domains)
        return
    language = spoken(lang)
    print_table(
        [Column("domain"), Column("state", long=True), Column("keys"), Column("checked"), Column("next check")],
        (
            [
                shown(domain.name),
                state(domain.state, language),
                ", ".join(
                    key.selector for key in everything.keys if key.domain == domain.name and key.state == "active"
                ),
                moment(domain.checked_at),
                moment(domain.next_check),
            ]
            for domain in everything.domains
        ),
        empty="There is no sender domain yet: relayd domain add DOMAIN",
    )


@app.command()
def show(
    context: typer.Context,
    name: NameArgument,
    *,
    form: FormOption = Form.TABLE,
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show where a domain stands: its records as last checked, its keys, its history; as a zone file: its records."""
    from relayd.cli import domains_place

    async def work(site: Site) -> tuple[SenderDomain, list[DomainKey], list[Finding], list[Any]]:
        domain, keys, findings = await domains_place.standing(site, name)
        return domain, keys, findings, await site.store.history(domain.name)

    domain, keys, findings, history = domains_place.run(context, config, work)
    language = spoken(lang)
    if form is Form.ZONE:
        print_zone(findings, language)
        return
    if as_json or form is Form.JSON:
        facts = {
            "keys": [_key(key) for key in keys],
            "records": records_json(findings, language),
            "history": history_json(history),
        }
        print_json(_entry(domain) | facts)
        return
    print_state(domain.name, domain.state, language)
    print_pairs(
        [
            ("upstream", domain.upstream),
            ("return path", domain.return_path),
            ("return path seen", moment(domain.return_path_seen_at) if domain.return_path else ""),
            ("added", moment(domain.added_at)),
            ("verified", moment(domain.verified_at)),
            ("degraded", moment(domain.degraded_at)),
            ("checked", moment(domain.checked_at)),
            ("next check", moment(domain.next_check)),
        ]
    )
    say()
    print_records(findings, language)
    columns = [Column("selector"), Column("algorithm"), Column("state"), Column("record seen"), Column("until")]
    rows = [[k.selector, k.algorithm, k.state.value, moment(k.seen_at), moment(k.retire_at)] for k in keys]
    print_table(columns, rows, empty="No keys.")
    say()
    print_history(history)


@app.command()
def records(
    context: typer.Context,
    name: NameArgument,
    *,
    form: FormOption = Form.TABLE,
    no_underscore_cname: Annotated[
        bool,
        typer.Option(
            "--no-underscore-cname",
            help="From now on TXT records instead of CNAMEs, for a DNS service that takes no _ in a CNAME's host.",
        ),
    ] = False,
    lang: LangOption = None,
    config: ConfigOption = None,
) -> None:
    """Print the records of a domain, with what the last check said of them."""
    from relayd.cli import domains_place
    from relayd.domains.adding import reissue

    async def work(site: Site) -> list[Finding]:
        if no_underscore_cname:
            await site.checker.check_domain(await reissue(name, site.store, now_ms))
        return (await domains_place.standing(site, name))[2]

    findings = domains_place.run(context, config, work)
    language = spoken(lang)
    match form:
        case Form.JSON:
            print_json(records_json(findings, language))
        case Form.ZONE:
            print_zone(findings, language)
        case Form.TABLE:
            print_records(findings, language)


app.command("request-mail")(request_mail)


@app.command()
def rotate(
    context: typer.Context,
    name: NameArgument,
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Make the next DKIM keys. They sign once their records are seen; the old records stay until `retire_after`."""
    from relayd.cli import domains_place
    from relayd.domains.adding import rotate as rotate_keys

    async def work(site: Site) -> tuple[SenderDomain, list[DomainKey], list[Finding]]:
        domain = await rotate_keys(name, site.store, site.vault, now_ms)
        await site.checker.check_domain(domain.name)
        return await domains_place.standing(site, name)

    domain, keys, findings = domains_place.run(context, config, work, secret=True)
    new = [key for key in keys if key.state == "next"]
    fresh = [f for f in findings if f.expected.selector in {key.selector for key in new}]
    language = spoken(lang)
    if as_json:
        print_json(
            {"domain": domain.name, "keys": [_key(key) for key in keys], "records": records_json(fresh, language)}
        )
        return
    if not new:
        say("The next keys were seen at once and sign from now on.")
    else:
        print_records(fresh, language)
        say("relayd looks for these records by itself and signs with the new keys once it sees them everywhere.")
        say(f"Until then the old keys go on. To look now: relayd domain verify {shown(domain.name)}")
    for key in keys:
        if key.state == "retiring":
            say(f"The record {key.selector}._domainkey.{key.domain} must stay until {moment(key.retire_at)}.")


@app.command()
def remove(context: typer.Context, name: NameArgument, config: ConfigOption = None, yes: YesOption = False) -> None:
    """Forget a domain and its keys for good. Its mail is not signed, and by default refused, from then on."""
    from relayd.cli import domains_place
    from relayd.domains.adding import remove as remove_domain
    from relayd.domains.changes import find

    domain = find(domains_place.run(context, config, _everything), name)
    confirm(f"Forget {shown(domain.name)} and its keys for good?", yes=yes)

    async def work(site: Site) -> None:
        await remove_domain(domain.name, site.store, now_ms)

    domains_place.run(context, config, work)
    say(f"{shown(domain.name)} is removed. Its DKIM records may go once no mail signed with them is under way.")
    if domain.return_path:
        back = shown(domain.return_path)
        say(f"Bounces may still come to {back}: its MX record should stay as long as `bounces.verify_for` says.")


# --- what the commands share ---------------------------------------------------------------------------------------


async def _everything(site: Site) -> Everything:
    return await site.store.everything()


def _entry(domain: SenderDomain) -> dict[str, Any]:
    return {
        "domain": domain.name,
        "name": shown(domain.name),
        "state": domain.state.value,
        "upstream": domain.upstream or None,
        "return_path": domain.return_path or None,
        "return_path_seen_at": iso(domain.return_path_seen_at),
        "delegate": domain.delegate,
        "added_at": iso(domain.added_at),
        "verified_at": iso(domain.verified_at),
        "degraded_at": iso(domain.degraded_at),
        "checked_at": iso(domain.checked_at),
        "next_check": iso(domain.next_check),
    }


def _key(key: DomainKey) -> dict[str, Any]:
    return {
        "selector": key.selector,
        "algorithm": key.algorithm,
        "state": key.state.value,
        "created_at": iso(key.created_at),
        "seen_at": iso(key.seen_at),
        "retire_at": iso(key.retire_at),
    }

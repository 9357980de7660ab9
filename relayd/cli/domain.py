"""relayd domain …: sender domains, their records, keys and history. What is decided, relayd/domains/ decides."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import FAILED, CommandError, ConfigOption, JSONOption, YesOption, confirm
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
    write_octets,
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


class Lang(StrEnum):
    """Languages of records and mails."""

    EN = "en"
    JA = "ja"


class Form(StrEnum):
    """How records are written."""

    TABLE = "table"
    ZONE = "zone"
    JSON = "json"


def default_lang() -> Lang:
    """The language of the operator's shell."""
    spoken = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return Lang.JA if spoken.startswith("ja") else Lang.EN


NameArgument = Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain, in any script.", show_default=False)]
LangOption = Annotated[
    Lang | None,
    typer.Option("--lang", metavar="en|ja", help="Language. Without it: that of the shell.", show_default=False),
]


@app.command()
def add(
    context: typer.Context,
    name: NameArgument,
    *,
    upstream: Annotated[
        str | None,
        typer.Option(
            "--upstream",
            metavar="NAME",
            help="Upstream that carries its mail, by its name in the configuration, or a provider's name: "
            "what the provider demands is listed, too.",
            show_default=False,
        ),
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            "--selector",
            metavar="NAME",
            help="DKIM selector. Twice: for RSA, for Ed25519. Without it: r and e with the month.",
            show_default=False,
        ),
    ] = None,
    return_path: Annotated[
        str | None,
        typer.Option("--return-path", metavar="DOMAIN", help="Custom domain of the return path.", show_default=False),
    ] = None,
    delegate: Annotated[
        bool,
        typer.Option("--delegate", help="DKIM by CNAMEs to our own zone: later keys need no change at the domain."),
    ] = False,
    no_underscore_cname: Annotated[
        bool,
        typer.Option(
            "--no-underscore-cname", help="With --delegate: its DNS takes no _ in a CNAME's host, so use TXT records."
        ),
    ] = False,
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Add a sender domain: make its keys, look at its DNS, and print the records to publish."""
    from relayd.cli import domains_place
    from relayd.domains.adding import Wish
    from relayd.domains.adding import add as add_domain

    wish = Wish(name, upstream or "", tuple(selector or ()), return_path or "", delegate, not no_underscore_cname)

    async def work(site: Site) -> tuple[SenderDomain, list[Finding], bool]:
        first = not (await site.store.everything()).domains
        made = await add_domain(wish, site.config, site.store, site.vault, domains_place.now_ms)
        checked = await site.checker.check_domain(made.name)
        return checked.domain, checked.findings, first

    domain, findings, first = domains_place.run(context, config, work, secret=True)
    spoken = lang or default_lang()
    if as_json:
        print_json(_entry(domain) | {"records": _records_json(findings, spoken)})
        return
    _print_state(domain, spoken)
    print_records(findings, spoken)
    say(f"When they are published: relayd domain verify {_shown(domain.name)}")
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
    spoken = lang or default_lang()
    if as_json:
        print_json(_entry(domain) | {"records": _records_json(findings, spoken)})
    else:
        print_records(findings, spoken)
        _print_state(domain, spoken)
    if domain.state != "verified":
        raise typer.Exit(FAILED)


@app.command("list")
def list_domains(
    context: typer.Context, lang: LangOption = None, config: ConfigOption = None, as_json: JSONOption = False
) -> None:
    """List the sender domains."""
    from relayd.cli import domains_place
    from relayd.domains.texts import state

    everything = domains_place.run(context, config, _everything)
    if as_json:
        print_json_list(_entry(domain) for domain in everything.domains)
        return
    spoken = lang or default_lang()
    print_table(
        [Column("domain"), Column("state", long=True), Column("keys"), Column("checked"), Column("next check")],
        (
            [
                _shown(domain.name),
                state(domain.state, spoken),
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
    lang: LangOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show where a domain stands: its records as last checked, its keys, its history."""
    from relayd.cli import domains_place

    async def work(site: Site) -> tuple[SenderDomain, list[DomainKey], list[Finding], list[Any]]:
        domain, keys, findings = await _standing(site, name)
        return domain, keys, findings, await site.store.history(domain.name)

    domain, keys, findings, history = domains_place.run(context, config, work)
    spoken = lang or default_lang()
    if as_json:
        facts = {
            "keys": [_key(key) for key in keys],
            "records": _records_json(findings, spoken),
            "history": [{"at": iso(e.at), "event": e.kind, **e.detail} for e in history],
        }
        print_json(_entry(domain) | facts)
        return
    _print_state(domain, spoken)
    print_pairs(
        [
            ("upstream", domain.upstream),
            ("return path", domain.return_path),
            ("added", moment(domain.added_at)),
            ("verified", moment(domain.verified_at)),
            ("degraded", moment(domain.degraded_at)),
            ("checked", moment(domain.checked_at)),
            ("next check", moment(domain.next_check)),
        ]
    )
    say()
    print_records(findings, spoken)
    columns = [Column("selector"), Column("algorithm"), Column("state"), Column("record seen"), Column("until")]
    rows = [[k.selector, k.algorithm, k.state.value, moment(k.seen_at), moment(k.retire_at)] for k in keys]
    print_table(columns, rows, empty="No keys.")
    say()
    for event in history:
        say(f"{moment(event.at)}  {event.kind}  {_detail(event.detail)}".rstrip())


@app.command()
def records(
    context: typer.Context,
    name: NameArgument,
    *,
    form: Annotated[
        Form, typer.Option("--format", metavar="table|zone|json", help="How they are written.")
    ] = Form.TABLE,
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
    from relayd.domains.render import zone_lines

    async def work(site: Site) -> list[Finding]:
        if no_underscore_cname:
            await _reissue(site, name)
        return (await _standing(site, name))[2]

    findings = domains_place.run(context, config, work)
    spoken = lang or default_lang()
    match form:
        case Form.JSON:
            print_json(_records_json(findings, spoken))
        case Form.ZONE:
            say(zone_lines(findings, lang=spoken))
        case Form.TABLE:
            print_records(findings, spoken)


@app.command("request-mail")
def request_mail(
    context: typer.Context,
    name: NameArgument,
    *,
    recipient: Annotated[
        str | None,
        typer.Option("--to", metavar="ADDRESS", help="Address of the DNS administrator.", show_default=False),
    ] = None,
    sender: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="ADDRESS", help="Your address. Without it: postmaster at our host.", show_default=False
        ),
    ] = None,
    send: Annotated[bool, typer.Option("--send", help="Send it by the running relayd, after a question.")] = False,
    lang: LangOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Draft the mail to the DNS administrator, with the unverified records only.

    It is printed as a mail with a zone file attached, ready for any mail program.
    """
    from relayd.cli import domains_place
    from relayd.domains import render

    async def work(site: Site) -> tuple[Site, SenderDomain, list[Finding]]:
        domain, _, findings = await _standing(site, name)
        return site, domain, findings

    site, domain, findings = domains_place.run(context, config, work)
    if not render.unverified(findings):
        say(f"{_shown(domain.name)}: every record is verified, there is nothing to ask for.")
        return
    if send and recipient is None:
        raise CommandError("whom to send it to? Give --to ADDRESS", code=2)
    mail = render.request_mail(
        domain.name,
        findings,
        lang=lang or default_lang(),
        host=site.config.hostname,
        sender=sender or f"postmaster@{site.config.hostname}",
        recipient=recipient or "",
    )
    if not send or recipient is None:
        write_octets(mail)
        return
    confirm(f"Send the request for {_shown(domain.name)} to {recipient}?", yes=yes)
    from relayd.control import call

    [answer] = call(site.config.data_dir, "mail.send", {"recipient": recipient, "content": mail.decode("ascii")}, 0)
    say(f"Handed on as {answer['id']}: relayd message show {answer['id']}")


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
        domain = await rotate_keys(name, site.store, site.vault, domains_place.now_ms)
        await site.checker.check_domain(domain.name)
        return await _standing(site, name)

    domain, keys, findings = domains_place.run(context, config, work, secret=True)
    new = [key for key in keys if key.state == "next"]
    fresh = [f for f in findings if f.expected.selector in {key.selector for key in new}]
    spoken = lang or default_lang()
    if as_json:
        print_json(
            {"domain": domain.name, "keys": [_key(key) for key in keys], "records": _records_json(fresh, spoken)}
        )
        return
    if not new:
        say("The next keys were seen at once and sign from now on.")
    else:
        print_records(fresh, spoken)
        say("relayd looks for these records by itself and signs with the new keys once it sees them everywhere.")
        say(f"Until then the old keys go on. To look now: relayd domain verify {_shown(domain.name)}")
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
    confirm(f"Forget {_shown(domain.name)} and its keys for good?", yes=yes)

    async def work(site: Site) -> None:
        await remove_domain(domain.name, site.store, domains_place.now_ms)

    domains_place.run(context, config, work)
    say(f"{_shown(domain.name)} is removed. Its DKIM records may go once no mail signed with them is under way.")


# --- what the commands share ---------------------------------------------------------------------------------------


async def _everything(site: Site) -> Everything:
    return await site.store.everything()


async def _standing(site: Site, name: str) -> tuple[SenderDomain, list[DomainKey], list[Finding]]:
    from relayd.domains.changes import find
    from relayd.domains.service import standing_of

    everything = await site.store.everything()
    domain = find(everything, name)
    keys = [key for key in everything.keys if key.domain == domain.name]
    return domain, keys, standing_of(site.config, domain, keys)


async def _reissue(site: Site, name: str) -> None:
    from relayd.domains.changes import find, without_underscore_cname
    from relayd.spool.domains import Editor

    def work(editor: Editor) -> None:
        editor.put_domain(without_underscore_cname(find(editor.everything(), name)))

    await site.store.change(work)


def _shown(name: str) -> str:
    from relayd.domains.changes import shown

    return shown(name)


def _entry(domain: SenderDomain) -> dict[str, Any]:
    return {
        "domain": domain.name,
        "name": _shown(domain.name),
        "state": domain.state.value,
        "upstream": domain.upstream or None,
        "return_path": domain.return_path or None,
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


def _records_json(findings: Sequence[Finding], lang: str) -> list[dict[str, Any]]:
    from relayd.domains.render import record_json

    return [record_json(finding, lang) for finding in findings]


def _detail(detail: Any) -> str:
    parts = []
    for key, value in detail.items():
        text = moment(value) if key.endswith("_at") or key == "deadline" else value
        parts.append(f"{key}: {', '.join(map(str, text)) if isinstance(text, list) else text}")
    return "; ".join(parts)


def _print_state(domain: SenderDomain, lang: str) -> None:
    from relayd.domains.texts import state

    style = {"verified": "green", "degraded": "yellow", "stopped": "red"}.get(domain.state, "")
    say(f"{_shown(domain.name)}: {state(domain.state, lang)}", style)


_STYLES = {"verified": "green", "missing": "red", "wrong": "red", "propagating": "yellow", "unknown": "yellow"}


def print_records(findings: Sequence[Finding], lang: str) -> None:
    """TYPE, HOST and VALUE of each record, with purpose, state, and what is wrong."""
    from relayd.cli.out import clean
    from relayd.domains import texts

    for number, finding in enumerate(findings, 1):
        expected = finding.expected
        about = texts.purpose(expected.purpose, lang)
        say(f"{number}. {about} [{texts.verdict(finding.verdict, lang)}]", _STYLES.get(finding.verdict, ""))
        say(f"   TYPE   {expected.type}")
        say(f"   HOST   {expected.host}")
        say(f"   VALUE  {expected.value}")
        for text in finding.found if finding.verdict not in {"verified", "not-checked"} else ():
            say(f"   found  {clean(text)}")
        for text in (texts.message(finding, lang), *finding.notes, expected.note):
            if text:
                say(f"   - {clean(text)}")
        say()

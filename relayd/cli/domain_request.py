"""relayd domain request-mail: the mail to whoever runs a domain's DNS. relayd/domains/render.py writes it."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from relayd.cli.common import CommandError, ConfigOption, YesOption, confirm
from relayd.cli.out import say, write_octets
from relayd.cli.records import LangOption, NameArgument, shown, spoken

if TYPE_CHECKING:
    from relayd.cli.domains_place import Site
    from relayd.domains.records import Finding
    from relayd.spool.domains import SenderDomain


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
        domain, _, findings = await domains_place.standing(site, name)
        return site, domain, findings

    site, domain, findings = domains_place.run(context, config, work)
    if not render.unverified(findings):
        say(f"{shown(domain.name)}: every record is verified, there is nothing to ask for.")
        return
    if send and recipient is None:
        raise CommandError("whom to send it to? Give --to ADDRESS", code=2)
    mail = render.request_mail(
        domain.name,
        findings,
        lang=spoken(lang),
        host=site.config.hostname,
        sender=sender or f"postmaster@{site.config.hostname}",
        recipient=recipient or "",
    )
    if not send or recipient is None:
        write_octets(mail)
        return
    confirm(f"Send the request for {shown(domain.name)} to {recipient}?", yes=yes)
    from relayd.control import call

    [answer] = call(site.config.data_dir, "mail.send", {"recipient": recipient, "content": mail.decode("ascii")}, 0)
    say(f"Handed on as {answer['id']}: relayd message show {answer['id']}")

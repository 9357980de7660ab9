"""relayd sender …: addresses that credentials may be limited to. relayd/domains/accounts.py says which are allowed."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from relayd.cli.common import ConfigOption, JSONOption, YesOption, confirm, now_ms
from relayd.cli.out import Column, iso, moment, print_json, print_json_list, print_table, say, warn

if TYPE_CHECKING:
    from relayd.cli.domains_place import Site
    from relayd.domains.records import Answer
    from relayd.spool.domains import SenderAccount

app = typer.Typer(
    help="Set up sender accounts: addresses that send, and that credentials may be limited to.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="ASCII letters and digits with . _ and -.", show_default=False)
]


@app.command()
def add(
    context: typer.Context,
    name: IdArgument,
    *,
    address: Annotated[
        str, typer.Option("--address", metavar="ADDRESS", help="Its address, on a verified domain.", show_default=False)
    ],
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Add a sender account. It only sends: replies go to the MX of its domain, if that has any."""
    from relayd.cli import domains_place
    from relayd.domains import accounts
    from relayd.domains.service import lookup_of
    from relayd.spool.domains import Editor

    async def work(site: Site) -> tuple[SenderAccount, Answer]:
        accounts.make(name, address, await site.store.everything(), now_ms())

        def write(editor: Editor) -> SenderAccount:
            account = accounts.make(name, address, editor.everything(), now_ms())
            editor.put_account(account)
            return account

        account = await site.store.change(write)
        lookup = lookup_of(site.config)
        try:
            return account, await lookup.resolver((account.address.rpartition("@")[2], "MX"))
        finally:
            await lookup.close()

    account, mx = domains_place.run(context, config, work)
    if as_json:
        print_json(_entry(account))
    else:
        say(f"{account.id} sends as {account.address}. To limit a credential to it: accounts: [{account.id}]")
    trouble = accounts.reply_trouble(account, mx)
    if trouble:
        warn(trouble)


@app.command("list")
def list_accounts(context: typer.Context, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """List the sender accounts."""
    from relayd.cli import domains_place

    async def work(site: Site) -> tuple[SenderAccount, ...]:
        return (await site.store.everything()).accounts

    found = domains_place.run(context, config, work)
    if as_json:
        print_json_list(_entry(account) for account in found)
        return
    print_table(
        [Column("id"), Column("address", long=True), Column("added")],
        ([account.id, account.address, moment(account.added_at)] for account in found),
        empty="There is no sender account yet: relayd sender add ID --address ADDRESS",
    )


@app.command()
def remove(context: typer.Context, name: IdArgument, config: ConfigOption = None, yes: YesOption = False) -> None:
    """Forget a sender account: credentials that are limited to it cannot send any more."""
    from relayd.cli import domains_place
    from relayd.domains.changes import DomainError
    from relayd.spool.domains import Editor

    confirm(f"Forget the sender account {name}?", yes=yes)

    async def work(site: Site) -> None:
        def write(editor: Editor) -> None:
            known = [account.id for account in editor.everything().accounts]
            if name not in known:
                raise DomainError(f"there is no sender account {name}: known are {', '.join(known) or 'none'}")
            editor.remove_account(name)

        await site.store.change(write)

    domains_place.run(context, config, work)
    say(f"{name} is removed.")


def _entry(account: SenderAccount) -> dict[str, str | None]:
    return {"id": account.id, "address": account.address, "added_at": iso(account.added_at)}

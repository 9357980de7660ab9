"""relayd route explain: which rule takes a mail, why not the ones before it, and what keys and limits hold there."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import FAILED, FAULT, CommandError, ConfigOption, JSONOption, read_config
from relayd.cli.out import print_json, say

if TYPE_CHECKING:
    from relayd.config.models import Config, Route
    from relayd.delivery.routing import RouteFacts

app = typer.Typer(help="Explain which way a mail takes.", no_args_is_help=True, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Question:
    """The mail that is asked about."""

    sender: str
    recipient: str
    credential: str | None
    network: str | None
    campaign: str | None
    headers: dict[str, str]
    """Names in lower case."""


@app.command()
def explain(
    context: typer.Context,
    *,
    sender: Annotated[
        str, typer.Option("--from", metavar="ADDRESS", help='Envelope sender; "" for the null sender of bounces.')
    ],
    recipient: Annotated[str, typer.Option("--to", metavar="ADDRESS", help="Envelope recipient.")],
    credential: Annotated[
        str | None,
        typer.Option("--credential", metavar="NAME", help="User name the app logged in with.", show_default=False),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option("--network", metavar="NAME", help="Named network the app connected from.", show_default=False),
    ] = None,
    campaign: Annotated[
        str | None, typer.Option("--campaign", metavar="TEXT", help="Value of the campaign header.", show_default=False)
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header", metavar="NAME=VALUE", help='A header, like "X-Shop=books"; may be repeated.', show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Say which rule, upstream, DKIM keys and limits apply to a mail, and why.

    A From header decides which DKIM key signs: give --header "From=Shop <news@shop.example.com>" where its domain is
    another than the sender's. Exit code 1 when no rule matches or the mail would be refused.
    """
    whole = read_config(context, config)
    question = _question(whole, Question(sender, recipient, credential, network, campaign, {}), header or [])
    found = _explanation(whole, question)
    if as_json:
        print_json(found)
    else:
        _tell(found)
    if found["upstream"] is None or found["refused"]:
        raise typer.Exit(FAILED)


def _question(config: Config, given: Question, headers: Sequence[str]) -> Question:
    """The question with its headers read. Raises CommandError for what cannot be."""
    from relayd.core.address import AddressError, validate

    for option, address in (("--from", given.sender), ("--to", given.recipient)):
        try:
            if address or option == "--to":
                validate(address, utf8=True)
        except AddressError as error:
            raise CommandError(f"{option}: {error.problem}", code=FAULT) from None
    names = [each.username for each in config.credentials]
    if given.credential is not None and given.credential not in names:
        raise CommandError(f"--credential: {given.credential} is not configured; known are: {_list(names)}", code=FAULT)
    values: dict[str, str] = {}
    for text in headers:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise CommandError(f"--header: write NAME=VALUE, not {text}", code=FAULT)
        values[name.strip().rstrip(":").lower()] = value.strip()
    campaign = given.campaign if given.campaign is not None else values.get(config.campaign_header.lower())
    return replace(given, campaign=campaign, headers=values)


def _priority(config: Config, question: Question, route: Route | None) -> str | None:
    """How urgent the mail would be."""
    from relayd.core.priority import priority_of, read_priority
    from relayd.intake.urgency import urgency_of

    own = next((each.priority for each in config.credentials if each.username == question.credential), None)
    asked = read_priority(question.headers.get(config.priority_header.lower(), ""))
    if route is None:
        return None
    return priority_of(urgency_of(asked, own, [route.priority])).value


def _facts(question: Question, from_domain: str) -> RouteFacts:
    from relayd.core.address import domain_of
    from relayd.delivery.routing import RouteFacts, sender_domain_of

    return RouteFacts(
        sender=question.sender,
        sender_domain=sender_domain_of(question.sender, from_domain),
        recipient_domain=domain_of(question.recipient),
        credential=question.credential,
        network=question.network,
        campaign=question.campaign,
        headers=question.headers,
    )


def _explanation(config: Config, question: Question) -> dict[str, Any]:
    from relayd.core.address import domain_of
    from relayd.core.author import author_domain
    from relayd.delivery.routing import RouteTable

    written = question.headers.get("from")
    from_domain = author_domain(written.encode()) if written is not None else domain_of(question.sender)
    steps = RouteTable(config.routes).explain(_facts(question, from_domain))
    matched = steps[-1] if steps and not steps[-1][2] else None
    route = config.routes[matched[0]] if matched else None
    upstream = route.upstreams[0] if route else None
    return {
        "from": question.sender,
        "to": question.recipient,
        "rules": [{"rule": place + 1, "upstream": name, "misses": misses} for place, name, misses in steps],
        "rule": matched[0] + 1 if matched else None,
        "upstream": upstream,
        "upstreams": list(route.upstreams) if route else [],
        "weights": route.weights if route else None,
        "priority": _priority(config, question, route),
        "from_domain": from_domain,
        "dkim": _keys(config, from_domain),
        "limits": _limits(config, question, upstream),
        "refused": _refusal(config, question),
    }


def _keys(config: Config, from_domain: str) -> list[dict[str, str]]:
    from relayd.delivery.dkim import DKIMKeyError, Signer, load_keys

    try:
        keys = Signer(load_keys(config.dkim), lambda: 0).keys_for(from_domain)
    except DKIMKeyError as error:
        raise CommandError(str(error), code=FAULT) from None
    return [{"domain": key.domain, "selector": key.selector, "algorithm": key.algorithm} for key in keys]


def _limits(config: Config, question: Question, upstream: str | None) -> dict[str, str]:
    from relayd.core.units import format_duration, format_size

    limits = {
        "message size": format_size(config.limits.message_size),
        "recipients of a message": str(config.limits.recipients),
    }
    rate = next((each.rate for each in config.credentials if each.username == question.credential), None)
    if rate is not None:
        limits["rate of the credential"] = str(rate)
    if upstream is not None:
        theirs = config.upstreams[upstream].limits
        limits |= {
            "connections to the upstream": str(theirs.connections),
            "recipients in one transaction": str(theirs.recipients_per_message),
        }
        for kind, windows in (("messages", theirs.messages), ("recipients", theirs.recipients)):
            if windows:
                limits[f"{kind} to the upstream"] = ", ".join(map(str, windows))
        if theirs.messages_per_connection:
            limits["messages of a connection"] = str(theirs.messages_per_connection)
    return limits | {"retries": str(config.retry.schedule), "lifetime": format_duration(config.retry.lifetime)}


def _refusal(config: Config, question: Question) -> str | None:
    """Why the mail would be refused before any rule is looked at."""
    from relayd.intake.admission import SenderPatterns

    for credential in config.credentials:
        if credential.username == question.credential and not SenderPatterns(credential.senders).allow(question.sender):
            return f"{credential.username} may only send from {_list(credential.senders)} (553 5.7.1)"
    return None


def _tell(found: dict[str, Any]) -> None:
    say(f"From <{found['from']}> to <{found['to']}>")
    if found["refused"]:
        say(f"  refused: {found['refused']}", style="red")
    for step in found["rules"]:
        if step["misses"]:
            say(f"  rule {step['rule']} (to {step['upstream']}) does not match: {'; '.join(step['misses'])}")
        else:
            say(f"  rule {step['rule']} matches: goes to {_targets(found)}", style="green")
    if found["upstream"] is None:
        say("  no rule matches: refused with 550 5.4.4", style="red")
        return
    if found["dkim"]:
        for key in found["dkim"]:
            say(f"  signed for {key['domain']} with selector {key['selector']} ({key['algorithm']})")
    else:
        say(f"  not signed: no DKIM key for {found['from_domain'] or 'a mail without From'} or a domain above it")
    say(f"  priority: {found['priority']}")
    for name, value in found["limits"].items():
        say(f"  {name}: {value}")


def _targets(found: dict[str, Any]) -> str:
    weights = found["weights"]
    if weights:
        return " or ".join(f"{name} ({weight * 100 / sum(weights.values()):.0f} %)" for name, weight in weights.items())
    return ", or else to ".join(found["upstreams"])


def _list(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"

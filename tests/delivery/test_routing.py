"""Routes: first match wins, every condition must hold."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.config.models import Match, Route
from relayd.delivery.routing import RouteFacts, RouteTable, sender_domain_of


def table(*rules: tuple[dict[str, Any] | None, str]) -> RouteTable:
    return RouteTable([Route(match=match and Match(**match), upstream=upstream) for match, upstream in rules])


def facts(sender: str = "a@shop.example.com", to: str = "example.org", **more: Any) -> RouteFacts:
    return RouteFacts(sender, sender_domain_of(sender, ""), to, **more)


@pytest.mark.parametrize(
    ("match", "given", "fits"),
    [
        ({"sender_domain": "shop.example.com"}, facts(), True),
        ({"sender_domain": "shop.example.com"}, facts("a@SHOP.Example.COM"), True),
        ({"sender_domain": "shop.example.com"}, facts("a@example.com"), False),
        ({"sender_domain": "*.example.com"}, facts(), True),
        ({"sender": "*@shop.example.com"}, facts(), True),
        ({"sender": "*@shop.example.com"}, facts("a@xshop.example.com"), False),
        ({"sender": "*@shop.example.com"}, facts("a@shop.example.com.evil.test"), False),
        ({"sender": "a@shop.example.com"}, facts(), True),
        ({"sender": "a?@shop.example.com"}, facts("a1@shop.example.com"), True),
        ({"credential": "shop"}, facts(credential="shop"), True),
        ({"credential": "shop"}, facts(), False),
        ({"network": "office"}, facts(network="office"), True),
        ({"campaign": "newsletter"}, facts(campaign="newsletter"), True),
        ({"campaign": "news*"}, facts(campaign="newsletter"), True),
        ({"campaign": "newsletter"}, facts(), False),
        ({"recipient_domain": "example.org"}, facts(), True),
        ({"recipient_domain": "example.net"}, facts(), False),
        ({"header": {"X-Kind": "bulk*"}}, facts(headers={"x-kind": "bulk-1"}), True),
        ({"header": {"X-Kind": "bulk*"}}, facts(), False),
        ({"sender_domain": "shop.example.com", "campaign": "n"}, facts(), False),
        ({"sender_domain": "shop.example.com", "campaign": "n"}, facts(campaign="n"), True),
    ],
)
def test_a_rule_matches_when_all_its_conditions_hold(match: dict[str, Any], given: RouteFacts, fits: bool) -> None:
    routes = table((match, "acme"), (None, "sandbox"))
    assert routes.decide(given).upstream == ("acme" if fits else "sandbox")


def test_the_first_match_wins_and_none_is_none() -> None:
    routes = table(({"sender": "a@*"}, "one"), ({"sender": "*@shop.example.com"}, "two"))
    assert routes.decide(facts()).upstream == "one"
    assert routes.decide(facts("b@shop.example.com")).rule == 1
    assert routes.decide(facts("b@elsewhere.test")).upstream is None


def test_an_address_literal_is_routed_as_it_is_written() -> None:
    assert sender_domain_of("a@[192.0.2.1]", "") == "[192.0.2.1]"
    assert sender_domain_of("a@[IPv6:2001:DB8::1]", "") == "[ipv6:2001:db8::1]"


def test_the_null_sender_is_routed_by_the_domain_of_from() -> None:
    assert sender_domain_of("", "shop.example.com") == "shop.example.com"


def test_the_explanation_says_why_earlier_rules_did_not_match() -> None:
    routes = table(({"campaign": "newsletter"}, "acme"), (None, "sandbox"))
    assert routes.explain(facts()) == [
        (0, "acme", ["campaign is not given, wanted newsletter"]),
        (1, "sandbox", []),
    ]


def test_headers_that_rules_look_at_are_named_for_intake() -> None:
    assert table(({"header": {"X-Kind": "b", "Precedence": "bulk"}}, "a")).labels == {"x-kind", "precedence"}

"""SPF merged and counted, DMARC read and aligned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.domains import dmarc, spf

OURS = ["include:_spf.relay.test"]


@pytest.mark.parametrize(
    ("there", "merged"),
    [
        ([], "v=spf1 include:_spf.relay.test ~all"),
        (["v=spf1 -all"], "v=spf1 include:_spf.relay.test -all"),
        (["v=spf1 mx a:web.test ?all"], "v=spf1 mx a:web.test include:_spf.relay.test ?all"),
        (["v=spf1 include:_SPF.relay.test -all"], "v=spf1 include:_SPF.relay.test -all"),
        (["v=spf1 mx"], "v=spf1 mx include:_spf.relay.test ~all"),
        (["v=spf1 redirect=_spf.other.test"], "v=spf1 include:_spf.relay.test redirect=_spf.other.test"),
        (["v=spf1 -all include:_spf.relay.test"], "v=spf1 include:_spf.relay.test -all"),
        (["v=spf1 -include:_spf.relay.test ~all"], "v=spf1 include:_spf.relay.test ~all"),
        (["v=spf1 mx -all", "v=spf1 mx ip4:192.0.2.1 ~all"], "v=spf1 mx ip4:192.0.2.1 include:_spf.relay.test -all"),
        (["v=spf1 mx exp=why.test -all"], "v=spf1 mx include:_spf.relay.test -all exp=why.test"),
    ],
)
def test_ours_is_merged_into_theirs(there: list[str], merged: str) -> None:
    assert spf.merge(there, OURS) == merged
    assert spf.merge([merged], OURS) == merged


TERMS = st.sampled_from(
    [
        "mx",
        "a",
        "-a:x.test",
        "ip4:192.0.2.0/24",
        "ip6:2001:db8::/32",
        "include:a.test",
        "~all",
        "-all",
        "redirect=b.test",
    ]
)


@given(st.lists(st.lists(TERMS, max_size=5), max_size=3))
def test_a_merged_record_always_holds_ours_and_theirs(there: list[list[str]]) -> None:
    records = [" ".join(["v=spf1", *terms]) for terms in there]
    merged = spf.read(spf.merge(records, OURS))
    assert merged.problems == ()
    assert spf.lacking(merged, OURS) == []
    kept = {term.text for term in merged.terms}
    assert all(t in kept for terms in there for t in terms if "all" not in t and "=" not in t)
    assert sum(term.name == "all" for term in merged.terms) <= 1


@given(st.text())
def test_no_record_makes_the_reader_fail(text: str) -> None:
    spf.merge([f"v=spf1 {text}"], OURS)
    dmarc.read(text)
    spf.cost("example.jp", f"v=spf1 {text}", {})


def test_lookups_are_counted_through_includes() -> None:
    answers: dict[tuple[str, str], list[str] | None] = {
        ("a.test", "TXT"): ["v=spf1 include:b.test a mx -all include:never.test"],
        ("b.test", "TXT"): ["other", "v=spf1 ip4:192.0.2.1 exists:%{i}.c.test ptr ~all"],
        ("a.test", "A"): ["192.0.2.1"],
        ("a.test", "MX"): [],
    }
    cost = spf.cost("example.jp", "v=spf1 include:a.test redirect=_spf.d.test", answers)
    assert cost.unknown == [("_spf.d.test", "TXT")]
    assert (cost.lookups, cost.voids) == (7, 1)
    assert cost.warnings == []


def test_more_than_ten_lookups_and_two_voids_are_told() -> None:
    record = "v=spf1 " + " ".join(f"a:h{n}.test" for n in range(11)) + " -all"
    answers: dict[tuple[str, str], list[str] | None] = {(f"h{n}.test", "A"): [] for n in range(11)}
    warnings = spf.cost("example.jp", record, answers).warnings
    assert len(warnings) == 2
    assert "11 DNS look-ups" in warnings[0]
    answers = dict.fromkeys(answers)  # nobody answered: no void
    assert len(spf.cost("example.jp", record, answers).warnings) == 1


def test_includes_in_a_circle_and_to_nothing_are_told() -> None:
    answers: dict[tuple[str, str], list[str] | None] = {
        ("a.test", "TXT"): ["v=spf1 include:example.jp -all"],
        ("b.test", "TXT"): ["nothing of the kind"],
        ("c.test", "TXT"): ["v=spf1 -all", "v=spf1 ~all"],
    }
    warnings = spf.cost("example.jp", "v=spf1 include:a.test include:b.test include:c.test -all", answers).warnings
    assert ["circle" in warnings[0], "no SPF" in warnings[1], "more than one" in warnings[2]] == [True] * 3


@pytest.mark.parametrize(
    ("domain", "organisation"),
    [
        ("example.co.jp", "example.co.jp"),
        ("a.b.example.co.jp", "example.co.jp"),
        ("example.jp", "example.jp"),
        ("www.city.kobe.jp", "city.kobe.jp"),
        ("co.jp", "co.jp"),
        ("xn--r8jz45g.jp", "xn--r8jz45g.jp"),
        ("mail.xn--r8jz45g.jp", "xn--r8jz45g.jp"),
    ],
)
def test_organisational_domains(domain: str, organisation: str) -> None:
    assert dmarc.organisational(domain) == organisation


def test_alignment() -> None:
    relaxed, strict = dmarc.read("v=DMARC1; p=none"), dmarc.read("v=DMARC1; p=none; aspf=s; adkim=s")
    ok = dmarc.align("example.co.jp", "example.co.jp", "bounce.example.co.jp", relaxed)
    aligned = "From, DKIM and return path (bounce.example.co.jp) are aligned: example.co.jp"
    assert ok == [aligned]
    tight = dmarc.align("example.co.jp", "example.co.jp", "bounce.example.co.jp", strict)
    assert len(tight) == 1
    assert "return path" in tight[0]
    assert "aspf=s" in tight[0]
    (loose,) = dmarc.align("example.co.jp", "other.co.jp", "example.co.jp", None)
    assert loose.startswith("DKIM signs as other.co.jp")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("v=DMARC1; p=none", ""),
        ("v=DMARC1;p=quarantine;sp=none;pct=50;rua=mailto:a@b.test,mailto:c@d.test!10m", ""),
        ("p=none; v=DMARC1", "must come first"),
        ("v=DMARC1; p=none; pct=101", "pct="),
        ("v=DMARC1; p=none; adkim=x", "adkim="),
        ("v=DMARC1; p=none; sp=maybe", "sp="),
        ("v=DMARC1; p=none; p=reject", "twice"),
        ("v=DMARC1 p=none", "p= is missing"),
    ],
)
def test_dmarc_records(text: str, problem: str) -> None:
    problems = "; ".join(dmarc.read(text).problems)
    assert problem in problems
    assert bool(problems) == bool(problem)

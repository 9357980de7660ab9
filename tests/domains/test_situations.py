"""What DNS may look like, each situation with its verdict, cause and message, asked of real servers on loopback."""

# ruff: noqa: E501 - a table reads best with one situation a line

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from relayd.domains import dmarc as dmarc_records
from relayd.domains import expected, providers, texts, tracking, verify
from relayd.domains import spf as spf_records
from relayd.domains.expected import Ours
from relayd.domains.records import Cause, Expected, Finding, Purpose, Status, Verdict
from relayd.domains.resolve import Lookup
from relayd.domains.verify import check_one
from relayd.spool.domains import DomainKey, KeyState, SenderDomain, TrackingDomain
from tests.support.dns_world import NEGATIVE_TTL, World, Zone

P = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA" + "Ab1/" * 85 + "IDAQAB"
KEY = f"v=DKIM1; k=rsa; p={P}"
ED = "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
SPF = "include:_spf.relay.test"
V, M, W, PR, U = Verdict.VERIFIED, Verdict.MISSING, Verdict.WRONG, Verdict.PROPAGATING, Verdict.UNKNOWN
Setup = Callable[[Zone, str], object]


def dkim(zone: str) -> Expected:
    return Expected(Purpose.DKIM, "TXT", f"r1._domainkey.{zone}", KEY, selector="r1", zone=zone)


def ed25519(zone: str) -> Expected:
    return Expected(Purpose.DKIM, "TXT", f"e1._domainkey.{zone}", ED, selector="e1", zone=zone)


def delegation(zone: str) -> Expected:
    target = f"r1._domainkey.{zone}.keys.relay.test"
    return Expected(Purpose.DKIM_DELEGATION, "CNAME", f"r1._domainkey.{zone}", target, selector="r1", zone=zone)


def spf(zone: str) -> Expected:
    return Expected(Purpose.SPF, "TXT", zone, f"v=spf1 {SPF} ~all", zone=zone, terms=(SPF,))


def dmarc(zone: str) -> Expected:
    return Expected(Purpose.DMARC, "TXT", f"_dmarc.{zone}", "v=DMARC1; p=none", zone=zone)


def sub_dmarc(zone: str) -> Expected:
    return Expected(Purpose.DMARC, "TXT", f"_dmarc.news.{zone}", "v=DMARC1; p=none", zone=zone)


def back(zone: str) -> Expected:
    return Expected(Purpose.RETURN_PATH, "MX", f"bounce.{zone}", "10 relay.test", zone=zone)


def link(zone: str) -> Expected:
    return Expected(Purpose.TRACKING, "CNAME", f"link.{zone}", "link.relay.test", zone=zone)


def proof(zone: str) -> Expected:
    value = "_f00d.proof.relay.test"
    return Expected(Purpose.TRACKING_PROOF, "CNAME", f"_beef.link.{zone}", value, zone=zone, lost_underscore=True)


@dataclass(frozen=True)
class Case:
    """One situation."""

    name: str
    expected: Callable[[str], Expected]
    setup: Setup
    verdict: Verdict
    cause: Cause = Cause.NONE
    says: str = ""
    note: str = ""
    domain: str = ""
    quick: bool = False
    """Some server keeps silent: do not wait for it long."""


def put(kind: str, host: str, *values: str | tuple[str, ...]) -> Setup:
    """Records at `host` below the zone ("" for the apex); {d} in values is the zone."""

    def setup(zone: Zone, domain: str) -> object:
        filled = [v.replace("{d}", domain) if isinstance(v, str) else v for v in values]
        return zone.add(kind, f"{host}.{domain}" if host else domain, *filled)

    return setup


def both(*setups: Setup) -> Setup:
    def setup(zone: Zone, domain: str) -> object:
        return [each(zone, domain) for each in setups]

    return setup


def trouble(**servers: str) -> Setup:
    def setup(zone: Zone, domain: str) -> object:
        del domain
        return zone.trouble.update(servers)

    return setup


def only(server: str, kind: str = "", host: str = "", *values: str, ttl: int = 1200) -> Setup:
    """`server` has this instead of what the others have; nothing without a kind."""

    def setup(zone: Zone, domain: str) -> object:
        zone.only.setdefault(server, {})
        return zone.add(kind, f"{host}.{domain}" if host else domain, *values, on=server, ttl=ttl) if kind else None

    return setup


R1, E1 = "r1._domainkey", "e1._domainkey"
GOOD_KEY = put("TXT", R1, KEY)
GOOD_SPF = put("TXT", "", f"v=spf1 {SPF} -all")

CASES = [
    # --- DKIM by TXT
    Case("key, in strings of 255 octets", dkim, put("TXT", R1, (KEY[:255], KEY[255:])), V),
    Case("key, in many short strings", dkim, put("TXT", R1, tuple(KEY[n : n + 50] for n in range(0, 500, 50))), V),
    Case("key of Ed25519", ed25519, put("TXT", E1, ED), V),
    Case("key with more tags and spaces", dkim, put("TXT", R1, f"v=DKIM1;h=sha256 ; k=rsa; s=email; t=s;  p={P} ;"), V),
    Case("key without v and k", dkim, put("TXT", R1, f"p={P}"), V),
    Case("key with white space inside p=", dkim, put("TXT", R1, f"v=DKIM1; k=rsa; p={P[:64]} {P[64:]}"), V),
    Case("key for testing", dkim, put("TXT", R1, f"v=DKIM1; t=y; p={P}"), V, note="t=y"),
    Case("key is not there", dkim, put("TXT", "", "hello"), M, Cause.ABSENT, "no such record"),
    Case("key's name is there, without TXT", dkim, put("A", R1, "192.0.2.1"), M, Cause.ABSENT),
    Case("key at name with the zone appended", dkim, put("TXT", f"{R1}.{{d}}", KEY), W, Cause.ZONE_APPENDED, "appended"),
    Case("key at name without underscore", dkim, put("TXT", "r1.domainkey", KEY), W, Cause.NO_UNDERSCORE, "underscore"),
    Case("key in quotation marks", dkim, put("TXT", R1, f'"{KEY}"'), W, Cause.QUOTES, "quotation marks"),
    Case("key in typographic quotation marks", dkim, put("TXT", R1, f"“{KEY}”"), W, Cause.QUOTES),
    Case("strings with quotation marks in one value", dkim, put("TXT", R1, f'{KEY[:255]}" "{KEY[255:]}'), W, Cause.QUOTES),
    Case("key with backslashes", dkim, put("TXT", R1, KEY.replace(";", "\\;")), W, Cause.ESCAPED, "backslashes"),
    Case("key with a full-width letter", dkim, put("TXT", R1, KEY.replace("k=rsa", "\uff4b=rsa")), W, Cause.WIDE, "full-width"),
    Case("key split into two records", dkim, put("TXT", R1, KEY[:255], KEY[255:]), W, Cause.SPLIT, "several records"),
    Case("key split into three records", dkim, put("TXT", R1, KEY[:150], KEY[150:300], KEY[300:]), W, Cause.SPLIT),
    Case("key doubled by an old one", dkim, put("TXT", R1, KEY, "v=DKIM1; p=AAAA"), W, Cause.DOUBLED, "only this one"),
    Case("key beside some other text", dkim, put("TXT", R1, KEY, "site-verification=1"), W, Cause.DOUBLED),
    Case("another key", dkim, put("TXT", R1, "v=DKIM1; k=rsa; p=" + P.replace("Ab1/", "Zz9+")), W, Cause.OTHER_KEY, "another key"),
    Case("key of the other algorithm", dkim, put("TXT", R1, KEY.replace("k=rsa", "k=ed25519")), W, Cause.OTHER_KEY),
    Case("key cut off at 255 octets", dkim, put("TXT", R1, KEY[:255]), W, Cause.CUT, "cut off"),
    Case("key in small letters", dkim, put("TXT", R1, KEY[:18] + P.lower()), W, Cause.CASE, "capital"),
    Case("key revoked", dkim, put("TXT", R1, "v=DKIM1; p="), W, Cause.REVOKED, "revoked"),
    Case("key for SHA-1 only", dkim, put("TXT", R1, f"v=DKIM1; h=sha1; p={P}"), W, Cause.RESTRICTED, "forbids"),
    Case("key for another service", dkim, put("TXT", R1, f"v=DKIM1; s=other; p={P}"), W, Cause.RESTRICTED),
    Case("key of another version", dkim, put("TXT", R1, f"v=DKIM2; p={P}"), W, Cause.NOT_A_KEY, "no DKIM key"),
    Case("SPF in the key's place", dkim, put("TXT", R1, "v=spf1 -all"), W, Cause.NOT_A_KEY),
    Case("a wildcard answers", dkim, put("TXT", "*._domainkey", "v=spf1 -all"), W, Cause.WILDCARD, "wildcard"),
    # --- behind CNAMEs
    Case("key behind a CNAME", dkim, both(put("CNAME", R1, "k.{d}"), put("TXT", "k", KEY)), V),
    Case("key behind three CNAMEs", dkim, both(put("CNAME", R1, "a.{d}"), put("CNAME", "a", "b.{d}"), put("CNAME", "b", "c.{d}"), put("TXT", "c", KEY)), V),
    Case("key behind a CNAME into another zone", dkim, put("CNAME", R1, "key.elsewhere.test"), V),
    Case("CNAME to nothing", dkim, put("CNAME", R1, "gone.{d}"), W, Cause.DANGLING, "alias for gone."),
    Case("CNAME to nothing in another zone", dkim, put("CNAME", R1, "gone.elsewhere.test"), W, Cause.DANGLING),
    Case("CNAMEs in a circle", dkim, both(put("CNAME", R1, "b.{d}"), put("CNAME", "b", R1 + ".{d}")), W, Cause.LOOP, "circle"),
    Case("CNAME to itself", dkim, put("CNAME", R1, R1 + ".{d}"), W, Cause.LOOP),
    Case("circle over two zones", dkim, put("CNAME", R1, "circle.elsewhere.test"), W, Cause.LOOP),
    # --- DKIM by delegation
    Case("delegation", delegation, put("CNAME", R1, "R1._domainkey.{d}.keys.RELAY.test."), V),
    Case("delegation is not there", delegation, put("TXT", "", "hello"), M, Cause.ABSENT),
    Case("delegation to another name", delegation, put("CNAME", R1, "r2._domainkey.{d}.keys.relay.test"), W, Cause.OTHER_TARGET, "somewhere else"),
    Case("delegation with the zone appended to its value", delegation, put("CNAME", R1, "r1._domainkey.{d}.keys.relay.test.{d}"), W, Cause.VALUE_ZONE_APPENDED, "end the value with a dot"),
    Case("delegation with the zone appended to its name", delegation, put("CNAME", f"{R1}.{{d}}", "r1._domainkey.{d}.keys.relay.test"), W, Cause.ZONE_APPENDED),
    Case("delegation that lost an underscore in its value", delegation, put("CNAME", R1, "r1.domainkey.{d}.keys.relay.test"), W, Cause.NO_UNDERSCORE),
    Case("delegation entered as TXT", delegation, put("TXT", R1, "r1._domainkey.{d}.keys.relay.test"), W, Cause.OTHER_TYPE, "TXT record instead"),
    Case("proxy in front of the delegation", delegation, put("A", R1, "192.0.2.1"), W, Cause.PROXY, "proxy"),
    Case("delegation in a circle", delegation, put("CNAME", R1, R1 + ".{d}"), W, Cause.LOOP),
    # --- SPF
    Case("SPF holds our part", spf, GOOD_SPF, V),
    Case("SPF in capitals with an explicit plus", spf, put("TXT", "", "V=SPF1 +INCLUDE:_SPF.relay.test -ALL"), V),
    Case("SPF beside other texts", spf, put("TXT", "", "site-verification=1", f"v=spf1 a mx {SPF} ~all"), V),
    Case("SPF open to all", spf, put("TXT", "", f"v=spf1 {SPF} +all"), V, note="whole world"),
    Case("no SPF", spf, put("TXT", "", "site-verification=1"), M, Cause.ABSENT),
    Case("no TXT at the apex", spf, put("A", "www", "192.0.2.1"), M, Cause.ABSENT),
    Case("two SPF records", spf, put("TXT", "", "v=spf1 mx -all", f"v=spf1 {SPF} ~all"), W, Cause.TWO_SPF, "two SPF records"),
    Case("SPF without our part", spf, put("TXT", "", "v=spf1 mx -all"), W, Cause.SPF_LACKS, SPF),
    Case("our part behind all", spf, put("TXT", "", f"v=spf1 mx -all {SPF}"), W, Cause.SPF_AFTER_ALL, "never read"),
    Case("our part with a minus", spf, put("TXT", "", f"v=spf1 -{SPF} ~all"), W, Cause.SPF_NEGATED, "forbids"),
    Case("SPF split into two records", spf, put("TXT", "", "v=spf1 mx", f"{SPF} ~all"), W, Cause.SPLIT),
    Case("SPF in strings", spf, put("TXT", "", ("v=spf1 mx ", f"{SPF} ", "-all")), V),
    Case("SPF in quotation marks", spf, put("TXT", "", f'"v=spf1 {SPF} -all"'), W, Cause.QUOTES),
    Case("SPF with a fault", spf, put("TXT", "", f"v=spf1 ip4:300.1.1.1 {SPF} -all"), W, Cause.SPF_SYNTAX, "ip4:300.1.1.1"),
    Case("SPF with an unknown mechanism", spf, put("TXT", "", f"v=spf1 includes:x.test {SPF} -all"), W, Cause.SPF_SYNTAX),
    Case("SPF with a full-width space", spf, put("TXT", "", f"v=spf1 {SPF}\u3000-all"), W, Cause.WIDE),
    Case("SPF at the name with the zone appended", spf, put("TXT", "{d}", f"v=spf1 {SPF} -all"), W, Cause.ZONE_APPENDED),
    Case("SPF by a wildcard does not reach the apex", spf, put("TXT", "*", f"v=spf1 {SPF} -all"), M, Cause.ABSENT),
    Case("CNAME at the apex", spf, put("CNAME", "", "spf.elsewhere.test"), V),
    # --- DMARC
    Case("DMARC", dmarc, put("TXT", "_dmarc", "v=DMARC1; p=reject; rua=mailto:d@{d}; pct=100"), V),
    Case("no DMARC", dmarc, put("TXT", "", "hello"), M, Cause.ABSENT),
    Case("two DMARC records", dmarc, put("TXT", "_dmarc", "v=DMARC1; p=none", "v=DMARC1; p=reject"), W, Cause.TWO_DMARC, "two DMARC"),
    Case("DMARC without policy", dmarc, put("TXT", "_dmarc", "v=DMARC1; rua=mailto:d@{d}"), W, Cause.DMARC_SYNTAX, "p= is missing"),
    Case("DMARC with an unknown policy", dmarc, put("TXT", "_dmarc", "v=DMARC1; p=no"), W, Cause.DMARC_SYNTAX),
    Case("DMARC with a bare address", dmarc, put("TXT", "_dmarc", "v=DMARC1; p=none; rua=d@{d}"), W, Cause.DMARC_SYNTAX, "mailto:"),
    Case("DMARC in quotation marks", dmarc, put("TXT", "_dmarc", '"v=DMARC1; p=none"'), W, Cause.QUOTES),
    Case("DMARC without underscore", dmarc, put("TXT", "dmarc", "v=DMARC1; p=none"), W, Cause.NO_UNDERSCORE),
    Case("DMARC at the name with the zone appended", dmarc, put("TXT", "_dmarc.{d}", "v=DMARC1; p=none"), W, Cause.ZONE_APPENDED),
    Case("DMARC of the organisational domain", sub_dmarc, put("TXT", "_dmarc", "v=DMARC1; p=none"), V, note="inherited"),
    Case("faulty DMARC of the organisational domain", sub_dmarc, put("TXT", "_dmarc", "v=DMARC1"), W, Cause.DMARC_SYNTAX),
    # --- MX
    Case("MX", back, put("MX", "bounce", "10 RELAY.test."), V),
    Case("MX of another preference", back, put("MX", "bounce", "0 relay.test"), V),
    Case("MX with a fallback behind", back, put("MX", "bounce", "10 relay.test", "20 backup.test"), V),
    Case("no MX", back, put("A", "bounce", "192.0.2.1"), M, Cause.ABSENT),
    Case("null MX", back, put("MX", "bounce", "0 ."), W, Cause.NULL_MX, "null MX"),
    Case("another MX", back, put("MX", "bounce", "10 mail.{d}"), W, Cause.OTHER_MX),
    Case("another MX comes first", back, put("MX", "bounce", "5 mail.{d}", "10 relay.test"), W, Cause.OTHER_MX, "comes first"),
    Case("MX to an address", back, put("MX", "bounce", "10 192.0.2.1"), W, Cause.MX_ADDRESS, "not an address"),
    Case("MX with the zone appended to its value", back, put("MX", "bounce", "10 relay.test.{d}"), W, Cause.VALUE_ZONE_APPENDED),
    # --- tracking
    Case("tracking host", link, put("CNAME", "link", "link.relay.test"), V),
    Case("proxy in front of the tracking host", link, put("A", "link", "192.0.2.1"), W, Cause.PROXY),
    Case("proof", proof, put("CNAME", "_beef.link", "_f00d.proof.relay.test"), V),
    Case("proof whose value lost its underscore", proof, put("CNAME", "_beef.link", "f00d.proof.relay.test"), V),
    Case("proof whose host lost its underscore", proof, put("CNAME", "beef.link", "_f00d.proof.relay.test"), W, Cause.NO_UNDERSCORE),
    Case("proof of another", proof, put("CNAME", "_beef.link", "_cafe.proof.relay.test"), W, Cause.OTHER_TARGET),
    # --- servers and caches
    Case("one server lags behind", dkim, both(GOOD_KEY, only("ns2")), PR, Cause.SOME_SERVERS, "ns2.servers.test"),
    Case("one server has an old key", dkim, both(GOOD_KEY, only("ns1", "TXT", R1, "v=DKIM1; p=AAAA")), PR, Cause.SOME_SERVERS),
    Case("a cache remembers that there was nothing", dkim, both(GOOD_KEY, only("resolver")), PR, Cause.CACHED, f"{NEGATIVE_TTL} seconds"),
    Case("a cache remembers an old key", dkim, both(GOOD_KEY, only("resolver", "TXT", R1, "v=DKIM1; p=AAAA")), PR, Cause.CACHED, "1200 seconds"),
    Case("gone, and a cache still has it", dkim, only("resolver", "TXT", R1, KEY), M, Cause.ABSENT, note="caches, for 1200 seconds"),
    Case("one server answers SERVFAIL", dkim, both(GOOD_KEY, trouble(ns2="servfail")), V, note="SERVFAIL"),
    Case("one server is lame", dkim, both(GOOD_KEY, trouble(ns2="lame")), V, note="does not serve it"),
    Case("one server refuses", dkim, both(GOOD_KEY, trouble(ns1="refused")), V, note="does not serve it"),
    Case("one server is silent", dkim, both(GOOD_KEY, trouble(ns1="timeout")), V, note="did not answer", quick=True),
    Case("one server makes no sense", dkim, both(GOOD_KEY, trouble(ns1="nonsense")), V, note="no usable answer"),
    Case("one server has no address", dkim, lambda zone, d: (zone.add("TXT", f"{R1}.{d}", KEY), setattr(zone, "homeless", ("ns9",))), V, note="ns9"),
    Case("all servers are lame", dkim, trouble(ns1="lame", ns2="lame", resolver="servfail"), U, Cause.LAME),
    Case("all servers refuse, the resolver too", dkim, trouble(ns1="refused", ns2="refused", resolver="nonsense"), U, Cause.LAME, "do not serve"),
    Case("all fail", dkim, trouble(ns1="servfail", ns2="servfail", resolver="servfail"), U, Cause.SERVFAIL, "SERVFAIL"),
    Case("all are silent", dkim, trouble(ns1="timeout", ns2="timeout", resolver="timeout"), U, Cause.TIMEOUT, "no answer in time", quick=True),
    Case("servers silent, the resolver knows", dkim, both(GOOD_KEY, trouble(ns1="timeout", ns2="timeout")), V, note="did not answer", quick=True),
    Case("servers fail, the resolver knows of nothing", dkim, trouble(ns1="servfail", ns2="servfail"), M, Cause.ABSENT),
    Case("DNSSEC broken", dkim, both(GOOD_KEY, trouble(resolver="dnssec")), U, Cause.DNSSEC, "DNSSEC"),
    Case("DNSSEC broken, and the record missing", dkim, trouble(resolver="dnssec"), M, Cause.ABSENT, note="DNSSEC"),
    Case("resolver fails, servers know", dkim, both(GOOD_KEY, trouble(resolver="servfail")), U, Cause.SERVFAIL),
    Case("resolver is silent, servers know", dkim, both(GOOD_KEY, trouble(resolver="timeout")), V, note="did not answer", quick=True),
    # --- internationalised domains
    Case("key of 例え.jp", dkim, GOOD_KEY, V, domain="xn--r8jz45g.jp"),
    Case("SPF of 例え.jp is missing", spf, put("TXT", R1, KEY), M, Cause.ABSENT, domain="xn--r8jz45g.jp"),
    Case("zone appended below 例え.jp", dkim, put("TXT", f"{R1}.{{d}}", KEY), W, Cause.ZONE_APPENDED, "xn--r8jz45g.jp.xn--r8jz45g.jp", domain="xn--r8jz45g.jp"),
]  # fmt: skip


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as running:
        yield running


def elsewhere(world: World, domain: str) -> None:
    """A zone of others, where CNAMEs may lead."""
    zone = world.zone("elsewhere.test")
    zone.add("TXT", "key.elsewhere.test", KEY).add("TXT", "spf.elsewhere.test", f"v=spf1 {SPF} -all")
    zone.add("CNAME", "circle.elsewhere.test", f"r1._domainkey.{domain}")


async def find(world: World, case: Case, domain: str) -> Finding:
    elsewhere(world, domain)
    zone = world.zone(domain)

    class Filled:
        """Fills {d} in hosts, too."""

        def add(self, kind: str, host: str, *values: str | tuple[str, ...], **others: object) -> Zone:
            return zone.add(kind, host.replace("{d}", domain), *values, **others)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> object:
            return getattr(zone, name)

        def __setattr__(self, name: str, value: object) -> None:
            setattr(zone, name, value)

    case.setup(Filled(), domain)  # type: ignore[arg-type]
    timeout, tries = (1.0, 1) if case.quick else (20.0, 1)
    lookup = Lookup([world.resolver], port=world.port, timeout=timeout, tries=tries)
    try:
        return await check_one(case.expected(domain), lookup)
    finally:
        await lookup.close()


@pytest.mark.parametrize(("number", "case"), list(enumerate(CASES)), ids=[case.name for case in CASES])
async def test_verdict_cause_and_message(world: World, number: int, case: Case) -> None:
    finding = await find(world, case, case.domain or f"case{number}.example")
    assert (finding.verdict, finding.cause) == (case.verdict, case.cause), finding
    said = texts.message(finding)
    assert case.says in said
    assert any(case.note in note for note in finding.notes) or not case.note, finding.notes
    if case.verdict is not V:
        assert said
        assert texts.message(finding, "ja") != said
        assert "{" not in said + texts.message(finding, "ja")
    assert all(japanese(text) for text in texts.remarks(finding, "ja")), finding.notes


async def test_a_dead_server_costs_its_time_out_once(world: World) -> None:
    zone = world.zone("dead.example").add("TXT", "dead.example", "v=spf1 -all")
    zone.trouble["ns2"] = "timeout"
    lookup = Lookup([world.resolver], port=world.port, timeout=1.0, tries=1)
    for name in ("dead.example", "a.dead.example", "b.dead.example"):
        answers = {answer.source: answer.status for answer in await lookup.authoritative((name, "TXT"))}
        assert answers["ns2.servers.test"] is Status.TIMEOUT
    await lookup.close()
    assert len([asked for asked in world.asked if asked[0] == "ns2" and asked[1].endswith("dead.example")]) == 1


def test_there_are_enough_situations_and_every_cause_has_one() -> None:
    assert len(CASES) >= 60
    assert {case.cause for case in CASES} | {Cause.ERROR} == set(Cause)


def japanese(text: str) -> bool:
    return any("ぁ" <= letter <= "鿿" for letter in text)


def test_remarks_about_spf_and_alignment_have_their_japanese() -> None:
    answers = {
        ("a.test", "TXT"): ["v=spf1 include:a.test -all"],
        ("b.test", "TXT"): [],
        ("c.test", "TXT"): ["v=spf1"] * 2,
    }
    record = "v=spf1 include:a.test include:b.test include:c.test " + "exists:x.test " * 9
    notes = list(spf_records.cost("example.jp", record, answers | {("x.test", "A"): []}).warnings)
    assert len(notes) == 5
    strict = dmarc_records.read("v=DMARC1; p=none; aspf=s")
    for domain, back, policy in (
        ("example.jp", "bounce.example.jp", None),
        ("other.jp", "bounce.example.jp", strict),
        ("example.jp", "other.jp", None),
    ):
        notes += dmarc_records.align("example.jp", domain, back, policy)
    assert len(notes) == 9
    notes.append(verify.UNREAD)
    finding = Finding(dkim("example.jp"), V, notes=tuple(notes))
    assert texts.remarks(finding) == notes
    shown = texts.remarks(finding, "ja")
    assert all(japanese(text) for text in shown), shown
    assert "DNS参照が13回必要です。上限は10回です(RFC 7208 4.6.4)" in shown
    assert "From、DKIM、Return-Path(bounce.example.jp)のドメインは一致しています: example.jp" in shown


def test_every_remark_of_ours_has_its_japanese() -> None:
    keys = [DomainKey("example.jp", "s", "rsa", state) for state in (KeyState.NEXT, KeyState.RETIRING)]
    host = TrackingDomain("link.example.jp", steps=3, step=3, target="a.test", tls_target="b.test")
    remarks = {record.note for record in expected.of_domain(SenderDomain("example.jp"), keys, Ours("m"))}
    remarks |= {record.note for record in tracking.expected(host)}
    remarks |= {record.note for record in providers.records_of("sendgrid", "example.jp")}
    assert remarks - {""} == set(texts.NOTES)

"""What checks mean for a sender domain: states, grace, rotation, times. The clock is moved by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.domains.book import returns, signs
from relayd.domains.changes import first_keys, next_keys
from relayd.domains.expected import Ours, of_domain
from relayd.domains.keys import Vault
from relayd.domains.lifecycle import Policy, after_check, wait
from relayd.domains.records import Cause, Expected, Finding, Purpose, Verdict
from relayd.spool.domains import DomainEvent, DomainKey, DomainState, KeyState, SenderDomain
from tests.support.clock import Clock

HOUR = 3_600_000
POLICY = Policy(recheck=HOUR, grace=72 * HOUR, retire_after=7 * 24 * HOUR)
OURS = Ours("relay.test", "keys.relay.test", ("include:_spf.relay.test",))
VAULT = Vault(b"a secret of the tests, long enough")
V = Verdict


@dataclass
class Life:
    """A domain that is checked again and again."""

    domain: SenderDomain = field(default_factory=lambda: SenderDomain("example.jp"))
    keys: list[DomainKey] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    events: list[DomainEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = first_keys(self.domain, (), VAULT, self.clock())

    def expected(self) -> list[Expected]:
        return of_domain(self.domain, self.keys, OURS)

    def check(self, verdicts: Mapping[str, Verdict] | None = None, *, retry_after: int = 0) -> list[str]:
        """A check with these verdicts (by purpose or selector; the rest verified); the kinds of events."""
        found = verdicts or {}
        findings = [
            Finding(each, found.get(each.selector) or found.get(each.purpose, V.VERIFIED), Cause.NONE)
            for each in self.expected()
        ]
        change = after_check(
            self.domain, self.keys, findings, POLICY, now=self.clock(), retry_after=retry_after, jitter=0.0
        )
        self.domain = change.domain
        changed = {key.selector: key for key in change.keys}
        kept = [changed.get(key.selector, key) for key in self.keys if key.selector not in change.gone]
        self.keys = kept
        self.events += change.events
        return [event.kind for event in change.events]

    def rotate(self) -> list[DomainKey]:
        made = next_keys(self.domain, self.keys, VAULT, self.clock())
        replaced = {key.selector for key in made}
        self.keys = [key for key in self.keys if key.selector not in replaced] + made
        return made

    def signing(self) -> set[str]:
        return {key.selector for key in self.keys if signs(key, self.domain.state)}


def test_all_verified_makes_a_domain_verified() -> None:
    life = Life()
    assert life.check({"dmarc": V.MISSING}) == ["key.seen", "key.seen"]
    assert life.domain.state is DomainState.PENDING
    assert life.check({"dmarc": V.PROPAGATING}) == []
    assert life.domain.state is DomainState.PENDING
    assert life.check() == ["domain.verified"]
    assert life.domain.state is DomainState.VERIFIED
    assert life.domain.verified_at == life.clock()


def test_a_missing_record_degrades_at_once_and_stops_after_the_grace() -> None:
    life = Life()
    life.check()
    assert life.check({"spf": V.MISSING}) == ["domain.degraded"]
    assert life.domain.state.vouched
    assert life.events[-1].detail["records"] == ["TXT example.jp: missing"]
    assert life.events[-1].detail["stops_at"] == life.clock() + 72 * HOUR
    life.clock.advance(71.9 * 3600)
    assert life.check({"spf": V.WRONG}) == []
    assert life.domain.state is DomainState.DEGRADED
    assert life.domain.next_check <= life.domain.degraded_at + 72 * HOUR  # type: ignore[operator]
    life.clock.advance(0.2 * 3600)
    assert life.check({"spf": V.MISSING}) == ["domain.stopped"]
    assert not life.domain.state.vouched
    assert life.signing() == set()
    assert life.check() == ["domain.recovered"]
    assert life.domain.state is DomainState.VERIFIED
    assert life.domain.degraded_at is None
    assert len(life.signing()) == 2


def test_a_hiccup_never_counts_as_missing() -> None:
    life = Life()
    life.check()
    for _ in range(200):
        life.clock.advance(3600)
        assert life.check({"spf": V.UNKNOWN, "dkim": V.UNKNOWN, "dmarc": V.PROPAGATING}) == []
        assert life.domain.state is DomainState.VERIFIED
    life.check({"spf": V.MISSING})
    life.clock.advance(100 * 3600)
    assert life.check({"spf": V.UNKNOWN}) == []  # the grace is over, but nobody knows whether it is still missing
    assert life.domain.state is DomainState.DEGRADED


def test_a_second_fault_does_not_start_the_grace_anew() -> None:
    life = Life()
    life.check()
    life.check({"spf": V.MISSING})
    since = life.domain.degraded_at
    life.clock.advance(3600)
    assert life.check({"dmarc": V.MISSING}) == []
    assert life.domain.degraded_at == since


def test_rotation_waits_for_the_record_and_keeps_the_old_one() -> None:
    life = Life()
    life.check()
    old = life.signing()
    new = {key.selector for key in life.rotate()}
    assert new.isdisjoint(old)
    assert life.check(dict.fromkeys(new, V.MISSING)) == []
    assert life.domain.state is DomainState.VERIFIED
    assert life.signing() == old
    rsa = next(key.selector for key in life.keys if key.state is KeyState.NEXT and key.algorithm == "rsa")
    assert life.check(dict.fromkeys(new - {rsa}, V.PROPAGATING)) == ["key.rotated", "key.retiring"]
    assert rsa in life.signing()
    assert len(life.signing()) == 2
    assert life.check() == ["key.rotated", "key.retiring"]
    assert life.signing() == new
    life.clock.advance(6.9 * 86400)
    # the old record is no reason for alarm, but is asked for until the end
    assert life.check(dict.fromkeys(old, V.MISSING)) == []
    assert {each.selector for each in life.expected() if each.purpose is Purpose.DKIM} == old | new
    life.clock.advance(0.2 * 86400)
    assert life.check() == ["key.retired", "key.retired"]
    assert "may be removed" in life.events[-1].detail["text"]
    assert {key.selector for key in life.keys} == new


def test_delegated_selectors_take_turns_and_their_cnames_stay() -> None:
    life = Life(SenderDomain("example.jp", delegate=True, zone="keys.relay.test"))
    pointers = [each for each in life.expected() if each.purpose is Purpose.DKIM_DELEGATION]
    assert {each.selector for each in pointers} == {"r1", "r2", "e1", "e2"}
    life.check()
    assert life.signing() == {"r1", "e1"}
    life.rotate()
    life.check()
    assert life.signing() == {"r2", "e2"}
    life.clock.advance(8 * 86400)
    assert life.check() == ["key.retired", "key.retired"]
    assert {each for each in life.expected() if each.purpose is Purpose.DKIM_DELEGATION} == set(pointers)
    assert all(not key.private for key in life.keys if key.state is KeyState.SPARE)
    life.rotate()
    life.check()
    assert life.signing() == {"r1", "e1"}


def test_a_key_that_leads_nowhere_is_not_seen_though_its_cname_is() -> None:
    life = Life(SenderDomain("example.jp", delegate=True, zone="keys.relay.test"))
    life.check({"dkim-zone": V.MISSING})
    assert life.signing() == set()


def test_waits() -> None:
    assert wait(HOUR, 0, 0, 1.0) == 66 * 60_000
    assert wait(HOUR, 0, 0, -1.0) == 54 * 60_000
    assert wait(HOUR, 1, 0, 0.0) == 60_000
    assert wait(HOUR, 1, 300, 0.0) == 300_000  # no sooner than caches forget
    assert wait(HOUR, 3, 300, 0.0) == 1_200_000
    assert wait(HOUR, 60, 300, 0.0) == HOUR
    assert wait(1000, 5, 300, 0.0) == 1000


VERDICTS = st.sampled_from([V.VERIFIED, V.MISSING, V.WRONG, V.PROPAGATING, V.UNKNOWN])
STEPS = st.one_of(
    st.tuples(st.just("check"), st.lists(VERDICTS, min_size=6, max_size=6)),
    st.tuples(st.just("rotate"), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 200)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, max_size=12), st.booleans())
def test_no_key_ever_signs_whose_record_was_not_seen(steps: list[tuple[str, object]], delegate: bool) -> None:
    life = Life(_LIVES[delegate].domain, clock=Clock())
    seen: set[tuple[str, bytes]] = set()
    for what, value in steps:
        if what == "wait":
            assert isinstance(value, int)
            life.clock.advance(value * 3600)
        elif what == "rotate" and not any(key.state in {KeyState.NEXT, KeyState.RETIRING} for key in life.keys):
            life.rotate()
        elif what == "check":
            assert isinstance(value, list)
            verdicts = {key.selector: value[n % 6] for n, key in enumerate(life.keys)}
            before = {key.selector: key for key in life.keys}
            life.check({**verdicts, "spf": value[4], "dmarc": value[5]})
            seen |= {
                (selector, before[selector].public)
                for selector, verdict in verdicts.items()
                if verdict is V.VERIFIED and before[selector].public
            }
        for key in life.keys:
            if signs(key, life.domain.state):
                assert (key.selector, key.public) in seen
        algorithms = [key.algorithm for key in life.keys if key.state is KeyState.ACTIVE]
        assert len(algorithms) == len(set(algorithms)) == 2


_LIVES = {
    False: Life(),
    True: Life(SenderDomain("example.jp", delegate=True, zone="keys.relay.test")),
}


def test_the_return_path_is_used_while_its_records_are_there() -> None:
    life = Life(SenderDomain("example.jp", return_path="bounce.example.jp"))
    assert life.check({Purpose.RETURN_PATH_SPF: V.PROPAGATING}) == ["key.seen", "key.seen"]
    assert not returns(life.domain)
    assert "return-path.seen" in life.check()
    since = life.domain.return_path_seen_at
    assert since == life.clock() and returns(life.domain)
    life.clock.advance(60)
    for verdict in (V.UNKNOWN, V.PROPAGATING, V.VERIFIED):
        assert life.check({Purpose.RETURN_PATH: verdict}) == []
        assert life.domain.return_path_seen_at == since
    # another record has gone: bounces still come back
    assert life.check({Purpose.DMARC: V.MISSING}) == ["domain.degraded"]
    assert returns(life.domain)
    assert not returns(replace(life.domain, state=DomainState.STOPPED))
    assert life.check({Purpose.RETURN_PATH: V.WRONG, Purpose.RETURN_PATH_SPF: V.UNKNOWN}) == ["return-path.gone"]
    assert not returns(life.domain)
    assert life.check({Purpose.RETURN_PATH_SPF: V.MISSING}) == []
    assert sorted(life.check()) == ["domain.recovered", "return-path.seen"]
    assert life.domain.return_path_seen_at == life.clock()
    # what was found out about another domain says nothing
    findings = [Finding(each, V.VERIFIED, Cause.NONE) for each in life.expected()]
    other = replace(life.domain, return_path="other.example.jp", return_path_seen_at=None)
    assert after_check(other, life.keys, findings, POLICY, now=life.clock()).domain.return_path_seen_at is None

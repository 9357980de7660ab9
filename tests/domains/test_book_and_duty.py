"""What workers know of domains: keys that sign, mail that is refused, one worker that looks at DNS for all."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import dkim
import pytest

from relayd.config.models import Config, DKIMKey
from relayd.core.mail import Body, Envelope, Recipient
from relayd.delivery.dkim import Signer, load_keys, stored_key
from relayd.domains.adding import Wish, add, remove
from relayd.domains.book import DomainBook
from relayd.domains.duty import LEASE, DomainDuty
from relayd.domains.expected import key_value
from relayd.domains.keymaking import make, opened
from relayd.domains.keys import KeyLockedError, Vault
from relayd.domains.service import Checker
from relayd.intake.auth import PasswordVerifier
from relayd.intake.disk import DiskWatch
from relayd.intake.guesses import GuessLimiter
from relayd.intake.intake import Intake
from relayd.intake.networks import NetworkBook
from relayd.intake.rates import RateBook
from relayd.intake.session import ClientSession
from relayd.spool.domains import DomainState, DomainStore, Editor, KeyState, SenderAccount, SenderDomain
from relayd.spool.state import StateDB
from tests.domains.sites import config_for
from tests.intake.conftest import Counts
from tests.support.clock import Clock
from tests.support.dkim_keys import key_file
from tests.support.dns_world import World, Zone
from tests.support.memory_store import MemoryStore

DOMAIN = "example.co.jp"
SECRET = b"the secret of this test, long enough"
VAULT = Vault(SECRET)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as running:
        yield running


@pytest.fixture
def zone(world: World) -> Zone:
    return world.zone(DOMAIN)


@pytest.fixture
def store(state: StateDB) -> DomainStore:
    return DomainStore(state)


async def added(store: DomainStore, config: Config, clock: Clock, name: str = DOMAIN) -> SenderDomain:
    return await add(Wish(name), config, store, VAULT, clock)


async def publish(store: DomainStore, zone: Zone) -> None:
    for key in (await store.everything()).keys:
        if key.domain == zone.name:
            zone.add("TXT", f"{key.selector}._domainkey.{zone.name}", key_value(key))
    zone.add("TXT", zone.name, "v=spf1 include:_spf.relay.test -all")
    zone.add("TXT", f"_dmarc.{zone.name}", "v=DMARC1; p=none")


async def book_of(store: DomainStore, config: Config, told: list[DomainBook] | None = None) -> DomainBook:
    book = DomainBook(store, config, changed=(told if told is not None else []).append)
    await book.start(SECRET)
    return book


def test_a_locked_key_opens_with_its_secret_and_under_its_name_only() -> None:
    for algorithm in ("rsa", "ed25519"):
        key = make(DOMAIN, "s1", algorithm, KeyState.ACTIVE, now=0, vault=VAULT)
        assert opened(key, Vault(SECRET)).public_key() is not None
        for other, vault in [
            (key, Vault(SECRET + b"x")),
            (replace(key, selector="s2"), VAULT),
            (replace(key, domain="other.jp"), VAULT),
            (replace(key, private=key.private[:-1]), VAULT),
            (replace(key, private=b""), VAULT),
        ]:
            with pytest.raises(KeyLockedError, match="cannot be opened"):
                opened(other, vault)
        assert key.private not in repr(key).encode()
        assert base64.b64encode(key.private).decode() not in repr(key)


async def test_keys_sign_once_their_records_are_seen(
    store: DomainStore, config: Config, clock: Clock, zone: Zone
) -> None:
    told: list[DomainBook] = []
    book = await book_of(store, config, told)
    await added(store, config, clock)
    await book.poll()
    assert book.keys == ()
    await publish(store, zone)
    await Checker(store, config, clock).check_domain(DOMAIN)
    await book.poll()
    assert len(book.keys) == 2
    assert told == [book] * 3
    await book.poll()
    assert len(told) == 3  # nothing changed

    signer = Signer((), clock)
    signer.use(stored_key(key.domain, key.selector, key.private) for key in book.keys)
    content = b"From: a@example.co.jp\r\nSubject: x\r\n\r\nHello.\r\n"
    signed = signer.sign(content, DOMAIN) + content
    records = {f"{key.selector}._domainkey.{DOMAIN}.".encode(): key for key in (await store.everything()).keys}

    def answer(name: bytes, timeout: int = 5) -> bytes:
        return key_value(records[name]).encode()

    # dkimpy judges RSA; Ed25519 is judged by opendkim in tests/real
    assert [key.private.__class__.__name__ for key in book.keys] == ["RSAPrivateKey", "Ed25519PrivateKey"]
    assert dkim.DKIM(signed).verify(0, dnsfunc=answer)
    assert signer.sign(content, "sub.example.co.jp")  # a parent signs


async def test_a_configured_key_of_the_same_name_comes_first(clock: Clock) -> None:
    configured = load_keys([DKIMKey(domain=DOMAIN, selector="s1", key=key_file("rsa"))])
    signer = Signer(configured, clock)
    stored = make(DOMAIN, "s1", "ed25519", KeyState.ACTIVE, now=0, vault=VAULT)
    other = make(DOMAIN, "s2", "ed25519", KeyState.ACTIVE, now=0, vault=VAULT)
    signer.use(stored_key(key.domain, key.selector, opened(key, VAULT)) for key in (stored, other))
    assert [(key.selector, key.algorithm) for key in signer.keys_for(DOMAIN)] == [
        ("s1", "rsa-sha256"),
        ("s2", "ed25519-sha256"),
    ]
    signer.use(())
    assert [key.selector for key in signer.keys_for(DOMAIN)] == ["s1"]


async def test_another_secret_is_told_and_signs_nothing(
    store: DomainStore, config: Config, clock: Clock, zone: Zone
) -> None:
    await added(store, config, clock)
    await publish(store, zone)
    await Checker(store, config, clock).check_domain(DOMAIN)
    book = DomainBook(store, config, changed=lambda _: None)
    await book.start(b"quite another secret")
    assert book.keys == ()
    assert not book.unvouched(DOMAIN)


@pytest.mark.parametrize("required", [None, True, False])
async def test_who_may_send(store: DomainStore, config: Config, clock: Clock, required: bool | None) -> None:
    book = await book_of(store, config.model_copy(update={"require_verified_domain": required}))
    assert book.unvouched("other.jp") is (required is True)
    await added(store, config, clock)
    for state in DomainState:

        def work(editor: Editor, state: DomainState = state) -> None:
            domain = editor.domain(DOMAIN)
            assert domain is not None
            editor.put_domain(replace(domain, state=state))

        await store.change(work)
        await book.poll()
        refused = required is not False
        fine = state in {DomainState.VERIFIED, DomainState.DEGRADED}
        assert book.unvouched(DOMAIN) is (refused and not fine)
        assert book.unvouched(f"a.b.{DOMAIN}") is (refused and not fine)
        assert book.unvouched("other.jp") is refused
        assert book.unvouched("co.jp") is refused
        assert book.unvouched("") is refused


async def test_where_bounces_come_back(store: DomainStore, config: Config, clock: Clock) -> None:
    book = await book_of(store, config)
    back, other = f"bounce.{DOMAIN}", f"news.{DOMAIN}"
    assert (book.return_domain(DOMAIN), book.takes_returns(back, clock())) == (None, False)
    await add(Wish(DOMAIN, return_path=back), config, store, VAULT, clock)
    await added(store, config, clock, other)
    await book.poll()
    assert (book.return_domain(DOMAIN), book.takes_returns(back, clock())) == (None, True)

    def work(editor: Editor) -> None:
        domain = editor.domain(DOMAIN)
        assert domain is not None
        editor.put_domain(replace(domain, state=DomainState.VERIFIED, return_path_seen_at=clock()))

    await store.change(work)
    await book.poll()
    domains = (DOMAIN, f"a.b.{DOMAIN}", other, f"a.{other}", "other.jp", "co.jp", "")
    assert [book.return_domain(name) for name in domains] == [back, back, None, None, None, None, None]
    assert not any(book.takes_returns(name, clock()) for name in (*domains, f"a.{back}"))
    await remove(DOMAIN, store, clock)
    await book.poll()
    clock.advance(config.bounces.verify_for - 1)
    assert (book.return_domain(DOMAIN), book.takes_returns(back, clock())) == (None, True)
    clock.advance(1)
    assert not book.takes_returns(back, clock())


def intake_of(config: Config, state: StateDB, clock: Clock, book: DomainBook, directory: Path) -> Intake:
    return Intake(
        config,
        MemoryStore(clock),  # type: ignore[arg-type]
        NetworkBook(config, state, clock),
        PasswordVerifier(config, clock),
        GuessLimiter(config, clock),
        RateBook(config, state, clock),
        DiskWatch(directory, 0.0),
        lane_of=lambda message, recipient: "sandbox",
        on_kept=lambda delivery: None,
        observer=Counts(),
        clock=clock,
        vouching=book,
    )


def session_of(config: Config, intake: Intake) -> ClientSession:
    session = ClientSession(config.listeners[0], ip_address("127.0.0.1"), 4000, False, helo="app.test", esmtp=True)
    intake.connect(session)
    return session


async def test_unverified_mail_is_refused_by_its_from_domain(
    *, store: DomainStore, config: Config, clock: Clock, state: StateDB, tmp_path: Path, zone: Zone
) -> None:
    book = await book_of(store, config)
    intake = intake_of(config, state, clock, book, tmp_path)
    session = session_of(config, intake)

    async def submit(header: bytes) -> str:
        content = header + b"Subject: x\r\n\r\nHello.\r\n"
        return str(await intake.submit(session, Envelope("app@other.jp"), [Recipient("a@example.org")], content))

    assert (await submit(b"From: a@example.co.jp\r\nFrom: a@other.jp\r\n")).startswith("250")
    await added(store, config, clock)
    await book.poll()
    refused = await submit(b"From: a@example.co.jp\r\n")
    assert refused.startswith("550 5.7.1 example.co.jp is not a verified sender domain")
    assert "relayd domain show example.co.jp" in refused
    assert (await submit(b"To: b@example.org\r\n")).startswith("550 5.7.1 The message names no From address")
    long = ".".join(["x" * 60] * 4)
    wire = (await intake.submit(
        session, Envelope("a@b.jp"), [Recipient("a@example.org")], f"From: a@{long}\r\n\r\n".encode()
    )).wire()  # fmt: skip
    assert all(len(line) <= 510 for line in wire.split(b"\r\n"))
    # reports of our own are no one's mail
    assert await intake.submit_report("a@example.org", b"From: postmaster@relay.test\r\n\r\nx\r\n", body=Body.SEVEN_BIT)
    await publish(store, zone)
    await Checker(store, config, clock).check_domain(DOMAIN)
    await book.poll()
    assert (await submit(b"From: a@example.co.jp\r\n")).startswith("250")
    assert (await submit(b"From: a@other.jp\r\n")).startswith("550")
    assert (await submit(b"From: a@example.co.jp, b@example.co.jp\r\n")).startswith("250")
    # a reader may be shown any of the authors, and our signature would cover them all
    for forged in (
        b"From: a@example.co.jp, boss@other.jp\r\n",
        b"From: a@example.co.jp\r\nFrom: boss@other.jp\r\n",
        b"From: a@example.co.jp\r\nX: y\r\nfrom : boss@other.jp\r\n",
        b"From: a@example.co.jp\r\nFrom: The Boss\r\n",
    ):
        assert (await submit(forged)).startswith("550 5.7.1"), forged


async def test_a_credential_may_be_limited_to_sender_accounts(
    store: DomainStore, world: World, clock: Clock, state: StateDB, tmp_path: Path
) -> None:
    hashed = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$RdescudvJCsgt3ub+b0dWRWJTmaaJObGAAAAAAAAAAA"
    credential = {"username": "crm", "password": hashed, "accounts": ["news"]}
    (tmp_path / "relayd.yaml").touch(0o600)
    config = config_for(world, tmp_path, credentials=[credential])
    book = await book_of(store, config)
    intake = intake_of(config, state, clock, book, tmp_path)
    session = session_of(config, intake)
    session.credential = config.credentials[0]

    def refused(sender: str) -> str:
        reply = intake.mail(session, Envelope(sender), 0)
        return "" if reply is None else f"{reply.code} {reply.enhanced}"

    assert refused("maildm@example.co.jp") == "553 5.7.1"  # no such account yet
    await store.change(lambda editor: editor.put_account(SenderAccount("news", "maildm@example.co.jp", 0)))
    await book.poll()
    assert refused("maildm@example.co.jp") == ""
    assert refused("MailDM@Example.co.jp") == ""
    assert refused("other@example.co.jp") == "553 5.7.1"
    assert refused("") == "553 5.7.1"


async def test_one_worker_checks_for_all(
    *, store: DomainStore, config: Config, clock: Clock, state: StateDB, tmp_path: Path, zone: Zone, world: World
) -> None:
    others = [StateDB(tmp_path / "state.db") for _ in range(2)]
    for other in others:
        await other.open()
    await added(store, config, clock)
    await publish(store, zone)
    everything = await store.everything()
    duties = [DomainDuty(each, config, f"worker {n}", clock) for n, each in enumerate([state, *others])]
    world.asked.clear()
    done = await asyncio.gather(*(duty.tick(everything) for duty in duties))
    assert sorted(done) in ([0, 0, 1], [0, 0, 1])
    asked = [each for each in world.asked if each[0] == "ns1" and each[1] == f"_dmarc.{DOMAIN}"]
    assert len(asked) == 1
    [domain] = (await store.everything()).domains
    assert domain.state is DomainState.VERIFIED
    # not due any more, for anyone
    assert [await duty.tick(await store.everything()) for duty in duties] == [0, 0, 0]
    clock.advance(1.2 * 3600)
    assert await duties[2].tick(await store.everything()) == 1
    # while another holds the lease, we keep off
    clock.advance(1.2 * 3600)
    assert await state.claim(LEASE, "somebody", clock(), 60_000)
    assert await duties[0].tick(await store.everything()) == 0
    clock.advance(61)  # it died: the lease ends
    assert await duties[0].tick(await store.everything()) == 1
    for other in others:
        await other.close()


async def test_each_fact_is_logged_by_one_worker(store: DomainStore, config: Config, clock: Clock) -> None:
    await added(store, config, clock)
    first, second = await store.untold(), await store.untold()
    assert [event.kind for event in first] == ["domain.added"]
    assert second == []


async def test_what_a_command_does_during_a_check_is_not_undone(
    store: DomainStore, config: Config, clock: Clock, zone: Zone
) -> None:
    await added(store, config, clock)
    await publish(store, zone)
    checker = Checker(store, config, clock)
    task = asyncio.create_task(checker.check_domain(DOMAIN))

    def work(editor: Editor) -> None:
        domain = editor.domain(DOMAIN)
        assert domain is not None
        editor.put_domain(replace(domain, return_path=f"bounce.{DOMAIN}"))

    await store.change(work)
    await task
    [domain] = (await store.everything()).domains
    assert domain.return_path == f"bounce.{DOMAIN}"
    assert domain.checked_at == clock()

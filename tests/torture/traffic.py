"""Clients of every kind, rude ones too, that remember what was promised; and what of it has come to the upstreams."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.endtoend.client import Client, Reply, mail, subject_of
from tests.support.daemon import PATIENCE
from tests.support.fake_upstream import FakeUpstream

SENDER = "app@example.com"
REFUSED = "refused-"
"""Begins the addresses that upstreams are to refuse."""
REPEATED = 2
"""Mails of a connection to an upstream that a crash may repeat: one under way, one whose outcome is being written."""
LATER = (0, 421)
"""Replies that mean "come again": the connection ended, or the daemon is about to go."""


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds. Raises AssertionError when it does not for too long."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - what changes are plain values
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE:g} s: {what}") from None


@dataclass
class Traffic:
    """Several clients at once, each of which does one thing after the other, by chance, until the block ends."""

    port: int
    rng: random.Random
    clients: int = 5
    pause: float = 0.0
    """Seconds between two things that a client does."""
    rude: bool = True
    """Some break off, send nonsense, or ask for what is refused."""
    bounces: bool = False
    """Some mail is to addresses that the upstream refuses: the reports come to the sender."""
    promised: dict[str, int] = field(default_factory=dict)
    """Subjects that were answered with 250, and how many recipients each has."""
    doubtful: set[str] = field(default_factory=set)
    """Of these, what a system that did not tell the truth may have lost."""
    refused_connections: int = 0
    surprises: list[str] = field(default_factory=list)
    """Replies that a good client must not get."""
    longest: float = 0.0
    """Seconds that the unluckiest client waited for its greeting."""
    done: Counter[str] = field(default_factory=Counter)
    _numbers: int = 0
    _stopping: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send until the block ends; what failed in a client fails here."""
        self._stopping = False
        tasks = [asyncio.create_task(self._client(), name=f"client {n}") for n in range(self.clients)]
        try:
            yield
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        self._stopping = True
        await asyncio.gather(*tasks)

    async def more(self, count: int = 1) -> None:
        """Wait until so many more mails were promised."""
        wanted = len(self.promised) + count
        await until(lambda: len(self.promised) >= wanted, f"{count} more mails are accepted")

    async def _client(self) -> None:
        acts = [self.one, self.one, self.several, self.chunks]
        if self.rude:
            acts += [self.breaks_off, self.changes_its_mind, self.nonsense]
        if self.bounces:
            acts.append(self.to_nobody)
        while not self._stopping:
            act = self.rng.choice(acts)
            began = time.monotonic()
            client = Client(self.port)
            try:
                code, _ = await client.connect()
                self.longest = max(self.longest, time.monotonic() - began)
                if code == 250:
                    await act(client)
                    self.done[act.__name__] += 1
                elif code not in LATER:
                    self.surprises.append(f"{code} at EHLO")
            except ConnectionRefusedError:
                self.refused_connections += 1
            except ConnectionError:
                pass  # dropped or reset: killed in the middle, and the app sends again
            finally:
                if hasattr(client, "writer"):
                    client.writer.close()
            await asyncio.sleep(self.pause * self.rng.random() * 2)

    def _mail(self) -> tuple[str, list[str], bytes]:
        self._numbers += 1
        subject = f"mail-{self._numbers}"
        recipients = [f"{place}@example.org" for place in range(self.rng.choice((1, 1, 1, 2, 5)))]
        return subject, recipients, mail(subject, size=self.rng.choice((0, 0, 2000, 20_000, 100_000)))

    async def _send(self, client: Client) -> bool:
        subject, recipients, content = self._mail()
        return self._heard(subject, recipients, await client.send(SENDER, recipients, content))

    def _heard(self, subject: str, recipients: Sequence[str], reply: Reply) -> bool:
        if reply[0] == 250:
            self.promised[subject] = len(recipients)
        elif reply[0] not in LATER:
            self.surprises.append(f"{reply[0]} {reply[1]}")
        return reply[0] == 250

    async def one(self, client: Client) -> None:
        """A mail, then QUIT."""
        await self._send(client)
        await client.say("QUIT")

    async def several(self, client: Client) -> None:
        """Some mails on one connection, which then just ends."""
        for _ in range(self.rng.randrange(2, 8)):
            if not await self._send(client):
                return

    async def chunks(self, client: Client) -> None:
        """A mail by BDAT, all in one go."""
        subject, recipients, content = self._mail()
        middle = self.rng.randrange(len(content))
        paths = b"".join(b"RCPT TO:<%s>\r\n" % each.encode() for each in recipients)
        client.writer.write(b"MAIL FROM:<%s>\r\n" % SENDER.encode() + paths)
        client.writer.write(b"BDAT %d\r\n" % middle + content[:middle])
        client.writer.write(b"BDAT %d LAST\r\n" % (len(content) - middle) + content[middle:])
        replies = [await client.reply() for _ in range(len(recipients) + 3)]
        self._heard(subject, recipients, next((each for each in replies if each[0] != 250), replies[-1]))

    async def to_nobody(self, client: Client) -> None:
        """A mail to somebody whom the upstream does not know."""
        subject, _, content = self._mail()
        self._heard(subject, [], await client.send(SENDER, [f"{REFUSED}{subject}@example.org"], content))

    async def breaks_off(self, client: Client) -> None:
        """Half a mail."""
        await self._begun(client, ["a@example.org"])
        client.writer.write(self._mail()[2][:60])

    async def changes_its_mind(self, client: Client) -> None:
        """A transaction that is taken back, and a mail after it."""
        await self._begun(client, ["a@example.org"], data=False)
        await client.say("RSET")
        await self.one(client)

    async def nonsense(self, client: Client) -> None:
        """Commands that do not exist, or not now."""
        for command in self.rng.choices(("EXPN all", "DATA", "RCPT TO:<a@b.example>", "MAIL FROM:<@>", "\0" * 40), k=5):
            code, text = await client.say(command)
            if code // 100 != 5 and code not in LATER:
                self.surprises.append(f"{code} {text} to nonsense")

    async def _begun(self, client: Client, recipients: Sequence[str], *, data: bool = True) -> None:
        for command in (f"MAIL FROM:<{SENDER}>", *(f"RCPT TO:<{each}>" for each in recipients)):
            await client.say(command)
        if data:
            await client.say("DATA")


@dataclass
class Arrivals:
    """What has come to the upstreams, by subject and recipient. A long trial cannot keep all mail, so `look` often."""

    upstreams: Sequence[FakeUpstream]
    taken: Counter[tuple[str, str]] = field(default_factory=Counter)

    def look(self) -> None:
        """Count what was accepted, and let go of it."""
        young = (time.time() - PATIENCE) * 1000
        for upstream in self.upstreams:
            for each in upstream.accepted:
                subject = subject_of(each.content)
                # reports to the sender are all alike
                self.taken.update((subject, recipient) for recipient in each.recipients if recipient != SENDER)
            # what is not accepted may be yet: it has just come
            upstream.mails = [each for each in upstream.mails if not each.accepted and each.at > young]
            del upstream.commands[:]

    def missing(self, traffic: Traffic) -> list[tuple[str, str]]:
        """What was promised and has not come."""
        promised = {subject: count for subject, count in traffic.promised.items() if subject not in traffic.doubtful}
        wanted = ((subject, f"{n}@example.org") for subject, count in promised.items() for n in range(count))
        return [each for each in wanted if each not in self.taken]

    async def complete(self, traffic: Traffic) -> None:
        """Wait until all that was promised has come."""

        def there() -> bool:
            self.look()
            return not self.missing(traffic)

        try:
            await until(there, "all promised mail arrives")
        except AssertionError as late:
            raise AssertionError(f"{late}; missing: {self.missing(traffic)[:5]}") from None

    @property
    def repeats(self) -> int:
        """How often a mail came again, each time counted once for all its recipients."""
        most: Counter[str] = Counter()
        for (subject, _), count in self.taken.items():
            most[subject] = max(most[subject], count - 1)
        return most.total()

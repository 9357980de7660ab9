"""relayd block and relayd why, on a data directory without a daemon."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from relayd.core.event import EventKind
from relayd.core.lifecycle import State
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import Amendment
from tests.cli.conftest import Site, now_ms, put, secret, site, spool, template, wait_for
from tests.support.mail import make_change, make_settlement

__all__ = ["secret", "site", "spool", "template"]


def listed(site: Site, *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.run("block", "list", "--json", *args).json
    return found


def test_add_list_remove_and_the_history_stays(spool: Site) -> None:
    done = spool.run(
        "block", "add", "A@Example.org", "*@gone.example", "--reason", "asked by phone", "--expires", "30d"
    )
    assert (done.code, done.out) == (0, "2 addresses blocked.\n")
    first, second = listed(spool)
    assert (first["address"], second["address"]) == ("a@example.org", "*@gone.example")
    assert (first["class"], first["reason"], first["scope"], first["stopped"]) == (
        "manual",
        "asked by phone",
        "everything",
        0,
    )
    assert first["by"] and first["since"].endswith("Z") and first["until"] > first["since"]
    assert [each["address"] for each in listed(spool, "*@example.org")] == ["a@example.org"]
    text = spool.run("block", "list").out
    assert "asked by phone" in text and "*@gone.example" in text
    done = spool.run("block", "remove", "a@EXAMPLE.org")
    assert (done.code, done.out) == (0, "1 block lifted.\n")
    assert [each["address"] for each in listed(spool)] == ["*@gone.example"]
    past = listed(spool, "--all")[0]
    assert past["address"] == "a@example.org" and past["ended"].endswith("Z") and past["ended_by"] == past["by"]
    assert spool.run("block", "remove", "a@example.org").code == 1


def test_a_block_again_replaces_the_first(spool: Site) -> None:
    spool.run("block", "add", "a@example.org", "--expires", "1d")
    spool.run("block", "add", "a@example.org", "--scope", "sender:shop.example.com")
    spool.run("block", "add", "a@example.org", "--reason", "for good")
    assert [(each["scope"], each["until"]) for each in listed(spool)] == [
        ("sender:shop.example.com", None),
        ("everything", None),
    ]
    assert [each["ended_by"] for each in listed(spool, "--all")] == ["replaced", None, None]
    spool.run("block", "remove", "a@example.org", "--scope", "everything")
    assert [each["scope"] for each in listed(spool)] == ["sender:shop.example.com"]


@pytest.mark.parametrize(
    "args",
    [
        ["add", "nobody"],
        ["add", "a@example.org", "--scope", "some"],
        ["add", "a@example.org", "--expires", "soon"],
        ["add", "a@*.example.org"],
    ],
)
def test_wrong_usage_changes_nothing_and_ends_with_2(spool: Site, args: list[str]) -> None:
    done = spool.run("block", *args)
    assert done.code == 2
    assert done.err.startswith("relayd: ")
    assert listed(spool) == []


def test_nothing_is_blocked_where_no_daemon_has_run(site: Site) -> None:
    assert site.run("block", "list").out == "Nothing is blocked.\n"
    assert site.run("block", "add", "a@example.org").code == 1


def test_what_is_exported_is_imported_as_it_was(spool: Site, tmp_path: Path) -> None:
    spool.run("block", "add", "a@example.org", "--reason", '=HYPERLINK("x"), "quoted"\nand 日本語')
    spool.run("block", "add", "*@*.example.net", "--expires", "9d", "--scope", "stream:weekly, new")
    spool.run("block", "add", "past@example.org")
    spool.run("block", "remove", "past@example.org")
    target = tmp_path / "blocks.csv"
    assert spool.run("block", "export", str(target), "--all").out == f"3 blocks written to {target}.\n"
    assert target.stat().st_mode & 0o077 == 0
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [row["address"] for row in rows] == ["a@example.org", "*@*.example.net", "past@example.org"]
    assert not rows[0]["reason"].startswith("=")
    before = listed(spool)
    spool.run("block", "remove", "a@example.org", "*@*.example.net")
    assert listed(spool) == []
    assert spool.run("block", "import", str(target)).out == "2 of 2 addresses newly blocked.\n"
    after = listed(spool)
    before[0]["reason"] = " ".join(before[0]["reason"].split())
    assert after == before
    assert spool.run("block", "import", str(target)).out == "0 of 2 addresses newly blocked.\n"


PROVIDERS = {
    "sendgrid": (
        "email,reason,status,created\nA@Example.org,550 5.1.1 no such user (hard),5.1.1,1700000000\n",
        "user-unknown",
    ),
    "mailgun": (
        "address,code,error,created_at\na@example.org,550,Mailbox does not exist,2025-01-02T03:04:05Z\n",
        "user-unknown",
    ),
    "ses": ("EmailAddress,Reason,LastUpdateTime\na@example.org,COMPLAINT,2025-01-02T03:04:05+00:00\n", "complaint"),
    "semicolons": ('"E-Mail";"Type";"Date"\r\n"a@example.org";"Spam report";"2025-01-02 03:04:05"\r\n', "complaint"),
    "quota": ("recipient\tdetails\na@example.org\tmailbox is over quota\n", "mailbox-full"),
    "unsubscribed": ("email,event\na@example.org,unsubscribe\n", "manual"),
    "bare": ("a@example.org\n", "manual"),
    "japanese": ("メールアドレス,理由\na@example.org,宛先不明エラー\n", "user-unknown"),
}


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932"])
def test_suppression_lists_of_providers_are_read(spool: Site, tmp_path: Path, name: str, encoding: str) -> None:
    text, cls = PROVIDERS[name]
    file = tmp_path / "list.csv"
    file.write_bytes(text.encode(encoding))
    done = spool.run("block", "import", str(file), "--json")
    assert (done.code, done.json) == (0, {"read": 1, "blocked": 1, "dry_run": False, "faults": []})
    [block] = listed(spool)
    assert (block["address"], block["class"]) == ("a@example.org", cls)


def test_faulty_rows_are_named_and_the_others_imported(spool: Site) -> None:
    text = "email,created\na@example.org,2025-01-01\nnobody,2025-01-01\n\nb@example.org,yesterday\n=1+1,\n"
    done = spool.run("block", "import", "-", "--dry-run", stdin=text)
    assert done.out == "1 of 1 address would be blocked.\n" and listed(spool) == []
    done = spool.run("block", "import", "-", "--scope", "sender:shop.example.com", stdin=text)
    assert done.code == 1
    assert [line.split(":")[1].strip() for line in done.err.splitlines()] == ["line 3", "line 5", "line 6"]
    assert [(each["address"], each["scope"]) for each in listed(spool)] == [
        ("a@example.org", "sender:shop.example.com")
    ]


@pytest.mark.parametrize("octets", [b"", b"\x00\xff" * 50, b'"', b"email\n" + b"x" * 200_000, b"a,b\n" * 10])
def test_no_file_makes_import_fail_badly(spool: Site, tmp_path: Path, octets: bytes) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(octets)
    assert spool.run("block", "import", str(file)).code in (0, 1)
    assert listed(spool) == []


def bounced(site: Site) -> None:
    """Mails to customer@example.org: delivered and then bounced, deferred, complained about."""

    async def work(store: SqliteStore) -> None:
        for subject in ("first", "second", "third", "fourth"):
            message = await put(store, wait_for(0, "Customer@example.org"), subject=subject)
            before = wait_for(0, "Customer@example.org")
            at = now_ms()
            if subject == "second":
                detail = {"class": "mailbox-full", "reply": "452 4.2.2 full", "stage": "rcpt"}
                await store.settle(make_settlement(message, [before], State.DEFERRED, at=at, due=at + 9000, **detail))
                continue
            await store.settle(make_settlement(message, [before], State.DELIVERED, at=at))
            if subject == "third":
                continue
            fact = {
                "first": (State.BOUNCED, EventKind.BOUNCED, {"class": "user-unknown", "reply": "550 5.1.1 nobody"}),
                "fourth": (State.DELIVERED, EventKind.COMPLAINED, {"class": "complaint"}),
            }[subject]
            change = make_change(message, before, fact[0], at=at, kind=fact[1], source="bounce", **fact[2])
            await store.amend(Amendment(change, State.DELIVERED, "x"))

    site.fill(work)


def test_why_tells_the_newest_first_and_what_to_do_in_both_languages(spool: Site) -> None:
    bounced(spool)
    spool.run("block", "add", "*@example.org", "--reason", "moved away")
    done = spool.run("why", "customer@EXAMPLE.org", "--json").json
    assert [each["subject"] for each in done["mails"]] == ["fourth", "third", "second", "first"]
    assert [each["class"] for each in done["mails"]] == ["complaint", "delivered", "mailbox-full", "user-unknown"]
    assert [each["state"] for each in done["mails"]] == ["delivered", "delivered", "deferred", "bounced"]
    assert done["mails"][2]["next_try"] is not None and done["mails"][3]["hard"] is True
    assert done["mails"][3]["reply"] == "550 5.1.1 nobody"
    assert [each["address"] for each in done["blocks"]] == ["*@example.org"]
    english = spool.run("why", "customer@example.org").out
    assert "There is no such mailbox" in english and "The mailbox is full" in english and "moved away" in english
    assert "reported a mail as spam" in english
    japanese = spool.run("why", "customer@example.org", "--lang", "ja").out
    assert "存在しません" in japanese and "いっぱい" in japanese and "ブロックされています" in japanese
    assert "There is no such mailbox" not in japanese
    newest = spool.run("why", "customer@example.org", "--limit", "1")
    assert "fourth" in newest.out and "third" not in newest.out and "--limit" in newest.out


def test_why_of_a_stranger_is_a_sentence(spool: Site) -> None:
    assert spool.run("why", "stranger@example.org").out == "No mail to stranger@example.org in the last 40 days.\n"
    assert "40日間" in spool.run("why", "stranger@example.org", "--lang", "ja").out
    assert spool.run("why", "nobody").code == 2


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_why_has_words_for_every_state(spool: Site, lang: str) -> None:
    for address in ("a@example.org", "greylisted@example.org", "good@example.org", "bad@example.org", "h@example.net"):
        lines = spool.run("why", address, "--lang", lang).out.splitlines()
        assert len([line for line in lines if line.startswith("  ")]) >= 1, (address, lines)

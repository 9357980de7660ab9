"""relayd queue: what is listed, what is changed, and what is left alone, without a daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from relayd.cli.filters import AnyState, WaitingState
from relayd.core.lifecycle import WAITING, State
from relayd.spool.lock import DataLock
from relayd.spool.sqlite import SqliteStore
from tests.cli.conftest import Site, now_ms, put, run, wait_for


def listed(site: Site, *args: str) -> set[str]:
    return {entry["recipient"] for entry in site.run("queue", "list", "--json", *args).json}


def test_everything_that_waits_is_listed_oldest_first_from_all_workers(spool: Site) -> None:
    found = spool.run("queue", "list", "--json").json
    assert [entry["recipient"] for entry in found] == ["a@example.org", "greylisted@example.org", "h@example.net"]
    assert found[0]["id"] == spool.ids["fresh"]
    assert found[0]["subject"] == "日本語の件名"
    assert found[1]["state"] == "deferred"
    assert found[1]["attempts"] == 1
    assert found[1]["due"].endswith("Z")
    assert found[2]["due"] is None


@pytest.mark.parametrize(
    ("args", "recipients"),
    [
        (["--sender", "*@shop.example.com"], {"a@example.org", "greylisted@example.org"}),
        (["--sender", "<>"], {"h@example.net"}),
        (["--recipient", "*@EXAMPLE.net"], {"h@example.net"}),
        (["--upstream", "sandbox"], {"h@example.net"}),
        (["--upstream", ""], set()),
        (["--older-than", "1h"], {"greylisted@example.org"}),
        (["--newer-than", "1h"], {"a@example.org", "h@example.net"}),
        (["--state", "held"], {"h@example.net"}),
        (["--state", "held", "--state", "deferred"], {"h@example.net", "greylisted@example.org"}),
        (["--limit", "1"], {"a@example.org"}),
        (["--state", "delivered"], {"good@example.org"}),
        (["--state", "bounced", "--recipient", "*@example.org"], {"bad@example.org"}),
        (["--state", "delivered", "--state", "deferred"], {"good@example.org", "greylisted@example.org"}),
        (["--state", "expired", "--state", "suppressed", "--state", "deleted"], set()),
    ],
)
def test_filters_select(spool: Site, args: list[str], recipients: set[str]) -> None:
    assert listed(spool, *args) == recipients


def test_ids_select_in_any_case(spool: Site) -> None:
    assert listed(spool, spool.ids["fresh"].upper()) == {"a@example.org"}
    assert listed(spool, spool.ids["mixed"]) == set()


def test_the_table_for_other_programs_is_never_cut(spool: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    address = "a-very-long-local-part-that-needs-room@a-quite-long-name-of-a-domain.example.org"

    async def more(store: SqliteStore) -> None:
        await put(store, wait_for(0, address))

    spool.fill(more)
    lines = spool.run("queue", "list").out.splitlines()
    assert len(lines) == 5
    [line] = [line for line in lines if address in line]
    assert line.split()[0] in {entry["id"] for entry in spool.run("queue", "list", "--json").json}
    assert "\x1b" not in "".join(lines)


def test_what_is_left_out_of_the_table_is_said(spool: Site) -> None:
    done = spool.run("queue", "list", "--limit", "2")
    assert len(done.out.splitlines()) == 3
    assert "there is more" in done.err


def test_an_empty_queue_is_a_sentence(site: Site) -> None:
    async def nothing(store: SqliteStore) -> None: ...

    site.fill(nothing)
    assert site.run("queue", "list").out == "Nothing waits.\n"
    assert site.run("queue", "list", "--json").json == []
    assert site.run("queue", "list", "--state", "held").out == "Nothing fits.\n"


def test_show_tells_the_last_reply(spool: Site) -> None:
    done = spool.run("queue", "show", spool.ids["late"])
    assert "last reply 450 4.2.0 Greylisted" in done.out
    [entry] = spool.run("queue", "show", "--state", "deferred", "--json").json
    assert entry["recipients"][0]["last_reply"] == "450 4.2.0 Greylisted"


def test_every_state_can_be_listed_and_those_that_wait_can_be_acted_on() -> None:
    assert {each.value for each in AnyState} == set(State)
    assert {each.value for each in WaitingState} == set(WAITING)


def test_stats_sum_up_by_upstream_and_state(spool: Site) -> None:
    found = spool.run("queue", "stats", "--json").json
    assert {(each["upstream"], each["state"]): each["recipients"] for each in found["waiting"]} == {
        ("acme", "queued"): 1,
        ("acme", "deferred"): 1,
        ("sandbox", "held"): 1,
    }
    assert found["kept"]["messages"] == 4
    assert "acme" in spool.run("queue", "stats").out


@pytest.mark.parametrize(
    "args",
    [
        ["queue", "list", "nonsense"],
        ["queue", "list", "--older-than", "soon"],
        ["queue", "list", "--state", "sent"],
        ["queue", "retry", "--state", "delivered"],
        ["queue", "list", "--limit", "0"],
        ["queue", "delete", "--yes"],
        ["queue", "nonsense"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(spool: Site, args: list[str]) -> None:
    done = spool.run(*args)
    assert done.code == 2
    assert done.out == ""
    assert done.err
    assert "Traceback" not in done.err


def test_hold_and_release_without_a_daemon(spool: Site) -> None:
    done = spool.run("queue", "hold", spool.ids["fresh"], "--reason", "wrong price")
    assert done.code == 0
    assert "1 recipient of 1 message held." in done.out
    assert "does not run" in done.err
    assert spool.states("fresh") == {"a@example.org": "held"}
    event = spool.run("message", "show", spool.ids["fresh"], "--json").json["events"][-1]
    assert (event["event"], event["reason"]) == ("held", "wrong price")
    assert event["by"]
    assert spool.run("queue", "release", "--state", "held", "--json").json["recipients"] == 2
    assert spool.states("fresh") == {"a@example.org": "queued"}
    assert spool.states("held") == {"h@example.net": "queued"}


def test_retry_leaves_held_mail_alone(spool: Site) -> None:
    result = spool.run("queue", "retry", "--all", "--json").json
    assert result["recipients"] == 2
    assert set(result["messages"]) == {spool.ids["fresh"], spool.ids["late"]}
    assert spool.states("held") == {"h@example.net": "held"}


def test_fail_bounces_and_owes_the_sender_a_report(spool: Site) -> None:
    assert spool.run("queue", "fail", spool.ids["late"], "--yes", "--reason", "no such shop").code == 0
    found = spool.run("message", "show", spool.ids["late"], "--json").json
    assert found["recipients"][0]["state"] == "bounced"
    assert found["recipients"][0]["report_owed"] == "failure"
    assert "no such shop" in found["events"][-1]["reply"]


def test_delete_removes_from_the_queue_and_keeps_the_history(spool: Site) -> None:
    assert spool.run("queue", "delete", "--recipient", "h@*", "--yes").code == 0
    assert spool.states("held") == {"h@example.net": "deleted"}
    assert spool.run("audit").code == 0


@pytest.mark.parametrize("name", ["hold", "release", "retry", "fail", "delete"])
def test_no_act_without_a_filter_or_all(spool: Site, name: str) -> None:
    done = spool.run("queue", name, "--yes")
    assert done.code == 2
    assert "--all" in done.err
    assert State.BOUNCED.value not in spool.states("fresh").values()


@pytest.mark.parametrize("name", ["hold", "retry", "fail", "delete"])
def test_a_dry_run_counts_and_changes_nothing(spool: Site, name: str) -> None:
    done = spool.run("queue", name, spool.ids["fresh"], "--dry-run")
    assert done.code == 0
    assert "1 recipient of 1 message would be" in done.out
    assert spool.states("fresh") == {"a@example.org": "queued"}


@pytest.mark.parametrize("name", ["fail", "delete"])
def test_what_cannot_be_taken_back_is_not_done_unasked(spool: Site, name: str) -> None:
    done = spool.run("queue", name, "--all")
    assert done.code == 2
    assert "--yes" in done.err
    assert spool.states("fresh") == {"a@example.org": "queued"}


def test_nothing_fits_is_no_failure(spool: Site) -> None:
    done = spool.run("queue", "delete", "--sender", "nobody@example.com")
    assert done.code == 0
    assert "Nothing fits" in done.out


def test_a_spool_in_use_by_a_daemon_that_does_not_answer_is_left_alone(spool: Site) -> None:
    with DataLock(spool.data / "lock"):
        done = spool.run("queue", "hold", "--all")
    assert done.code == 1
    assert str(os.getpid()) in done.err
    assert spool.states("fresh") == {"a@example.org": "queued"}


def test_where_nothing_ever_ran_there_is_a_sentence(site: Site) -> None:
    for command in (["list"], ["stats"], ["hold", "--all"]):
        done = site.run("queue", *command)
        assert done.code == 1
        assert "there is no spool" in done.err


def test_a_broken_configuration_is_told_with_its_lines(site: Site) -> None:
    site.config.write_text("hostname: [\n")
    done = site.run("queue", "list")
    assert done.code == 2
    assert "relayd.yaml:" in done.err


def test_no_configuration_at_all(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.delenv("RELAYD_CONFIG", raising=False)
    monkeypatch.setattr("relayd.cli.common.PLACES", ())
    done = run("queue", "list")
    assert done.code == 2
    assert "--config" in done.err


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, which acts as the owner of the data")
def test_root_acts_as_the_owner_of_the_spool(spool: Site) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), spool.ids)
        shutil.copytree(spool.directory, folder, dirs_exist_ok=True)
        site.directory.chmod(0o755)
        site.config.chmod(0o600)
        for path in [site.data, *site.data.rglob("*")]:
            os.chown(path, 65534, 65534)
        # the Python of a test machine may lie where only root reads: what is imported late is imported early here
        start = "import _strptime; from relayd.cli.main import main; main()"
        command = [sys.executable, "-c", start, "-c", str(site.config), "queue", "hold", "--all"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "2 recipients of 2 messages held." in done.stdout
        assert {path.stat().st_uid for path in site.data.rglob("*")} == {65534}
        assert (site.data / "lock").exists()


def test_mail_that_arrives_while_the_question_is_thought_over_is_left_alone(
    spool: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[str] = []

    def thinking(question: str, *, yes: bool) -> None:
        async def arrive(store: SqliteStore) -> None:
            # a clock that stands still between question and arrival would make it one of those meant
            await put(store, wait_for(0, "new@example.org"), accepted_at=now_ms() + 1)

        spool.fill(arrive)
        late.append(question)

    monkeypatch.setattr("relayd.cli.acts.confirm", thinking)
    assert spool.run("queue", "delete", "--all").code == 0
    assert late
    assert listed(spool) == {"new@example.org"}

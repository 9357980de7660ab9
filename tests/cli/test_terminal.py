"""What peers chose never steers a terminal, tables stay whole, and colours appear only where they are wanted."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.cli import out
from relayd.core.ids import format_id
from relayd.core.lifecycle import Stage, State
from relayd.spool.sqlite import SqliteStore
from tests.cli.conftest import Site, now_ms, put, wait_for
from tests.support.cli_commands import hostile_commands
from tests.support.mail import make_attempt, make_settlement

EVIL = "a\x1b[2J\x1b]0;owned\x07b\x9b31m\u202egnp.exe\u2028c\r\nd\x7f\ud800"
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@given(st.text(alphabet=st.characters(codec=None), max_size=200))
def test_clean_leaves_nothing_that_steers_and_keeps_the_rest(text: str) -> None:
    cleaned = out.clean(text)
    assert not STEERING.search(cleaned)
    assert "\n" not in cleaned
    if not STEERING.search(text) and text.isprintable():
        assert cleaned == text
    assert not STEERING.search(out.clean_lines(text))


@given(
    st.recursive(st.text(alphabet=st.characters(codec=None)), lambda inner: st.lists(inner, max_size=3), max_leaves=5)
)
def test_json_is_safe_to_look_at_and_says_the_same(value: object) -> None:
    text = out.to_json(value)
    assert not STEERING.search(text)
    assert json.loads(text) == value


@pytest.fixture
def evil(site: Site) -> tuple[Site, str]:
    """A message in which every text that a peer chooses tries to steer the terminal."""
    ids = []
    storable = EVIL.replace("\ud800", "")

    async def fill(store: SqliteStore) -> None:
        late = wait_for(0, f"x{storable}@example.org")
        message = await put(
            store, late, sender=f"s{storable}@example.com", subject=storable, content=storable.encode() + b"\r\n"
        )
        ids.append(format_id(message.id))
        change = make_settlement(message, [late], State.DEFERRED, at=now_ms(), due=now_ms() + 9000, reply=storable)
        attempt = make_attempt(
            [0], reply=f"450 {storable}", transcript=f"> RCPT\n< {storable}", stage=Stage.RCPT, endpoint=storable
        )
        await store.settle(type(change)(message.id, change.changes, attempt))

    site.fill(fill)
    return site, ids[0]


@pytest.mark.parametrize(
    "command",
    [
        lambda _: ["queue", "list"],
        lambda _: ["queue", "list", "--json"],
        lambda _: ["queue", "show"],
        lambda message: ["message", "show", message],
        lambda message: ["message", "show", message, "--json"],
    ],
)
def test_no_command_lets_control_characters_through(
    evil: tuple[Site, str], command: Callable[[str], list[str]]
) -> None:
    site, message = evil
    done = site.run(*command(message))
    assert done.code == 0
    assert not STEERING.search(done.out)
    assert "owned" in done.out


def test_no_argument_comes_back_as_control_characters(spool: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the commands; the trial `injection` tries all of them."""
    monkeypatch.chdir(spool.directory)  # some make a file of the name that they are given
    tried = hostile_commands()
    assert len(tried) > 80
    for command in tried[::6]:
        done = spool.run(*command, stdin="n\n")
        assert not STEERING.search(done.out + done.err), command
        assert "internal error" not in done.err, (command, done.err)


def test_arguments_that_are_not_utf8_are_refused(site: Site) -> None:
    done = site.run("queue", "list", "--upstream", "\udcff\x1b[2J")
    assert done.code == 2
    assert "an argument is not UTF-8 text: \\udcff\\x1b[2J" in done.err


def on_terminal(*args: str, columns: int = 60, **environ: str) -> str:
    """What a command writes to a terminal of that width."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "relayd", *args]
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    env |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "50", **environ}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=env, close_fds=True)
    os.close(follower)
    parts = []
    try:
        while part := os.read(leader, 65536):
            parts.append(part)
    except OSError:
        pass  # Linux says EIO when the other end is closed
    os.close(leader)
    process.wait()
    return b"".join(parts).decode()


def test_a_terminal_gets_colours_and_long_addresses_fold_instead_of_being_cut(spool: Site) -> None:
    text = on_terminal("-c", str(spool.config), "queue", "list", columns=60)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert all(len(line) <= 60 for line in plain.splitlines())
    assert "…" not in plain


def test_ids_stay_whole_on_a_usual_terminal(spool: Site) -> None:
    text = on_terminal("-c", str(spool.config), "queue", "list", columns=80)
    assert all(spool.ids[name] in text for name in ("fresh", "late", "held"))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert all(len(line) <= 80 for line in plain.splitlines())


def test_no_color_is_respected(spool: Site) -> None:
    text = on_terminal("-c", str(spool.config), "queue", "list", columns=120, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text)
    assert spool.ids["late"] in text


def test_wide_characters_align(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.cells import cell_len

    out.print_table([out.Column("subject"), out.Column("id")], [["日本語", "x"], ["abc", "x"]], empty="")
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert cell_len(first) == cell_len(second)


def test_moments_and_spans() -> None:
    assert out.iso(1_750_000_000_123) == "2025-06-15T15:06:40.123Z"
    assert out.iso(None) is None
    assert re.fullmatch(r"2025-06-1[456] \d\d:\d6:40 [+-]\d\d:\d\d", out.moment(1_750_000_000_123))
    assert [out.span(ms) for ms in (0, 999, 1000, 61_000, 3_600_000, 3_900_000, 90_000_000, 86_400_000)] == [
        "0ms",
        "999ms",
        "1s",
        "1m01s",
        "1h",
        "1h05m",
        "1d01h",
        "1d",
    ]

"""The torture trials cannot rot: one round of each quick one, and what the command itself says and returns."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.torture import __main__ as command
from tests.torture.catalogue import TRIALS
from tests.torture.trial import Context, Figures, Run, Trial, attempt

QUICK = [trial for trial in TRIALS if trial.quick]
DOC = Path(__file__).parents[2] / "docs" / "reliability.md"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("trial", QUICK, ids=[trial.name for trial in QUICK])
async def test_one_round_keeps_its_promise(trial: Trial, tmp_path: Path) -> None:
    result = await attempt(trial, Context(seed=6, minutes=0, directory=tmp_path, say=print))
    assert not result.broken
    assert result.figures


def test_every_trial_has_its_own_name_and_is_in_the_docs() -> None:
    assert len({trial.name for trial in TRIALS}) == len(TRIALS)
    text = DOC.read_text(encoding="utf-8")
    assert [trial.name for trial in TRIALS if f"`{trial.name}`" not in text] == []


async def _broken(context: Context) -> Figures:
    for number in context.rounds():
        context.promise(number < 0, f"round {number}: seed {context.seed}")
    return {"rounds": 1}


async def _failed(context: Context) -> Figures:
    raise AssertionError("it went away")


async def _fell(context: Context) -> Figures:
    raise KeyError("nonesuch")


async def _hung(context: Context) -> Figures:
    await asyncio.Event().wait()
    return {}


async def _kept(context: Context) -> Figures:
    (context.directory / "left").write_text("something")
    return {"a number of mails": 12345}


async def test_what_breaks_fails_or_hangs_is_a_result(tmp_path: Path) -> None:
    def context() -> Context:
        return Context(seed=1, minutes=0, directory=tmp_path, say=print)

    broken = await attempt(Trial("x", 1, "", _broken), context())
    assert (broken.broken, broken.figures) == (("round 0: seed 1",), {"rounds": 1})
    assert (await attempt(Trial("x", 1, "", _failed), context())).broken == ("it went away",)
    assert (await attempt(Trial("x", 1, "", _fell), context())).broken == ("KeyError: 'nonesuch'",)
    assert "did not end" in (await attempt(Trial("x", 1, "", _hung, grace=0.01), context())).broken[0]


@pytest.mark.parametrize(("run", "status"), [(_kept, 0), (_broken, 1)])
def test_the_command_prints_a_table_and_tells_by_its_status(
    run: Run, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "TRIALS", (Trial("mine", 1, "It is kept.", run),))
    assert command.main(["--seed", "7", "--minutes", "0", "--directory", str(tmp_path)]) == status
    said = capsys.readouterr().out
    assert "Seed 7" in said
    assert ("| mine | a number of mails | 12,345 |" in said) == (status == 0)
    assert ("- mine: round 0: seed 7" in said) == (status == 1)
    assert not list(tmp_path.iterdir())
    assert command.main(["--list"]) == 0
    assert "It is kept." in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["nonesuch"], ["--minutes", "-1"]])
def test_the_command_says_what_it_does_not_know(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(wrong)
    assert end.value.code == 2
    assert "scripts/torture: error: " in capsys.readouterr().err

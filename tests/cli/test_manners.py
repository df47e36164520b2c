"""Manners of all commands: the files that they name, interrupts, exit statuses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.toys import Result, Run, arguments, attack_arguments

from smoothfast import environment
from smoothfast.cli.app import status_of
from smoothfast.cli.train import TrainOptions
from smoothfast.failures import at_work

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = [
    "train", "--data=smoothfast_toys:images", "--model=smoothfast_toys:model", "--batch=2", "--epochs=1",
    "--validation=1", "--precision=fp32", "--normalize=none", "--out=net",
]  # fmt: skip


def sweep_arguments(toys: Path) -> list[str]:
    """A sweep of the toys."""
    words = arguments("sweep", toys, out="rows.csv", sigma=None, n=None, sigmas="0.3", samples="1,2")
    return [*words, "--voting=prediction", "--runner=eager"]


def words_of(command: str, toys: Path) -> list[str]:
    """A command on the toys."""
    match command:
        case "train":
            return TRAIN
        case "sweep":
            return [*sweep_arguments(toys), "--plot=rows.png"]
        case "attack":
            return attack_arguments(toys, picture="adv.png")
    return arguments(command, toys)


COMMANDS = ("certify", "predict", "attack", "sweep", "train")
of_each = pytest.mark.parametrize("command", COMMANDS)


def written(said: str) -> list[str]:
    """The files that a command says it has written."""
    lines = (line.partition("written: ") for line in said.splitlines())
    return sorted(path for before, found, path in lines if found and not before)


@pytest.fixture
def umask() -> Iterator[None]:
    """Lets the group read what is written, and others not."""
    before = os.umask(0o027)
    yield
    os.umask(before)


@of_each
@pytest.mark.usefixtures("umask")
def test_every_file_is_named_and_for_those_that_the_umask_lets(
    run: Run, toys: Path, tmp_path: Path, command: str
) -> None:
    result = run(*words_of(command, toys))
    assert result.status == 0, result.err
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.*")}
    assert written(result.err) == sorted(modes)
    assert set(modes.values()) == {0o640}
    if command == "certify":
        assert written(run(*words_of(command, toys), "--resume", "--json").err) == ["run.tsv", "run.tsv.json"]
        assert written(run("analyze", "run.tsv", "--plot=run.png").err) == ["run.png"]


# ---- interrupts ------------------------------------------------------------------------------------------------------

KEPT = {
    "certify": r"run.tsv keeps [1-5] images?: go on with --resume",
    "predict": r"run.tsv keeps [1-5] images?: go on with --resume",
    "attack": r"adv.parts keeps [1-5] batch(es)?: go on with --resume",
    "sweep": r"rows.csv keeps 0 rows: run it again, and it goes on",
    "train": r"there is no net/checkpoint.pt yet, from which to go on: run it again",
}


@of_each
def test_an_interrupt_says_what_is_kept(run: Run, toys: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERRUPT_AT", "5")
    words = [*words_of(command, toys), "--quiet"]
    words += [] if command in ("train", "sweep") else ["--batch=1"]
    result = run(*words)
    assert (result.status, result.out) == (130, "")
    assert re.fullmatch(f"smoothfast: interrupted; {KEPT[command]}\n", result.err), result.err


def test_an_interrupt_after_a_checkpoint(tmp_path: Path) -> None:
    options = TrainOptions(data="demo", out=tmp_path)
    (tmp_path / "checkpoint.pt").touch()
    assert re.fullmatch(r".*/checkpoint.pt, written \d.\d s ago, is kept: go on with --resume", options.kept())


def test_an_interrupt_of_what_cannot_be_gone_on_with(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "environment", interrupted)
    assert run("info") == Result(130, "", "smoothfast: interrupted; nothing is kept\n")


# ---- exit statuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError(), FileNotFoundError(), FileExistsError(), IsADirectoryError(), NotADirectoryError(),
        PermissionError(),
    ],
)  # fmt: skip
def test_what_is_wrong_with_what_was_given_has_another_status_than_work_that_fails(error: Exception) -> None:
    assert status_of(error) == 2
    with pytest.raises(type(error)) as raised, at_work():
        raise error
    assert status_of(raised.value) == 1


@pytest.mark.parametrize("error", [RuntimeError(), MemoryError(), OSError(28, "no room"), BlockingIOError()])
def test_what_fails_for_other_reasons_has_the_status_of_work(error: Exception) -> None:
    assert status_of(error) == 1


@pytest.mark.parametrize("command", ["certify", "predict", "attack", "sweep"])
def test_an_image_that_is_gone_amid_the_run_is_no_wrong_usage(
    run: Run, toys: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GONE_AT", "3")
    result = run(*words_of(command, toys))
    assert "No such file or directory: '3.png'" in result.err
    assert result.status == (2 if command == "sweep" else 1)  # which reads all images before its work

"""Manners of all commands: the files that they name, interrupts, exit statuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.toys import Run, arguments, attack_arguments

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

"""`smoothfast quantize`, and other commands with what it has written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers.toys import Run
from safetensors import safe_open

from smoothfast import cli
from smoothfast.runs.logs import read_log


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded network in integers."""
    path = tmp_path_factory.mktemp("integers") / "q.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["smoothfast", "quantize", "--out", str(path), "--quiet"])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    assert exit_.value.code == 0
    return path


def test_the_file_says_what_it_was_made_of(written: Path) -> None:
    with safe_open(written, "pt") as file:
        about = file.metadata()
    assert about["format"] == "smoothfast integers 1"
    assert (about["model"], about["sigma"], about["num_classes"]) == ("resnet20", "0.25", "10")
    assert about["fitted"] == "drawn images"
    assert len(about["source"]) == 64
    assert json.loads(about["normalize"])[0][0] == 0.4914


def test_it_is_certified_and_replayed_as_any_other(run: Run, written: Path, tmp_path: Path) -> None:
    options = "--weights", written, "--runner", "eager", "--n0", 4, "--n", 12, "--max", 2, "--batch", 8, "--seed", 1
    result = run("certify", "--out", "run.tsv", *options)
    assert result.status == 0, result.err
    log = read_log(tmp_path / "run.tsv")
    assert log.settings is not None
    assert log.settings["precision"] == "int8"
    assert log.settings["normalize"] is None
    assert "2 rows computed anew, 2 of them the same" in run("replay", "run.tsv", "--weights", written).out
    forgotten = run("replay", "run.tsv")
    assert (forgotten.status, "pass --weights" in forgotten.err) == (2, True)
    assert "warning" not in result.err
    settings = (*options[:2], "--batch", 64, *options[4:10], *options[12:])  # of another machine, by auto
    assert run("certify", "--out", "run.tsv", "--resume", *settings).status == 0
    other = run("predict", "--out", "other.tsv", *options[:4], "--n", 12, "--max", 1, "--sigma", 0.5, "--seed", 1)
    assert "was quantised for sigma 0.25; this run has 0.5" in other.err
    for words in (("--normalize", "cifar10"), ("--precision", "bf16")):
        assert run("certify", "--out", "again.tsv", "--weights", written, *words).status == 2


def test_the_loss_is_told(run: Run) -> None:
    words = "--data", "demo", "--max", 4, "--copies", 2, "--json"
    told = json.loads(run("quantize", "--out", "new/q.safetensors", *words).out)
    assert told["loss"]["images"] == 4
    assert abs(told["loss"]["points"]) <= 50


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "q.pt"), "its suffix must be .safetensors"),
        (("--out", "q.safetensors", "--sigma", "-1"), "sigma is -1"),
        (("--out", "q.safetensors", "--model", "resnet56"), "weights is not given"),
        (("--out", "q.safetensors", "--data", "nothing"), "data is 'nothing'"),
        (("--out", "q.safetensors", "--max", "4"), "max is 4, and data is not given"),
        (("--out", "q.safetensors", "--device", "cuda"), "quantised on the cpu"),
    ],
)
def test_what_cannot_be_is_said_at_once(run: Run, words: tuple[str, ...], said: str) -> None:
    result = run("quantize", *words)
    assert result.status == 2
    assert said in result.err


def test_integers_are_not_quantised_again_nor_overwritten(run: Run, written: Path) -> None:
    result = run("quantize", "--weights", written, "--out", "again.safetensors")
    assert (result.status, "a network in integers already" in result.err) == (2, True)
    assert run("quantize", "--out", written).status == 2

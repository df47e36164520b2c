"""Files that version 0.1 wrote are still read, and its runs gone on with: they stand in tests/fixtures/0.1."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers import exact
from helpers.former import FOLDER, agree, check_log, commands, number, settings, smoothfast, told
from safetensors.torch import load_file

import smoothfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")
PICKLES = sorted(path for path in (FOLDER / "pickles").iterdir() if path.suffix in (".pickle", ".pt"))
TOLD = json.loads((FOLDER / "pickles/told.json").read_text())


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a copy of the files."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", commands("certify", "predict"))
def test_a_log_is_gone_on_with(words: list[str]) -> None:
    log, former = Path(words[-1]), (FOLDER / words[-1]).read_bytes()
    torn = former[: len(former) // 2]
    log.write_bytes(torn)
    smoothfast(*words, "--resume")
    assert log.read_bytes().startswith(torn[: torn.rindex(b"\n") + 1])  # times and all
    check_log(log)


@pytest.mark.parametrize("words", commands("analyze"))
def test_logs_are_read(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    smoothfast(*words)
    found, kept = (text.split() for text in (capsys.readouterr().out, (FOLDER / "analyze.csv").read_text()))
    assert agree(*([[number(cell) for cell in line.split(",")] for line in lines] for lines in (found, kept)), 1e-12)


@pytest.mark.parametrize("words", commands("attack"))
def test_an_attack_that_is_done_is_gone_on_with(words: list[str]) -> None:
    smoothfast(*words, "--resume")
    found, kept = load_file(words[-1]), load_file(FOLDER / words[-1])
    assert all(torch.equal(found[name], kept[name]) for name in kept)


@pytest.mark.parametrize("words", commands("sweep"))
def test_a_sweep_is_gone_on_with(words: list[str]) -> None:
    lines = (FOLDER / "sweep.csv").read_text().splitlines(keepends=True)
    Path("sweep.csv").write_text("".join(lines[:-6]))  # without the last sigma
    smoothfast(*words)
    assert Path("sweep.csv").read_text().split() == "".join(lines).split()
    assert settings(Path("sweep.csv")) == settings(FOLDER / "sweep.csv")


def test_weights_are_read() -> None:
    weights = sf.weights.read_weights(Path("train/model.safetensors"))
    assert (weights.about["smoothfast"], weights.about["num_classes"], weights.settings["sigma"]) == ("0.1.0", "3", 0.1)
    network = exact.trainable()
    weights.load_into(network)
    found, kept = network.state_dict(), load_file("train/model.safetensors")
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert not torch.equal(found["0.weight"], exact.trainable()[0].weight)


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.name)
def test_pickles_are_read(path: Path) -> None:
    thing = pickle.loads(path.read_bytes()) if path.suffix == ".pickle" else torch.load(path, weights_only=False)
    assert agree(told(thing), TOLD[path.stem])


def test_no_pickle_is_missing() -> None:
    assert [path.name for path in PICKLES] == sorted(f"{name}.{kind}" for name in TOLD for kind in ("pickle", "pt"))

"""The version at hand computes what version 0.1 did, to the bit: results of then stand in tests/fixtures/0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.former import (
    FOLDER,
    PORTABLE,
    SAME_TORCH,
    TESTS,
    agree,
    check_log,
    chosen,
    commands,
    settings,
    smoothfast,
)
from safetensors import safe_open
from torch import Tensor

import smoothfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def attacked(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an attack, and what is told of it but where it happened."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["run"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, chosen({name: value for name, value in about.items() if name != "environment"})


def equal(found: dict[str, Tensor], kept: dict[str, Tensor]) -> bool:
    return found.keys() == kept.keys() and all(torch.equal(found[name], kept[name]) for name in kept)


@pytest.mark.parametrize("words", commands("certify", "predict"))
def test_logs(words: list[str]) -> None:
    smoothfast(*words)
    check_log(Path(words[-1]))


@pytest.mark.parametrize("words", commands("attack"))
def test_attacks(words: list[str]) -> None:
    smoothfast(*words)
    (tensors, about), (kept, about_kept) = attacked(Path(words[-1])), attacked(FOLDER / words[-1])
    assert equal(tensors, kept)
    assert about == about_kept


@pytest.mark.parametrize("words", commands("sweep"))
def test_sweeps(words: list[str]) -> None:
    smoothfast(*words)
    assert Path("sweep.csv").read_text().split() == (FOLDER / "sweep.csv").read_text().split()
    assert settings(Path("sweep.csv")) == settings(FOLDER / "sweep.csv")


@pytest.mark.parametrize("words", commands("train"))
def test_training(words: list[str]) -> None:
    """In arithmetic that every processor has, in a process of its own, since libraries choose it when they are loaded.

    Other builds of torch may add up in another order. That moves weights by some 1e-8, as the instruction sets of one
    processor do (at most 6e-8); another seed moves them by 0.1, and a sigma that is 1 % larger by 3e-3.
    """
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "smoothfast", *words]
    done = subprocess.run(command, env=os.environ | PORTABLE | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    found, kept = (sf.weights.read_weights(folder / "train/model.safetensors") for folder in (Path(), FOLDER))
    if SAME_TORCH:
        assert equal(found.tensors, kept.tensors)
    assert agree(*({name: values.tolist() for name, values in of.tensors.items()} for of in (found, kept)))
    assert found.settings | kept.settings == found.settings  # there are more now
    assert all(found.about[name] == kept.about[name] for name in ("model", "num_classes", "data"))
    assert agree(metrics(Path()), metrics(FOLDER))


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]

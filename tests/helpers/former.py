"""What version 0.1 has left in tests/fixtures/0.1, and how the version at hand is asked for the same."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import exact
from torch import nn

import smoothfast as sf
from smoothfast.cli import main

TESTS = Path(__file__).parents[1]
FOLDER = TESTS / "fixtures" / "0.1"
MADE_WITH = json.loads((FOLDER / "made-with.json").read_text())
SAME_SCIPY = version("scipy") == MADE_WITH["scipy"]
SAME_TORCH = (torch.__version__, platform.machine()) == (MADE_WITH["torch"], MADE_WITH["machine"])

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41",
    "SMOOTHFAST_CPU": "scalar", "OMP_NUM_THREADS": "1",
}  # fmt: skip
"""An environment in which the same build of torch computes the same bits on every x86-64 processor."""


def commands(*names: str) -> list[Any]:
    """The command lines of these commands, each a parameter: its words, named by the last one."""
    lines = map(shlex.split, (FOLDER / "commands.txt").read_text().splitlines())
    return [pytest.param(words, id=words[-1]) for words in lines if words[0] in names]


def smoothfast(*words: object) -> None:
    """Runs the command line in this process; it must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["smoothfast", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert not exit_.value.code


def check_log(log: Path) -> None:
    """A log has the rows of the fixture of its name, byte for byte but for the time, and its settings.

    SciPy inverts the beta function, and releases differ in the last digit: 1.12 and 1.17 by 2e-16.
    """
    found, kept = rows(log), rows(FOLDER / log.name)
    if SAME_SCIPY:
        assert found == kept
    assert agree([list(map(number, row)) for row in found], [list(map(number, row)) for row in kept], 1e-12)
    assert settings(log) == settings(FOLDER / log.name)


def rows(log: Path) -> list[list[str]]:
    """The cells of a log, header and all, without the time."""
    cells = [line.split("\t") for line in log.read_text().splitlines()]
    return [row[:5] + row[6:] for row in cells]


def settings(path: Path) -> dict[str, Any]:
    """What stands beside a log or a sweep, less what it does not depend on."""
    beside = json.loads(Path(f"{path}.json").read_text())
    return chosen(beside.get("settings", beside))


def chosen(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what is no choice of 0.1, or was not among them then."""
    inner = {name: chosen(value) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in inner.items() if name not in ("row_function", "weights_sha256")}


def number(text: str) -> float | str:
    """The number that a text stands for, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def agree(found: Any, kept: Any, tolerance: float = 1e-5) -> bool:
    """Whether JSON values hold all that former ones do, floats up to a tolerance, relative or absolute."""
    if isinstance(kept, dict):
        return all(name in found and agree(found[name], value, tolerance) for name, value in kept.items())
    if isinstance(kept, list):
        return len(found) == len(kept) and all(agree(*pair, tolerance) for pair in zip(found, kept, strict=True))
    return found == (pytest.approx(kept, rel=tolerance, abs=tolerance) if isinstance(kept, float) else kept)


def told(thing: Any) -> Any:
    """What an object of the package answers when it is used, or else holds, as JSON values."""
    return json.loads(json.dumps(_told(thing), default=lambda tensor: tensor.tolist()))


def _told(thing: Any) -> Any:
    images, labels = exact.images().images[:4], exact.images().labels[:4]
    pixels = images.float() / 255
    match thing:
        case sf.SmoothedClassifier():
            votes = {"votes": thing.votes(images, 40)} if thing.voting.name == "prediction" else {}
            return votes | {"scores": thing.scores(images, 40), "calls": [thing(images), thing(images)]}
        case sf.SoftClassifier():
            return {"calls": [thing(pixels), thing(pixels)]}
        case nn.Module():
            return {"calls": [thing(pixels), thing(pixels)], "plain": sf.layers.remove_noise(thing)(pixels)}
        case sf.attacks.EPGD():
            return {"adversarial": thing(images, labels), "gradients": thing.gradients}
        case sf.Smooth():
            certified = thing.certify(pixels[0], 16, 200, 0.001, 16)
            return {"certify": certified, "predict": thing.predict(pixels[0], 100, 0.001, 16)}
        case sf.noise.Law():
            return {"name": thing.name, "sigma": thing.sigma, "sums": [part.sum() for part in thing.table]}
        case _:  # a dataclass
            return asdict(thing)

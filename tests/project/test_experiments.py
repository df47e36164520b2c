"""What the pages of experiments/ say is what their rows say, and their weights can be used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smoothfast import SmoothedClassifier, data, models
from smoothfast.weights import read_weights

EXPERIMENTS = sorted(path.parent for path in Path(__file__).parents[2].glob("experiments/*/report.py"))
PAPER = Path(__file__).parents[2] / "experiments" / "nemcovsky-2019"
of_each = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.name)


@of_each
def test_tables_are_those_of_the_rows(experiment: Path) -> None:
    page = (experiment / "README.md").read_text()
    report = subprocess.run([sys.executable, experiment / "report.py"], capture_output=True, text=True, check=True)
    tables = report.stdout.strip().split("\n\n")
    assert len(tables) > 3
    assert [table for table in tables if table not in page] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@of_each
def test_commands_can_be_read(experiment: Path) -> None:
    subprocess.run(["bash", "-n", experiment / "run.sh"], check=True)


@pytest.mark.skipif(not PAPER.is_dir(), reason="experiments/ is not here: this is no clone of the repository")
@pytest.mark.parametrize(("name", "model"), [("adversarial", "resnet20b"), ("pni-w", "resnet20b+pni")])
def test_weights_can_be_used(name: str, model: str, one_thread: None) -> None:
    weights, some = read_weights(PAPER / "weights" / f"{name}.safetensors"), data.demo()
    network = models.load(model, 10).eval()
    weights.load_into(network)
    smoothed = SmoothedClassifier(network, 0.02, 10, normalize=weights.settings["normalize"], runner="eager")
    assert (smoothed.votes(some.images, 4).argmax(1) == some.labels).float().mean() > 0.6

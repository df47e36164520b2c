"""docs/coming-from.md: its examples and its commands, as they stand there, on few images."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import smoothfast as sf
from smoothfast import cli

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text()
PYTHON = "".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)).replace("n=1000", "n=60")
TRAIN, CERTIFY, PREDICT, ANALYZE = re.findall(r"\| `(smoothfast [^`]* [A-Z]+[^`]*)`", TEXT)


def test_examples(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PYTHON, "coming-from.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    label = str(int(sf.data.demo().labels[0]))
    assert printed[0].split()[0] == printed[0].split()[2] == label
    assert len(printed) >= 3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One as their training writes it, of a network that is smaller than theirs."""
    torch.manual_seed(0)
    network = sf.models.load("resnet20b", 10)
    named = {f"1.module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"arch": "cifar_resnet20", "state_dict": named}, tmp_path / "checkpoint.pth.tar")
    return tmp_path / "checkpoint.pth.tar"


def told(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code, words


def test_commands(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command, out, more in ((CERTIFY, "certify.tsv", "--n 20 --n0 4"), (PREDICT, "predict.tsv", "--n 12")):
        line = command.replace("cifar10:ROOT", "demo").replace("CKPT", str(checkpoint)).replace("OUT", out)
        line = re.sub("--n [0-9]+", "", line.replace("resnet110b", "resnet20b"))
        told([*shlex.split(line), *shlex.split(f"{more} --max 1 --runner eager --batch 16")], monkeypatch)
        assert (tmp_path / out).exists()
    told(shlex.split(ANALYZE.replace("LOG", "certify.tsv")), monkeypatch)
    assert (tmp_path / "curve.png").exists()
    assert shlex.split(TRAIN)[2:4] == ["--preset", "cohen"]

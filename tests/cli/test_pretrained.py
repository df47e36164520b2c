"""Networks in files of other programs, by the command line alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.pretrained import Small, declines, exported, pictures, transformer
from helpers.toys import Run

from smoothfast import pretrained

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_folder_of_transformers(run: Run, tmp_path: Path) -> None:
    transformer(tmp_path / "vit")
    pictures(tmp_path / "pictures")
    words = "--model=hf:vit", "--data=folder:pictures", "--n0=10", "--n=50", "--out=run.tsv", "--json"
    result = run("certify", *words)
    assert result.status == 0, result.err
    settings = json.loads(result.out)["settings"]
    assert settings["normalize"] == [[0.5, 0.4, 0.3], [0.2, 0.25, 0.3]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_votes_of_openvino(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setattr(pretrained, "_converted", declines)
    exported(Small(), tmp_path / "small.onnx", torch.rand(1, 3, 8, 8))
    pictures(tmp_path / "pictures")
    words = "--model=onnx:small.onnx", "--data=folder:pictures", "--normalize=none"
    result = run("certify", *words, "--n0=10", "--n=50", "--out=run.tsv")
    assert result.status == 0, result.err
    assert "OpenVINO computes it, for votes and without gradients" in result.err
    refused = run("attack", *words, "--attack=pgd", "--out=a.safetensors")
    assert refused.status == 2
    assert "OpenVINO computes votes, and no gradients" in refused.err

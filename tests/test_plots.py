from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from smoothfast.logs import Log, read_log
from smoothfast.plots import certified_accuracy_curve, require_format


@pytest.fixture
def log(tmp_path: Path) -> Log:
    path = tmp_path / "log"
    path.write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
        "0\t1\t1\t0.5\t1\t1.0\n1\t1\t0\t0.7\t0\t1.0\n2\t1\t1\t0.9\t1\t1.0\n3\t1\t-1\t0.0\t0\t1.0\n"
    )
    return read_log(path)


def test_png(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "curve.png"
    certified_accuracy_curve({"_a $b": log}, path)  # a name is a name, neither hidden nor formula
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(path)[..., :3]
    height, width, _ = pixels.shape
    assert width > height > 300
    # The curve is the only thing in its colour; it is level twice, before each of its two drops.
    colour = np.array([0x1F, 0x77, 0xB4]) / 255
    curve = (np.abs(pixels - colour) < 0.01).all(-1)
    plateaus = np.flatnonzero(curve.sum(1) > width // 5)
    assert len(np.flatnonzero(np.diff(plateaus) > 1)) == 1


def test_pdf(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "curve.pdf"
    certified_accuracy_curve({"a": log, "b": log}, path)
    assert path.read_bytes().startswith(b"%PDF-")


def test_an_unknown_format_is_named(tmp_path: Path, log: Log) -> None:
    with pytest.raises(ValueError, match="xyz"):
        certified_accuracy_curve({"a": log}, tmp_path / "curve.xyz")
    for name in ("curve.xyz", "curve"):
        with pytest.raises(ValueError, match=rf"plot is '{name}'; its suffix must be one of .*png"):
            require_format(name)
    require_format("curve.png")


def test_published_curves(tmp_path: Path, published_logs: Path) -> None:
    path = tmp_path / "curve.png"
    logs = {
        name: read_log(published_logs / f"certify/{name}/noise_0.25/test/sigma_0.25")
        for name in ("cifar10/resnet110", "imagenet/resnet50")
    }
    certified_accuracy_curve(logs, path)
    assert image.imread(path)[..., :3].std() > 0.05

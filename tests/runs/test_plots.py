from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.backend_bases import FigureCanvasBase

from smoothfast.files import PICTURES, require_picture
from smoothfast.runs.logs import Log, read_log
from smoothfast.runs.plots import certified_accuracy_curve, perturbation_gallery


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
            require_picture("plot", Path(name))
    require_picture("plot", Path("curve.png"))
    require_picture("plot", None)
    with pytest.raises(ValueError, match="picture is 'curve'; its suffix"):
        require_picture("picture", Path("curve"))


def test_every_format_that_is_accepted_can_be_drawn() -> None:
    assert set(PICTURES) <= FigureCanvasBase.get_supported_filetypes().keys()


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery(tmp_path: Path, channels: int) -> None:
    """Cells of one level each: two columns of a clean image, its perturbation around grey, and the adversarial one."""
    clean = torch.tensor([0.2, 0.6]).view(2, 1, 1, 1).expand(2, channels, 8, 8)
    adversarial = clean + torch.tensor([0.05, -0.1]).view(2, 1, 1, 1)
    path = tmp_path / "gallery.png"
    perturbation_gallery(clean, adversarial, ["_a $b", "c"], path)
    pixels = np.round(image.imread(path)[..., :3] * 255)
    width = pixels.shape[1]
    # The largest perturbation, -0.1, is black; half of it upwards is three quarters.
    expected = np.round(255 * np.array([[0.2, 0.6], [0.75, 0.0], [0.25, 0.5]]))
    for row, levels in zip(np.array_split(pixels, 3), expected, strict=True):
        for half, level in zip((row[:, : width // 2], row[:, width // 2 :]), levels, strict=True):
            share = (np.abs(half - level) <= 1).all(-1).mean()
            assert share > 0.15, (level, share)


def test_a_gallery_of_unchanged_images(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    perturbation_gallery(images, images, ["same"], tmp_path / "gallery.pdf")
    assert (tmp_path / "gallery.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize(
    "shapes", [((0, 3, 4, 4), (0, 3, 4, 4)), ((1, 2, 4, 4), (1, 2, 4, 4)), ((1, 3, 4, 4), (1, 3, 4, 5))]
)
def test_images_that_cannot_be_drawn_are_named(tmp_path: Path, shapes: tuple[tuple[int, ...], ...]) -> None:
    clean, adversarial = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match=rf"images are \({shapes[0][0]}, {shapes[0][1]}, 4, 4\) and"):
        perturbation_gallery(clean, adversarial, ["x"], tmp_path / "gallery.png")
    assert not (tmp_path / "gallery.png").exists()


def test_published_curves(tmp_path: Path, published_logs: Path) -> None:
    path = tmp_path / "curve.png"
    logs = {
        name: read_log(published_logs / f"certify/{name}/noise_0.25/test/sigma_0.25")
        for name in ("cifar10/resnet110", "imagenet/resnet50")
    }
    certified_accuracy_curve(logs, path)
    assert image.imread(path)[..., :3].std() > 0.05

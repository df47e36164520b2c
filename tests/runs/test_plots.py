from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from scipy.stats import binomtest

from smoothfast.files import PICTURES, require_picture
from smoothfast.runs.logs import Log, read_log
from smoothfast.runs.plots import WIDTH, certified_accuracy_curve, perturbation_gallery, spread_over_images, sweep
from smoothfast.runs.sweep_log import SettingAccuracy

Drawn = Callable[..., Figure]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    path = tmp_path / "log"
    path.write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
        "0\t1\t1\t0.5\t1\t1.0\n1\t1\t0\t0.7\t0\t1.0\n2\t1\t1\t0.9\t1\t1.0\n3\t1\t-1\t0.0\t0\t1.0\n"
    )
    return read_log(path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Draws a picture, and gives the figure instead of writing it."""

    def draw(picture: Callable[..., None], *arguments: Any) -> Figure:
        figures: list[Figure] = []
        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
            picture(*arguments, "picture.png")
        assert figures[0].get_figwidth() == WIDTH
        return figures[0]

    return draw


def exact(correct: int, images: int) -> list[float]:
    """The ends of the interval, by SciPy."""
    interval = binomtest(correct, images).proportion_ci(0.95, "exact")
    return [interval.low, interval.high]


def bars(axes: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places and values [N, 2] of the points that are drawn, and the ends [N, 2] of their bars, for each curve."""
    found = []
    for curve in axes.containers:
        assert isinstance(curve, ErrorbarContainer)
        line, _, (segments,) = curve.lines
        found.append((line.get_xydata(), np.array(segments.get_segments())[..., 1]))
    return found


def test_png(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "curve.png"
    certified_accuracy_curve({"_a $b": log}, path)  # a name is a name, neither hidden nor formula
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(path)[..., :3]
    height, width, _ = pixels.shape
    assert width > height > 300
    # No other long line has the colour of the curve, which is level twice, before each of its two drops.
    colour = np.array([0x00, 0x72, 0xB2]) / 255
    curve = (np.abs(pixels - colour) < 0.01).all(-1)
    plateaus = np.flatnonzero(curve.sum(1) > width // 5)
    assert len(np.flatnonzero(np.diff(plateaus) > 1)) == 1


def test_a_curve_stands_in_a_band_of_exact_intervals(log: Log, drawn: Drawn) -> None:
    settings = {"sigma": [0.25], "n": 1000, "method": "tolerance"}
    figure = drawn(certified_accuracy_curve, {"a" * 99: replace(log, settings=settings), "_b $c": log})
    (axes,), (legend,) = figure.axes, figure.legends
    assert [line.get_xydata().tolist() for line in axes.lines] == 2 * [[[0, 0.5], [0.5, 0.5], [0.9, 0.25], [0.9, 0]]]
    bands = [each for each in axes.collections if isinstance(each, FillBetweenPolyCollection)]
    for radius, correct in ((0.2, 2), (0.6, 1), (0.89, 1)):
        inside = [
            height for height in np.linspace(0, 1, 501) if bands[0].get_paths()[0].contains_point((radius, height))
        ]
        assert [inside[0], inside[-1]] == pytest.approx(exact(correct, 4), abs=0.003)
    assert [text.get_text() for text in legend.get_texts()] == [
        "…" + 53 * "a" + "\nsigma 0.25, n ≤ 1,000, tolerance, 4 images", "_b $c\n4 images",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        ({"method": "grid", "radii": [0.5, 0.0, 0.7, 1.0]}, {0.0: 2, 0.5: 2, 0.7: 1, 1.0: 0}),
        ({"method": "sequential", "radius": 0.7}, {0.7: 1}),
    ],
)
def test_a_log_is_drawn_at_the_radii_that_it_was_asked_for(
    log: Log, drawn: Drawn, settings: dict[str, Any], points: dict[float, int]
) -> None:
    figure = drawn(certified_accuracy_curve, {"a": replace(log, settings=settings)})
    ((places, ends),) = bars(figure.axes[0])
    assert places.tolist() == [[radius, correct / 4] for radius, correct in points.items()]
    assert ends.tolist() == [pytest.approx(exact(correct, 4), abs=1e-9) for correct in points.values()]
    steps = figure.axes[0].lines[0].get_xydata()
    assert steps.tolist() == places.tolist()  # and so none beyond the last
    assert figure.legends[0].get_lines()[0].get_marker() == "o"


def test_a_log_without_radii_is_a_point(log: Log, drawn: Drawn) -> None:
    figure = drawn(certified_accuracy_curve, {"a": replace(log, radius=np.zeros(4))})
    ((places, _),) = bars(figure.axes[0])
    assert places.tolist() == [[0, 0.5]]


def test_p_a_and_samples_are_spread_over_the_images(log: Log, drawn: Drawn) -> None:
    told = replace(log, p_lower=np.array([0.9, 0.8, 0.7, 0.0]), samples=np.array([10, 20, 30, 100]))
    figure = drawn(spread_over_images, {"a": told, "predicted": replace(told, p_lower=np.zeros(4))})
    probabilities, samples = figure.axes
    (curve,) = probabilities.lines
    assert curve.get_xydata().tolist() == [[0, 0.5], [0.7, 0.5], [0.9, 0.25], [0.9, 0]]
    counted, mean, *others = samples.lines
    assert counted.get_xydata()[1:].tolist() == [[10, 0.25], [20, 0.5], [30, 0.75], [100, 1]]
    assert mean.get_xydata().tolist() == [[40, 0.75]]
    assert len(others) == 2
    with pytest.raises(ValueError, match="log has no columns samples and p_lower"):
        spread_over_images({"a": log}, "picture.png")
    for picture in (spread_over_images, certified_accuracy_curve):
        with pytest.raises(ValueError, match="log holds no images"):
            picture({"a": replace(log, idx=log.idx[:0])}, "picture.png")


def test_curves_of_a_sweep_that_lie_on_each_other_are_told_apart(tmp_path: Path, drawn: Drawn) -> None:
    rows = [
        SettingAccuracy(images, seed, sigma, voting, samples, 4 + seed, 10)
        for images, seed in (("clean", 0), ("pgd", 0), ("pgd", 1))
        for sigma in (0.0, 0.25)
        for voting in ("prediction", "soft")
        for samples in (1, 10)
    ]
    figure = drawn(sweep, rows)
    for axes in figure.axes:
        curves = bars(axes)
        assert len(curves) == 4
        assert len({curve.lines[0].get_marker() + curve.lines[0].get_linestyle() for curve in axes.containers}) >= 3
        for number, (places, ends) in enumerate(curves):  # two seeds: the interval holds those of 4 and of 5
            low, high = exact(4, 10)[0], exact(4 + number // 2, 10)[1]
            assert places[:, 1].tolist() == pytest.approx(2 * [0.4 + 0.05 * (number // 2)])
            assert ends.tolist() == 2 * [pytest.approx([low, high], abs=1e-9)]
    sweep(rows, tmp_path / "sweep.png")
    pixels = image.imread(tmp_path / "sweep.png")[..., :3]
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # long lines of both, though they are at one height
        lines = (np.abs(pixels - np.array(colour) / 255) < 0.01).all(-1).sum(1)
        assert lines.max() > pixels.shape[1] // 4


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
    """Cells of one level each: a row of a clean image, its perturbation around grey, and the adversarial one."""
    clean = torch.tensor([0.2, 0.6]).view(2, 1, 1, 1).expand(2, channels, 8, 8)
    adversarial = clean + torch.tensor([0.05, -0.1]).view(2, 1, 1, 1)
    path = tmp_path / "gallery.png"
    perturbation_gallery(clean, adversarial, ["_a $b", "c"], path)
    pixels = np.round(image.imread(path)[..., :3] * 255)
    height = pixels.shape[0]
    # The largest perturbation, -0.1, is black; half of it upwards is three quarters.
    expected = np.round(255 * np.array([[0.2, 0.75, 0.25], [0.6, 0.0, 0.5]]))
    for row, levels in zip((pixels[: 3 * height // 5], pixels[3 * height // 5 :]), expected, strict=True):
        places = [np.nonzero((np.abs(row - level) <= 1).all(-1)) for level in levels]
        assert all(len(place[0]) > 20_000 for place in places)
        assert np.diff([np.median(place[1]) for place in places]).min() > 150  # one right of the other


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

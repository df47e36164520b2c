"""Pictures of certification logs, of adversarial images, and of accuracies by noise and number of samples.

Each is as wide as a column of a paper. Colours are those of Okabe and Ito, which colour-blind readers tell apart, and
every curve has dashes and a marker of its own besides; later ones are thinner, so that curves that lie on each other
are all seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..statistics import LEVEL, clopper_pearson_interval
from ..text import one_line
from .logs import Log
from .sweep_log import SettingAccuracy
from .sweep_tables import sweep_means
from .tables import asked_radii, certified_accuracy, certified_interval, described, images_of

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 3.25  # inches
TYPE: Any = {
    "font.size": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7,
    "legend.title_fontsize": 7, "pdf.fonttype": 42,
}  # fmt: skip
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = "osD^v<>"
LONGEST = 54  # characters of a line below a picture
INTERVALS = f"exact {100 * LEVEL:.0f} % intervals"


@contextmanager
def _column(path: str | os.PathLike[str], height: float) -> Iterator[Figure]:
    """Makes a picture of a column's width, and writes it once it is drawn; its suffix says the format."""
    with rc_context(TYPE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure
        figure.savefig(path, dpi=300)


def _look(place: int, dashes: int | None = None) -> dict[str, Any]:
    """Colour, dashes and width of the curve at a place among others; dashes of another place where one is given."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[(place if dashes is None else dashes) % len(DASHES)],
        "linewidth": max(2.0 - 0.4 * place, 0.8),
    }


def _mark(place: int) -> dict[str, Any]:
    """The hollow marker of the curve at a place among others."""
    return {
        "marker": MARKERS[place % len(MARKERS)], "markersize": 3.5, "markerfacecolor": "none", "markeredgewidth": 0.8,
    }  # fmt: skip


def certified_accuracy_curve(logs: Mapping[str, Log], path: str | os.PathLike[str]) -> None:
    """Draws certified accuracy against radius with its exact intervals, a step curve in a band for each log.

    Of a log that was asked for certain radii alone there are points at these, and nothing beyond the last.

    Args:
        logs: the logs by name, the names for the legend.
        path: the picture to write; its suffix says the format (`.png`, `.pdf`).

    Raises:
        ValueError: a log holds no images, or the format is unknown.
        OSError: the picture cannot be written.
    """
    images = [images_of(log) for log in logs.values()]
    with _column(path, 2.5 + 0.26 * len(logs)) as figure:
        axes = figure.add_subplot()
        asked = [_asked(log) for log in logs.values()]
        largest = max(float(np.max([*log.radius, *radii])) for log, radii in zip(logs.values(), asked, strict=True))
        largest = largest or 1.0
        for place, (log, radii) in enumerate(zip(logs.values(), asked, strict=True)):
            if radii:
                aside = 0.01 * largest * sum(bool({*radii} & {*others}) for others in asked[:place])
                _points(axes, log, np.unique(radii), place, aside)
            else:
                _at_least(axes, log.radius[log.correct], images[place], _look(place))
        axes.set(xlabel="radius (L2, pixel units 0 to 1)", ylabel="certified accuracy", ylim=(0, 1))
        axes.set_xlim(-0.02 * largest, 1.05 * largest)
        tidy(axes)
        _named(figure, logs, f"bands and bars: {INTERVALS}")


def spread_over_images(logs: Mapping[str, Log], path: str | os.PathLike[str]) -> None:
    """Draws how p_A, the probability of the right class under noise, and samples are spread over the images of logs.

    An average radius hides both: it counts easy images for most.

    Args:
        logs: the logs by name, the names for the legend. Those without bounds, as of predict, are not among the first.
        path: the picture to write; its suffix says the format (`.png`, `.pdf`).

    Raises:
        ValueError: a log holds no images, or not their samples, or the format is unknown.
        OSError: the picture cannot be written.
    """
    for log in logs.values():
        images_of(log)
        if log.samples is None or log.p_lower is None:
            raise ValueError(f"{log.path} has no columns samples and p_lower")
    with _column(path, 4.2 + 0.26 * len(logs)) as figure:
        probabilities, samples = figure.subplots(2, 1)
        least = 0.5
        for place, log in enumerate(logs.values()):
            look = _look(place)
            if log.p_lower is not None and log.p_lower.any():
                held = log.p_lower[log.correct]
                _at_least(probabilities, held, len(log), look)
                least = min(least, held.min(initial=1))
            if log.samples is not None:
                samples.ecdf(log.samples, **look)
                mean = log.samples.mean()
                samples.plot(mean, (log.samples <= mean).mean(), color=look["color"], **_mark(place))
        probabilities.set(xlabel="p", ylabel="right, and p_A shown\nto be at least p", ylim=(0, 1), xlim=(least, 1))
        samples.set(xlabel="samples (marks: their means)", ylabel="images that took\nat most so many", xscale="log")
        samples.set_ylim(0, 1.03)
        for axes in (probabilities, samples):
            tidy(axes)
        _named(figure, logs, f"bands: {INTERVALS}")


def _asked(log: Log) -> tuple[float, ...]:
    """The radii at which a log is drawn in points: those that it was asked for, or 0 where it certifies none; none
    where it is a curve."""
    return asked_radii(log) or (() if log.radius.any() else (0.0,))


def _at_least(axes: Axes, values: NDArray[np.float64], images: int, look: dict[str, Any]) -> None:
    """Draws the share of images whose value is at least x, against x, in a band of exact intervals."""
    # It falls just after each value, and to zero after the last.
    places = np.unique(np.append(values, 0.0))
    held = len(values) - np.searchsorted(np.sort(values), places)
    axes.step(np.append(places, places[-1]), np.append(held, 0) / images, where="pre", **look)
    low, high = clopper_pearson_interval(held, images)
    axes.fill_between(places, low, high, step="pre", color=look["color"], alpha=0.15, linewidth=0)


def _points(axes: Axes, log: Log, radii: NDArray[np.float64], place: int, aside: float) -> None:
    """Draws certified accuracy at the radii that a log was asked for; between them what is certified at the next."""
    look = _look(place)
    accuracy = certified_accuracy(log, radii)
    axes.step(radii, accuracy, where="pre", **look | {"linewidth": 0.8})
    interval = certified_interval(log, radii)
    _bars(axes, radii + aside, accuracy, interval, look | {"linestyle": "none"} | _mark(place))


def _bars(
    axes: Axes,
    places: NDArray[np.float64],
    values: NDArray[np.float64],
    interval: tuple[NDArray[np.float64], NDArray[np.float64]],
    style: dict[str, Any],
) -> None:
    """Draws values with bars of their intervals."""
    axes.errorbar(places, values, (values - interval[0], interval[1] - values), elinewidth=0.8, capsize=1.5, **style)


def _named(figure: Figure, logs: Mapping[str, Log], title: str) -> None:
    """Says below a picture which curve is which run."""
    lines, texts = [], []
    for place, (name, log) in enumerate(logs.items()):
        lines.append(Line2D([], [], **_look(place) | (_mark(place) if _asked(log) else {})))
        told = (one_line(name), described(log))
        texts.append("\n".join(text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}" for text in told))
    legend = figure.legend(
        lines, texts, loc="outside lower left", title=title, alignment="left", frameon=False, handlelength=2.6
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a name is a "$"


def perturbation_gallery(
    clean: Tensor, adversarial: Tensor, texts: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draws images beside their perturbations and the adversarial images, a row for each.

    Perturbations are scaled so that the largest of them spans the range of a pixel, around grey, which is none; the
    picture says how.

    Args:
        clean, adversarial: float32 [N, C, H, W] in [0, 1], C being 1 or 3.
        texts: [N], beside the rows.
        path: the picture to write; its suffix says the format (`.png`, `.pdf`).

    Raises:
        ValueError: there are no images, or they cannot be drawn, or the format is unknown.
        OSError: the picture cannot be written.
    """
    if not len(clean) or clean.shape[1] not in (1, 3) or adversarial.shape != clean.shape:
        shapes = f"{tuple(clean.shape)} and {tuple(adversarial.shape)}"
        raise ValueError(f"images are {shapes}; they must be of one shape [N, C, H, W], with 1 or 3 channels")
    moved = (adversarial - clean).double()
    largest = float(moved.abs().max())
    scale = 0.5 / largest if largest else 1.0
    columns = {
        "clean": clean,
        f"change, {scale:.3g}\ntimes, around grey": 0.5 + scale * moved,
        "adversarial": adversarial,
    }
    with _column(path, 0.68 * len(clean) + 0.4) as figure:
        grid = figure.subplots(len(clean), 4, squeeze=False, width_ratios=(1, 1, 1, 1.8))
        for axes, (name, images) in zip(grid.T, columns.items(), strict=False):
            axes[0].set_title(name, fontsize=7)
            for cell, image in zip(axes, images, strict=True):
                cell.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
        for cell, text in zip(grid[:, -1], texts, strict=True):
            cell.text(0, 0.5, text, fontsize=7, verticalalignment="center", parse_math=False)
        for cell in grid.flat:
            cell.set_axis_off()


def sweep(rows: Sequence[SettingAccuracy], path: str | os.PathLike[str]) -> None:
    """Draws accuracy against the number of samples, by majority vote and a curve for each sigma; and where there are
    several, against sigma with most samples, a curve for each voting rule. Dashed for attacked images. Bars are exact
    intervals over images; of several seeds of an attack those of their mean, rounded outwards to whole images.

    Args:
        rows: of `runs.sweep.Sweep`; those of the first voting rule stand for all in the first part.
        path: the picture to write; its suffix says the format (`.png`, `.pdf`).
    """
    found, images = {key: mean for key, (mean, _) in sweep_means(rows).items()}, rows[0].count
    votings, sources = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("voting", "images"))
    sigmas, samples = (sorted({getattr(row, name) for row in rows}) for name in ("sigma", "samples"))
    parts = 1 if len(sigmas) == 1 else 2
    curves = [len(sources) * len(each) for each in (sigmas, votings)][:parts]
    with _column(path, sum(2.2 + 0.09 * count for count in curves)) as figure:
        by_samples, *others = figure.subplots(parts, 1, sharey=True, squeeze=False)[:, 0]
        # Curve after curve goes a little to the right, so that bars stand beside each other.
        times, beside = max((samples[-1] / samples[0]) ** 0.012, 1.02), 0.012 * (sigmas[-1] - sigmas[0])
        for number, (place, sigma) in product(range(len(sources)), enumerate(sigmas)):
            points = {
                most * times ** (number + place): found.get((sources[number], sigma, votings[0], most))
                for most in samples
            }
            _curve(by_samples, points, images, (number, place), f"{sources[number]}, sigma {sigma:g}")
        for number, (place, voting) in product(range(len(sources)), enumerate(votings if others else ())):
            points = {
                sigma + beside * (number + place): _last(found, (sources[number], sigma, voting), samples)
                for sigma in sigmas
            }
            _curve(others[0], points, images, (number, place), f"{sources[number]}, {voting}")
        by_samples.set(xlabel=f"samples ({votings[0]}); bars: {INTERVALS}", xscale="log")
        by_samples.set_xticks(samples, [str(most) for most in samples], minor=False)
        by_samples.minorticks_off()
        for axes in others:
            axes.set(xlabel=f"sigma ({max(samples):,} samples)")
        for axes in (by_samples, *others):
            axes.set(ylabel="accuracy")
            tidy(axes)
            axes.legend(frameon=False, handlelength=3, ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.24))


def _last(
    found: Mapping[tuple[str, float, str, int], float], setting: tuple[str, float, str], samples: Sequence[int]
) -> float | None:
    """The accuracy of a setting with the most samples that there are."""
    keys = ((*setting, most) for most in reversed(samples))
    return next((found[key] for key in keys if key in found), None)


def _curve(axes: Axes, points: Mapping[float, float | None], images: int, place: tuple[int, int], label: str) -> None:
    """Draws shares of images with their intervals, by place on the axis. Dashes are those of the first place, colours
    those of the second."""
    there = {x: share for x, share in points.items() if share is not None}
    shares = np.array(list(there.values()))
    low, _ = clopper_pearson_interval(np.floor(shares * images + 1e-6), images)
    _, high = clopper_pearson_interval(np.ceil(shares * images - 1e-6), images)
    style = _look(place[1], place[0]) | _mark(sum(place)) | {"label": label}
    _bars(axes, np.array(list(there)), shares, (low, high), style)


def tidy(axes: Axes) -> None:
    """Draws a faint grid behind the curves, and no frame around them."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)

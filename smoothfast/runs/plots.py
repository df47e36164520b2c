"""Pictures of certification logs, of adversarial images, and of accuracies by noise and number of samples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .logs import Log
from .sweep_log import SettingAccuracy
from .tables import Spread, certified_accuracy, sweep_means

if TYPE_CHECKING:
    from torch import Tensor


def certified_accuracy_curve(logs: Mapping[str, Log], path: str | os.PathLike[str]) -> None:
    """Draws certified accuracy against radius, one step curve for each log.

    Args:
        logs: the logs by name, the names for the legend.
        path: the picture to write; its suffix says the format (`.png`, `.pdf`).

    Raises:
        ValueError: a log holds no images, or the format is unknown.
        OSError: the picture cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    lines = []
    for log in logs.values():
        # Accuracy falls just after each radius in the log, and to zero after the last.
        radii = np.unique(np.append(log.radius[log.correct], 0.0))
        accuracy = certified_accuracy(log, radii)
        lines += axes.step(
            np.append(radii, radii[-1]),
            np.append(accuracy, 0.0),
            where="pre",
            linewidth=1.8,
            clip_on=False,
        )
    axes.set(xlabel="radius (L2, pixel units 0 to 1)", ylabel="certified accuracy", ylim=(0, 1))
    axes.set_xlim(left=0)
    tidy(axes)
    legend = axes.legend(lines, list(logs), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a name is a "$"
    figure.savefig(path, dpi=200)


def perturbation_gallery(
    clean: Tensor, adversarial: Tensor, titles: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draws images above their perturbations and the adversarial images, a column for each.

    Perturbations are scaled so that the largest of them spans the range of a pixel, around grey, which is none; the
    picture says how.

    Args:
        clean, adversarial: float32 [N, C, H, W] in [0, 1], C being 1 or 3.
        titles: [N], above the columns.
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
    perturbation = f"perturbation,\n{scale:.3g} times, around grey"
    rows = {"clean": clean, perturbation: 0.5 + scale * moved, "adversarial": adversarial}
    figure = Figure(figsize=(1.1 * len(clean) + 0.5, 4.0), layout="constrained")
    grid = figure.subplots(len(rows), len(clean), squeeze=False)
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name, fontsize=8)
        for cell, image in zip(axes, images, strict=True):
            cell.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
    for cell, title in zip(grid[0], titles, strict=True):
        cell.set_title(title, fontsize=8, parse_math=False)  # a "$" in a name is a "$"
    figure.savefig(path, dpi=200)


def sweep(rows: Sequence[SettingAccuracy], path: str | os.PathLike[str]) -> None:
    """Draws accuracy against the number of samples, by majority vote and a curve for each sigma; and where there are
    several, against sigma with most samples, a curve for each voting rule. Dashed for clean images. Bars are standard
    deviations over the seeds of an attack.

    Args:
        rows: of `runs.sweep.Sweep`; those of the first voting rule stand for all in the first part.
        path: the picture to write; its suffix says the format (`.png`, `.pdf`).
    """
    found = sweep_means(rows)
    votings, sources = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("voting", "images"))
    sigmas, samples = (sorted({getattr(row, name) for row in rows}) for name in ("sigma", "samples"))
    parts = 1 if len(sigmas) == 1 else 2
    figure = Figure(figsize=(5.0 * parts, 4.0), layout="constrained")
    by_samples, *others = figure.subplots(1, parts, sharey=True, squeeze=False)[0]
    for source in sources:
        style = {"linestyle": "--" if source == "clean" else "-", "marker": ".", "capsize": 2.0}
        for place, sigma in enumerate(sigmas):
            points = {number: found.get((source, sigma, votings[0], number)) for number in samples}
            _curve(by_samples, points, color=f"C{place}", label=f"{source}, sigma {sigma:g}", **style)
        for place, voting in enumerate(votings if others else ()):
            most = {
                sigma: [number for number in samples if (source, sigma, voting, number) in found] for sigma in sigmas
            }
            points = {sigma: found[source, sigma, voting, most[sigma][-1]] for sigma in sigmas if most[sigma]}
            _curve(others[0], points, color=f"C{place}", label=f"{source}, {voting}", **style)
    by_samples.set(xlabel=f"samples ({votings[0]})", ylabel="accuracy", xscale="log")
    by_samples.set_xticks(samples, [str(number) for number in samples], minor=False)
    by_samples.minorticks_off()
    for axes in others:
        axes.set(xlabel=f"sigma ({max(samples):,} samples)")
    for axes in (by_samples, *others):
        tidy(axes)
        axes.legend(frameon=False, fontsize=7, handlelength=3)
    figure.savefig(path, dpi=200)


def _curve(axes: Axes, points: Mapping[Any, Spread | None], **style: Any) -> None:
    """Draws means and, where there are some, standard deviations, by place on the axis."""
    there = {place: point for place, point in points.items() if point is not None}
    axes.errorbar(
        list(there), [value for value, _ in there.values()], [spread or 0.0 for _, spread in there.values()], **style
    )


def tidy(axes: Axes) -> None:
    """Draws a faint grid behind the curves, and no frame around them."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)

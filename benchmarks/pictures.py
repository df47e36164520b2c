"""Rows as pictures: curves for `scaling` and `strength`, bars for all else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothfast.runs.plots import tidy

from . import scaling
from .harness import Row

COLOURS = ("#1f77b4", "#d62728", "#555555")
LABEL = 0.065  # height of a label, in shares


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows of one benchmark as a picture; the suffix says the format."""
    figure = {"scaling": curves, "strength": strengths}.get(rows[0].benchmark, bars)(rows)
    figure.savefig(path, dpi=200)


def bars(rows: Sequence[Row]) -> Figure:
    """A panel for each device, setting and unit, a bar with its spread for each contender."""
    panels: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.device, row.setting, row.unit), []).append(row)
    heights = [len(group) + 2 for group in panels.values()]
    figure = Figure(figsize=(9, 0.28 * sum(heights) + 0.3), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, ((_, setting, unit), group) in zip(grid[:, 0], panels.items(), strict=True):
        _bars(axes, group)
        _titled(axes, f"{setting}; {_machine(group[0])}", "")
        axes.set_xlabel(unit, fontsize=8)
        axes.grid(visible=False, axis="y")
    return figure


def _bars(axes: Axes, group: Sequence[Row]) -> None:
    """Draws a bar for each row of a panel; that of the baseline is grey."""
    values, spreads = np.array([row.value for row in group]), np.array([_spread(row) for row in group]).T
    colours = ["0.7" if row.contender == row.baseline else COLOURS[0] for row in group]
    axes.barh(range(len(group)), values, xerr=abs(spreads - values), color=colours, ecolor="0.2", height=0.7)
    axes.set_yticks(range(len(group)), [row.contender for row in group])
    axes.invert_yaxis()
    for place, row in enumerate(group):
        ratio = "" if row.ratio is None or row.contender == row.baseline else f"  x{row.ratio:.3g}"
        axes.text(_spread(row)[1], place, f" {row.value:.4g}{ratio}", va="center", fontsize=8)
    axes.set_xlim(0, 1.2 * max(spreads[1].max(), 1e-9))
    axes.tick_params(labelsize=8)


def curves(rows: Sequence[Row]) -> Figure:
    """Curves of what `scaling` found on the last of its devices, over the samples: predictions, certificates,
    seconds."""
    rows = [row for row in rows if row.device == rows[-1].device]
    figure = Figure(figsize=(7.8, 9.5), layout="constrained")
    about = "bands: one standard error over the images; dotted: at the most samples"
    figure.suptitle(f"{rows[0].setting}\n{about}", fontsize=9)
    predictions, certificates, seconds = figure.subplots(3, 1, sharex=True, height_ratios=(1.2, 1.2, 1))
    answers = {scaling.VOTED: "right by most votes", scaling.PREDICTED: "right by PREDICT"}
    _shares(predictions, rows, {**answers, scaling.ABSTAINED: "PREDICT abstains"})
    _titled(predictions, "prediction", "share of images")
    certified = {unit: f"right and {unit}" for unit in scaling.CERTIFIED}
    _shares(certificates, rows, {**certified, scaling.RADIUS: "average radius"})
    _titled(certificates, "certification; radii in L2, pixels from 0 to 1", "share of images, or radius")
    longest = _curve(seconds, rows, scaling.TIME, COLOURS[0])
    _label(seconds, longest, f"{longest:.3g} s", COLOURS[0])
    _titled(seconds, f"one image, from pixels to votes; {_machine(rows[-1])}", "seconds")
    seconds.set(xlabel="samples an image", xscale="log", yscale="log")
    seconds.xaxis.set_major_formatter("{x:,.0f}")
    seconds.yaxis.set_major_formatter("{x:g}")
    figure.align_ylabels()
    return figure


def _shares(axes: Axes, rows: Sequence[Row], labels: Mapping[str, str]) -> None:
    """Draws curves in 0 .. 1 by unit, labelled where they end."""
    ends = []
    for (unit, label), colour in zip(labels.items(), COLOURS, strict=True):
        end = _curve(axes, rows, unit, colour)
        axes.axhline(end, color=colour, linestyle=":", linewidth=0.8)
        ends.append((end, f"{label} {end:.3f}", colour))
    place = -LABEL
    for end, text, colour in sorted(ends):  # from below, each clear of the last
        place = max(end, place + LABEL)
        _label(axes, place, text, colour)
    axes.set_ylim(-0.02, 1.03)


def _curve(axes: Axes, rows: Sequence[Row], unit: str, colour: str) -> float:
    """Draws one unit over n, with its spread; returns its last value."""
    own = [row for row in rows if row.unit == unit]
    ns = [int(row.contender.removeprefix("n = ").replace(",", "")) for row in own]
    axes.plot(ns, [row.value for row in own], color=colour, marker="o", markersize=3, linewidth=1.6)
    axes.fill_between(ns, *np.array([_spread(row) for row in own]).T, color=colour, alpha=0.12, linewidth=0)
    return own[-1].value


def strengths(rows: Sequence[Row]) -> Figure:
    """Panels of what `strength` found, one for each setting: a curve for each attack over the gradients of an image."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(f"{row.device}, {row.setting}", []).append(row)
    figure = Figure(figsize=(7.2, 3.4 * len(panels)), layout="constrained")
    for axes, (setting, group) in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        curves: dict[str, list[tuple[float, ...]]] = {}
        for row in group:
            name, _, budget = row.contender.removesuffix(" gradients").partition(", ")
            curves.setdefault(name, []).append((int(budget), row.value, *_spread(row)))
        for (name, points), colour in zip(curves.items(), COLOURS, strict=True):
            budgets, values, low, high = zip(*points, strict=True)
            axes.plot(budgets, values, color=colour, marker="o", markersize=3, linewidth=1.6, label=name)
            axes.fill_between(budgets, low, high, color=colour, alpha=0.12, linewidth=0)
        _titled(axes, setting, "wrong after the attack")
        axes.set(xscale="log", xlabel="gradients of an image (steps x samples); bands: one standard error")
        axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axes.minorticks_off()
        axes.legend(frameon=False)
    return figure


def _label(axes: Axes, height: float, text: str, colour: str) -> None:
    """Writes a text on the right of the axes."""
    axes.annotate(
        text, (1, height), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", color=colour,
        va="center", fontsize=9,
    )  # fmt: skip


def _titled(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
    axes.set_ylabel(ylabel)
    tidy(axes)


def _machine(row: Row) -> str:
    return f"{row.processor}, threads: {row.threads}" if row.device == "cpu" else row.device


def _spread(row: Row) -> tuple[float, float]:
    """Quartiles, or one standard error on either side of a mean; nothing where it was not taken."""
    if row.error is not None:
        return row.value - row.error, row.value + row.error
    return (row.value if row.low is None else row.low), (row.value if row.high is None else row.high)

"""Pictures of certification logs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from smoothfast.analysis import certified_accuracy
from smoothfast.logs import Log

__all__ = ["certified_accuracy_curve", "require_format", "tidy"]


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


def tidy(axes: Axes) -> None:
    """A faint grid behind the curves, and no frame around them."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def require_format(path: str | os.PathLike[str]) -> None:
    """For pictures that are drawn only after long work.

    Raises:
        ValueError: the suffix says no format, or an unknown one.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix[1:] not in formats:
        raise ValueError(f"plot is {str(path)!r}; its suffix must be one of {', '.join(sorted(formats))}")

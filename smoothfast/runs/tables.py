"""Figures and tables from certification logs."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..statistics import LEVEL, clopper_pearson_interval
from ..text import one_line, shortened
from .logs import Log
from .records import LENGTH

STEP, MOST_RADII = 0.25, 17  # radii that nobody asked for, at most: up to 4; beyond it in longer steps
MOST_ASKED = 400  # radii of grids
LEAST_NAME = 12  # characters of a name on a narrow terminal
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999)  # probabilities of a class
EARLY = ("sequential", "tolerance", "grid")  # methods that take n samples at most
Format = Literal["markdown", "latex", "csv", "json"]


def certified_accuracy(log: Log, radii: ArrayLike) -> NDArray[np.float64]:
    """The fraction of images that are classified correctly with a certified radius of at least r.

    Args:
        log: a log with at least one image.
        radii: the radii r (L2, pixel units 0 to 1), of any shape.

    Returns:
        Fractions, of the shape of `radii`.

    Raises:
        ValueError: the log holds no images.
    """
    return _certified(log, radii) / images_of(log)


def certified_interval(log: Log, radii: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The exact confidence interval of each `certified_accuracy`, over all images that those of the log are drawn from:
    its ends, at level `statistics.LEVEL`, radius by radius. Arguments and errors are the same."""
    return clopper_pearson_interval(_certified(log, radii), images_of(log))


def _certified(log: Log, radii: ArrayLike) -> NDArray[np.int64]:
    """Counts the images that are classified correctly with a certified radius of at least r."""
    held = np.sort(log.radius[log.correct])
    return len(held) - np.searchsorted(held, radii)


def average_certified_radius(log: Log) -> float:
    """The mean over all images of the certified radius, a wrong or abstained image counting 0.

    Raises:
        ValueError: the log holds no images.
    """
    images = images_of(log)
    return float(log.radius[log.correct].sum()) / images


def abstention(log: Log) -> float:
    """The fraction of images on which the classifier abstained.

    Raises:
        ValueError: the log holds no images.
    """
    return int(np.count_nonzero(log.predict == -1)) / images_of(log)


def shown_probabilities(log: Log) -> list[float] | None:
    """Counts the images that are classified correctly with p_A, the probability of their class, shown to be at least
    each of `SHARES`: fractions, or None where the log has no bounds.

    Raises:
        ValueError: the log holds no images.
    """
    images = images_of(log)
    if log.p_lower is None or not log.p_lower.any():
        return None
    held = log.p_lower[log.correct]
    return [int(np.count_nonzero(held >= share)) / images for share in SHARES]


def asked_radii(log: Log) -> tuple[float, ...] | None:
    """The radii that a log was asked for, since it holds no others; None where it may hold any."""
    match log.settings:
        case {"method": "grid", "radii": list(radii)}:
            asked = radii
        case {"method": "sequential", "radius": radius}:
            asked = [radius]
        case _:
            return None
    return tuple(radius for radius in asked if isinstance(radius, int | float) and 0 <= radius <= LENGTH.high)


def beside_the_grid(name: str, log: Log, radii: Sequence[float]) -> str | None:
    """Says which of some radii a log was not asked for, and what its shares there mean; None where there are none."""
    asked = asked_radii(log)
    others = [radius for radius in radii if asked is not None and radius not in asked]
    if not asked or not others:
        return None
    told, held = (", ".join(f"{radius:g}" for radius in each) for each in (others, asked))
    return f"{name} was asked at {held} alone: at {told} it counts what is certified at the next of these, or nothing"


class Effort(NamedTuple):
    """The effort behind a log: samples an image, and how often each decision was come to, most frequent first."""

    mean: float
    median: float
    decisions: dict[str, int]


def effort_of(log: Log) -> Effort:
    """Counts the samples that the images of a log took, and how often each decision was come to.

    Raises:
        ValueError: the log holds no images, or not their samples and decisions.
    """
    if log.samples is None or log.decision is None:
        raise ValueError(f"{log.path} has no columns samples and decision")
    images_of(log)
    decisions = dict(Counter(log.decision.tolist()).most_common())
    return Effort(float(np.mean(log.samples)), float(np.median(log.samples)), decisions)


def effort(log: Log) -> str:
    """Says in a sentence what `effort_of` counts, with its errors."""
    mean, median, decisions = effort_of(log)
    told = ", ".join(f"{count:,} {decision}" for decision, count in decisions.items())
    return f"{mean:,.0f} samples an image in the mean, {median:,.0f} median: {told}"


def named(logs: Iterable[Log]) -> dict[str, Log]:
    """Names each log by its file name without `.tsv`, or by as much of its path as tells it apart.

    Raises:
        ValueError: the same path is given twice.
    """
    logs = list(logs)
    counts = Counter(name for log in logs for name in set(_names(log.path)))
    named_logs = {}
    for log in logs:
        name = next((name for name in _names(log.path) if counts[name] == 1), None)
        if name is None:
            raise ValueError(f"{log.path} is given twice")
        named_logs[name] = log
    return named_logs


class TableRow(NamedTuple):
    """The figures of one log."""

    log: str
    accuracy: tuple[float, ...]  # certified accuracy at each radius of the table
    acr: float  # average certified radius
    abstain: float
    images: int


class Table(NamedTuple):
    """Figures of several logs, one row for each."""

    radii: tuple[float, ...]
    rows: tuple[TableRow, ...]


def summary(logs: Mapping[str, Log], radii: Sequence[float] | None = None) -> Table:
    """Puts the figures of several logs side by side.

    Args:
        logs: the logs by name, see `named`.
        radii: the radii of the certified accuracies; by default those of grids that logs were asked for, or else 0,
            0.25, ... up to the largest in the logs, in steps twice as long, … where these were more than `MOST_RADII`.

    Raises:
        ValueError: a log holds no images.
    """
    if radii is None:
        radii = _usual_radii(logs.values())
    rows = (
        TableRow(
            name,
            tuple(certified_accuracy(log, radii).tolist()),
            average_certified_radius(log),
            abstention(log),
            len(log),
        )
        for name, log in logs.items()
    )
    return Table(tuple(radii), tuple(rows))


def _usual_radii(logs: Iterable[Log]) -> list[float]:
    logs = list(logs)
    grids = [asked_radii(log) or () for log in logs if (log.settings or {}).get("method") == "grid"]
    if any(grids):
        return sorted({radius for grid in grids for radius in grid})[:MOST_ASKED]
    largest, step = max((float(log.radius.max(initial=0)) for log in logs), default=0), STEP
    while largest >= step * MOST_RADII:
        step *= 2
    return [step * number for number in range(int(largest / step) + 1)]


def probabilities(logs: Mapping[str, Log], width: int | None = None) -> str:
    """Writes what logs show of p_A, and by what budget, in markdown; nothing where they have no bounds.

    Args:
        logs: by name.
        width: see `markdown`.

    Raises:
        ValueError: a log holds no images.
    """
    found = {name: shown_probabilities(log) for name, log in logs.items()}
    rows = [
        [name, *(f"{share:.3f}" for share in shares), *(_setting(logs[name], setting) for setting in ("n", "alpha"))]
        for name, shares in found.items()
        if shares is not None
    ]
    return markdown(["right, and p_A at least", *map(str, SHARES), "n", "alpha"], rows, width) if rows else ""


def intervals(logs: Mapping[str, Log], radii: Sequence[float], width: int | None = None) -> str:
    """Writes certified accuracies with their intervals in markdown, a line for each log and radius.

    Raises:
        ValueError: a log holds no images.
    """
    rows = [
        [name, f"{radius:g}", *(f"{share:.3f}" for share in shares)]
        for name, log in logs.items()
        for radius, *shares in zip(radii, certified_accuracy(log, radii), *certified_interval(log, radii), strict=True)
    ]
    return markdown([f"{100 * LEVEL:.0f} % intervals", "radius", "certified accuracy", "from", "to"], rows, width)


def described(log: Log) -> str:
    """Says in a line how a log was made, as far as it tells, and of how many images it is."""
    settings = log.settings or {}
    match settings.get("sigma"):
        case [int() | float() as sigma] | (int() | float() as sigma):
            told = [f"sigma {sigma:g}"]
        case _:
            told = []
    method, n = settings.get("method"), settings.get("n")
    if isinstance(n, int):
        told.append(f"n {'≤' if method in EARLY else '='} {n:,}")
    if isinstance(method, str):
        told.append(one_line(method))
    return ", ".join([*told, f"{len(log):,} images"])


def _setting(log: Log, name: str) -> str:
    value = (log.settings or {}).get(name)
    return f"{value:,}" if isinstance(value, int | float) else ""


def render(table: Table, format: Format, width: int | None = None) -> str:
    """Writes a table as text that ends in a newline.

    Args:
        table: the table.
        format: `markdown` or `latex` (a plain `tabular`), with 3 decimals; `csv` or `json`, exact.
        width: of markdown, see `markdown`.

    Raises:
        ValueError: the format is none of these.
    """
    if format == "markdown":
        return markdown(*_cells(table, ".3f"), width)
    if format == "latex":
        return _latex(*_cells(table, ".3f"))
    if format == "csv":
        return _csv(*_cells(table, ""))
    if format == "json":
        rows = [row._asdict() for row in table.rows]
        return json.dumps({"radii": table.radii, "rows": rows}, indent=2) + "\n"
    raise ValueError(f"format is {format!r}, expected one of {', '.join(get_args(Format))}")


def images_of(log: Log) -> int:
    """The number of images of a log; ValueError where it holds none."""
    if len(log) == 0:
        raise ValueError(f"{log.path} holds no images")
    return len(log)


def _names(path: Path) -> list[str]:
    """Lists all names a log can go by, from the shortest to its whole path."""
    path = path.absolute()
    parts = (path.with_suffix("") if path.suffix == ".tsv" else path).parts
    tails = [PurePath(*parts[-length:]).as_posix() for length in range(1, len(parts))]
    return [*tails, str(path)]


def _cells(table: Table, spec: str) -> tuple[list[str], list[list[str]]]:
    """Writes the head and the rows as text, all but the radii in the given format."""
    heads = [np.format_float_positional(radius, trim="-") if radius < 1e6 else repr(radius) for radius in table.radii]
    rows = [
        [
            row.log,
            *(format(value, spec) for value in (*row.accuracy, row.acr, row.abstain)),
            str(row.images),
        ]
        for row in table.rows
    ]
    return ["log", *heads, "ACR", "abstain", "images"], rows


def markdown(head: list[str], rows: list[list[str]], width: int | None = None, keys: int = 1) -> str:
    """Writes a head and rows of cells as a table: the first column stands to the left, the others to the right.

    Args:
        width: characters that a line may have: columns that have no room come in tables below, and long names are
            shortened. None: as many as it takes.
        keys: columns that tell the rows apart; each table has them.
    """
    longest = None if width is None else max(width // 3, LEAST_NAME)
    rows = [[shortened(one_line(row[0]), longest).replace("|", r"\|"), *row[1:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in (head, rule, *rows)]
    return "\n".join(
        "".join(f"| {' | '.join(line[:keys] + line[first:last])} |\n" for line in lines)
        for first, last in _side_by_side(widths, width, keys)
    )


def _side_by_side(widths: Sequence[int], most: int | None, keys: int) -> list[tuple[int, int]]:
    """The columns beyond the keys that there is room for beside these, table by table: from which on, and to which."""
    starts, used = [keys], 0
    room = math.inf if most is None else most - 1 - sum(width + 3 for width in widths[:keys])
    for column, width in enumerate(widths[keys:], keys):
        if used + width + 3 > room and used:
            starts.append(column)
            used = 0
        used += width + 3
    return list(pairwise([*starts, len(widths)]))


def _latex(head: list[str], rows: list[list[str]]) -> str:
    first, *rest = (" & ".join([_escape(row[0]), *row[1:]]) + " \\\\\n" for row in (head, *rows))
    begin = f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n"
    rule = "\\hline\n"
    return "".join([begin, rule, first, rule, *rest, rule, "\\end{tabular}\n"])


def _escape(text: str) -> str:
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda match: words.get(match[0], "\\" + match[0]), one_line(text))


def _csv(head: list[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()

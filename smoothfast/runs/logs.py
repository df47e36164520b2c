"""Logs of certification and prediction runs: one tab-separated line per image.

The first columns are those of Cohen et al. (2019), so that tools made for their logs read these
too. Beside the log `run.tsv` stands `run.tsv.json` with the settings of the run and its
environment. A line counts once its newline is written: what a killed run leaves after the last one
is passed over.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import contents, whole
from . import records
from .records import (
    COUNT,
    LENGTH,
    MOST,
    Number,
    RecordFile,
    Word,
    cells,
    exact,
    integer,
    lines_of,
    read_json,
    sidecar_of,
)


class Row(NamedTuple):
    """One line of a log; the fields are its columns, and `correct` follows from them."""

    idx: int  # number of the image in its data set
    label: int
    predict: int  # -1: abstained
    radius: float  # L2, pixel units 0 to 1; 0 where nothing is certified
    time: float  # seconds
    samples: int  # noisy copies drawn, all stages together
    nA: int  # votes for the predicted class
    nB: int  # votes for the runner-up
    invalid: int  # copies whose logits were not finite
    p_lower: float  # lower bound on the probability of the predicted class; 0 where unknown
    p_upper: float  # upper bound on that of every other class; 1 where unknown
    decision: str  # predicted, certified, not certified, undecided

    @property
    def correct(self) -> bool:
        """Whether the prediction is the label; an abstention never is."""
        return self.predict == self.label


@dataclass(frozen=True, eq=False)
class Log:
    """A log as columns, each an array [images]; a column that the file lacks is None."""

    path: Path
    idx: NDArray[np.int64]
    label: NDArray[np.int64]
    predict: NDArray[np.int64]
    radius: NDArray[np.float64]  # zeros where the file has no radii
    correct: NDArray[np.bool_]
    time: NDArray[np.float64]  # seconds
    samples: NDArray[np.int64] | None = None
    nA: NDArray[np.int64] | None = None
    nB: NDArray[np.int64] | None = None
    invalid: NDArray[np.int64] | None = None
    p_lower: NDArray[np.float64] | None = None
    p_upper: NDArray[np.float64] | None = None
    decision: NDArray[np.str_] | None = None
    settings: dict[str, Any] | None = None  # None where the log has no sidecar

    def __len__(self) -> int:
        return len(self.idx)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(?:(\d+):(\d\d):)?(\d+(?:\.\d*)?)", text)
    if match is None:
        raise ValueError
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


_PROBABILITY = Number("a number from 0 to 1", np.float64, float, 0, 1, exact)
_COLUMNS: dict[str, Number | Word] = {
    "idx": COUNT,
    "label": COUNT,
    "predict": COUNT._replace(expected="a class or -1", low=-1),
    "radius": LENGTH,
    "correct": Number("0 or 1", np.bool_, int, 0, 1, integer),
    "time": Number("seconds or H:MM:SS", np.float64, _seconds, 0, sys.float_info.max, "{:.6f}".format),
    "samples": COUNT,
    "nA": COUNT,
    "nB": COUNT,
    "invalid": COUNT,
    "p_lower": _PROBABILITY,
    "p_upper": _PROBABILITY,
    "decision": Word(("predicted", "certified", "not certified", "undecided")),
}


_REQUIRED = ("idx", "label", "predict", "correct", "time")  # all that a published PREDICT log has


def read_log(path: str | os.PathLike[str]) -> Log:
    """Reads a log of this package, or one published by Cohen et al. or in their format.

    Columns are found by name and unknown ones are passed over. The time may be seconds or
    `H:MM:SS.ffffff`.

    Raises:
        ValueError: the log or its sidecar is malformed; names the file, the line and what was
            expected.
        OSError: the file cannot be read.
    """
    path = Path(path)
    lines = lines_of(contents(path, MOST))
    header = lines[0].split("\t") if lines else []
    if not set(_REQUIRED) <= set(header) or len(set(header)) < len(header):
        raise ValueError(
            f"{path}, line 1: expected a header with the tab-separated columns "
            f"{' '.join(_REQUIRED)}, each once, found {' '.join(header)!r:.200}"
        )
    values: dict[str, list[Any]] = {name: [] for name in header if name in _COLUMNS}
    seen: set[float] = set()
    for number, line in enumerate(lines[1:], start=2):
        texts = line.split("\t")
        try:
            if len(texts) != len(header):
                raise ValueError(f"expected {len(header)} tab-separated fields, found {len(texts)}")
            for name, text in zip(header, texts, strict=True):
                if name in values:
                    values[name].append(_COLUMNS[name].read(name, text))
            idx = values["idx"][-1]
            if idx in seen:
                raise ValueError(f"image {idx} stands in an earlier line, expected each image once")
            seen.add(idx)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    columns: dict[str, NDArray[Any]] = {name: np.array(column, _COLUMNS[name].dtype) for name, column in values.items()}
    columns.setdefault("radius", np.zeros(len(lines) - 1))
    return Log(path, settings=settings_of(path) or None, **columns)


def begun(path: Path) -> bool:
    """Tells whether a run has written the header of a log, and with it a whole sidecar."""
    return path.exists() and b"\n" in contents(path, MOST)


def settings_of(path: Path) -> dict[str, Any]:
    """The settings of the run that wrote a log; none where it has no sidecar.

    Raises:
        ValueError: they are malformed.
    """
    sidecar = sidecar_of(path)
    return _read_settings(sidecar) if sidecar.exists() else {}


def environment_of(path: Path) -> dict[str, Any]:
    """The environment of the run that wrote a log; none where its sidecar has none."""
    match read_json(sidecar_of(path)):
        case {"environment": dict(environment)}:
            return environment
    return {}


def put_in_order(path: Path) -> None:
    """Sorts the lines of a log by image. In one step: killed or out of room before it, the log is as it was."""
    records.put_in_order(path, lambda line: int(line.partition(b"\t")[0].decode()))


class RunLog(RecordFile):
    """A log that is being written, a context manager.

    Every line is on the disk when `append` returns, so a run that is killed loses at most the
    image in flight.

    Args:
        path: the log. Its folder is created if need be.
        settings: all that the results depend on, as JSON values. A run resumes only with equal
            ones.
        environment: what else is worth recording, as JSON values (machine, versions). Never
            compared; the one that began the run stays.
        resume: go on with the log if there is one.

    Attributes:
        done: the `idx` of every image in the log.

    Raises:
        FileExistsError: there is a log at `path`, and `resume` is false.
        ValueError: the log to go on with was made with other settings (names each) or is malformed.
        OSError: the log cannot be written, or another process is writing it; what was already in it is kept.
    """

    header = ("\t".join(_COLUMNS) + "\n").encode()
    columns = " ".join(_COLUMNS)
    noun, way_on = "images", "go on with --resume"

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        environment: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.done: set[int] = set()
        sidecar = {"settings": settings, "environment": environment or {}}
        super().__init__(path, settings, json.dumps(sidecar, indent=2, allow_nan=False) + "\n", resume)

    def __len__(self) -> int:
        return len(self.done)

    def append(self, row: Row) -> None:
        """Writes one line and waits until it is on the disk.

        Raises:
            ValueError: a value that no log can hold, such as a NaN, or an image that it has a line of; nothing is
                written.
            OSError: the line could not be written (full disk); the lines before it are kept.
        """
        if row.idx in self.done:
            raise ValueError(f"{self.path} has a line of image {row.idx} already, expected each once")
        self._append("\t".join(cells(_COLUMNS, row)) + "\n")
        self.done.add(row.idx)

    def retract(self) -> None:
        """Notes beside the log that it is not sound, whatever was thought when it was begun."""
        sidecar = sidecar_of(self.path)
        content = read_json(sidecar) | {"environment": environment_of(self.path) | {"sound": False}}
        with whole(sidecar) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n")

    def _kept_settings(self) -> dict[str, Any]:
        return _read_settings(sidecar_of(self.path))

    def _take_up(self) -> None:
        self.done = set(read_log(self.path).idx.tolist())


def _read_settings(sidecar: Path) -> dict[str, Any]:
    match read_json(sidecar):
        case {"settings": dict(settings)}:
            return settings
    raise ValueError(f'{sidecar}: expected a JSON object whose "settings" is an object')

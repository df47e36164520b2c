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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .specs import same_settings

__all__ = ["Log", "Row", "RunLog", "put_in_order", "read_log", "require_new"]


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


class _Column(NamedTuple):
    expected: str
    dtype: type
    convert: Callable[[str], float]
    low: float
    high: float
    write: Callable[[Any], str]

    def read(self, name: str, text: str) -> float:
        try:
            value = self.convert(text)
        except ValueError:
            value = float("nan")
        if not self.low <= value <= self.high:  # a NaN is never in range
            raise ValueError(f"{name} is {text!r:.50}, expected {self.expected}")
        return value


class _Word(NamedTuple):
    accepted: tuple[str, ...]
    dtype: type = np.str_

    def read(self, name: str, text: str) -> str:
        if text not in self.accepted:
            raise ValueError(f"{name} is {text!r:.50}, expected one of {', '.join(self.accepted)}")
        return text

    def write(self, value: str) -> str:
        return value


# int() and float() strip NumPy's types, whose repr is not a plain number; a float's repr is exact.
def _integer(value: Any) -> str:
    return str(int(value))


def _exact(value: Any) -> str:
    return repr(float(value))


_COUNT = _Column("an integer >= 0", np.int64, int, 0, 2**63 - 1, _integer)
_PROBABILITY = _Column("a number from 0 to 1", np.float64, float, 0, 1, _exact)
_FINITE = sys.float_info.max
_COLUMNS: dict[str, _Column | _Word] = {
    "idx": _COUNT,
    "label": _COUNT,
    "predict": _COUNT._replace(expected="a class or -1", low=-1),
    "radius": _Column("a finite number >= 0", np.float64, float, 0, _FINITE, _exact),
    "correct": _Column("0 or 1", np.bool_, int, 0, 1, _integer),
    "time": _Column("seconds or H:MM:SS", np.float64, _seconds, 0, _FINITE, "{:.6f}".format),
    "samples": _COUNT,
    "nA": _COUNT,
    "nB": _COUNT,
    "invalid": _COUNT,
    "p_lower": _PROBABILITY,
    "p_upper": _PROBABILITY,
    "decision": _Word(("predicted", "certified", "not certified", "undecided")),
}
_REQUIRED = ("idx", "label", "predict", "correct", "time")  # all that a published PREDICT log has
_HEADER = ("\t".join(_COLUMNS) + "\n").encode()


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
    lines = _complete(path.read_bytes()).decode("utf-8", "replace").splitlines()
    header = lines[0].split("\t") if lines else []
    if not set(_REQUIRED) <= set(header) or len(set(header)) < len(header):
        raise ValueError(
            f"{path}, line 1: expected a header with the tab-separated columns "
            f"{' '.join(_REQUIRED)}, each once, found {' '.join(header)!r:.200}"
        )
    values: dict[str, list[Any]] = {name: [] for name in header if name in _COLUMNS}
    seen: set[float] = set()
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        try:
            if len(cells) != len(header):
                raise ValueError(f"expected {len(header)} tab-separated fields, found {len(cells)}")
            for name, text in zip(header, cells, strict=True):
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
    sidecar = _sidecar(path)
    return Log(path, settings=_read_settings(sidecar) if sidecar.exists() else None, **columns)


def require_new(path: Path) -> None:
    """Raises FileExistsError where `RunLog` would, for callers with work to do before they open it."""
    if path.exists():
        raise _exists(path)


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} exists: go on with it (--resume) or choose another --out")


def put_in_order(path: Path) -> None:
    """Sorts the lines of a log by image. In one step: killed or out of room before it, the log is as it was."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    ordered = sorted(lines, key=lambda line: int(line.partition(b"\t")[0]))
    if ordered == lines:
        return
    beside = path.with_name(path.name + ".sorted")
    with beside.open("wb") as file:
        file.writelines([header, *ordered])
        file.flush()
        os.fsync(file)
    os.replace(beside, path)


class RunLog:
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
        OSError: the log cannot be written; what was already in it is kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        environment: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        self.done: set[int] = set()
        sidecar = {"settings": settings, "environment": environment or {}}
        sidecar_text = json.dumps(sidecar, indent=2, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = FileIO(self.path, "a+" if resume else "x")
        except FileExistsError:
            raise _exists(self.path) from None
        try:
            self._begin(settings, sidecar_text)
        except BaseException:
            self._file.close()
            raise

    def append(self, row: Row) -> None:
        """Writes one line and waits until it is on the disk.

        Raises:
            ValueError: a value that no log can hold, such as a NaN; nothing is written.
            OSError: the line could not be written (full disk); the lines before it are kept.
        """
        cells = {name: column.write(getattr(row, name)) for name, column in _COLUMNS.items()}
        for name, text in cells.items():
            _COLUMNS[name].read(name, text)
        self._write(self._file, ("\t".join(cells.values()) + "\n").encode())
        self.done.add(row.idx)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _begin(self, settings: Mapping[str, Any], sidecar_text: str) -> None:
        found = self.path.read_bytes()
        if found.startswith(_HEADER):
            self._require_equal(settings)
            self.done = set(read_log(self.path).idx.tolist())
            self._file.truncate(len(_complete(found)))
        elif _HEADER.startswith(found):  # new, or killed before the header was complete
            # The header comes last: a log that has one also has its whole sidecar.
            with FileIO(_sidecar(self.path), "w") as file:
                self._write(file, sidecar_text.encode())
            self._write(self._file, _HEADER[len(found) :])
        else:
            columns = " ".join(_COLUMNS)
            raise ValueError(f"{self.path} cannot be resumed: its columns are not {columns}")

    def _require_equal(self, settings: Mapping[str, Any]) -> None:
        sidecar = _sidecar(self.path)
        if not sidecar.exists():
            raise ValueError(f"{self.path} cannot be resumed: {sidecar} with its settings is missing")
        same_settings(self.path, _read_settings(sidecar), settings)

    def _write(self, file: FileIO, data: bytes) -> None:
        try:
            while data:  # the system may take a part only, above all on a disk that is filling up
                data = data[file.write(data) :]
            os.fsync(file)
        except OSError as error:
            file.close()  # a torn line must stay the last, where resuming cuts it away
            raise OSError(
                error.errno,
                f"cannot write to {self.path} ({error.strerror}); the {len(self.done)} images "
                "already written are kept: make room and go on with --resume",
            ) from error


def _complete(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_settings(sidecar: Path) -> dict[str, Any]:
    try:
        document = json.loads(sidecar.read_bytes())
    except (ValueError, RecursionError):
        document = None
    match document:
        case {"settings": dict(settings)}:
            return settings
    raise ValueError(f'{sidecar}: expected a JSON object whose "settings" is an object')

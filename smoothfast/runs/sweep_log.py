"""Files of sweeps: a CSV line for each setting, with the accuracy that it has.

Beside the file `sweep.csv` stands `sweep.csv.json` with the settings that all lines have in common. A line counts once
its newline is written, as in a log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..checks import at_least, not_negative
from ..files import contents
from ..names import ATTACKS, VOTINGS
from . import records
from .records import COUNT, LENGTH, MOST, Column, RecordFile, Word, cells, lines_of, read_json, sidecar_of

CLEAN = "clean"


class Setting(NamedTuple):
    """One setting of a sweep, of which a file has at most one line.

    Attributes:
        images: "clean", or the attack.
        seed: of the attack; 0 for clean images.
        sigma: of the noise on images, in [0, 1] pixel units; 0: none but what the base classifier has of its own.
        voting: rule.
        samples: noisy copies, or passes, an image.
    """

    images: str
    seed: int
    sigma: float
    voting: str
    samples: int


def check_plan(sigmas: Sequence[float], votings: Sequence[str], samples: Sequence[int]) -> None:
    """Checks the settings of a sweep.

    Raises:
        ValueError: a number is out of its range, something stands there twice, or the numbers of samples do not rise.
    """
    for sigma in sigmas:
        not_negative(sigmas=sigma)
    for name, values in (("sigmas", sigmas), ("votings", votings)):
        if len(set(values)) < len(values):
            raise ValueError(f"{name} is {list(values)}; each must stand there once")
    if not samples or list(samples) != sorted(set(samples)):
        raise ValueError(f"samples is {list(samples)}; they must rise")
    at_least(1, samples=samples[0])


@dataclass(frozen=True)
class SettingAccuracy:
    """The accuracy of one setting, of which it has the attributes.

    Attributes:
        correct, count: numbers of images.
    """

    images: str
    seed: int
    sigma: float
    voting: str
    samples: int
    correct: int
    count: int

    @property
    def setting(self) -> Setting:
        """The setting that the accuracy is of."""
        return Setting(self.images, self.seed, self.sigma, self.voting, self.samples)

    @property
    def accuracy(self) -> float:
        """The share of the images that are classified correctly."""
        return self.correct / self.count


_POSITIVE = COUNT._replace(expected="an integer >= 1", low=1)
_COLUMNS: dict[str, Column] = {
    "images": Word((CLEAN, *ATTACKS)),
    "seed": COUNT,
    "sigma": LENGTH,
    "voting": Word(VOTINGS),
    "samples": _POSITIVE,
    "correct": COUNT,
    "count": _POSITIVE,
}
_HEADER = ",".join(_COLUMNS)


def read(path: str | os.PathLike[str]) -> list[SettingAccuracy]:
    """Reads the lines of a sweep.

    Raises:
        ValueError: the file is malformed; names it, the line and what was expected.
        OSError: it cannot be read.
    """
    path = Path(path)
    lines = lines_of(contents(path, MOST))
    if lines[:1] != [_HEADER]:
        raise ValueError(f"{path}, line 1: expected the header {_HEADER}, found {''.join(lines[:1])!r:.200}")
    rows: dict[Setting, SettingAccuracy] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = _parsed(line)
            if row.setting in rows:
                raise ValueError("the same setting stands in an earlier line, expected each once")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        rows[row.setting] = row
    return list(rows.values())


def _parsed(line: str) -> SettingAccuracy:
    texts = line.split(",")  # none of the words that a cell may hold would be quoted
    if len(texts) != len(_COLUMNS):
        raise ValueError(f"expected {len(_COLUMNS)} fields separated by commas, found {len(texts)}")
    values = {name: column.read(name, text) for (name, column), text in zip(_COLUMNS.items(), texts, strict=True)}
    row = SettingAccuracy(**values)
    _require_possible(row)
    return row


def _require_possible(row: SettingAccuracy) -> None:
    if row.correct > row.count:
        raise ValueError(f"correct is {row.correct}, expected at most count, which is {row.count}")


def put_in_order(path: Path, settings: Sequence[Setting]) -> None:
    """Sorts the lines of a sweep as these settings are; others, in the order they have, come last. In one step."""
    places = {setting: place for place, setting in enumerate(settings)}

    def place(line: bytes) -> int:
        return places.get(_parsed(line.decode().rstrip("\r\n")).setting, len(places))

    records.put_in_order(path, place)


class SweepLog(RecordFile):
    """A sweep that is being written, a context manager. A file that is there is gone on with.

    Every line is on the disk when `append` returns. See `RecordFile` for the errors.

    Args:
        path: the CSV file. Its folder is created if need be.
        settings: what all lines have in common, as JSON values. A sweep goes on only with equal ones.

    """

    header = f"{_HEADER}\r\n".encode()
    columns = " ".join(_COLUMNS)
    noun, way_on = "rows", "run it again"

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self._rows: dict[Setting, SettingAccuracy] = {}
        super().__init__(path, settings, json.dumps(settings, indent=1, allow_nan=False) + "\n", resume=True)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[SettingAccuracy]:
        """All that the file holds, in its order."""
        return list(self._rows.values())

    @property
    def done(self) -> set[Setting]:
        """The settings of these rows."""
        return set(self._rows)

    def append(self, rows: Iterable[SettingAccuracy]) -> None:
        """Writes a line for each row, and waits for each until it is on the disk.

        Raises:
            ValueError: a value that no sweep can hold, such as more correct images than there are, or a setting that
                the file has a line of; nothing of this row is written.
            OSError: a line could not be written (full disk); the lines before it are kept.
        """
        for row in rows:
            if row.setting in self._rows:
                raise ValueError(f"{self.path} has a line of {row.setting} already, expected each setting once")
            _require_possible(row)
            self._append(",".join(cells(_COLUMNS, row)) + "\r\n")
            self._rows[row.setting] = row

    def _kept_settings(self) -> dict[str, Any]:
        sidecar = sidecar_of(self.path)
        settings = read_json(sidecar)
        if not isinstance(settings, dict):
            raise ValueError(f"{sidecar}: expected a JSON object, the settings of a sweep")
        return settings

    def _take_up(self) -> None:
        self._rows = {row.setting: row for row in read(self.path)}

"""Files of records: a line for each, on the disk before the next is made, and beside them the settings of their run.

Logs and sweeps are such files. A record counts once its newline is written: what a killed run leaves after the last one
is passed over by readers, and cut away by the run that goes on. The header is written last of what a run begins with,
so a file that has one also has its whole sidecar, `run.tsv.json` beside `run.tsv`.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from typing_extensions import Self

from ..files import claim, contents, exists, plain, same_settings

MOST = 2**28  # bytes of a file of records, of which an image takes 150

# ---- values ----------------------------------------------------------------------------------------------------------


class Column(Protocol):
    """The values of a column, from text and to text."""

    def read(self, name: str, text: str) -> Any:
        """The value that a cell holds.

        Raises:
            ValueError: it holds none; names the column, the text and what was expected.
        """

    def write(self, value: Any) -> str:
        """The text of a value, which `read` makes the same value of."""


class Number(NamedTuple):
    """A column of numbers in a range."""

    expected: str
    dtype: type
    convert: Callable[[str], float]
    low: float
    high: float
    write: Callable[[Any], str]

    def read(self, name: str, text: str) -> float:
        """The number of a cell; ValueError where it is none, or out of range."""
        try:
            value = self.convert(text)
        except ValueError:
            value = float("nan")
        if not self.low <= value <= self.high:  # a NaN is never in range
            raise ValueError(f"{name} is {text!r:.50}, expected {self.expected}")
        return value


class Word(NamedTuple):
    """A column of words, each one of a few."""

    accepted: tuple[str, ...]
    dtype: type = np.str_

    def read(self, name: str, text: str) -> str:
        """The word of a cell; ValueError where it is another."""
        if text not in self.accepted:
            raise ValueError(f"{name} is {text!r:.50}, expected one of {', '.join(self.accepted)}")
        return text

    def write(self, value: str) -> str:
        """The text of a word."""
        return value


# int() and float() strip NumPy's types, whose repr is not a plain number; a float's repr is exact.
def integer(value: Any) -> str:
    """The text of an integer."""
    return str(int(value))


def exact(value: Any) -> str:
    """The shortest text that is read as the same float64."""
    return repr(float(value))


# Of a radius or sigma, in units of the range of a pixel: sums of all that a file can hold, and pictures, are finite.
LENGTH = Number("a number from 0 to 1e+100", np.float64, float, 0, 1e100, exact)
COUNT = Number("an integer >= 0", np.int64, int, 0, 2**63 - 1, integer)


def cells(columns: Mapping[str, Column], record: Any) -> list[str]:
    """The text of each attribute of a record that is a column.

    Raises:
        ValueError: a value that the file could not be read with, such as a NaN.
    """
    texts = {name: column.write(getattr(record, name)) for name, column in columns.items()}
    for name, text in texts.items():
        columns[name].read(name, text)
    return list(texts.values())


# ---- files -----------------------------------------------------------------------------------------------------------


class RecordFile(ABC):
    """A file of records that is being written, a context manager: what logs and sweeps have in common.

    Args:
        path: the file. Its folder is created if need be.
        settings: all that the records depend on, as JSON values. A run goes on only with equal ones.
        sidecar: the text of the file beside it, which `_kept_settings` finds the settings in.
        resume: go on with the file if there is one.

    Raises:
        FileExistsError: there is a file, and `resume` is false.
        ValueError: the file to go on with was made with other settings (names each) or is malformed.
        OSError: the file cannot be written, or another process is writing it; what was already in it is kept.
    """

    header: ClassVar[bytes]
    columns: ClassVar[str]  # as errors name them
    noun: ClassVar[str]  # what a record is of, in the plural
    way_on: ClassVar[str]  # what to do after making room

    def __init__(
        self, path: str | os.PathLike[str], settings: Mapping[str, Any], sidecar: str, resume: bool = False
    ) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = FileIO(self.path, "a+" if resume else "x")
        except FileExistsError:
            raise exists(self.path) from None
        try:
            claim(self._file.fileno(), self.path)
            self._begin(settings, sidecar)
        except BaseException:
            self._file.close()
            raise

    @abstractmethod
    def __len__(self) -> int:
        """The number of records that the file holds."""

    @abstractmethod
    def _kept_settings(self) -> dict[str, Any]:
        """The settings in the sidecar."""

    @abstractmethod
    def _take_up(self) -> None:
        """Reads the records that a run before has left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def _begin(self, settings: Mapping[str, Any], sidecar: str) -> None:
        found = contents(self.path, MOST)
        first, newline, _ = found.partition(b"\n")
        if newline and first.rstrip() == self.header.rstrip():  # by whatever line breaks who copied the file left
            beside = sidecar_of(self.path)
            if not beside.exists():
                raise ValueError(f"{self.path} cannot be resumed: {beside} with its settings is missing")
            same_settings(self.path, self._kept_settings(), settings)
            self._take_up()
            self._file.truncate(len(complete(found)))
        elif self.header.startswith(found):  # new, or killed before the header was complete
            # The header comes last: a file that has one also has its whole sidecar.
            with FileIO(sidecar_of(self.path), "w") as file:
                self._write(file, sidecar.encode())
            self._write(self._file, self.header[len(found) :])
        else:
            raise ValueError(f"{self.path} cannot be resumed: its columns are not {self.columns}")

    def _append(self, line: str) -> None:
        self._write(self._file, line.encode())

    def _write(self, file: FileIO, data: bytes) -> None:
        try:
            while data:  # the system may take a part only, above all on a disk that is filling up
                data = data[file.write(data) :]
            os.fsync(file)
        except OSError as error:
            file.close()  # a torn line must stay the last, where resuming cuts it away
            raise OSError(
                error.errno,
                f"cannot write to {self.path} ({error.strerror}); the {len(self)} {self.noun} "
                f"already written are kept: make room and {self.way_on}",
            ) from error


def complete(data: bytes) -> bytes:
    """The lines of a file that end in a newline."""
    return data[: data.rfind(b"\n") + 1]


def count(path: Path) -> int:
    """Counts the records of a file; none where it is not there yet."""
    return max(complete(contents(path, MOST)).count(b"\n") - 1, 0) if path.exists() else 0


def lines_of(data: bytes) -> list[str]:
    """The text of these lines. They end in newlines alone: `str.splitlines` knows ten more ends, and cells may hold
    them."""
    return [line.removesuffix("\r") for line in complete(data).decode("utf-8", "replace").split("\n")[:-1]]


def sidecar_of(path: Path) -> Path:
    """The file with the settings of the run that writes `path`."""
    return path.with_name(path.name + ".json")


def read_json(sidecar: Path) -> Any:
    """The contents of a sidecar; None if it is no JSON, or such that it could not be written or shown again."""
    try:
        value = json.loads(contents(sidecar, MOST))
    except (ValueError, RecursionError):
        return None
    return value if plain(value) else None


def discard(path: Path) -> None:
    """Removes a file of records and its sidecar; errors as of `files.claim` where another process is writing it."""
    if path.exists():
        with path.open("rb") as file:
            claim(file.fileno(), path)
            path.unlink()
    sidecar_of(path).unlink(missing_ok=True)


def put_in_order(path: Path, key: Callable[[bytes], Any]) -> None:
    """Sorts the lines of a file below its header. In one step: killed or out of room before it, the file is as it was.

    Args:
        path: the file, all of whose lines are complete.
        key: of a line, what it is sorted by.
    """
    header, *lines = (line + b"\n" for line in path.read_bytes().split(b"\n")[:-1])
    ordered = sorted(lines, key=key)
    if ordered == lines:
        return
    beside = path.with_name(path.name + ".sorted")
    with beside.open("wb") as file:
        file.writelines([header, *ordered])
        file.flush()
        os.fsync(file)
    os.replace(beside, path)

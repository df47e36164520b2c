"""Checks of a data set before the work on it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .fitting import Fit, Fitted
from .folders import Folder
from .labelled import Labelled, classes_of, name_of, require_one_size

DECODED = 500  # images that are decoded before a run, at most; of more, the heads of their files are read


def require_readable(source: Labelled, indices: Sequence[int]) -> None:
    """Raises ValueError where a file of a folder, among the images `indices`, cannot be read or is of another size.

    Of up to 500 images all is decoded, of more no more than their heads. Other data sets are read as a run needs them.
    """
    files = source.source if isinstance(source, Fitted) else source
    if not isinstance(files, Folder):
        return
    shapes: Iterator[tuple[int, Sequence[int]]]
    if len(indices) <= DECODED:
        shapes = ((index, tuple(source[index][0].shape)) for index in indices)
    else:
        shapes = _claimed(files, source.fit if isinstance(source, Fitted) else Fit(), indices)
    require_one_size(source, shapes)


def _claimed(files: Folder, fit: Fit, indices: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
    """The shapes that images have in the end, by the heads of their files."""
    for index in indices:
        size = files.size(index)
        try:
            yield index, (3, *fit.size(*size))
        except ValueError as error:
            raise ValueError(f"{files.name_of(index)}: {error}") from error


@dataclass(frozen=True)
class Within:
    """A data set whose labels are those of so many classes.

    Attributes:
        source: the data set.
        spec: its name, for errors.
        num_classes: how many.

    Raises:
        ValueError: a label is of none: at once where the data set has all as `targets` or `labels`, else when the item
            is taken.
    """

    source: Labelled
    spec: str
    num_classes: int

    def __post_init__(self) -> None:
        told = _labels(self.source)
        beyond = np.flatnonzero((told < 0) | (told >= self.num_classes))
        if beyond.size:
            raise self._error(int(beyond[0]), int(told[beyond[0]]))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        image, label = self.source[index]
        if not 0 <= label < self.num_classes:
            raise self._error(index, label)
        return image, label

    def _error(self, index: int, label: int) -> ValueError:
        counted = "; do they begin at 1? Subtract 1 from each" if label == self.num_classes else ""
        return ValueError(
            f"data is {self.spec!r}, in which {self.name_of(index)} has label {label}; the labels of "
            f"{self.num_classes} classes lie in 0 .. {self.num_classes - 1}{counted}"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of the data set."""
        return classes_of(self.source)

    def name_of(self, index: int) -> str:
        """The name of an image in messages."""
        return name_of(self.source, index)


def _labels(source: Any) -> Any:
    """The labels [N] that a data set, or one within it, tells without being gone through; none where it tells none."""
    count = len(source)
    while source is not None:
        told = getattr(source, "targets", getattr(source, "labels", None))
        try:
            labels = np.asarray([] if told is None else told)
        except (TypeError, ValueError, RuntimeError):  # of another kind than labels
            labels = np.empty(0)
        if labels.shape == (count,) and labels.dtype.kind in "iu":
            return labels
        source = getattr(source, "source", None)
    return np.empty(0, np.int64)

"""Rows of a log computed anew, and compared with those that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .logs import Log, Row


class Difference(NamedTuple):
    """A cell that is another: image, column, the value in the log, and the one computed now."""

    idx: int
    column: str
    kept: Any
    now: Any


OWN = ("time",)  # columns of a run, which no other repeats


def differences(log: Log, rows: Iterator[Row]) -> Iterator[tuple[int, list[Difference]]]:
    """Compares rows with those of a log, column by column: for each its image and what differs, as they come."""
    places = {int(idx): place for place, idx in enumerate(log.idx)}
    for row in rows:
        place = places[row.idx]
        kept = {name: getattr(log, name)[place].item() for name in Row._fields if getattr(log, name) is not None}
        yield (
            row.idx,
            [
                Difference(row.idx, name, value, getattr(row, name))
                for name, value in kept.items()
                if name not in OWN and value != getattr(row, name)
            ],
        )


def indices_of(log: Log, chosen: list[int] | None) -> list[int]:
    """The images of a log that are to be computed anew: those that are named, or all.

    Raises:
        ValueError: one that is named is not in the log.
    """
    held = log.idx.tolist()
    absent = sorted(set(chosen or ()) - set(held))
    if absent:
        raise ValueError(f"rows is {absent[0]}; {log.path} has no such image")
    return held if chosen is None else chosen

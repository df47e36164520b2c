"""Progress of a run on stderr: a bar on a terminal, and elsewhere (a pipe, nohup, SLURM) a line every half minute."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import length_hint
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeVar

from typing_extensions import Self

from ..text import duration, rate
from .display import console, tell

if TYPE_CHECKING:
    from ..runs.logs import Row

EVERY = 30.0  # seconds between lines
Item = TypeVar("Item")
Note = Callable[[], str]


def nothing() -> str:
    """Says nothing beside how far a run is."""
    return ""


class Lines:
    """Lines that say how far a run is, and one in the end if there was any: a context manager, called after each thing
    that is done. They come from a thread, since one thing may take longer than the time between them.

    Args:
        what: is done.
        total: how many there are to be; None where nobody knows.
        done: how many of them a run before has done.
        note: what else there is to say.
        clock: the seconds.
        ended: waits between lines, and ends them when it is set.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        done: int = 0,
        note: Note = nothing,
        *,
        clock: Callable[[], float] = time.monotonic,
        ended: Event | None = None,
    ) -> None:
        self.what, self.total, self.before, self.note, self.clock = what, total, done, note, clock
        self.made, self.spoke = 0, False
        self.begun, self._ended = clock(), ended or Event()
        self._thread = Thread(target=self._speak, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __call__(self) -> None:
        """Counts one more that is done."""
        self.made += 1

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.spoke:
            self._say()

    def _speak(self) -> None:
        while not self._ended.wait(EVERY):
            self._say()

    def _say(self) -> None:
        self.spoke = True
        tell(self.text(), highlight=False, soft_wrap=True)

    def text(self) -> str:
        """Says how far the run is now."""
        took, parts = self.clock() - self.begun, []
        if self.total is not None:
            done = self.before + self.made
            parts.append(f"{done:,} of {self.total:,} done, {self.total - done:,} left")
            if self.made and took > 0:
                left = duration((self.total - done) * took / self.made)
                parts.append(f"{rate(self.made / took)}, {left} left" if done < self.total else rate(self.made / took))
        parts.append(f"{duration(took)} so far")
        return "; ".join([f"{self.what}: {parts[0]}", *parts[1:], *filter(None, [self.note()])])


@contextmanager
def _bar(what: str, total: int | None, done: int, note: Note) -> Iterator[Callable[[], None]]:
    """Draws a bar on a terminal; called after each thing that is done."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Noted(ProgressColumn):
        max_refresh = 0.5  # seconds; a note may be a sum on a GPU

        def render(self, task: Task) -> Text:
            return Text(note())

    columns = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), Noted(), console=console(),
    )  # fmt: skip
    with columns:
        task = columns.add_task(what, total=total, completed=done)
        yield lambda: columns.advance(task)


def _shown(what: str, total: int | None, done: int, note: Note) -> AbstractContextManager[Callable[[], None]]:
    return (_bar if console().is_interactive else Lines)(what, total, done, note)


def over(items: Iterable[Item], what: str, left: int | None, done: int = 0, note: Note = nothing) -> Iterator[Item]:
    """Passes things on, and shows how many of them are done, beside those done before."""
    with _shown(what, None if left is None else left + done, done, note) as advance:
        for item in items:
            yield item
            advance()


def bar(what: str, note: Note = nothing) -> Callable[[Iterable[Item]], Iterator[Item]]:
    """Makes what shows how many of some things, whose number is known, are done."""
    return lambda items: over(items, what, length_hint(items), 0, note)


@contextmanager
def at(what: str) -> Iterator[None]:
    """Says now and then that something is still at work, of which nobody knows how long it takes; on a terminal what it
    prints itself says so."""
    if console().is_interactive:
        yield
        return
    with Lines(what, None):
        yield


class Found:
    """The rows of a log that this run has made so far, counted."""

    def __init__(self) -> None:
        self.decisions: Counter[str] = Counter()
        self.right = 0

    def add(self, row: Row) -> None:
        """Counts a row."""
        self.decisions[row.decision] += 1
        self.right += row.correct

    def text(self) -> str:
        """Says how many of each decision there are, and the share that is right."""
        told = [f"{count:,} {decision}" for decision, count in self.decisions.copy().most_common()]
        return ", ".join([*told, f"accuracy {self.right / sum(self.decisions.values()):.3f}"]) if told else ""


def rows(made: Iterable[Row], left: int, done: int) -> Iterator[Row]:
    """Passes rows of a log on, and shows how many there are of those that are left, beside those done before."""
    found = Found()
    for row in over(made, "images", left, done, found.text):
        found.add(row)
        yield row

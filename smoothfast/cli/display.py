"""The voice of a command: tables and JSON on stdout, all else on stderr."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ..runs.logs import Log
    from ..runs.tables import Table

Item = TypeVar("Item")


@cache
def console() -> Console:
    """The terminal by way of stderr, where everything goes but tables and JSON."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def voice(quiet: bool) -> Iterator[None]:
    """Keeps everything from stderr while a quiet command runs, warnings too. Errors come after it."""
    if not quiet:
        yield
        return
    console().quiet = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        console().quiet = False


def complain(error: Exception) -> None:
    """Says in one line what went wrong."""
    console().print(
        f"smoothfast: {' '.join(str(error).split())}", style="red", highlight=False, soft_wrap=True, markup=False
    )


def written(*paths: Path | None) -> None:
    """Says which files there are now."""
    console().print(f"written: {', '.join(str(path) for path in paths if path is not None)}")


def print_json(facts: dict[str, Any]) -> None:
    """Prints the one JSON object of a command."""
    print(json.dumps(facts, indent=2, allow_nan=False))


def show_log(path: Path, picture: Path | None = None) -> None:
    """Prints the table of a log, and says what it took and where it is."""
    from ..runs import tables
    from ..runs.logs import read_log

    logs = tables.named([read_log(path)])
    print(tables.render(tables.summary(logs), "markdown"))
    for log in logs.values():
        console().print(tables.effort(log), soft_wrap=True)
    if picture is not None:
        draw_curves(logs, picture)
    written(path, picture)


def draw_curves(logs: dict[str, Log], picture: Path) -> None:
    """Draws certified accuracy against radius."""
    from ..runs.plots import certified_accuracy_curve  # brings matplotlib along

    certified_accuracy_curve(logs, picture)


def figures(table: Table, logs: dict[str, Log]) -> dict[str, Any]:
    """The figures of logs for programs: those of a table, and what else there is to say about each log."""
    from ..runs import tables

    facts: dict[str, Any] = json.loads(tables.render(table, "json"))
    for row, log in zip(facts["rows"], logs.values(), strict=True):
        counted = log.samples is not None and log.decision is not None
        row |= {
            "path": str(log.path),
            "settings": log.settings,
            "effort": tables.effort_of(log)._asdict() if counted else None,
        }
    return facts


def bar(what: str) -> Callable[[Iterable[Item]], Iterator[Item]]:
    """Makes a progress bar over a sized iterable."""

    def wrap(items: Iterable[Item]) -> Iterator[Item]:
        with _columns() as columns:
            yield from columns.track(items, description=what)

    return wrap


def progress(decisions: Iterable[Item], left: int, done: int) -> Iterator[Item]:
    """Shows a progress bar over the decisions that are left, beside those done before."""
    with _columns() as columns:
        task = columns.add_task("images", total=left + done, completed=done)
        for decision in decisions:
            yield decision
            columns.advance(task)


def _columns() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=console(),
    )  # fmt: skip

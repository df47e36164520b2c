"""The voice of a command: tables and JSON on stdout, all else on stderr."""

from __future__ import annotations

import json
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import GO_ON
from ..text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from ..runs.logs import Log
    from ..runs.tables import Table


@cache
def console() -> Console:
    """The terminal by way of stderr, where everything goes but tables and JSON."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def voice(quiet: bool) -> Iterator[None]:
    """Makes a line of each warning while a command runs, and keeps all from stderr while a quiet one does. Errors come
    after it."""
    if not quiet:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: tell(f"warning: {message}", style="yellow", soft_wrap=True)
            yield
        return
    console().quiet = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        console().quiet = False


def tell(text: str, **how: Any) -> None:
    """Tells something beside the results, on stderr."""
    console().print(printable(text), markup=False, emoji=False, **how)


def width() -> int | None:
    """The width of the terminal that results are printed on; None where they go elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def show(text: str) -> None:
    """Prints results, on stdout."""
    print(printable(text))


FORESEEN = (ValueError, OSError, FloatingPointError, MemoryError)  # errors whose message says all


def complain(error: Exception) -> None:
    """Says in one line what went wrong and what to do, after a traceback where nobody has foreseen it."""
    said = str(error)
    if _is_of_memory(error):
        said = (
            f"out of memory ({said or type(error).__name__}); what is written is kept: make room and {GO_ON}, or begin "
            "anew with a smaller --batch"
        )
    elif not isinstance(error, FORESEEN):
        sys.stderr.write(printable("".join(traceback.format_exception(error))))
        said = (
            f"{type(error).__name__}: {said}; raised as shown above, by the model, the data or smoothfast itself; what "
            f"is written is kept: once it is mended, {GO_ON}"
        )
    say_last(" ".join(said.split()))


def say_last(text: str) -> None:
    """Says why a command ends before it is done."""
    tell(f"smoothfast: {text}", style="red", highlight=False, soft_wrap=True)


def _is_of_memory(error: Exception) -> bool:
    """Tells whether memory ran out: in Python, on a GPU, or on the host, of which torch says it in words alone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def written(*paths: Path | None) -> None:
    """Says which files there are now, a line for each."""
    for path in paths:
        if path is not None:
            tell(f"written: {path}", highlight=False, soft_wrap=True)


def written_log(path: Path, picture: Path | None = None) -> None:
    """Says that there is a log, its settings beside it, and a picture."""
    written(path, path.with_name(f"{path.name}.json"), picture)


def print_json(facts: dict[str, Any]) -> None:
    """Prints the one JSON object of a command."""
    print(json.dumps(facts, indent=2, allow_nan=False))


def show_log(path: Path, picture: Path | None = None) -> None:
    """Prints the table of a log, and says what it took and where it is."""
    from ..runs import tables
    from ..runs.logs import read_log

    logs = tables.named([read_log(path)])
    show(tables.render(tables.summary(logs), "markdown", width()))
    for log in logs.values():
        tell(tables.effort(log), soft_wrap=True)
    if picture is not None:
        draw_curves(logs, picture)
    written_log(path, picture)


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
            "p_A": {"at_least": tables.SHARES, "share": tables.shown_probabilities(log)},
        }
    return facts

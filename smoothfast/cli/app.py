"""The command line: `smoothfast …` or `python -m smoothfast …`. Exit status 0: done; 2: what was given is wrong, and no
work was begun; 1: work failed, or what it found is not as it should be; 130: interrupted."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from .. import launch
from ..failures import was_at_work
from ..version import __version__
from .attack import attack
from .certify import certify, demo, predict
from .display import complain
from .quantize import quantize
from .replay import replay
from .report import analyze, bench, info
from .selftest import selftest
from .sweep import sweep
from .train import train

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=__doc__,
)
# What is wrong with what was given, where it is found before any work.
WRONG = (
    ValueError, FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError,
)  # fmt: skip
for act in (demo, certify, predict, attack, train, quantize, sweep, analyze, replay, selftest, bench, info):
    app.command()(act)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"smoothfast {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", help="Tell the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point; an error is one line and an exit status."""
    try:
        app()
    except Exception as error:
        launch.once(partial(complain, error))
        sys.exit(status_of(error))


def status_of(error: Exception) -> int:
    """The exit status of a command that ends with an error."""
    return 2 if isinstance(error, WRONG) and not was_at_work(error) else 1

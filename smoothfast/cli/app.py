"""The command line: `smoothfast …` or `python -m smoothfast …`. Exit status 0 done, 1 failed, 2 bad usage."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from .. import launch
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
BAD_USAGE = (ValueError, FileExistsError, FileNotFoundError)
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
        sys.exit(2 if isinstance(error, BAD_USAGE) else 1)

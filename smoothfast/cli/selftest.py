"""`smoothfast selftest`: whether what soundness rests on holds on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import display, progress
from .options import BY, JsonOptions, SeedOptions, command

if TYPE_CHECKING:
    from ..selftest import Record


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SelftestOptions(SeedOptions, JsonOptions):
    """Options of `selftest`."""

    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Draw ten times as much and more: 7 minutes of CPU time, not half a one.", rich_help_panel=BY
        ),
    ] = False


@command(SelftestOptions)
def selftest(options: SelftestOptions) -> None:
    """Check noise, kernels, statistics and row test against definitions of their own. Exit status 1 where one fails."""
    from ..environment import environment
    from ..selftest import FAILED, PASSED, SKIPPED, effort, every_check, recorded, records

    chosen = replace(effort.FULL if options.full else effort.QUICK, seed=options.seed)
    made = [recorded(check) for check in progress.bar("checks")(every_check(chosen))]
    statuses = [record.status for record in made]
    chances, seconds = sum(record.chances for record in made), sum(record.seconds for record in made)
    facts: dict[str, Any] = {status: statuses.count(status) for status in (PASSED, FAILED, SKIPPED)}
    facts |= {"seed": options.seed, "full": options.full, "seconds": round(seconds, 1)}
    facts |= {"false_alarm": chances * records.LEVEL}
    if options.as_json:
        display.print_json(facts | {"environment": environment(), "checks": [record._asdict() for record in made]})
    else:
        print(_table(made))
        print(_told(facts))
    if facts[FAILED]:
        raise typer.Exit(1)


def _table(made: Sequence[Record]) -> str:
    """The records by subject, a line each."""
    width = max(len(record.name) for record in made)
    lines = []
    for subject, of in groupby(made, key=lambda record: record.subject):
        lines.append(subject)
        for record in of:
            limit = f" [{record.limit}]" if record.limit else ""
            lines.append(f"  {record.status:7}  {record.name:{width}}  {record.found}{limit}")
    return "\n".join(lines)


def _told(facts: dict[str, Any]) -> str:
    """The outcome in words."""
    return (
        f"{facts['passed']} passed, {facts['failed']} failed, {facts['skipped']} skipped in {facts['seconds']:.0f} s; "
        f"chance alone makes any fail with probability {facts['false_alarm']:.1e}"
    )

"""`smoothfast analyze`, `bench` and `info`: what logs say, how fast it is here, and what is installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import files
from ..checks import choice, not_negative
from ..names import FORMATS
from . import display, progress
from .options import JsonOptions, Options, command, completing, named, numbers, one_of

BENCHMARKS = {"noise": "noisy_replicas"} | {
    name: name
    for name in (
        "tally", "replica_sum", "attack_step", "weights", "fused", "samples", "certify", "methods", "flights",
        "threads", "processes", "memory", "start", "scaling", "attack", "strength",
    )
}  # fmt: skip
"""Modules of the benchmarks, by name."""
OVER_IMAGES = ("methods", "flights", "processes", "scaling", "strength")  # benchmarks
EMBEDDED = 200  # images that come with the package


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AnalyzeOptions(JsonOptions):
    """Options of `analyze`."""

    logs: Annotated[list[Path], typer.Argument(help="Logs of certify or predict, or of Cohen et al.")]
    radii: Annotated[str | None, typer.Option("--radii", help="Comma-separated, for example 0,0.25,0.5.")] = None
    table_format: Annotated[str | None, named("--format", FORMATS, "{} markdown if not given.")] = None
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Tell the exact 95 % interval of each certified accuracy, too.")
    ] = False
    plot: Annotated[Path | None, typer.Option("--plot", help="PNG or PDF of certified accuracy against radius.")] = None
    spread: Annotated[
        Path | None, typer.Option("--spread", help="PNG or PDF of how p_A and samples are spread over the images.")
    ] = None

    def check(self) -> None:
        if self.table_format is not None:
            choice("format", self.table_format, FORMATS)
            if self.as_json:
                raise ValueError(f"format is {self.table_format!r}; --json has one of its own")
            if self.intervals and self.table_format != "markdown":
                raise ValueError(f"format is {self.table_format!r}; --intervals goes with markdown or --json")
        for radius in numbers("radii", self.radii) or ():
            not_negative(radii=radius)
        files.require_picture("plot", self.plot)
        files.require_picture("spread", self.spread)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BenchOptions(Options):
    """Options of `bench`."""

    what: Annotated[str, typer.Argument(help=one_of(BENCHMARKS), autocompletion=completing(BENCHMARKS))]
    out: Annotated[Path | None, typer.Option("--out", help="CSV file to append the rows to.")] = None
    plot: Annotated[Path | None, typer.Option("--plot", help="PNG or PDF of the rows.")] = None
    limit: Annotated[
        int | None,
        typer.Option("--max", help=f"Take so many of the embedded images; of {', '.join(OVER_IMAGES)}."),
    ] = None

    def check(self) -> None:
        choice("benchmark", self.what, BENCHMARKS)
        if self.limit is not None and self.what not in OVER_IMAGES:
            raise ValueError(
                f"max is {self.limit}; {self.what} has no number of images, only {', '.join(OVER_IMAGES)} have"
            )
        if self.limit is not None and not 1 <= self.limit <= EMBEDDED:
            raise ValueError(f"max is {self.limit}; it must be 1 .. {EMBEDDED}, the number of embedded images")
        files.require_picture("plot", self.plot)


@command(AnalyzeOptions)
def analyze(options: AnalyzeOptions) -> None:
    """Certified accuracy by radius, average certified radius, abstention, and by p_A, of one or more logs."""
    from ..runs import tables
    from ..runs.logs import read_log

    logs = tables.named([read_log(path) for path in options.logs])
    table = tables.summary(logs, numbers("radii", options.radii))
    for name, log in logs.items():
        if told := tables.beside_the_grid(name, log, table.radii):
            display.tell(told, soft_wrap=True)
    if options.plot is not None:
        display.draw_curves(logs, options.plot)
    if options.spread is not None:
        from ..runs.plots import spread_over_images

        spread_over_images(logs, options.spread)
    if options.as_json:
        facts = display.figures(table, logs)
        if options.intervals:
            for row, log in zip(facts["rows"], logs.values(), strict=True):
                row["intervals"] = list(zip(*tables.certified_interval(log, table.radii), strict=True))
        display.print_json(facts)
    else:
        display.show(tables.render(table, options.table_format or "markdown", display.width()))  # type: ignore[arg-type]
        if options.intervals:
            display.show(tables.intervals(logs, table.radii, display.width()))
        if options.table_format in (None, "markdown") and (told := tables.probabilities(logs, display.width())):
            display.show(told)
    display.written(options.plot, options.spread)


@command(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Measure a part of the package beside what people use today."""
    suite = import_module(f"smoothfast.benchmarks.{BENCHMARKS[options.what]}")
    with progress.at(f"bench {options.what}"):
        rows = suite.main(options.out) if options.limit is None else suite.main(options.out, options.limit)
    if options.plot is not None:
        import_module("smoothfast.benchmarks.pictures").draw(rows, options.plot)
    display.written(options.out, options.plot)


@command(JsonOptions)
def info(options: JsonOptions) -> None:
    """Tell what is built and installed, which GPUs there are, which kernels and instruction sets are live."""
    import torch

    from .. import environment, ops
    from ..runners.fused import arithmetics, preferred
    from ..runners.precision import resolve_precision

    extension = ops.extension
    facts: dict[str, Any] = environment.environment() | {
        "extension": None if extension is None else extension.build_info(),
        "instruction_sets": [] if extension is None else extension.supported_instruction_sets(),
        "fused": arithmetics() + preferred("int8") or "smoothfast._C is not built",
        "backends": ops.backends(),
        "devices": environment.devices(),
        "driver": environment.driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "libraries": environment.libraries(),
        "precision": resolve_precision("auto", torch.device("cpu")),
        "threads": torch.get_num_threads(),
    }
    if options.as_json:
        display.print_json(facts)
    else:
        display.show("\n".join(f"{name:17} {fact}" for name, fact in facts.items()))

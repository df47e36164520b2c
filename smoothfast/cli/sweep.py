"""`smoothfast sweep`: accuracy by noise, voting rule and number of samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import files, launch, names
from ..checks import at_least, at_most, choice, not_negative
from ..failures import at_work
from ..runs import attack_options
from ..text import counted
from . import display, progress
from .options import SeedOptions, SmoothedOptions, StepOptions, command, integers, named, numbers, one_of

MOST_SEEDS = 10_000  # of an attack: all settings are planned at once
PLACEHOLDER = 0.25  # sigma of a classifier of which a sweep uses all but that


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SweepOptions(SmoothedOptions, SeedOptions, StepOptions):
    """Options of `sweep`."""

    out: Annotated[Path, typer.Option("--out", help="CSV file of the rows; those that are in it are not made again.")]
    sigmas: Annotated[
        str,
        typer.Option("--sigmas", help="Of the noise on images, separated by commas; 0: none but the network's own."),
    ] = "0,0.06,0.12,0.25"
    samples: Annotated[str, typer.Option("--samples", help="Rising numbers, separated by commas.")] = "1,4,16,64"
    voting: Annotated[str, typer.Option("--voting", help=f"Rules, separated by commas. {one_of(names.VOTINGS)}")] = (
        ",".join(names.VOTINGS[:3])
    )
    attack: Annotated[str | None, named("--attack", names.ATTACKS, "{} None if not given: clean images alone.")] = None
    attack_sigma: Annotated[
        float,
        typer.Option("--attack-sigma", help="Noise on images that the attack sees; 0: none but the network's own."),
    ] = 0.0
    attack_seeds: Annotated[
        int, typer.Option("--attack-seeds", help="The attack is made by so many seeds; their spread is shown.")
    ] = 1
    attack_samples: Annotated[
        int | None, typer.Option("--attack-samples", help="Noisy copies or passes behind each gradient.")
    ] = None
    restarts: Annotated[int | None, typer.Option("--restarts", help="From other starts; the best counts.")] = None
    plot: Annotated[
        Path | None, typer.Option("--plot", help="PNG or PDF of accuracy against samples and against sigma.")
    ] = None

    def check(self) -> None:
        from ..runs.sweep_log import check_plan  # brings NumPy along

        launch.require_one("sweep")
        files.require_no_folder(self.out)
        files.require_picture("plot", self.plot)
        self.chosen()
        at_least(1, attack_seeds=self.attack_seeds)
        at_most(MOST_SEEDS, attack_seeds=self.attack_seeds)
        not_negative(attack_sigma=self.attack_sigma)
        super().check()
        for rule in self.voting.split(","):
            choice("voting", rule, names.VOTINGS)
        sigmas = numbers("sigmas", self.sigmas) or ()
        check_plan(sigmas, self.voting.split(","), integers("samples", self.samples))

    def kept(self) -> str:
        from ..runs.records import count

        return f"{self.out} keeps {counted(count(self.out), 'row')}: run it again, and it goes on"

    def chosen(self) -> dict[str, Any]:
        """The options that the attack is made with: away from the labels."""
        if self.attack is None:
            return {}
        given = {"steps": self.steps, "samples": self.attack_samples, "restarts": self.restarts}
        options = attack_options.options(self.attack, self.lengths | given)
        return {name: value for name, value in options.items() if name != "targeted"}


@command(SweepOptions)
def sweep(options: SweepOptions) -> None:
    """Accuracy by noise, voting rule and number of samples, on clean images and on those of one attack."""
    import torch

    from ..data import in_memory
    from ..images import pixels
    from ..runs.certify import taken_by
    from ..runs.records import count, read_json, sidecar_of
    from ..runs.sweep import Sweep
    from ..runs.sweep_log import SweepLog, put_in_order, read
    from ..runs.sweep_tables import sweep_table
    from .prepare import prepare, tell_classes

    kept = read_json(sidecar_of(options.out)) if count(options.out) else None
    taken = taken_by(kept if isinstance(kept, dict) else None)
    prepared = prepare(options, options.attack_sigma or PLACEHOLDER, options.seed, taken=taken)
    tell_classes(prepared.source, prepared.smoothed.num_classes)
    plan = Sweep(
        prepared.smoothed, numbers("sigmas", options.sigmas) or (), options.voting.split(","),
        integers("samples", options.samples), options.attack, options.chosen() | {"sigma": options.attack_sigma},
        range(options.attack_seeds),
    )  # fmt: skip
    settings = prepared.about | {
        "command": "sweep", "sigma": None, "attack": options.attack, **plan.options, "samples": plan.samples,
        "sigmas": plan.sigmas, "voting": plan.votings,
    }  # fmt: skip
    chosen = in_memory(prepared.source, progress.bar("images"), prepared.indices)
    with SweepLog(options.out, settings) as log:
        ids, bar = torch.tensor(prepared.indices), progress.bar("sigmas and attacks")
        with at_work():
            for block in plan.rows(pixels(chosen.images), chosen.labels, ids, log.done, bar):
                log.append(block)
        put_in_order(options.out, plan.settings)
    rows = read(options.out)
    display.show(sweep_table(rows, display.width()))
    if options.plot is not None:
        from ..runs import plots

        plots.sweep(rows, options.plot)
    display.written_log(options.out, options.plot)

"""`smoothfast attack`: images through an attack, judged by base and smoothed classifier before and after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import files, launch, names
from ..checks import at_least, at_most, choice
from ..failures import at_work
from ..runs import attack_options
from ..streams import MAX_SAMPLE_ID
from ..text import counted, one_line
from . import display, progress
from .display import console
from .options import JsonOptions, NoiseOptions, SeedOptions, StepOptions, command, named

if TYPE_CHECKING:
    from ..runs.attack_files import Attacked
    from .prepare import Prepared

PICTURED = 8  # images in the picture of an attack


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttackOptions(NoiseOptions, SeedOptions, StepOptions, JsonOptions):
    """Options of `attack`."""

    attack: Annotated[str, named("--attack", names.ATTACKS)]
    out: Annotated[Path, typer.Option("--out", help="safetensors file of the adversarial images and the votes.")]
    source: Annotated[str, named("--source", names.SOURCES, "What images are crafted on. {} base: without noise.")] = (
        "smoothed"
    )
    samples: Annotated[int | None, typer.Option("--samples", help="Noisy copies behind each gradient or loss.")] = None
    norm: Annotated[str | None, named("--norm", names.NORMS, "Of the ball. {}")] = None
    restarts: Annotated[int | None, typer.Option("--restarts", help="From other starts; the best counts.")] = None
    loss: Annotated[str | None, named("--loss", names.LOSSES)] = None
    targeted: Annotated[
        str | None, named("--targeted", names.TARGETS, "The class to be reached. {} none: any but the label.")
    ] = None
    votes: Annotated[
        int, typer.Option("--votes", help="Fresh samples by which the smoothed classifier judges an image.")
    ] = 100
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help=f"PNG or PDF of the first {PICTURED} images and what was done to them."),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run if there is one.")] = False

    def check(self) -> None:
        launch.require_one("attack")
        self.chosen()
        choice("source", self.source, names.SOURCES)
        at_least(1, votes=self.votes)
        at_most(MAX_SAMPLE_ID, votes=self.votes)
        super().check()
        files.require_picture("picture", self.picture)
        attack_options.check_out(self.out, self.resume)

    def kept(self) -> str:
        parts = attack_options.parts_of(self.out)
        kept = counted(len(list(parts.glob("*.safetensors"))), "batch", "batches")
        return f"{parts} keeps {kept}: go on with --resume"

    def chosen(self) -> dict[str, Any]:
        """The options that the attack is made with."""
        given = ("steps", "samples", "norm", "restarts", "loss", "targeted")
        return attack_options.options(self.attack, self.lengths | {name: getattr(self, name) for name in given})


@command(AttackOptions)
def attack(options: AttackOptions) -> None:
    """Attack images: accuracy of base and smoothed classifier before and after, decided by fresh votes.

    Options that are not given are as the attack has them; one that it does not take is an error.
    """
    from ..runs import attack as runs
    from ..runs import attack_files
    from ..runs.certify import taken_by
    from .prepare import prepare, tell_classes

    prepared = prepare(options, options.sigma, options.seed, taken=taken_by(attack_files.settings_of(options.out)))
    prepared.require_readable()
    tell_classes(prepared.source, prepared.smoothed.num_classes)
    picture = nullcontext() if options.picture is None else files.whole(options.picture)
    with picture as drawing:
        with files.whole(options.out) as tensors:
            attacked, settings = _attacked(options, prepared)
            if not options.as_json:
                display.show(runs.tables(attacked, options.attack, display.width()))  # also where the disk is full
            attack_files.save(attacked, settings, tensors)
        attack_files.discard_parts(options.out)
        if drawing is not None:
            _draw(prepared, attacked, drawing)
    if options.as_json:
        display.print_json(
            {"settings": settings, "classes": prepared.classes} | runs.figures(attacked) | {"path": str(options.out)}
        )
    display.written(options.out, options.picture)


def _attacked(options: AttackOptions, prepared: Prepared) -> tuple[Attacked, dict[str, Any]]:
    """Attacks the images, but for those that an earlier run has attacked; says with which settings."""
    from ..runs import attack as runs
    from ..runs import attack_files
    from .prepare import Ahead, described

    smoothed, indices, chosen = prepared.smoothed, prepared.indices, options.chosen()
    crafted = runs.make(options.attack, smoothed, options.source, chosen)
    display.tell(f"{len(indices):,} images, {options.attack} on the {options.source} classifier: {json.dumps(chosen)}")
    with console().status("preparing the base classifier"):
        gradients, engine = runs.settle(crafted, smoothed, prepared.first, len(indices), options.votes)
    by = {name: getattr(gradients.function, name) for name in ("runner", "precision", "micro_batch")}
    display.tell(f"attack: {by['runner']} base classifier, precision {by['precision']}")
    display.tell(f"votes: {described(smoothed, engine, Ahead(len(indices), 2 * options.votes))}", soft_wrap=True)
    settings = prepared.about | {
        "command": "attack", "attack": options.attack, "source": options.source, "votes": options.votes, **chosen,
        "crafted_by": by, "judged_by": engine.choices,
    }  # fmt: skip
    size = runs.at_once(gradients, crafted.samples)
    made: list[Attacked] = []

    def keep(part: Attacked) -> None:
        attack_files.keep(options.out, settings, part)
        made.append(part)

    done = attack_files.kept(options.out, settings, indices, engine.function.shape, engine.num_classes)
    with at_work():
        attacked = runs.run(
            crafted, smoothed, prepared.source, indices, options.votes, size,
            progress=progress.bar(f"batches of {min(size, len(indices)):,} images", lambda: runs.so_far(made)),
            done=done, keep=keep,
        )  # fmt: skip
    return attacked, settings


def _draw(prepared: Prepared, attacked: Attacked, path: Path) -> None:
    """Draws the first images, their perturbations, and the classes that were voted for before and after."""
    import torch

    from ..data.labelled import classes_of
    from ..images import pixels
    from ..runs.plots import perturbation_gallery
    from ..smoothing.results import winners

    columns = {name: values[:PICTURED] for name, values in attacked.columns.items()}
    clean = pixels(torch.stack([prepared.source[index][0] for index in columns["indices"].tolist()]))
    votes = (winners(columns[f"smoothed_{of}"]).tolist() for of in ("clean", "adversarial"))
    names = [f"{one_line(name):.14}" for name in classes_of(prepared.source)]
    texts = [
        "label: {}\nclean: {}\n→ adversarial: {}".format(*(_named(label, names) for label in labels))
        for labels in zip(columns["labels"].tolist(), *votes, strict=True)
    ]
    perturbation_gallery(clean, columns["adversarial"], texts, path)


def _named(label: int, names: Sequence[str]) -> str:
    """The name of a class, where it is known, or its number; nothing where all votes were invalid."""
    return "none" if label < 0 else names[label] if label < len(names) else str(label)

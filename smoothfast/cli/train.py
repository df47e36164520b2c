"""`smoothfast train`: a base classifier for smoothing."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import launch
from ..checks import choice, not_negative
from ..files import require_new
from ..specs import require_data
from ..text import duration
from ..training.presets import PRESETS
from ..training.settings import BATCH_STATISTICS, LEARNED, NEEDS, PRECISIONS, SCHEDULES, SELECTIONS, Settings
from . import display, progress
from .options import BY, ON, ModelOptions, ProcessOptions, SizeOptions, StepOptions, command, named, numbers

if TYPE_CHECKING:
    from torch import nn

FILES = ("checkpoint.pt", "model.safetensors")  # of a run that is not to be overwritten


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrainOptions(ModelOptions, SizeOptions, StepOptions, ProcessOptions):
    """Options of `train`. Those that `Settings` has too, and that are not given, are as the preset has them."""

    data: Annotated[str, typer.Option("--data", help="Training images; a spec as of certify.", rich_help_panel=ON)]
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")]
    preset: Annotated[
        str | None,
        named("--preset", PRESETS, "What options that are not given are. {} quick-RECIPE if not given."),
    ] = None
    recipe: Annotated[str | None, named("--recipe", NEEDS, "{} gaussian if neither this nor preset.")] = None
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="safetensors or torch file to start from: a fine-tune.", rich_help_panel=ON),
    ] = None
    sigma: Annotated[
        float | None,
        typer.Option("--sigma", help="Standard deviation of the noise on images, in [0, 1] pixel units."),
    ] = None
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the training images; may be a fraction.")
    ] = None
    batch: Annotated[int | None, typer.Option("--batch", help="Images per step.")] = None
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="The largest.")] = None
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", help="On weights of convolutions and linear layers.")
    ] = None
    schedule: Annotated[str | None, named("--schedule", SCHEDULES, "Of the learning rate. {}")] = None
    milestones: Annotated[
        str | None,
        typer.Option("--milestones", help="Of multi-step: epochs after which the rate falls, separated by commas."),
    ] = None
    clip_norm: Annotated[float | None, typer.Option("--clip-norm", help="Largest norm of the gradients of a step.")] = (
        None
    )
    samples: Annotated[
        int | None, typer.Option("--samples", help="Noisy copies behind each gradient of the attack.")
    ] = None
    train_samples: Annotated[
        int | None, typer.Option("--train-samples", help="Noisy copies of each image that are trained on.")
    ] = None
    adversarial_weight: Annotated[
        float | None, typer.Option("--adversarial-weight", help="Of the loss of adversarial images.")
    ] = None
    beta: Annotated[
        float | None, typer.Option("--beta", help="Weight of what is beside the cross-entropy: a divergence, a radius.")
    ] = None
    entropy: Annotated[
        float | None, typer.Option("--entropy", help="Weight of the entropy of the average prediction.")
    ] = None
    margin: Annotated[
        float | None, typer.Option("--margin", help="Of macer: from where on a radius is large enough.")
    ] = None
    sharpness: Annotated[float | None, typer.Option("--sharpness", help="Of macer: factor of logits.")] = None
    warmup: Annotated[float | None, typer.Option("--warmup", help="Epochs over which eps grows.")] = None
    noise_strength: Annotated[
        float,
        typer.Option("--noise-strength", help="Of the noise in the network at first, in units of that in the papers."),
    ] = 1.0
    learn: Annotated[str | None, named("--learn", LEARNED, "{} noise: its strengths alone.")] = None
    norms: Annotated[str | None, named("--norms", BATCH_STATISTICS, "Statistics that batch norms take. {}")] = None
    validation: Annotated[int | None, typer.Option("--validation", help="Training images that are held out.")] = None
    select: Annotated[
        str | None, named("--select", SELECTIONS, "The epoch whose weights are kept, by validation. {}")
    ] = None
    precision: Annotated[str | None, named("--precision", PRECISIONS, panel=BY)] = None
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of order, crops, flips and all noise.", rich_help_panel=BY)
    ] = None
    test: Annotated[
        str | None, typer.Option("--test", help="Images to record accuracies on; a --data spec.", rich_help_panel=ON)
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run if there is one.")] = False

    def check(self) -> None:
        self.settings()
        super().check()
        not_negative(noise_strength=self.noise_strength)
        require_data(self.data)
        if self.test is not None:
            require_data(self.test, "test")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out is a file: {self.out}; name a folder")
        if not self.resume and not launch.launched():  # torchrun may start a run again, which then goes on
            for name in FILES:
                require_new(self.out / name)

    def kept(self) -> str:
        checkpoint = self.out / FILES[0]
        if not checkpoint.exists():
            return f"there is no {checkpoint} yet, from which to go on: run it again"
        age = duration(max(time.time() - checkpoint.stat().st_mtime, 0))
        return f"{checkpoint}, written {age} ago, is kept: go on with --resume"

    def settings(self, initial: str | None = None, trained: Mapping[str, Any] | None = None) -> Settings:
        """The settings of the run: those of the preset but for the options that were given.

        Args:
            initial: SHA-256 of the weights file that the network starts from, if any.
            trained: the settings that those weights were trained with, where they tell. Their normalisation goes on.
        """
        preset = self.preset or f"quick-{self.recipe or 'gaussian'}"
        choice("preset", preset, PRESETS)
        if preset.endswith("-finetune") and self.weights is None:
            raise ValueError(f"weights is not given; preset {preset!r} goes on from trained ones")
        given = {field.name: getattr(self, field.name, None) for field in fields(Settings)}
        given |= self.lengths | {"milestones": numbers("milestones", self.milestones), "initial": initial}
        overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.normalize is not None:
            overrides["normalize"] = self.statistics
        elif trained is not None and "normalize" in trained:
            overrides["normalize"] = trained["normalize"]
        return replace(PRESETS[preset], **overrides)


@command(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train a base classifier for smoothing."""
    from ..data import Within, in_memory, load
    from ..processes import joined
    from ..training import Trainer
    from ..training.checkpoints import RunFolder
    from ..weights import Weights, read_weights
    from .prepare import fill, moved, number_of_classes, settled_classes, tell_classes

    start = Weights({}) if options.weights is None else read_weights(options.weights)
    told = {"normalize": start.normalize} if "normalize" in start.settings else None
    settings = options.settings(start.sha256 or None, told)
    sides = options.resize, options.crop
    source = load(options.data, "train", *sides)
    known = number_of_classes(options, start, source)
    network = _network(options, known, settings.seed)
    num_classes = settled_classes(options, network, known, tuple(source[0][0].shape))
    fill(network, start, options, known)
    with joined() as group:
        leads = group.rank == 0
        held_out = None
        if options.test is not None:
            held_out = in_memory(Within(load(options.test, "test", *sides), options.test, num_classes))
        about = {"model": options.model, "num_classes": str(num_classes), "data": options.data}
        about |= {name: str(side) for name, side in options.sides.items()}
        if options.noise_strength != 1:
            about["noise_strength"] = str(options.noise_strength)
        network = moved(network, group.device(options.device))
        if leads:
            if options.resume:
                RunFolder(options.out, settings, about).require_same()  # before minutes of reading
            tell_classes(source, num_classes)
            display.tell(f"reading {len(source):,} training images")
        images = in_memory(Within(source, options.data, num_classes), progress.bar("images") if leads else iter)
        trainer = Trainer(network, images, settings, options.out, held_out, metadata=about, group=group)

        def epoch(steps: range) -> Iterator[int]:
            if not leads:
                return iter(steps)
            if trainer.epoch:
                display.tell(_told(trainer.metrics, settings.epochs), highlight=False, soft_wrap=True)
            what = f"epoch {trainer.epoch + 1}/{math.ceil(settings.epochs)}, steps"
            return progress.bar(what, lambda: _shares(trainer.so_far))(steps)

        metrics = trainer.fit(epoch, options.resume)
        if leads:
            display.tell(f"metrics of these weights: {json.dumps(metrics)}", highlight=False, soft_wrap=True)
            display.written(*(options.out / name for name in (*FILES, "metrics.jsonl")))


def _shares(metrics: Mapping[str, float]) -> str:
    """Says the loss and the accuracies."""
    shown = {name: value for name, value in metrics.items() if name.endswith(("loss", "accuracy"))}
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in shown.items())


def _told(metrics: Mapping[str, float], epochs: float) -> str:
    """Says what an epoch has come to, and how long the rest of the run will take."""
    done = round(metrics["epoch"]) + 1
    left = duration(max(epochs - done, 0) * metrics["seconds"])
    return f"epoch {done}/{math.ceil(epochs)}: {_shares(metrics)}; took {duration(metrics['seconds'])}, {left} left"


def _network(options: TrainOptions, num_classes: int | None, seed: int) -> nn.Module:
    """Builds the network, its first weights a function of the seed alone."""
    import torch

    from ..layers import scale_noise
    from ..models import load

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scale_noise(load(options.model, num_classes), options.noise_strength)

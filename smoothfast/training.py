"""Training of base classifiers for smoothing: one Trainer, recipes as small functions.

Every draw is a pure function of (seed, epoch, image), so a run that was killed and resumed is the run that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from . import ops
from .data import Images, batches
from .noise import Law, Stream, lattice_law, stream_key
from .specs import choice, same_settings
from .version import __version__

SCHEDULES = ("one-cycle", "cosine")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """What a training run is a function of, beside its model and data.

    Attributes:
        recipe: name of the recipe, see `RECIPES`.
        sigma: standard deviation of the noise in [0, 1] pixel units.
        normalize: (mean, std) per channel, applied after the noise; None leaves images in [0, 1].
        epochs, batch: length of the run; the last partial batch of an epoch is left out.
        schedule: "one-cycle" (up to `learning_rate` over 30 % of the run, then down to 0) or "cosine" (down from it).
        learning_rate, momentum, weight_decay: SGD with Nesterov momentum.
        precision: "bf16" (autocast) or "fp32".
        seed: order, crops, flips and noise.
    """

    recipe: str = "gaussian"
    sigma: float = 0.25
    normalize: ops.Statistics | None = None
    epochs: int = 24
    batch: int = 256
    schedule: str = "one-cycle"
    learning_rate: float = 0.4
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        choice("recipe", self.recipe, RECIPES)
        choice("schedule", self.schedule, SCHEDULES)
        choice("precision", self.precision, PRECISIONS)
        for name in ("epochs", "batch", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        stream_key(self.seed, Stream.TRAIN)


@dataclass(frozen=True)
class Batch:
    """One step's worth of augmented images uint8 [B, C, H, W], labels int64 [B], indices in the data set int64 [B]."""

    images: Tensor
    labels: Tensor
    index: Tensor
    epoch: int


Loss = Callable[["Trainer", Batch], tuple[Tensor, Tensor]]


def gaussian(trainer: Trainer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Noise augmentation (Cohen et al. 2019, section 3.3): cross-entropy on one noisy copy of each image."""
    logits = trainer.model(trainer.noisy(batch.images, batch.index, batch.epoch))
    return F.cross_entropy(logits.float(), batch.labels), logits


RECIPES: dict[str, Loss] = {"gaussian": gaussian}


class Trainer:
    """Trains `model` on `data` and keeps everything under `out`.

    `out` receives `metrics.jsonl` (a line per epoch), `checkpoint.pt` (to resume) and at the end `model.safetensors`,
    whose metadata says how the model is to be used.

    Args:
        model: base classifier, normalised images [N, C, H, W] to logits.
        data: training images.
        settings: see `Settings`.
        out: folder of the run.
        test: images on which accuracy under noise is recorded after every epoch; nothing is selected by it.
        metadata: strings to keep beside the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Images,
        settings: Settings,
        out: Path,
        test: Images | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        if len(data) < settings.batch:
            raise ValueError(f"batch is {settings.batch}; the data set has only {len(data)} images")
        self.model = model.to(memory_format=torch.channels_last)
        self.data, self.test, self.settings, self.out = data, test, settings, out
        self.metadata = metadata or {}
        self.law: Law = lattice_law(settings.sigma)
        self.affine = ops.affine(settings.normalize, data.images.shape[1], data.images.dtype)
        self.steps_per_epoch = len(data) // settings.batch
        decayed = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=True,
        )
        self.epoch = 0
        self.metrics: dict[str, float] = {}  # of the last epoch done

    def fit(self, progress: Callable[[range], Any] = iter, resume: bool = False) -> dict[str, float]:
        """Runs the epochs that are left; returns the metrics of the last one."""
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            self._restore()
        elif any((self.out / name).exists() for name in ("checkpoint.pt", "model.safetensors")):
            raise FileExistsError(f"{self.out} holds a run already; pass --resume to go on with it, or another --out")
        else:
            (self.out / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
        while self.epoch < self.settings.epochs:
            with torch.random.fork_rng(devices=()):  # for layers that draw, as dropout does
                torch.manual_seed(self._epoch_seed())
                self.metrics = self._run_epoch(progress)
            self.epoch += 1
            self._save()
        self._save_weights()
        self.model.eval()
        return self.metrics

    def noisy(self, images: Tensor, index: Tensor, epoch: int, stream: Stream = Stream.TRAIN) -> Tensor:
        """Noisy, normalised copies of images [B, C, H, W]: the sample of an image in training is the epoch."""
        return ops.noisy_replicas(
            images,
            torch.arange(len(images)),
            index,
            torch.full_like(index, epoch),
            stream_key(self.settings.seed, stream),
            self.law,
            *self.affine,
            memory_format=torch.channels_last,
        )

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, linear pieces for one-cycle, half a cosine otherwise."""
        done = step / (self.settings.epochs * self.steps_per_epoch)
        if self.settings.schedule == "cosine":
            factor = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item())
        else:
            factor = done / 0.3 if done < 0.3 else (1 - done) / 0.7
        return self.settings.learning_rate * factor

    def accuracy_under_noise(self, data: Images) -> float:
        """Share of images whose single noisy copy is classified correctly."""
        self.model.eval()
        correct = 0
        with torch.no_grad(), self._autocast():
            for index, images, labels in batches(data, 500):
                logits = self.model(self.noisy(images, index, 0, Stream.PREDICT))
                correct += int((logits.argmax(1) == labels).sum())
        return correct / len(data)

    def _run_epoch(self, progress: Callable[[range], Any]) -> dict[str, float]:
        started = time.perf_counter()
        losses, hits = [], 0
        self.model.train()
        order = self._batches()
        for step in progress(range(self.steps_per_epoch)):
            batch = next(order)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(self.epoch * self.steps_per_epoch + step)
            with self._autocast():
                loss, logits = RECIPES[self.settings.recipe](self, batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
            hits += int((logits.argmax(1) == batch.labels).sum())
        metrics = {
            "epoch": self.epoch,
            "loss": float(torch.stack(losses).mean()),
            "train_accuracy": hits / (self.steps_per_epoch * self.settings.batch),
            "seconds": round(time.perf_counter() - started, 1),
        }
        if self.test is not None:
            metrics["test_accuracy_under_noise"] = self.accuracy_under_noise(self.test)
        return metrics

    def _batches(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self._epoch_seed())
        order = torch.randperm(len(self.data), generator=generator)
        for index in order.split(self.settings.batch)[: self.steps_per_epoch]:
            images = crop_and_flip(self.data.images[index], generator)
            yield Batch(images, self.data.labels[index], index, self.epoch)

    def _epoch_seed(self) -> int:
        return (self.settings.seed * 1_000_003 + self.epoch) % 2**64

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.settings.precision]
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype is not torch.float32)

    def _save(self) -> None:
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(self.metrics) + "\n")
        state = {
            "epoch": self.epoch,
            "settings": json.dumps(asdict(self.settings) | self.metadata),
            "metrics": json.dumps(self.metrics),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.out / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.out / "checkpoint.pt")  # a kill leaves the last whole checkpoint

    def _save_weights(self) -> None:
        path = self.out / "model.safetensors"
        if not path.exists():  # as it may where a run is resumed at its end
            weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
            about = {"settings": json.dumps(asdict(self.settings)), "metrics": json.dumps(self.metrics)}
            about["smoothfast"] = __version__  # not of the settings: a newer version may resume
            save_file(weights, path.with_suffix(".partial"), self.metadata | about)
            path.with_suffix(".partial").replace(path)

    def _restore(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; nothing to resume")
        state = torch.load(path, weights_only=True)
        same_settings(path, json.loads(state["settings"]), asdict(self.settings) | self.metadata)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.metrics = state["epoch"], json.loads(state["metrics"])
        lines = (self.out / "metrics.jsonl").read_text().splitlines(keepends=True)
        if len(lines) > self.epoch:  # of an epoch whose checkpoint a kill has cut off
            partial = self.out / "metrics.partial"
            partial.write_text("".join(lines[: self.epoch]))
            partial.replace(self.out / "metrics.jsonl")


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random crops of the zero-padded images and random mirror images, uint8 [B, C, H, W] to the same shape."""
    count, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    top, left = torch.randint(2 * padding + 1, (2, count), generator=generator)
    columns = torch.arange(width).repeat(count, 1)
    flip = torch.rand(count, generator=generator) < 0.5
    columns[flip] = columns[flip].flip(1)
    rows = top[:, None] + torch.arange(height)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], (left[:, None] + columns)[:, None]].permute(
        0, 3, 1, 2
    )

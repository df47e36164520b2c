"""The Trainer: steps, epochs, held-out accuracies, and which weights are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..data import Images
from ..engine import Adapter, NoisyNetwork
from ..failures import at_work
from ..files import alone
from ..images import pixels
from ..modules import device_of, evaluating
from ..ops.laws import Law, gaussian_law, lattice_law, no_noise
from ..ops.philox import stream_key
from ..processes import SingleProcess
from ..streams import Stream
from .adversaries import Adversary
from .augment import crop_and_flip
from .checkpoints import Best, RunFolder, State
from .order import order, split, torch_seed
from .parameters import keep_running_statistics, learn_noise_alone, load_momentum, parameter_groups
from .recipes import RECIPES, Batch, Learned
from .settings import SELECTIONS, Settings

PASSES = 2  # of a step through the model, at most: of clean images and of adversarial ones


class Trainer:
    """Trains `model` on `data` and keeps everything under `out`.

    `out` receives `metrics.jsonl` (a line per epoch), `checkpoint.pt` (to resume) and at the end `model.safetensors`,
    whose metadata says how the model is to be used.

    Args:
        model: base classifier, normalised images [N, C, H, W] to logits, on the device where it is to be trained.
        data: training images, of which `settings.validation` are held out.
        settings: see `Settings`.
        out: folder of the run.
        test: images on which accuracies are recorded after every epoch; nothing is selected by them.
        metadata: strings to keep beside the weights.
        group: the processes of the run, see `processes.joined`; each takes its part of every batch.
        checkpoint_every: seconds between checkpoints within an epoch; there is one at the end of each.

    Attributes:
        epoch, step: how many of them are done.
        steps_per_epoch, total: how many steps there are to be.
        adversary: the attack of the recipe, None where it has none.
        metrics: of the last epoch done; after the run, of the epoch whose weights were selected.

    Raises:
        ValueError: an argument is out of its range, or does not fit the data.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Images,
        settings: Settings,
        out: str | Path,
        test: Images | None = None,
        *,
        metadata: dict[str, str] | None = None,
        group: SingleProcess | None = None,
        checkpoint_every: float = 300.0,
    ) -> None:
        adapted = Adapter()(model, data.images.shape[1:], "fp32")
        self.model, self._layout = model.to(memory_format=adapted.layout), adapted.layout
        self.settings, self.folder = settings, RunFolder(out, settings, metadata or {})
        self.group, self.checkpoint_every = group or SingleProcess(), checkpoint_every
        self.device = device_of(model)
        self.net = NoisyNetwork(adapted.network)
        self._key = stream_key(settings.seed, Stream.TRAIN, self.device)
        self.data = on(self.device, data)
        self.indices, held_out = split(len(data), settings.validation)
        self.held_out = {"validation": (self.data, held_out)} if settings.validation else {}
        if test is not None:
            self.held_out["test"] = (on(self.device, test), torch.arange(len(test)))
        if len(self.indices) < settings.batch:
            raise ValueError(f"batch is {settings.batch}; there are only {len(self.indices)} images to train on")
        if settings.batch % self.group.size:
            raise ValueError(f"batch is {settings.batch}; {self.group.size} processes cannot share it equally")
        self.kernels = kernels(settings, data.images.shape[1], self.device)
        self.steps_per_epoch = len(self.indices) // settings.batch
        self.total = settings.total(self.steps_per_epoch)
        if settings.learn == "noise":
            learn_noise_alone(model)
        self.optimizer = torch.optim.SGD(
            parameter_groups(model, settings.weight_decay),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
        )
        recipe = RECIPES[settings.recipe]
        self.adversary = recipe.attack and Adversary(recipe.attack(model, settings), settings.normalize)
        self.validator = recipe.attack and Adversary(recipe.validation(model, settings), settings.normalize)
        self.epoch = self.step = 0
        self.metrics: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}  # over the images of this epoch so far
        self._seconds, self._started = 0.0, time.monotonic()  # of this epoch in earlier runs; of what this run adds
        self._saved = self._started
        self._best: Best | None = None

    @property
    def so_far(self) -> dict[str, float]:
        """The means of loss and accuracies over the images of the epoch under way; none where it has just begun."""
        images = (self.step - self.epoch * self.steps_per_epoch) * self.settings.batch
        return {name: float(total) / images for name, total in dict(self._sums).items()} if images > 0 else {}

    def fit(self, progress: Callable[[range], Any] = iter, resume: bool = False) -> dict[str, float]:
        """Runs the steps that are left; returns the metrics of the epoch whose weights were selected.

        Args:
            progress: wraps the steps of an epoch that are left of it, for display.
            resume: go on with the run if there is one.

        Raises:
            FileExistsError: there is a run, and it is not to be gone on with.
            ValueError: it was made with other settings.
            OSError: a file cannot be written, or another process writes in the folder; the last checkpoint is kept.
        """
        resume = self.group.begin(resume, self.folder.checkpoint, self.folder.weights)
        self.group.agree(self.folder.about | {"images": len(self.data)})
        with ExitStack() as held:
            self.group.first(lambda: held.enter_context(alone(self.folder.path)))
            return self._fit(progress, resume)

    def _fit(self, progress: Callable[[range], Any], resume: bool) -> dict[str, float]:
        if (state := self.group.first(self.folder.restore) if resume else None) is not None:
            self._take_up(state)
        elif self.group.rank == 0:
            self.folder.begin()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # for layers that draw, as dropout does
            objective = self.group.averaging(Objective(self))
            self._started = self._saved = time.monotonic()
            with at_work():
                while self.step < self.total:
                    self._run_epoch(objective, progress)
        if self._best is not None:
            self.model.load_state_dict(self._best["model"])
            self.metrics = self._best["metrics"]
        if self.group.rank == 0:
            self.folder.save_weights(self.model.state_dict(), self.metrics)
        self.model.eval()
        return self.metrics

    # ---- what recipes ask ------------------------------------------------------------------------------------------

    def logits(self, images: Tensor, batch: Batch, which: int) -> Tensor:
        """Logits float32 [B, K] of one noisy copy of each image of a batch, clean or adversarial, in train mode.

        Args:
            which: of the passes of this step.
        """
        sample = PASSES * self._epoch_of(batch.step) + which
        return self.forward(self.noisy(images, batch.ids, sample), self.pass_number(batch, which))

    def pass_number(self, batch: Batch, which: int) -> int:
        """The number of a pass of the model in training, which no other pass has."""
        return PASSES * batch.step + which

    def attacked(self, batch: Batch, share: float | None = None) -> Tensor:
        """Adversarial images float32 [B, C, H, W] in [0, 1], by the attack of the recipe in eval mode.

        Args:
            share: of eps; as warmed up, if not given.
        """
        assert self.adversary is not None
        reach = self.settings.warmed_up(batch.step, self.steps_per_epoch) if share is None else share
        return self.adversary(pixels(batch.images), batch.labels, batch.ids, 1 + self._epoch_of(batch.step), reach)

    def pair(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of the clean and of the adversarial images, by the accuracy that they count for."""
        adversarial = self.attacked(batch)
        return {
            "accuracy": self.logits(batch.images, batch, 0),
            "adversarial_accuracy": self.logits(adversarial, batch, 1),
        }

    def clean(self, images: Tensor) -> Tensor:
        """Normalised images float32 [B, C, H, W], without noise."""
        _, scale, shift = self.kernels[images.dtype]
        normalised = torch.addcmul(shift.view(-1, 1, 1), images.float(), scale.view(-1, 1, 1))
        return normalised.contiguous(memory_format=self._layout)

    def noisy(self, images: Tensor, ids: Tensor, sample: Tensor | int, stream: Stream = Stream.TRAIN) -> Tensor:
        """Noisy, normalised copies float32 of images [B, C, H, W], uint8 or float in [0, 1].

        Args:
            ids: int64 [B], numbers of the images.
            sample: of each image, int64 [B] or one for all. In training an image has one in each pass of an epoch.
        """
        law, scale, shift = self.kernels[images.dtype]
        rows = torch.arange(len(images), device=self.device)
        samples = torch.as_tensor(sample, device=self.device).expand(len(images)).contiguous()
        key = stream_key(self.settings.seed, stream, self.device)
        return ops.noisy_replicas(images, rows, ids, samples, key, law, scale, shift, memory_format=self._layout)

    def forward(self, images: Tensor, number: int) -> Tensor:
        """Logits float32 [B, K] of normalised images [B, C, H, W], by one pass of the model.

        Args:
            number: of the pass. No two passes of a run that trains have the same.
        """
        return self.net.run(images, self._key, torch.tensor([number], device=self.device)).float()

    # ---- steps -----------------------------------------------------------------------------------------------------

    def batch(self, step: int) -> Batch:
        """The part of a step that this process has: a function of step and seed."""
        epoch, at = divmod(step, self.steps_per_epoch)
        size, seed = self.settings.batch, self.settings.seed
        whole = order(len(self.indices), torch_seed(seed, epoch))[at * size : (at + 1) * size]
        ids = self.indices[whole[self.group.part(size)]].to(self.device)
        return Batch(crop_and_flip(self.data.images[ids], ids, epoch, seed), self.data.labels[ids], ids, step)

    def _epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def _run_epoch(self, objective: nn.Module, progress: Callable[[range], Any]) -> None:
        first = self.epoch * self.steps_per_epoch
        end = min(first + self.steps_per_epoch, self.total)
        self.net.network.train()
        if self.settings.norms == "running":
            keep_running_statistics(self.net.network)
        for _ in progress(range(self.step - first, end - first)):
            self._take_step(objective)
            self.step += 1
            if self.step < end and time.monotonic() - self._saved >= self.checkpoint_every:
                self._require_finite()
                self._save()
        self._require_finite()
        images = (end - first) * self.settings.batch
        means = {name: float(total) / images for name, total in self._sums.items()}
        self.metrics = {
            "epoch": self.epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "loss": means.pop("loss"),
            **{f"train_{name}": mean for name, mean in means.items()},
        }
        for held_out, images_and_ids in self.held_out.items():
            self.metrics |= {f"{held_out}_{name}": share for name, share in self.accuracies(*images_and_ids).items()}
        self.metrics["seconds"] = round(self._seconds_so_far(), 1)
        self._consider()
        self._end_epoch()

    def _require_finite(self) -> None:
        """Raises FloatingPointError where the loss is not finite, before anything is kept: the last checkpoint is one
        of weights that can be gone on with."""
        if not self._sums["loss"].isfinite():
            raise FloatingPointError(
                f"the loss is {float(self._sums['loss'])} in epoch {self.epoch}, by step {self.step}: the run has "
                f"diverged. Lower learning_rate ({self.settings.learning_rate}), or set clip_norm "
                f"({self.settings.clip_norm})"
            )

    def _take_step(self, objective: nn.Module) -> None:
        batch = self.batch(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step, self.steps_per_epoch)
        torch.manual_seed(torch_seed(self.settings.seed, self.step, self.group.rank))
        with self._autocast():
            loss, logits = objective(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.group.backward(loss)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self._add(loss.detach(), logits, batch.labels)

    def _add(self, loss: Tensor, logits: dict[str, Tensor], labels: Tensor) -> None:
        """Adds what a step gave, in all processes, to the sums of the epoch."""
        summed = {"loss": loss.double() * len(labels)}
        for name, of_batch in logits.items():
            summed[name] = (of_batch.argmax(1) == labels).double().sum()
        for name, total in zip(summed, self.group.sum(torch.stack(list(summed.values()))), strict=True):
            self._sums[name] = self._sums.get(name, 0) + total

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    # ---- held-out images -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def accuracies(self, data: Images, ids: Tensor) -> dict[str, float]:
        """Shares of the images `ids` [N] of which a single noisy copy is classified correctly: as they are, and where
        the recipe has an attack, after one in repetition 0. The noise is the same after each epoch, and no recipe's."""
        self.group.alike(list(self.model.buffers()))
        torch.manual_seed(torch_seed(self.settings.seed))
        part = self.group.part(len(ids))
        hits = torch.zeros(1 if self.validator is None else 2, dtype=torch.float64, device=self.device)
        with evaluating(self.net.network), self._autocast():
            for start in range(part.start, part.stop, self.settings.batch):
                chunk = ids[start : min(start + self.settings.batch, part.stop)].to(self.device)
                images, labels = data.images[chunk], data.labels[chunk]
                views = [images]
                if self.validator is not None:
                    views.append(self.validator(pixels(images), labels, chunk, 0))
                for which, view in enumerate(views):
                    noisy = self.noisy(view, chunk, which, Stream.PREDICT)
                    logits = self.forward(noisy, PASSES * (self.total + start) + which)
                    hits[which] += (logits.argmax(1) == labels).sum()
        shares = (self.group.sum(hits) / len(ids)).tolist()
        return dict(zip(("accuracy", "adversarial_accuracy"), shares, strict=False))

    def _consider(self) -> None:
        """Keeps the weights if they are the best so far, by the rule of the settings; of equals, the first."""
        rule = SELECTIONS[self.settings.select]
        if rule is None:
            return
        name, sign = rule
        score = sign * self.metrics[name]
        if self._best is None or score > self._best["score"]:
            weights = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
            self._best = {"score": score, "metrics": self.metrics, "model": weights}

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        if self.group.rank == 0:
            self.folder.append(self.metrics)
        self.epoch += 1
        self._sums.clear()
        self._seconds, self._started = 0.0, time.monotonic()
        self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self.group.rank == 0:
            self.folder.save(self._state())

    def _state(self) -> State:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "metrics": self.metrics,
            "sums": {name: float(total) for name, total in self._sums.items()},
            "seconds": self._seconds_so_far(),
            "best": self._best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _take_up(self, state: State) -> None:
        try:
            for weights in (state["best"] or state, state):
                self.model.load_state_dict(weights["model"])
            load_momentum(self.optimizer, state["optimizer"])
            sums = state["sums"].items()
            self._sums = {name: torch.tensor(total, dtype=torch.float64, device=self.device) for name, total in sums}
        except Exception as error:  # of torch, for anything that may be in a pickle
            raise self.folder.broken(" ".join(str(error).split())) from error
        self.epoch, self.step, self.metrics, self._best = state["epoch"], state["step"], state["metrics"], state["best"]
        self._seconds = state["seconds"]
        done = -(-self.step // self.steps_per_epoch) if self.step == self.total else self._epoch_of(self.step)
        begun = done * self.steps_per_epoch < self.step < self.total
        if self.step > self.total or self.epoch != done or ("loss" in self._sums) != begun:
            raise self.folder.broken(f"it has epoch {self.epoch} and step {self.step} of {self.total}")

    def _seconds_so_far(self) -> float:
        return self._seconds + time.monotonic() - self._started


class Objective(nn.Module):
    """The loss of a batch as a module, whose gradients several processes can average."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.model, self.trainer = trainer.model, trainer

    def forward(self, batch: Batch) -> Learned:
        """Loss and logits of a batch, by the recipe; by `clean` in the epochs before it."""
        settings = self.trainer.settings
        begun = batch.step >= settings.clean_epochs * self.trainer.steps_per_epoch
        return RECIPES[settings.recipe if begun else "clean"].loss(self.trainer, batch)


def kernels(settings: Settings, channels: int, device: torch.device) -> dict[torch.dtype, tuple[Law, Tensor, Tensor]]:
    """The noise law, scale and shift that images of a dtype get: lattice noise where they are uint8."""
    laws = {torch.uint8: lattice_law, torch.float32: gaussian_law}
    made = {}
    for dtype, law in laws.items():
        scale, shift = ops.affine(settings.normalize, channels, dtype)
        noise = law(settings.sigma) if settings.sigma else no_noise()
        made[dtype] = noise.to(device), scale.to(device), shift.to(device)
    return made


def on(device: torch.device, data: Images) -> Images:
    """Images in the memory of a device."""
    return Images(data.images.to(device), data.labels.to(device))

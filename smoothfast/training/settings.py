"""Settings of a training run, all that it is a function of, and its learning rate at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..checks import at_least, at_most, choice, not_negative, positive, seed_in_range
from ..normalization import Normalization

SCHEDULES = ("one-cycle", "cosine", "multi-step")
LEARNED, BATCH_STATISTICS = ("all", "noise"), ("batch", "running")
PRECISIONS = ("fp32", "bf16")
MOST_EPOCHS = 1e6
SELECTIONS = {
    "last": None,
    "best": ("validation_adversarial_accuracy", 1),
    "best-clean": ("validation_accuracy", 1),
    "worst-clean": ("validation_accuracy", -1),
}
"""Rules by which the weights of an epoch are kept: those after the last one, or after the one where a metric, times the
sign, is largest."""


@dataclass(frozen=True)
class Needs:
    """Needs of a recipe.

    Attributes:
        noise: whether sigma must be positive (True) or 0 (False); None: it may be either.
        attack: whether it trains against one.
    """

    noise: bool | None
    attack: bool


NEEDS = {
    "clean": Needs(noise=False, attack=False),
    "gaussian": Needs(noise=True, attack=False),
    "adversarial": Needs(noise=None, attack=True),
    "trades": Needs(noise=None, attack=True),
    "mart": Needs(noise=None, attack=True),
    "stability": Needs(noise=True, attack=False),
    "consistency": Needs(noise=True, attack=False),
    "macer": Needs(noise=True, attack=False),
    "smoothmix": Needs(noise=True, attack=True),
    "smoothadv": Needs(noise=True, attack=True),
    "epgd": Needs(noise=None, attack=True),
}
"""Needs of the recipes, by name; `recipes.RECIPES` has what they do."""


@dataclass(frozen=True)
class Settings:
    """All that a training run is a function of, beside its model and data. Lengths are in [0, 1] pixel units.

    Attributes:
        recipe: name of the recipe, see `NEEDS`.
        sigma: standard deviation of the noise on images; 0 for none.
        normalize: (mean, std) per channel, applied after the noise; None leaves images in [0, 1].
        epochs: length of the run, which may end within an epoch. The last partial batch of each is left out.
        batch: images per step, of all processes together.
        schedule: of the learning rate. "one-cycle": up to `learning_rate` over 30 % of the run, then down to 0;
            "cosine": down from it; "multi-step": times `gamma` after each of the `milestones`, which are epochs.
        learning_rate, momentum, nesterov, weight_decay: of SGD. What decays: see `parameter_groups`.
        clip_norm: the gradients of a step are scaled down to this norm if theirs is larger.
        eps: radius of the ball of adversarial images. It grows from 0 over the first `warmup` epochs; in smoothmix the
            weight of mixtures does, which know no ball.
        alpha: length of a step of the attack; if None, eps / 4, 2 eps / steps of smoothadv and 2 sigma of smoothmix.
        steps: of the attack.
        samples: noisy copies behind each of its gradients, for epgd and smoothadv.
        train_samples: of these copies, as many as smoothadv trains on; noisy copies of each image in smoothmix,
            consistency and macer.
        adversarial_weight: of the loss of adversarial images in adversarial and epgd; that of clean images has the
            rest.
        beta: weight of what is beside the cross-entropy: the divergence in trades, mart, smoothmix, stability and
            consistency, the radius in macer.
        entropy: weight of the entropy of the average prediction in consistency.
        margin, sharpness: of macer: the distance from which on a radius is large enough, in units of sigma / 2 for each
            of the two largest probabilities; and the factor of logits in it.
        clean_epochs: of recipe clean, before those of a recipe with an attack.
        learn: "all" parameters, or "noise": the strengths of noise alone.
        norms: batch norms take the statistics of the "batch", or the "running" ones, as they do when the network is
            used. Noise that all weights of a layer share moves the former and is then taken out again; smoothing does
            not do that.
        validation: training images that are held out. Which, is a function of their number alone: runs with other seeds
            and fine-tunes hold out the same.
        select: which weights are kept, see `SELECTIONS`.
        initial: SHA-256 of the weights file that the model started from, if any: for the record.
        precision: "bf16" (autocast) or "fp32".
        seed: order, crops, flips and noise.
    """

    recipe: str = "gaussian"
    sigma: float = 0.25
    normalize: Normalization | None = None
    epochs: float = 24
    batch: int = 256
    schedule: str = "one-cycle"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    learning_rate: float = 0.4
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    eps: float = 8 / 255
    alpha: float | None = None
    steps: int = 7
    samples: int = 8
    train_samples: int = 1
    adversarial_weight: float = 0.5
    beta: float = 6.0
    entropy: float = 0.5
    margin: float = 8.0
    sharpness: float = 16.0
    warmup: float = 0
    clean_epochs: int = 0
    learn: str = "all"
    norms: str = "batch"
    validation: int = 0
    select: str = "last"
    initial: str | None = None
    precision: str = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        choice("recipe", self.recipe, NEEDS)
        choice("schedule", self.schedule, SCHEDULES)
        choice("select", self.select, SELECTIONS)
        choice("learn", self.learn, LEARNED)
        choice("norms", self.norms, BATCH_STATISTICS)
        choice("precision", self.precision, PRECISIONS)
        positive(
            epochs=self.epochs, learning_rate=self.learning_rate, clip_norm=self.clip_norm, gamma=self.gamma,
            margin=self.margin, sharpness=self.sharpness,
        )  # fmt: skip
        at_least(1, batch=self.batch, steps=self.steps, samples=self.samples, train_samples=self.train_samples)
        not_negative(
            sigma=self.sigma, momentum=self.momentum, weight_decay=self.weight_decay, eps=self.eps, alpha=self.alpha,
            beta=self.beta, entropy=self.entropy, warmup=self.warmup,
        )  # fmt: skip
        at_least(0, validation=self.validation, clean_epochs=self.clean_epochs)
        at_most(MOST_EPOCHS, epochs=self.epochs)
        for milestone in self.milestones:
            not_negative(milestones=milestone)
        if not 0 <= self.adversarial_weight <= 1:
            raise ValueError(f"adversarial_weight is {self.adversarial_weight}; it must lie in [0, 1]")
        if self.nesterov and not self.momentum:
            raise ValueError(f"momentum is {self.momentum}; nesterov needs some")
        if self.schedule == "multi-step" and not self.milestones:
            raise ValueError(f"milestones is {self.milestones}; schedule 'multi-step' needs some")
        self._check_noise()
        self._check_selection()
        seed_in_range(self.seed)

    def _check_noise(self) -> None:
        takes = NEEDS[self.recipe].noise
        if takes is not None and takes != (self.sigma > 0):
            wanted = "positive" if takes else "0: recipe 'gaussian' is the one with noise"
            raise ValueError(f"sigma is {self.sigma}; for recipe {self.recipe!r} it must be {wanted}")
        if self.recipe == "smoothadv" and self.train_samples > self.samples:
            raise ValueError(f"train_samples is {self.train_samples}; it must be at most samples, {self.samples}")

    def _check_selection(self) -> None:
        if self.select != "last" and not self.validation:
            raise ValueError(f"select is {self.select!r}, which needs validation images; validation is 0")
        if self.select == "best" and not NEEDS[self.recipe].attack:
            raise ValueError(f"select is 'best', of recipes with an attack; for {self.recipe!r} it may be 'best-clean'")

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step: linear pieces for one-cycle, half a cosine, or a staircase."""
        if self.schedule == "multi-step":
            passed = sum(step >= round(milestone * steps_per_epoch) for milestone in self.milestones)
            return self.learning_rate * self.gamma**passed
        done = step / self.total(steps_per_epoch)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * (done / 0.3 if done < 0.3 else (1 - done) / 0.7)

    def warmed_up(self, step: int, steps_per_epoch: int) -> float:
        """The share of eps that the ball has at a step."""
        rising = self.warmup * steps_per_epoch
        return min(1.0, (step + 1) / rising) if rising else 1.0

    def total(self, steps_per_epoch: int) -> int:
        """Number of steps of the run."""
        return max(1, round(self.epochs * steps_per_epoch))

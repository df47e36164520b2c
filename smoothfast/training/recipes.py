"""Recipes: the loss of a batch, and the attack that its adversarial images are made by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from ..attacks import PGD
from ..attacks.attack import Options
from ..passes import Passes

if TYPE_CHECKING:
    from .settings import Settings
    from .trainer import Trainer


@dataclass(frozen=True)
class Batch:
    """What a process has of one step.

    Attributes:
        images: uint8 [B, C, H, W], augmented.
        labels: int64 [B].
        ids: int64 [B], indices in the data set: the numbers that noise is drawn under.
        step: of the run.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    step: int


def options(settings: Settings) -> Options:
    """What all attacks in training have in common. Weights change at every step, so there is nothing to compile; and a
    model that draws noise in a forward pass draws for each sample anew, which costs nothing: passes are full."""
    return {
        "sigma": settings.sigma, "seed": settings.seed, "precision": settings.precision, "runner": "eager",
        "replicas_per_forward": 1,
    }  # fmt: skip


def pgd(model: nn.Module, settings: Settings) -> PGD:
    """PGD in Linf on single noisy copies, from a random start."""
    return PGD(model, settings.eps, settings.alpha, settings.steps, **options(settings))


Learned = tuple[Tensor, dict[str, Tensor]]
"""The loss, a scalar, and logits [B, K], by the metric that they count for: accuracy, adversarial_accuracy."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        loss: of a batch.
        noise: whether sigma must be positive (True) or 0 (False); None: it may be either.
        attack: on a model, with settings; None where the recipe has none.
        validation: what held-out images are attacked with, if there is an attack.
    """

    loss: Callable[[Trainer, Batch], Learned]
    noise: bool | None = None
    attack: Callable[[nn.Module, Settings], PGD] | None = None
    validation: Callable[[nn.Module, Settings], PGD] = pgd


class Adversary:
    """An attack on a model that is being trained: what it runs on is made once, and sees the weights of the moment."""

    def __init__(self, attack: PGD, settings: Settings) -> None:
        attack.normalize = settings.normalize
        self.attack, self._full = attack, (attack.eps, attack.alpha)
        self._passes: Passes | None = None

    def __call__(self, images: Tensor, labels: Tensor, ids: Tensor, draw: int, share: float = 1.0) -> Tensor:
        """Adversarial images float32 [B, C, H, W] of images in [0, 1], in a ball of this share of eps."""
        if self._passes is None:
            self._passes = self.attack.passes(images, len(images))
        self.attack.draw = draw
        self.attack.eps, self.attack.alpha = (share * length for length in self._full)
        return self.attack.craft(self._passes, images, labels, ids)


def clean(trainer: Trainer, batch: Batch) -> Learned:
    """Cross-entropy. Under noise (recipe gaussian) that of one noisy copy of each image: Cohen et al. 2019, section
    3.3."""
    logits = trainer.logits(batch.images, batch, 0)
    return F.cross_entropy(logits, batch.labels), {"accuracy": logits}


def adversarial(trainer: Trainer, batch: Batch) -> Learned:
    """w CE(adversarial) + (1 - w) CE(clean), in two forward passes with noise of their own: Nemcovsky et al. 2019
    (arXiv 1911.07198, eq. 6, with their code; with noise on images, eq. 23)."""
    weight = trainer.settings.adversarial_weight
    logits = trainer.pair(batch)
    on_clean, on_adversarial = (F.cross_entropy(of, batch.labels) for of in logits.values())
    return weight * on_adversarial + (1 - weight) * on_clean, logits


RECIPES: dict[str, Recipe] = {
    "clean": Recipe(clean, noise=False),
    "gaussian": Recipe(clean, noise=True),
    "adversarial": Recipe(adversarial, attack=pgd),
}

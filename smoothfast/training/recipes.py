"""Recipes: the loss of a batch, and the attack that its adversarial images are made by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attacks import PGD
from ..streams import Stream
from . import adversaries
from .settings import Settings


@dataclass(frozen=True)
class Batch:
    """The part of a step that one process has.

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


Learned = tuple[Tensor, dict[str, Tensor]]
"""The loss, a scalar, and logits [B, K] by the accuracy that they count for: accuracy, adversarial_accuracy."""


class Student(Protocol):
    """The model in training as recipes see it; the `Trainer` answers."""

    settings: Settings
    adversary: adversaries.Adversary | None

    def logits(self, images: Tensor, batch: Batch, which: int) -> Tensor:
        """Logits float32 [B, K] of one noisy copy of each image, in pass `which` of the step."""

    def pair(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of the clean and of the adversarial images, by the accuracy that they count for."""

    def attacked(self, batch: Batch) -> Tensor:
        """Adversarial images float32 [B, C, H, W] in [0, 1]."""

    def noisy(self, images: Tensor, ids: Tensor, sample: Tensor | int, stream: Stream = ...) -> Tensor:
        """Noisy, normalised copies float32 of images [B, C, H, W], uint8 or float in [0, 1], one sample of each."""

    def forward(self, images: Tensor, number: int) -> Tensor:
        """Logits float32 [B, K] of normalised images, by the pass of this number."""

    def pass_number(self, batch: Batch, which: int) -> int:
        """The number of pass `which` of the step, which no other pass of the run has."""


@dataclass(frozen=True)
class Recipe:
    """A way to train: the loss of a batch, and the attacks behind it.

    Attributes:
        loss: of a batch.
        attack: on a model, with settings; None where the recipe has none.
        validation: what held-out images are attacked with, if there is an attack.
    """

    loss: Callable[[Student, Batch], Learned]
    attack: Callable[[nn.Module, Settings], PGD] | None = None
    validation: Callable[[nn.Module, Settings], PGD] = adversaries.pgd


def clean(student: Student, batch: Batch) -> Learned:
    """Cross-entropy. Under noise (recipe gaussian) that of one noisy copy of each image: Cohen et al. 2019, section
    3.3."""
    logits = student.logits(batch.images, batch, 0)
    return F.cross_entropy(logits, batch.labels), {"accuracy": logits}


def adversarial(student: Student, batch: Batch) -> Learned:
    """w CE(adversarial) + (1 - w) CE(clean), in two forward passes with noise of their own: Nemcovsky et al. 2019
    (arXiv 1911.07198, eq. 6, with their code; with noise on images, eq. 23)."""
    weight = student.settings.adversarial_weight
    logits = student.pair(batch)
    on_clean, on_adversarial = (F.cross_entropy(of, batch.labels) for of in logits.values())
    return weight * on_adversarial + (1 - weight) * on_clean, logits


def trades(student: Student, batch: Batch) -> Learned:
    """CE(clean) + beta KL(clean || adversarial), where the attack makes the divergence larger: Zhang et al. 2019 (arXiv
    1901.08573); beta is their 1 / lambda."""
    logits = student.pair(batch)
    loss = F.cross_entropy(logits["accuracy"], batch.labels)
    return loss + student.settings.beta * _divergences(**logits).mean(), logits


def mart(student: Student, batch: Batch) -> Learned:
    """BCE(adversarial) + beta KL(clean || adversarial) (1 - p_y(clean)), where BCE is the cross-entropy less
    log(1 - p) of the most probable other class: Wang et al. 2020 (ICLR, "Improving adversarial robustness requires
    revisiting misclassified examples"); beta is their lambda. The attack is PGD on the cross-entropy."""
    logits = student.pair(batch)
    adversarial, own = logits["adversarial_accuracy"], batch.labels[:, None]
    other = adversarial.scatter(1, own, -torch.inf).argmax(1, keepdim=True)
    rest = adversarial.scatter(1, other, -torch.inf).logsumexp(1) - adversarial.logsumexp(1)  # log(1 - p)
    missed = 1 - logits["accuracy"].softmax(1).gather(1, own)[:, 0]
    loss = F.cross_entropy(adversarial, batch.labels) - rest.mean()
    return loss + student.settings.beta * (_divergences(**logits) * missed).mean(), logits


def _divergences(accuracy: Tensor, adversarial_accuracy: Tensor) -> Tensor:
    """KL(clean || adversarial) [B], by logits."""
    logs = adversarial_accuracy.log_softmax(1), accuracy.log_softmax(1)
    return F.kl_div(*logs, reduction="none", log_target=True).sum(1)


def smoothadv(student: Student, batch: Batch) -> Learned:
    """Cross-entropy of noisy copies of adversarial images, by the noise that those were made under: Salman et al. 2019
    (arXiv 1906.04584)."""
    assert student.adversary is not None
    copies = student.settings.train_samples
    adversarial, ids, labels = (
        of.repeat_interleave(copies, 0) for of in (student.attacked(batch), batch.ids, batch.labels)
    )
    samples = student.adversary.attack.origin + torch.arange(copies, device=ids.device).repeat(len(batch.ids))
    logits = student.forward(student.noisy(adversarial, ids, samples, Stream.ATTACK), student.pass_number(batch, 0))
    probabilities = logits.detach().softmax(1).view(len(batch.ids), copies, -1).mean(1)
    return F.cross_entropy(logits, labels), {"adversarial_accuracy": probabilities}


RECIPES: dict[str, Recipe] = {
    "clean": Recipe(clean),
    "gaussian": Recipe(clean),
    "adversarial": Recipe(adversarial, attack=adversaries.pgd),
    "trades": Recipe(trades, attack=adversaries.DivergentPGD),
    "mart": Recipe(mart, attack=adversaries.NearPGD),
    "smoothadv": Recipe(smoothadv, attack=adversaries.smoothadv, validation=adversaries.smoothadv),
    "epgd": Recipe(adversarial, attack=adversaries.epgd),
}

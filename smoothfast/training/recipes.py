"""Recipes: the loss of a batch, and the attack that its adversarial images are made by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attacks import PGD
from ..images import pixels
from ..streams import Stream
from . import adversaries
from .augment import mixtures
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
    steps_per_epoch: int
    adversary: adversaries.Adversary | None

    def logits(self, images: Tensor, batch: Batch, which: int) -> Tensor:
        """Logits float32 [B, K] of one noisy copy of each image, in pass `which` of the step."""

    def pair(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of the clean and of the adversarial images, by the accuracy that they count for."""

    def attacked(self, batch: Batch, share: float | None = ...) -> Tensor:
        """Adversarial images float32 [B, C, H, W] in [0, 1], in a ball of this share of eps."""

    def clean(self, images: Tensor) -> Tensor:
        """Normalised images float32 [B, C, H, W], without noise."""

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
    logits = _under_noise_of_attack(student, batch, student.attacked(batch), 0)
    loss = -_of_label(logits.log_softmax(2), batch).mean()
    return loss, {"adversarial_accuracy": logits.detach().softmax(2).mean(1)}


def smoothmix(student: Student, batch: Batch) -> Learned:
    """Mean cross-entropy of noisy copies, + beta times the KL divergence of predictions on mixtures of the image and an
    adversarial one, under the same noise, from mixtures of the average prediction and the uniform one; for images that
    are classified correctly. Jeong et al. 2021 (arXiv 2111.09277), without their one-step adversary; beta is their eta,
    and grows. Adversarial accuracy is that on mixtures."""
    settings, images = student.settings, pixels(batch.images)
    share = mixtures(batch.ids, batch.step // student.steps_per_epoch, settings.seed)
    mixed = torch.lerp(images, student.attacked(batch, 1.0), share)
    logs, of_mixed = (
        _under_noise_of_attack(student, batch, of, which).log_softmax(2) for which, of in enumerate((images, mixed))
    )
    average = _average(logs)
    uniform = torch.full_like(average, 1 / average.shape[1])
    wanted = torch.lerp(average.exp(), uniform, share.flatten(1))[:, None]
    apart = (wanted * (wanted.log() - of_mixed)).sum(2).mean(1)
    right = average.argmax(1) == batch.labels
    weight = settings.beta * settings.warmed_up(batch.step, student.steps_per_epoch)
    loss = -_of_label(logs, batch).mean() + weight * (right * apart).mean()
    return loss, {"accuracy": average, "adversarial_accuracy": _average(of_mixed)}


def stability(student: Student, batch: Batch) -> Learned:
    """CE(clean) + beta times the cross-entropy of the prediction under noise from that without: Li et al. 2019 (arXiv
    1809.03113); beta is their gamma."""
    clean = student.forward(student.clean(batch.images), student.pass_number(batch, 0))
    noisy = student.logits(batch.images, batch, 1)
    apart = -(clean.softmax(1) * noisy.log_softmax(1)).sum(1).mean()
    return F.cross_entropy(clean, batch.labels) + student.settings.beta * apart, {"accuracy": noisy}


def consistency(student: Student, batch: Batch) -> Learned:
    """Mean cross-entropy of noisy copies of an image, + beta times the mean KL divergence of their predictions from the
    average one, + `entropy` times the entropy of that: Jeong and Shin 2020 (arXiv 2006.04062), lambda and eta."""
    logs = _of_copies(student, batch).log_softmax(2)
    average = _average(logs)
    apart = (average.exp()[:, None] * (average[:, None] - logs)).sum(2).mean()
    entropy = -(average.exp() * average).sum(1).mean()
    settings = student.settings
    loss = -_of_label(logs, batch).mean() + settings.beta * apart + settings.entropy * entropy
    return loss, {"accuracy": average}


def macer(student: Student, batch: Batch) -> Learned:
    """-log of the mean probability of the label, + beta sigma / 2 times how far the distance of the two largest
    probabilities is below `margin`, as quantiles of the normal distribution: Zhai et al. 2020 (ICLR, "MACER", and its
    code), lambda and gamma. These are of logits times `sharpness`, their beta, and count where the image is classified
    correctly: where the radius is infinite or beyond the margin there is nothing to gain."""
    settings, logits = student.settings, _of_copies(student, batch)
    average = _average(logits.log_softmax(2))
    (first, second), classes = (
        of.unbind(1) for of in (settings.sharpness * logits).softmax(2).double().mean(1).topk(2)
    )
    distance = torch.special.ndtri(first.detach()) - torch.special.ndtri(second.detach())
    counts = (classes[0] == batch.labels) & (distance <= settings.margin)
    missing = settings.margin - torch.special.ndtri(first[counts]) + torch.special.ndtri(second[counts])
    gained = settings.sigma / 2 * missing.sum() / len(batch.labels)
    return -_of_label(average[:, None], batch).mean() + settings.beta * gained.float(), {"accuracy": average}


def _of_copies(student: Student, batch: Batch) -> Tensor:
    """Logits [B, train_samples, K] of noisy copies, of which an image has others in each epoch."""
    first = student.settings.train_samples * (batch.step // student.steps_per_epoch)
    return _of_samples(student, batch, batch.images, 0, first, Stream.TRAIN)


def _under_noise_of_attack(student: Student, batch: Batch, images: Tensor, which: int) -> Tensor:
    """Logits [B, train_samples, K] of copies of float images, by the noise that adversarial ones are made under."""
    assert student.adversary is not None
    return _of_samples(student, batch, images, which, student.adversary.attack.origin, Stream.ATTACK)


def _of_samples(student: Student, batch: Batch, images: Tensor, which: int, first: int, stream: Stream) -> Tensor:
    """Logits [B, train_samples, K] of copies of images, by the samples of a stream from the first one on, in a pass."""
    count = student.settings.train_samples
    samples = first + torch.arange(count, device=images.device).repeat(len(images))
    rows, ids = images.repeat_interleave(count, 0), batch.ids.repeat_interleave(count)
    noisy = student.noisy(rows, ids, samples, stream)
    return student.forward(noisy, student.pass_number(batch, which)).unflatten(0, (-1, count))


def _average(logs: Tensor) -> Tensor:
    """The logarithm of mean probabilities [B, K], by those of samples [B, S, K]."""
    return logs.logsumexp(1) - math.log(logs.shape[1])


def _of_label(logs: Tensor, batch: Batch) -> Tensor:
    """Logarithms [B, S] of the probability of the label, by those of all classes [B, S, K]."""
    return logs.gather(2, batch.labels[:, None, None].expand(-1, logs.shape[1], 1))[:, :, 0]


RECIPES: dict[str, Recipe] = {
    "clean": Recipe(clean),
    "gaussian": Recipe(clean),
    "adversarial": Recipe(adversarial, attack=adversaries.pgd),
    "trades": Recipe(trades, attack=adversaries.DivergentPGD),
    "mart": Recipe(mart, attack=adversaries.NearPGD),
    "stability": Recipe(stability),
    "consistency": Recipe(consistency),
    "macer": Recipe(macer),
    "smoothmix": Recipe(smoothmix, attack=adversaries.smoothmix),
    "smoothadv": Recipe(smoothadv, attack=adversaries.smoothadv, validation=adversaries.smoothadv),
    "epgd": Recipe(adversarial, attack=adversaries.epgd),
}

"""Evaluation of attacks: accuracies with exact confidence intervals, and how far images were moved.

Votes decide, never a single noisy pass: `accuracy(model.votes(adversarial, 100), labels)`. Those of a smoothed
classifier are of the stream PREDICT. No attack of this package draws from it, nor does one of another that calls the
classifier (`forward` has a stream of its own): so no image has been fitted to the noise that judges it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checks import choice
from .engine import BaseFunction, Gradients
from .images import UNIT, checked_bounds, pixels
from .modules import as_module, warn
from .ops.laws import no_noise
from .smoothing.classifier import SmoothedClassifier
from .smoothing.results import winners
from .statistics import LEVEL, clopper_pearson_interval

ORDERS = {"linf": math.inf, "l2": 2.0}


@dataclass(frozen=True)
class Accuracy:
    """The share of images that are classified correctly, with its confidence interval.

    Attributes:
        correct, count: numbers of images.
        low, high: a two-sided confidence interval of the accuracy over all images that these are drawn from.
    """

    correct: int
    count: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The accuracy itself, in 0 .. 1."""
        return self.correct / self.count

    def __str__(self) -> str:
        return f"{self.share:.3f} ({self.low:.3f} .. {self.high:.3f})"


def accuracy(votes: Tensor, labels: Sequence[int] | Tensor, level: float = LEVEL) -> Accuracy:
    """The share of the images whose label has most of the votes by class [N, K], one or many an image, with its exact
    confidence interval (Clopper and Pearson 1934).

    Args:
        votes: int [N, K], of `SmoothedClassifier.votes` or `base_votes`.
        labels: int [N].
        level: of the interval, which misses the true share with probability at most 1 - level.

    Raises:
        ValueError: there are no images, as many labels as images are not given, or the level is out of its range.
    """
    truth = torch.as_tensor(labels)
    if votes.dim() != 2 or truth.shape != votes.shape[:1]:
        raise ValueError(f"votes are {tuple(votes.shape)} and labels {tuple(truth.shape)}; they must be [N, K] and [N]")
    if not len(votes):
        raise ValueError("there are no images; an accuracy is of at least one")
    correct = int((winners(votes) == truth.to(votes.device)).sum())
    return Accuracy(correct, len(votes), *map(float, clopper_pearson_interval(correct, len(votes), level)))


@dataclass(frozen=True)
class Loss:
    """The accuracy of single votes that another network loses, on the same noisy copies.

    Attributes:
        images, copies: numbers of images, and of copies of each.
        before, after: the shares of votes for the label.
        points: the loss in points, 100 times the difference.
        error: its standard error over images.
    """

    images: int
    copies: int
    before: float
    after: float
    points: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.before:.2f} % are right before and {100 * self.after:.2f} % after, a loss of " + (
            f"{self.points:.2f} ± {self.error:.2f} points"
        )


def loss(before: Tensor, after: Tensor, labels: Sequence[int] | Tensor) -> Loss:
    """The loss from the votes [N, K] of one network to those of another, on the same noisy copies of N images.

    Raises:
        ValueError: votes or labels are of other shapes, or there are fewer than two images.
    """
    truth = torch.as_tensor(labels, device=before.device)
    if before.shape != after.shape or before.dim() != 2 or truth.shape != before.shape[:1] or len(truth) < 2:
        shapes = ", ".join(str(tuple(each.shape)) for each in (before, after, truth))
        raise ValueError(f"before, after and labels are {shapes}; they must be [N, K], [N, K] and [N], N at least 2")
    copies = int(before[0].sum())
    right = [votes.gather(1, truth[:, None])[:, 0].double() / copies for votes in (before, after.to(before.device))]
    lost = 100 * (right[0] - right[1])
    error = float(lost.std()) / math.sqrt(len(lost))
    return Loss(len(lost), copies, float(right[0].mean()), float(right[1].mean()), float(lost.mean()), error)


def base_votes(
    model: nn.Module | Callable[[Tensor], Any],
    images: Tensor,
    max_batch: int | None = None,
    bounds: Sequence[float] | None = UNIT,
) -> Tensor:
    """Votes int64 [N, K] of the base classifier for images without noise, computed in float32: one for each image, and
    none where its logits are not finite.

    Args:
        model: a `SmoothedClassifier`, of which the base classifier is asked, with its normalisation and bounds; or any
            module or function from images [N, C, ...] to logits [N, K].
        images: uint8 (0..255) or float (0..1, or `bounds`) [N, C, ...].
        max_batch: rows per forward pass; by image size and device if not given.
        bounds: (low, high) of float images that lie in another range than 0 .. 1; None: in none.
    """
    base, normalize, bounds = as_module(model, "model"), None, checked_bounds(bounds)
    if isinstance(model, SmoothedClassifier):
        base, normalize, bounds = model.base, model.normalize, model.bounds
    images = pixels(images, bounds)
    function = BaseFunction.resolved(
        base, no_noise(), images.shape[1:], normalize=normalize, precision="fp32", micro_batch=max_batch
    )
    images = images.to(function.device)
    zeros = torch.zeros(len(images), dtype=torch.int64, device=function.device)  # there is no loss, and no noise
    votes = Gradients(function).outcomes(images, zeros, zeros, 0, 1).votes
    if silent := int((votes.sum(1) == 0).sum()):
        warn(f"the logits of {silent:,} of {len(images):,} images are not finite (NaN or inf): they count as wrong")
    return votes


def distances(images: Tensor, adversarial: Tensor, norm: str, bounds: Sequence[float] | None = UNIT) -> Tensor:
    """Distances that images were moved by, float64 [N] in units of their range ([0, 1] for uint8), by norm "linf" or
    "l2"; exact but for the sum."""
    bounds = checked_bounds(bounds)
    choice("norm", norm, ORDERS)
    moved = pixels(adversarial, bounds).double() - pixels(images, bounds).double().to(adversarial.device)
    return torch.linalg.vector_norm(moved.flatten(1), ORDERS[norm], dim=1)

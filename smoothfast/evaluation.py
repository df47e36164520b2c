"""What an attack has achieved: accuracies with exact confidence intervals, and how far images were moved.

Votes decide, never a single noisy pass: `accuracy(model.votes(adversarial, 100), labels)`. Those of a smoothed
classifier are of the stream PREDICT. No attack of this package draws from it, nor does one of another that calls the
classifier (`forward` has a stream of its own): so no image has been fitted to the noise that judges it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .noise import no_noise
from .passes import Passes
from .smoothing import SmoothedClassifier, elected, pixels
from .specs import choice
from .statistics import clopper_pearson_lower, clopper_pearson_upper

LEVEL = 0.95  # of confidence intervals
ORDERS = {"linf": math.inf, "l2": 2.0}


@dataclass(frozen=True)
class Accuracy:
    """How many of `count` images are classified correctly.

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
        return self.correct / self.count

    def __str__(self) -> str:
        return f"{self.share:.3f} ({self.low:.3f} .. {self.high:.3f})"


def accuracy(votes: Tensor, labels: Sequence[int] | Tensor, level: float = LEVEL) -> Accuracy:
    """Of votes by class [N, K], one or many an image: the share of the images whose label has most of them, with its
    exact confidence interval (Clopper and Pearson 1934).

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
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")
    correct = int((elected(votes) == truth.to(votes.device)).sum())
    bounds = (bound(correct, len(votes), (1 - level) / 2) for bound in (clopper_pearson_lower, clopper_pearson_upper))
    return Accuracy(correct, len(votes), *map(float, bounds))


def base_votes(model: nn.Module, images: Tensor, max_batch: int | None = None) -> Tensor:
    """What the base classifier says to images without noise, computed in float32: int64 [N, K], one vote for each, and
    none where its logits are not finite.

    Args:
        model: a `SmoothedClassifier`, of which the base classifier is asked, with its normalisation; or any module from
            images [N, C, H, W] in [0, 1] to logits [N, K].
        images: uint8 (0..255) or float (0..1) [N, C, H, W].
        max_batch: rows per forward pass; by image size and device if not given.
    """
    base, normalize = (model.base, model.normalize) if isinstance(model, SmoothedClassifier) else (model, None)
    channels, height, width = images.shape[1:]
    passes = Passes(
        base, no_noise(), (channels, height, width), 0, normalize=normalize, precision="fp32", micro_batch=max_batch
    )
    images = pixels(images.to(passes.device))
    zeros = torch.zeros(len(images), dtype=torch.int64, device=passes.device)  # there is no loss, and no noise
    return passes.outcomes(images, zeros, zeros, 0, 1).votes


def distances(images: Tensor, adversarial: Tensor, norm: str) -> Tensor:
    """How far images were moved, float64 [N] in [0, 1] pixel units, by norm "linf" or "l2"; exact but for the sum."""
    choice("norm", norm, ORDERS)
    moved = pixels(adversarial).double() - pixels(images).double().to(adversarial.device)
    return torch.linalg.vector_norm(moved.flatten(1), ORDERS[norm], dim=1)

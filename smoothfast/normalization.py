"""Normalisation of images after the noise: (mean, std) per channel, of images in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Normalization = tuple[Sequence[float], Sequence[float]]

CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
# What Cohen et al. 2019 and MadryLab trained with: the same means, deviations that are those of the means of images.
CIFAR10_COHEN_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS = {
    "cifar10": CIFAR10_STATISTICS,
    "cifar10-cohen": CIFAR10_COHEN_STATISTICS,
    "cifar100": CIFAR100_STATISTICS,
    "imagenet": IMAGENET_STATISTICS,
}
FORM = f"none, {', '.join(STATISTICS)}, or numbers as 0.49,0.48,0.45/0.2,0.2,0.2: means, then deviations"


def statistics_of(text: str) -> Normalization | None:
    """The statistics that a text names or writes out, None for "none".

    Raises:
        ValueError: it does neither.
    """
    if text == "none":
        return None
    if text in STATISTICS:
        return STATISTICS[text]
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise ValueError(f"normalize is {text!r:.100}; it must be one of {FORM}") from None
    if len(mean) != len(std):
        raise ValueError(
            f"normalize is {text!r:.100}: {len(mean)} means and {len(std)} deviations; one of each by channel"
        )
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"normalize is {text!r:.100}; means must be finite, deviations positive")
    return checked_normalization((mean, std), of_pixels=True)


def text_of(statistics: Normalization | None) -> str:
    """The text that stands for statistics: `statistics_of` reads it."""
    return "none" if statistics is None else "/".join(",".join(map(repr, part)) for part in statistics)


def checked_normalization(normalize: Any, of_pixels: bool) -> Normalization | None:
    """The mean and deviation of each channel, or one for all of them, as tuples of numbers.

    Args:
        normalize: (mean, std), each a number, or numbers; a text as of `statistics_of`; torchvision's `Normalize`.
        of_pixels: whether images lie in [0, 1], and their means must, too.

    Raises:
        ValueError: it is something else.
    """
    if normalize is None or isinstance(normalize, str):
        return statistics_of(normalize or "none")
    if isinstance(getattr(normalize, "mean", None), (list, tuple)):  # torchvision's Normalize
        normalize = normalize.mean, normalize.std
    try:
        mean, std = (
            tuple(map(float, values)) if hasattr(values, "__len__") else (float(values),) for values in normalize
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"normalize is {normalize!r:.100}; it must be (mean, std), of numbers by channel") from error
    if of_pixels and any(value > 1 for value in mean):
        raise ValueError(f"normalize has mean {list(mean)}; pixels lie in 0 .. 1: did you mean these numbers / 255?")
    return mean, std

"""Normalisation of images after the noise: (mean, std) per channel, of images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Normalization = tuple[Sequence[float], Sequence[float]]

CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS = {"cifar10": CIFAR10_STATISTICS, "cifar100": CIFAR100_STATISTICS, "imagenet": IMAGENET_STATISTICS}


def checked_normalization(normalize: Any, of_pixels: bool) -> Normalization | None:
    """The mean and deviation of each channel, or one for all of them, as tuples of numbers.

    Args:
        normalize: (mean, std), each a number, or numbers; None.
        of_pixels: whether images lie in [0, 1], and their means must, too.

    Raises:
        ValueError: it is something else.
    """
    if normalize is None:
        return None
    try:
        mean, std = (
            tuple(map(float, values)) if hasattr(values, "__len__") else (float(values),) for values in normalize
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"normalize is {normalize!r:.100}; it must be (mean, std), of numbers by channel") from error
    if of_pixels and any(value > 1 for value in mean):
        raise ValueError(f"normalize has mean {list(mean)}; pixels lie in 0 .. 1: did you mean each of them / 255?")
    return mean, std

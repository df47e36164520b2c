"""Normalisation of images after the noise: (mean, std) per channel, of images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

Normalization = tuple[Sequence[float], Sequence[float]]

CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS = {"cifar10": CIFAR10_STATISTICS, "cifar100": CIFAR100_STATISTICS, "imagenet": IMAGENET_STATISTICS}

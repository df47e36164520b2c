"""What people run today, re-written cleanly: the contenders of the benchmarks and references of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def torch_replicas(
    image: Tensor, count: int, sigma: float, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:  # fmt: skip
    """Noisy, normalised copies of one float image [1, C, H, W] in plain PyTorch: repeat, randn, mul, add, normalise,
    cast."""
    replicas = image.repeat(count, 1, 1, 1)
    replicas = replicas + torch.randn_like(replicas) * sigma
    replicas = (replicas - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    return replicas.to(dtype).to(memory_format=memory_format)


@torch.no_grad()
def cohen_counts(base: nn.Module, image: Tensor, n: int, sigma: float, batch: int, num_classes: int) -> np.ndarray:
    """The sampling loop of Cohen et al. 2019: noise by randn_like, argmax, votes to the host and counted one by one.

    Args:
        base: maps [B, C, H, W] in [0, 1] to logits; normalises inside, as theirs does.
        image: float [C, H, W].
    """
    counts = np.zeros(num_classes, dtype=int)
    while n > 0:
        this = min(batch, n)
        n -= this
        replicas = image.repeat((this, 1, 1, 1))
        noise = torch.randn_like(replicas) * sigma
        for vote in base(replicas + noise).argmax(1).cpu().numpy():
            counts[vote] += 1
    return counts

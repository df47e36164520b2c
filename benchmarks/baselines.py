"""What people run today, re-written cleanly: the contenders of the benchmarks and references of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smoothfast.noise import Stream
from smoothfast.procedures import CERTIFIED, NOT_CERTIFIED, UNDECIDED, Decision, Draw
from smoothfast.statistics import clopper_pearson_lower, clopper_pearson_upper


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


class FourLooks:
    """The four looks of Voracek 2024, "Treatment of statistical estimation problems in randomized smoothing": is the
    probability of class 0 above p0? Clopper-Pearson bounds on either side, each at level alpha / 4."""

    LOOKS = (100, 1_000, 10_000, 100_000)
    most = LOOKS[-1]

    def __init__(self, p0: float, alpha: float) -> None:
        self._p0, self._alpha, self._look, self._votes = p0, alpha, 0, np.zeros(1, np.int64)

    def begin(self) -> Draw:
        return Draw(Stream.ESTIMATE, 0, self.LOOKS[0])

    def update(self, votes: NDArray[np.int64]) -> Draw | Decision:
        self._votes = self._votes + votes
        n, k, level = self.LOOKS[self._look], self._votes[0], self._alpha / len(self.LOOKS)
        certified = clopper_pearson_lower(k, n, level) > self._p0
        refuted = clopper_pearson_upper(k, n, level) < self._p0
        self._look += 1
        if certified or refuted or self._look == len(self.LOOKS):
            outcome = CERTIFIED if certified else NOT_CERTIFIED if refuted else UNDECIDED
            return Decision(0 if certified else -1, self._votes[:-1], int(self._votes[-1]), n, outcome)
        return Draw(Stream.ESTIMATE, n, self.LOOKS[self._look] - n)

"""Networks that OpenVINO quantises to 8 bits, for architectures that are no CIFAR ResNet."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


class Calibrated(nn.Module):
    """A network beside replicas that show how far its maps reach.

    Attributes:
        base: replicas to logits, in float32.
        examples: float32 [N, C, H, W], noisy and normalised.
    """

    examples: Tensor

    def __init__(self, base: nn.Module, examples: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("examples", examples, persistent=False)
        self.training = base.training

    def forward(self, replicas: Tensor) -> Any:
        """Logits [B, K] of the network before it is quantised."""
        return self.base(replicas)


def quantised(model: Any, examples: Tensor, rows: int, last: bool) -> Any:
    """A model of OpenVINO in 8 bits, by its own quantiser (NNCF), without labels or training.

    Args:
        rows: of a micro-batch, which examples are cut to.
        last: whether it takes channels last.
    """
    nncf = import_module("nncf")
    examples = examples.permute(0, 2, 3, 1) if last else examples
    used = torch.arange(max(rows, len(examples) // rows * rows)) % len(examples)
    batches = [batch.numpy() for batch in examples[used].split(rows)]
    return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))

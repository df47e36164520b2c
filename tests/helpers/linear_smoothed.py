"""A linear network, smoothed by a runner that is named."""

from __future__ import annotations

import torch
from torch import nn

import smoothfast as sf

IMAGES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()


def smoothed(base: nn.Module, runner: str) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(base, 0.25, 3, precision="fp32", runner=runner, max_batch=16)

"""Pictures of nothing, to calibrate on where no images are given: smooth, as photographs are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

COUNT = 128
CELLS = (2, 4, 8, 16)  # a side, of the noise that is added up; the finer, the weaker
# Of the embedded network's logits, integers are wrong by 9 % of their norm where contrast is 1, by 2 to 3 % here, and
# by 1.4 % where they are fitted to photographs: darker and brighter parts drive maps further.
CONTRAST = 5


def pictures(shape: Sequence[int] = (3, 32, 32)) -> Tensor:
    """Smooth noise as images of a shape [C, H, W], uint8 [128, C, H, W], cut off where it is black or white; always the
    same."""
    channels, *size = shape
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(COUNT, *shape)
    for cells in CELLS:
        noise = torch.randn(COUNT, channels, cells, cells, generator=generator)
        total += F.interpolate(noise, size, mode="bilinear") / cells
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    stretched = (total - low) / (high - low) * CONTRAST + (1 - CONTRAST) / 2
    return (stretched.clamp(0, 1) * 255).round().to(torch.uint8)

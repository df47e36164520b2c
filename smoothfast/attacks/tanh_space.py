"""Numbers w of any size for pixels x in a range; in [0, 1], x = (tanh(w) + 1) / 2 (Carlini and Wagner 2017, arXiv
1608.04644).

torch.atanh gives a number other bits at another place of a tensor, so images are turned into numbers one at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..images import Bounds

SHRINK = 1 - 1e-6  # of [-1, 1]: tanh reaches neither end


def require_range(bounds: Bounds | None) -> None:
    """Raises ValueError where images have no range, which tanh could lead to."""
    if bounds is None:
        raise ValueError("bounds is None; this attack searches by the tanh of a range: give bounds=(low, high)")


def from_pixels(image: Tensor, bounds: Bounds) -> Tensor:
    """Numbers of an image, in its shape; the ends of its range become -7.25 and 7.25."""
    low, high = bounds
    return torch.atanh((2 * ((image - low) / (high - low)) - 1) * SHRINK)


def to_pixels(numbers: Tensor, bounds: Bounds) -> Tensor:
    """Pixels of numbers, in their range."""
    low, high = bounds
    return (torch.tanh(numbers) + 1) / 2 * (high - low) + low


def derivative(numbers: Tensor, bounds: Bounds) -> Tensor:
    """The derivative of the pixels by their numbers."""
    low, high = bounds
    return (1 - torch.tanh(numbers).square()) / 2 * (high - low)

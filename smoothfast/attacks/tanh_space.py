"""Numbers w of any size for pixels x in [0, 1]: x = (tanh(w) + 1) / 2 (Carlini and Wagner 2017, arXiv 1608.04644).

torch.atanh gives a number other bits at another place of a tensor, so images are turned into numbers one at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHRINK = 1 - 1e-6  # of [-1, 1]: tanh reaches neither end


def from_pixels(image: Tensor) -> Tensor:
    """Numbers of an image, in its shape; 0 and 1 become -7.25 and 7.25."""
    return torch.atanh((2 * image - 1) * SHRINK)


def to_pixels(numbers: Tensor) -> Tensor:
    """Pixels in [0, 1] of numbers."""
    return (torch.tanh(numbers) + 1) / 2


def derivative(numbers: Tensor) -> Tensor:
    """The derivative of the pixels by their numbers."""
    return (1 - torch.tanh(numbers).square()) / 2

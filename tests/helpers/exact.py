"""A classifier that computes with integers, and data to go with it: what comes of them is the same on every processor.

A sum of floating-point numbers depends on its order, and the order on the processor. Here sums are of integers, which
float64 holds exactly. For the command line: `--model helpers.exact:Exact --data helpers.exact:images`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import smoothfast as sf

SHAPE, PIXELS, HIDDEN = (3, 4, 4), 48, 8
STEPS = 1024  # of a pixel from 0 to 1
LABELS = (2, 1, 2, 0, 2, 1, 0, 2)  # of the test images; number 6 is labelled wrongly, number 7 lies between two classes


def digits(count: int, base: int, seed: int) -> Tensor:
    """Pseudo-random integers 0 .. base - 1, int64 [count], by a linear congruence in whole numbers."""
    state, found = seed, []
    for _ in range(count):
        state = (1103515245 * state + 12345) % 2**31
        found.append((state >> 16) % base)
    return torch.tensor(found)


class Exact(nn.Module):
    """Two layers of integer weights, on pixels rounded to 1/1024; gradients pass the rounding unchanged."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        first, second = digits(HIDDEN * PIXELS, 7, 1) - 3, digits(num_classes * HIDDEN, 5, 2) - 2
        self.register_buffer("first", first.view(HIDDEN, PIXELS).to(torch.int8))
        self.register_buffer("second", second.view(num_classes, HIDDEN).to(torch.int8))

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [B, K] of images [B, 3, 4, 4]."""
        first, second = self.first.T.double(), self.second.T.double()
        pixels = STEPS * images.double().flatten(1)
        pixels = pixels + (pixels.round() - pixels).detach()
        hidden = (pixels @ first - STEPS / 2 * first.sum(0)).relu()  # 0 where all is grey
        return (hidden @ second / STEPS).float()


def trainable(num_classes: int = 3) -> nn.Sequential:
    """A small network, with weights that no generator of random numbers has drawn."""
    convolution, linear = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Linear(24, num_classes)
    for seed, parameter in enumerate((convolution.weight, linear.weight, linear.bias), 3):
        parameter.data = (digits(parameter.numel(), 65, seed).view(parameter.shape) - 32) / 128
    return nn.Sequential(convolution, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), linear)


class Images(sf.data.Images):
    """Images uint8 [N, 3, 4, 4]: 8 to test on, 56 to train on."""

    classes = ("one", "two", "three")


def images(split: str = "test") -> Images:
    """The images of a split."""
    first, labels = (11, torch.tensor(LABELS)) if split == "test" else (19, torch.arange(56) % 3)
    pixels = [digits(PIXELS, 256, first + number).view(SHAPE) for number in range(len(labels))]
    return Images(torch.stack(pixels).byte(), labels)


def floats(split: str = "test") -> Images:
    """The same as float32 images in [0, 1]."""
    of = images(split)
    return Images(of.images.float() / 255, of.labels)

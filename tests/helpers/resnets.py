"""CIFAR ResNets of any widths, whose activations are as those of trained ones, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import models


class Net(nn.Module):
    """A CIFAR ResNet of any widths."""

    def __init__(self, widths: tuple[int, int, int], blocks: int, classes: int, shortcut: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        pairs = zip((widths[0], *widths), widths, (1, 2, 2), strict=False)
        self.stages = nn.Sequential(*(models.ResNet._stage(*pair[:2], blocks, pair[2], shortcut) for pair in pairs))
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.stages(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


def settled(net: nn.Module, seed: int = 0) -> nn.Module:
    """A network with batch norms that have seen images, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.2, generator=generator)
            part.bias.data.normal_(0, 0.2, generator=generator)
            part.momentum = None
    net.train()
    with torch.no_grad():
        net(images(16, seed))
    return net.eval()


def images(count: int, seed: int = 1) -> Tensor:
    """Replicas of bf16 values in float32, smooth with some noise."""
    generator = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(count, 3, 4, 4, generator=generator), size=32, mode="bilinear")
    return (2 * smooth - 1 + 0.5 * torch.randn(count, 3, 32, 32, generator=generator)).bfloat16().float()


def made(widths: tuple[int, int, int], blocks: int, classes: int, shortcut: str) -> nn.Module:
    """A network, the same for the same widths."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(widths))
        return settled(Net(widths, blocks, classes, shortcut))

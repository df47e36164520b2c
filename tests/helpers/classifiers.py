"""Base classifiers that several tests smooth: one whose votes are known, and the embedded one."""

from __future__ import annotations

from torch import Tensor, nn

from smoothfast import models
from smoothfast.weights import DEMO, read_weights


class Pixels(nn.Module):
    """Logits that are the first pixels: exact in whatever batch, and with lattice noise often tied."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.classes]


def embedded() -> nn.Module:
    """The ResNet-20 that is part of the package, in eval mode."""
    network = models.resnet20().eval()
    read_weights(DEMO).load_into(network)
    return network

"""Base classifiers of the field: CIFAR ResNets (He et al. 2016, section 4.2) and wide ResNets (Zagoruyko 2016).

Inputs are images in [0, 1] that have been normalised, either by the fused kernel
(`SmoothedClassifier(normalize=...)`) or by a `Normalize` layer in front of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import imported, near
from .layers import inject_noise
from .normalization import (
    CIFAR10_COHEN_STATISTICS,
    CIFAR10_STATISTICS,
    CIFAR100_STATISTICS,
    IMAGENET_STATISTICS,
    STATISTICS,
)
from .own_networks import NO_CLASSES, own_network
from .pretrained import onnx_network, transformers_network
from .specs import MODEL_SPECS, require_model

__all__ = [
    "CIFAR10_COHEN_STATISTICS",
    "CIFAR10_STATISTICS",
    "CIFAR100_STATISTICS",
    "IMAGENET_STATISTICS",
    "MODELS",
    "SPECS",
    "STATISTICS",
    "Normalize",
    "ResNet",
    "WideResNet",
    "load",
    "maker",
    "resnet20",
    "resnet20b",
    "resnet32",
    "resnet56",
    "resnet110",
    "resnet110b",
    "wrn34_10",
]


class Normalize(nn.Module):
    """Normalisation (x - mean) / std per channel, as the first layer of a network that is fed images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, of the shape of the images."""
        return (images - self.mean) / self.std


class PadShortcut(nn.Module):
    """Option A of He et al.: every second pixel, new channels filled with zeros, no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel of x [N, C, H, W], with channels of zeros on either side."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Option B of He et al.: a strided 1x1 convolution and a batch norm."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


SHORTCUTS = {"A": PadShortcut, "B": projection_shortcut}


class BasicBlock(nn.Module):
    """Residual block: conv-BN-ReLU-conv-BN, plus the shortcut, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes_shape = stride != 1 or in_channels != out_channels
        self.shortcut: nn.Module = (
            SHORTCUTS[shortcut](in_channels, out_channels, stride) if changes_shape else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Activations after the block."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n+2: three stages of n basic blocks, widths 16, 32, 64.

    Args:
        depth: 20, 32, 44, 56, 110, or any 6n+2.
        num_classes: number of logits.
        shortcut: "A" (zero padding, no parameters; the CIFAR networks of the paper) or "B" (1x1 convolution).
    """

    def __init__(self, depth: int, num_classes: int = 10, shortcut: str = "A") -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is {depth}; a CIFAR ResNet has depth 6n+2: 20, 32, 44, 56, 110")
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut is {shortcut!r}; it must be 'A' or 'B'")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stage1 = self._stage(16, 16, blocks, 1, shortcut)
        self.stage2 = self._stage(16, 32, blocks, 2, shortcut)
        self.stage3 = self._stage(32, 64, blocks, 2, shortcut)
        self.fc = nn.Linear(64, num_classes)
        _initialise(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride, shortcut)
        rest = (BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of normalised images [N, 3, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean((2, 3)))


class WideBlock(nn.Module):
    """Pre-activation block: BN-ReLU-conv-BN-ReLU-conv, plus the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Activations after the block."""
        active = F.relu(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Wide ResNet of depth 6n+4 and the given widening factor, without dropout.

    Args:
        depth: 6n+4, for example 28 or 34.
        widen: factor on the widths 16, 32, 64.
        num_classes: number of logits.
    """

    def __init__(self, depth: int = 34, widen: int = 10, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth is {depth}; a wide ResNet has depth 6n+4: 16, 28, 34, 40")
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        stages = []
        for stage, (before, width) in enumerate(pairwise(widths)):
            first = WideBlock(before, width, 1 if stage == 0 else 2)
            rest = (WideBlock(width, width, 1) for _ in range((depth - 4) // 6 - 1))
            stages.append(nn.Sequential(first, *rest))
        self.stage1, self.stage2, self.stage3 = stages
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of normalised images [N, 3, H, W]."""
        x = self.stage3(self.stage2(self.stage1(self.conv1(x))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet20(num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """ResNet-20 for 32x32 images: 0.27 million parameters, 41 million multiply-adds."""
    return ResNet(20, num_classes, shortcut)


def resnet20b(num_classes: int = 10) -> ResNet:
    """ResNet-20 with shortcuts of 1x1 convolutions, the network of Nemcovsky et al. 2019."""
    return ResNet(20, num_classes, "B")


def resnet32(num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """ResNet-32 for 32x32 images: 0.46 million parameters, 69 million multiply-adds."""
    return ResNet(32, num_classes, shortcut)


def resnet56(num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """ResNet-56 for 32x32 images: 0.85 million parameters, 125 million multiply-adds."""
    return ResNet(56, num_classes, shortcut)


def resnet110(num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """ResNet-110 for 32x32 images."""
    return ResNet(110, num_classes, shortcut)


def resnet110b(num_classes: int = 10) -> ResNet:
    """ResNet-110 with shortcuts of 1x1 convolutions, the CIFAR network of Cohen et al. 2019."""
    return ResNet(110, num_classes, "B")


def wrn34_10(num_classes: int = 10) -> WideResNet:
    """WRN-34-10 for 32x32 images: 46 million parameters."""
    return WideResNet(34, 10, num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "resnet20b": resnet20b,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet110b": resnet110b,
    "wrn34_10": wrn34_10,
}


SPECS = MODEL_SPECS


def load(spec: str, num_classes: int | None = None) -> nn.Module:
    """The network that a spec names.

    Args:
        spec: a name of this module, or `torchvision:resnet50`, or `timm:NAME` where timm is installed: untrained.
            `hf:FOLDER` (an image classifier of transformers) and `onnx:FILE` (`pretrained`). `package.module:name` or
            `file.py:name`: a network, a callable that makes one, with `num_classes=` where it takes that, or a function
            from images to logits. Followed by `+pni` or `+cni`, one with noise in the weights (`layers.inject_noise`).
        num_classes: number of logits; None where the network settles it.

    Raises:
        ValueError: the spec names nothing that can be built.
    """
    return maker(spec)(num_classes)


def maker(spec: str) -> Callable[[int | None], nn.Module]:
    """The function from a number of logits to the network that a spec names (`load`); code that it names is imported.

    Raises:
        ValueError: there is no such code, or no such name in it.
    """
    require_model(spec)
    plain, plus, noise = spec.rpartition("+")
    if plus:
        make = maker(plain)
        return lambda num_classes: inject_noise(make(num_classes), noise)
    kind, _, name = spec.partition(":")
    if spec in MODELS:
        return partial(_built, spec, MODELS[spec])
    if kind in LIBRARIES:
        return partial(_built, spec, partial(LIBRARIES[kind], name))
    if kind in PRETRAINED:
        return lambda _: PRETRAINED[kind](name)
    return partial(own_network, spec, imported(spec, "model", SPECS))


LIBRARIES: dict[str, Callable[..., nn.Module]] = {
    "torchvision": lambda name, **how: import_module("torchvision").models.get_model(name, weights=None, **how),
    "timm": lambda name, **how: import_module("timm").create_model(name, **how),
}
PRETRAINED = {"hf": transformers_network, "onnx": onnx_network}


def _built(spec: str, make: Callable[..., nn.Module], num_classes: int | None) -> nn.Module:
    if num_classes is None:
        raise ValueError(NO_CLASSES)
    try:
        return make(num_classes=num_classes)
    except ImportError as error:
        raise ValueError(f"model is {spec!r}, which cannot be built: {error}") from error
    except (ValueError, RuntimeError) as error:
        library, _, name = spec.partition(":")
        known = import_module(library).models.list_models() if library == "torchvision" else ()
        raise ValueError(f"model is {spec!r}, which cannot be built: {error}{near(name, known)}") from error

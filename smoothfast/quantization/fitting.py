"""Integers for a CIFAR ResNet: steps of maps, by what they are on noisy images, and scales of weights.

Calibration runs in floating point, and other hardware may round a weight otherwise: what is to be the same everywhere
is the network that it makes, as a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..images import checked_images
from ..integers import IntegerResNet
from ..integers.exact import BIAS, IMAGE_WEIGHT, IMAGE_WEIGHTS, PAIR, SCALE, SUM, network_of
from ..integers.network import LEVELS, PIXELS
from ..interrupts import held_back
from ..modules import device_of, evaluating
from ..normalization import Normalization
from ..ops.laws import law_of
from ..ops.philox import stream_key
from ..runners.calibrated import Calibrated
from ..runners.expressions import IMAGE, Convolution
from ..runners.resnets import CifarResNet, recognised
from ..streams import Stream
from ..turns import MAKING
from .pictures import pictures

CALIBRATED = 64  # pictures that OpenVINO quantises by: a micro-batch of small ones
SMALLEST = 1e-30  # a step of a map that is black, or a scale of weights that are zero


def quantize(
    base: nn.Module,
    sigma: float | Sequence[float],
    normalize: Normalization | None = None,
    images: Tensor | None = None,
    seed: int = 0,
) -> IntegerResNet:
    """Quantises a CIFAR ResNet of depth 6n + 2, in whatever module it is.

    Args:
        base: the trained network, normalised images [B, 3, 32, 32] to logits.
        sigma: of the noise that it will see, in units of images in 0 .. 1.
        normalize: (mean, std) by channel that images get before the network; None: nothing, or it has its own.
        images: uint8 [N, 3, 32, 32] that steps of maps are fitted to; drawn, if not given: the loss is the same.
        seed: of the noise on them.

    Returns:
        A base classifier for images in 0 .. 1, its normalisation within.

    Raises:
        ValueError: the network is of another kind, or images are.
    """
    given = pictures() if images is None else checked_images(images)
    if given.dtype != torch.uint8 or tuple(given.shape[1:]) != IMAGE:
        raise ValueError(f"images are {given.dtype} {list(given.shape)}; they must be uint8 [N, 3, 32, 32]")
    if device_of(base).type != "cpu":
        raise ValueError(f"the base classifier is on {device_of(base)}; it is quantised on the CPU")
    with held_back(), MAKING.taken(), evaluating(base), torch.no_grad():
        found = recognised(base, (torch.zeros(2, *IMAGE),))
        return network_of(Fitting(found, noisy(given, sigma, seed), normalize).tensors())


def noisy(images: Tensor, sigma: float | Sequence[float], seed: int) -> Tensor:
    """A noisy copy of each of some images uint8, in levels: float32."""
    ones = torch.ones(images.shape[1])
    return replicas(images, sigma, seed, (ones, 0 * ones))


def calibrated(
    base: nn.Module, shape: Sequence[int], sigma: Sequence[float], normalize: Normalization | None
) -> Calibrated:
    """A base classifier that is no CIFAR ResNet, for OpenVINO to quantise: beside noisy pictures of a shape [C, H, W].

    Raises:
        ValueError: the shape is another, or no quantiser is installed.
    """
    if len(shape) != 3:
        raise ValueError(f"precision is 'int8', which is for images [C, H, W]; these are {list(shape)}")
    absent = [name for name in ("openvino", "nncf") if find_spec(name) is None]
    if absent:
        raise ValueError(
            f"precision is 'int8', which takes {' and '.join(absent)} for this network: pip install smoothfast[int8]"
        )
    drawn = pictures(shape)[:CALIBRATED]
    return Calibrated(base, replicas(drawn, sigma, 0, ops.affine(normalize, shape[0], torch.uint8)))


def replicas(images: Tensor, sigma: float | Sequence[float], seed: int, by: tuple[Tensor, Tensor]) -> Tensor:
    """A noisy copy of each of some images uint8, times and plus what is given by channel: float32."""
    rows, law = torch.arange(len(images)), law_of(None, list(np.atleast_1d(sigma)), images.dtype)
    key = stream_key(seed, Stream.TRAIN)
    return ops.noisy_replicas(images, rows, rows, torch.zeros_like(rows), key, law, *by)


@dataclass(frozen=True)
class Map:
    """A map on the images of the calibration, and its step: a level is so much.

    Attributes:
        values: float32 [N, C, H, W], after the ReLU.
    """

    values: Tensor
    step: float


class Fitting:
    """The tensors of an integer network, layer by layer, with the maps of the float network beside them.

    Args:
        network: as it was recognised.
        levels: noisy images float32 [N, 3, 32, 32], in levels.
        normalize: what images get before the network.
    """

    def __init__(self, network: CifarResNet, levels: Tensor, normalize: Normalization | None) -> None:
        self.network, self.levels = network, levels
        scale, shift = (values.double().view(3, 1, 1) for values in ops.affine(normalize, 3, torch.uint8))
        if network.scale is not None and network.shift is not None:
            scale, shift = scale * network.scale, shift * network.scale + network.shift
        self.scale, self.shift = scale, shift  # of what the first convolution takes, in levels
        self._tensors: dict[str, Tensor] = {}

    def tensors(self) -> dict[str, Tensor]:
        """The `state_dict` of the integer network."""
        layers = iter(self.network.convolutions)
        x = self._image(next(layers))
        for number in range(3 * self.network.shape[3]):
            first = next(layers)
            shortcut, first = (first, next(layers)) if first.size == 1 else (None, first)
            x = self._block(f"blocks.{number}", x, first, next(layers), shortcut)
        self._head(x)
        return self._tensors

    def _image(self, layer: Convolution) -> Map:
        """The convolution of images. Zeros around an image are zeros after its normalisation, so what that adds depends
        on the taps that are inside."""
        weights = folded(layer)
        values = F.conv2d((self.levels * self.scale + self.shift).float(), weights.float(), padding=1)
        weights_of_levels, of_shift = weights * self.scale, (weights * self.shift).sum(1)
        magnitudes = weights_of_levels.abs().flatten(1)
        rounded_up = magnitudes.shape[1] / 2
        scale = (magnitudes.amax(1) / IMAGE_WEIGHT).maximum(magnitudes.sum(1) / (IMAGE_WEIGHTS - rounded_up))
        inside = [slice(1, 3), slice(0, 3), slice(0, 2)]
        added = torch.stack([of_shift[:, rows, columns].sum((1, 2)) for rows in inside for columns in inside])
        bias = added.view(3, 3, -1) + layer.bias
        scale = scale.clamp_min(SMALLEST)
        self._tensors["image.weight"] = (weights_of_levels / per_output(scale)).round().to(torch.int16)
        return self._rounded("image", values + layer.bias.view(-1, 1, 1).float(), scale, bias)

    def _block(self, name: str, x: Map, first: Convolution, second: Convolution, shortcut: Convolution | None) -> Map:
        weights = folded(first)
        scale = scale_of(weights)
        values = F.conv2d(x.values, weights.float(), first.bias.float(), first.stride, padding=1)
        self._tensors[f"{name}.first.weight"] = (weights / per_output(scale)).round().to(torch.int8)
        inner = self._rounded(f"{name}.first", values, x.step * scale, first.bias)

        weights = folded(second)
        if shortcut is None:
            added, ways = x.values, torch.ones(len(weights), 1, 1, 1, dtype=torch.float64)
        else:
            ways = folded(shortcut)
            added = F.conv2d(x.values, ways.float(), stride=2)
        scale, way_scale, shift = shared_scale(weights, inner.step, ways, x.step)
        rounded = (ways / per_output(way_scale)).round().to(torch.int8)
        self._tensors[f"{name}.shift"] = shift.int()
        self._tensors[f"{name}.shortcut" if shortcut else f"{name}.multiplier"] = (
            rounded if shortcut else rounded.flatten()
        )
        self._tensors[f"{name}.second.weight"] = (weights / per_output(scale)).round().to(torch.int8)
        values = F.conv2d(inner.values, weights.float(), second.bias.float(), padding=1) + added
        return self._rounded(f"{name}.second", values, inner.step * scale, second.bias)

    def _rounded(self, name: str, values: Tensor, unit: Tensor, bias: Tensor) -> Map:
        """The map that a convolution makes: how its sums, in units by output, become levels."""
        step = max(float(values.max()) / LEVELS, float(unit.max()) / SCALE, float(bias.abs().max()) / BIAS, SMALLEST)
        self._tensors[f"{name}.scale"] = (unit / step).float()
        self._tensors[f"{name}.bias"] = (bias / step).float()
        return Map(values.relu(), step)

    def _head(self, x: Map) -> None:
        """The mean over pixels and the linear layer."""
        weights, bias = self.network.linear.weight, self.network.linear.bias.double()
        assert isinstance(weights, Tensor)
        weights = weights.double()
        mean = x.step / PIXELS
        rounded_up = PIXELS * LEVELS * weights.shape[1] / 2 + 2
        sums = (PIXELS * LEVELS * weights.abs().sum(1) + bias.abs() / mean).max() / (SUM - rounded_up)
        scale = max(float(weights.abs().max()) / torch.iinfo(torch.int16).max, float(sums), SMALLEST)
        self._tensors["linear"] = (weights / scale).round().to(torch.int16)
        self._tensors["linear_bias"] = (bias / (scale * mean)).round().to(torch.int32)
        self._tensors["unit"] = torch.tensor(scale * mean, dtype=torch.float32)


def folded(layer: Convolution) -> Tensor:
    """Weights of a convolution with its batch norm, float64."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight.double() * per_output(layer.gain)


def per_output(values: Tensor) -> Tensor:
    """Values by output as those of [O, I, k, k]."""
    return values.view(-1, 1, 1, 1)


def scale_of(weights: Tensor) -> Tensor:
    """The scales of weights by output: none that is rounded makes a pair exceed `PAIR`."""
    pairs = weights.abs()
    if weights.shape[1] > 1:
        pairs = pairs.unflatten(1, (-1, 2)).sum(2)
    return (pairs.flatten(1).amax(1) / (PAIR - 1)).clamp_min(SMALLEST)


def shared_scale(weights: Tensor, step: float, ways: Tensor, way_step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scales by output of weights and of a shortcut that enters the same sums, shifted: the unit of the former times
    2^shift is that of the latter.

    Weights are as fine as their pairs let them be, or at most twice as coarse, so that the largest weight of the
    shortcut is exact; it is the only one where channels go on as they are.

    Args:
        weights, ways: [O, I, 3, 3] and, of the shortcut, [O, I', 1, 1].
        step, way_step: of what these take.
    """
    unit, way_unit = step * scale_of(weights), way_step * scale_of(ways)
    largest_sum = LEVELS * PAIR * -(-ways.shape[1] // 2)
    most = math.floor(math.log2(SUM / 2 / largest_sum))  # bits to shift by, where weights are next to nothing
    unit = unit.maximum(way_unit / 2.0**most)
    shift = (way_unit / unit).log2().ceil().clamp(0, most)
    way_scale = unit * 2**shift / way_step
    largest = ways.abs().flatten(1).amax(1)
    whole = (largest / way_scale).floor()
    way_scale = torch.where(whole > 0, largest / whole, way_scale)
    return way_step * way_scale / (step * 2**shift), way_scale, shift

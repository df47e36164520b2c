"""Expressions: what the operations of an exported graph compute, as far as CIFAR ResNets have them.

`OPERATIONS` makes an expression of each operation and of the expressions that it takes. What is outside the family is a
`MismatchError`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class Given:
    """A weight that comes with the replicas, as the noisy ones of a pass do: which, and its shape."""

    number: int
    shape: torch.Size


@dataclass(frozen=True, eq=False)
class Input:
    """The images, times `scale` plus `shift` [3, 1, 1] in float64."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class Convolution:
    """Weights times `gain` [outputs], plus `bias` [outputs], both in float64.

    Attributes:
        weight: [outputs, inputs, k, k], or what stands for it.
    """

    of: Any
    weight: Tensor | Given
    outputs: int
    size: int
    stride: int
    gain: Tensor
    bias: Tensor

    def scaled(self, gain: Tensor, bias: Tensor) -> Convolution:
        """The convolution with its outputs times `gain`, plus `bias`, both [outputs]."""
        return replace(self, gain=self.gain * gain, bias=self.bias * gain + bias)


@dataclass(frozen=True, eq=False)
class Strided:
    """Every second row and pixel, or only rows; with channels of zeros before and after those of the map."""

    of: Any
    rows: int = 1
    pixels: int = 1
    before: int = 0
    after: int = 0


@dataclass(frozen=True, eq=False)
class Added:
    """The sum of two expressions."""

    left: Any
    right: Any


@dataclass(frozen=True, eq=False)
class Activated:
    """A ReLU."""

    of: Any


@dataclass(frozen=True, eq=False)
class Averaged:
    """The mean over all pixels."""

    of: Any


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer."""

    of: Any
    weight: Tensor | Given
    bias: Tensor


class MismatchError(ValueError):
    """Something that is not of the family, and where."""


def require(condition: bool, reason: str) -> None:
    """Raises MismatchError with a reason unless a condition holds."""
    if not condition:
        raise MismatchError(reason)


def _convolution(x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                 groups: int = 1) -> Convolution:  # fmt: skip
    outputs, _, size, width = weight.shape
    strides = set(_pair(stride))
    require(groups == 1, f"it has {groups} groups")
    require(width == size and size in (1, 3), f"its kernel is {size}x{width}; 3x3 and 1x1 are possible")
    require(set(_pair(dilation)) == {1}, f"its dilation is {dilation}")
    require(len(strides) == 1 and strides <= {1, 2}, f"its stride is {stride}; 1 and 2 are possible")
    require(
        set(_pair(padding)) == {size // 2}, f"its padding is {padding}; that of a {size}x{size} must be {size // 2}"
    )
    gain = torch.ones(outputs, dtype=torch.float64)
    return Convolution(x, weight, outputs, size, strides.pop(), gain, 0 * gain if bias is None else bias.double())


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, _momentum: float, eps: float) -> Any:
    require(isinstance(x, Convolution), f"it takes {kind(x)}; only a convolution may come before a batch norm")
    gain = (variance.double() + eps).rsqrt() * (1.0 if weight is None else weight.double())
    return x.scaled(gain, (0.0 if bias is None else bias.double()) - mean.double() * gain)


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of an operation on images and constants: a normalisation in front of the network."""

    def applied(x: Any, by: Any) -> Any:
        require(isinstance(x, Input) and isinstance(by, Tensor | float | int), f"it takes {kind(x)} and {kind(by)}")
        by = torch.as_tensor(by, dtype=torch.float64)
        require(by.numel() in (1, 3), f"its constant is {list(by.shape)}; one for each channel is possible")
        by = by.reshape(-1, 1, 1)
        shift = function(x.shift, by)
        return Input(function(x.scale, by) if function in (torch.mul, torch.div) else x.scale, shift)

    return applied


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, Input):
        return _arithmetic(torch.add)(left, right)
    return Added(left, right)


def _slice(x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    whole = not start and (end is None or end >= IMAGE[1])
    require(isinstance(x, Activated | Strided) and whole and (step, dim) in ((2, 2), (2, 3), (1, 0), (1, 1)),
            f"it takes every {step}th from {start} to {end} of dimension {dim} of {kind(x)}")  # fmt: skip
    strided = x if isinstance(x, Strided) else Strided(x)
    return replace(
        strided, rows=strided.rows * (step if dim == 2 else 1), pixels=strided.pixels * (step if dim == 3 else 1)
    )


def _pad(x: Any, padding: Sequence[int], mode: Any = "constant", value: float | None = None) -> Strided:
    zeros = (mode == "constant" or mode == 0) and not value
    channels = list(padding[:4]) == [0] * 4 and len(padding) == 6
    require(isinstance(x, Strided) and zeros and channels, f"it pads {kind(x)} by {list(padding)}")
    return replace(x, before=padding[4], after=padding[5])


def _mean(x: Any, dims: Sequence[int], keepdim: bool = False, **_: Any) -> Averaged:
    require(sorted(dim % 4 for dim in dims) == [2, 3], f"it is over dimensions {list(dims)}")
    return Averaged(x)


def _average_pool(x: Any, size: Any, stride: Any = None, padding: Any = 0, *_: Any) -> Any:
    window, steps = set(_pair(size)), set(_pair(stride)) if stride else set(_pair(size))
    require(set(_pair(padding)) == {0}, f"its padding is {padding}")
    if window == {1} and steps == {2}:
        return Strided(x, 2, 2)
    require(window == {8}, f"its window is {size}; the last map is 8x8")
    return Averaged(x)


def _adaptive_pool(x: Any, size: Any) -> Averaged:
    require(set(_pair(size)) == {1}, f"its output is {size}; it must be 1x1")
    return Averaged(x)


def _reshaped(x: Any, *_: Any) -> Any:
    require(isinstance(x, Averaged), f"it takes {kind(x)}; only the mean over pixels may be reshaped")
    return x


def _linear(x: Any, weight: Any, bias: Any = None) -> Linear:
    require(isinstance(x, Averaged), f"it takes {kind(x)}; the mean over pixels must come before it")
    return Linear(x, weight, torch.zeros(weight.shape[0]) if bias is None else bias)


def _getitem(x: Any, which: int) -> Any:
    require(which == 0, f"it takes result {which}")
    return x


OPERATIONS: dict[Any, Callable[..., Any]] = {
    aten.conv2d.default: _convolution,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    operator.getitem: _getitem,
    aten.relu.default: Activated,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _arithmetic(torch.sub),
    aten.mul.Tensor: _arithmetic(torch.mul),
    aten.div.Tensor: _arithmetic(torch.div),
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: lambda x, padding, value=0: _pad(x, padding, "constant", value),
    aten.mean.dim: _mean,
    aten.avg_pool2d.default: _average_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_pool,
    aten.view.default: _reshaped,
    aten.reshape.default: _reshaped,
    aten.flatten.using_ints: _reshaped,
    aten.squeeze.dims: _reshaped,
    aten.linear.default: _linear,
    aten.clone.default: lambda x, **_: x,
    aten.dropout.default: lambda x, _p, train: _untrained(x, train),
}


def _untrained(x: Any, train: bool) -> Any:
    require(not train, "it is in train mode")
    return x


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def kind(value: Any) -> str:
    """The kind of an expression, for messages."""
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__.lower()

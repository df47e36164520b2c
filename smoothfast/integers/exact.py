"""Networks in integers from tensors, which must be such that no sum overflows and no processor saturates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .network import LEVELS, PIXELS, IntegerBlock, IntegerConvolution, IntegerResNet

PAIR = 128  # 255 * 128 < 2^15: what instructions that add two products to 16 bits can hold
IMAGE_WEIGHT, IMAGE_WEIGHTS = 4095, 65_535  # the largest, and the sum of an output: no image of 16 bits overflows
SUM = 2**31
SCALE, BIAS = 0.5, 2.0**29  # at most: what is rounded stays below 2^31
SHIFT = 24
CHANNELS = 16  # widths are multiples of it
DEEPEST, WIDEST, MOST_CLASSES = 200, 1024, 65_536  # blocks of a stage, channels: what the kernels take
UNIT = 2.0**-126, 2.0**90  # neither subnormal, nor such that logits are infinite


def network_of(tensors: Mapping[str, Tensor]) -> IntegerResNet:
    """The network whose `state_dict` these are, on the CPU.

    Raises:
        ValueError: they are those of none, or a sum might overflow; names the tensor.
    """
    left = dict(tensors)
    numbers = [int(found[1]) for name in left if (found := re.fullmatch(r"blocks\.(\d{1,4})\.shift", name))]
    count = len(numbers)
    _require(0 < count <= 3 * DEEPEST and count % 3 == 0, f"it has {count} blocks, expected three equal stages")
    linear = _taken(left, "linear", torch.int16, (None, None))
    classes, width = linear.shape
    _require(2 <= classes <= MOST_CLASSES, f"linear has {classes} classes, expected 2 .. {MOST_CLASSES:,}")
    image = _image(left)
    blocks, inputs = [], len(image.scale)
    for number in range(count):
        changes = number in (count // 3, 2 * count // 3)
        blocks.append(_block(left, f"blocks.{number}", inputs, changes))
        inputs = len(blocks[-1].shift)
    _require(width == inputs, f"linear takes {width} channels, and the last block makes {inputs}")
    bias = _taken(left, "linear_bias", torch.int32, (classes,))
    unit = _taken(left, "unit", torch.float32, ())
    sums = PIXELS * LEVELS * linear.long().abs().sum(1) + bias.long().abs()
    _require(bool((sums < SUM).all()), "linear may overflow 32 bits")
    _require(UNIT[0] <= float(unit) <= UNIT[1], f"unit is {float(unit)}, expected {UNIT[0]:.2g} .. {UNIT[1]:.2g}")
    _require(not left, f"it has {', '.join(sorted(left)[:3])}, which no integer network has")
    return IntegerResNet(image, blocks, linear, bias, unit)


def _image(left: dict[str, Tensor]) -> IntegerConvolution:
    weight = _taken(left, "image.weight", torch.int16, (None, 3, 3, 3))
    outputs = len(weight)
    _require_width("image.weight", outputs)
    magnitudes = weight.int().abs().flatten(1)
    _require(bool((magnitudes <= IMAGE_WEIGHT).all()), f"image.weight exceeds {IMAGE_WEIGHT}")
    _require(
        bool((magnitudes.sum(1) <= IMAGE_WEIGHTS).all()),
        f"the sum of an output of image.weight exceeds {IMAGE_WEIGHTS}",
    )
    return IntegerConvolution(weight, *_rounding(left, "image", (3, 3, outputs)))


def _block(left: dict[str, Tensor], name: str, inputs: int, changes: bool) -> IntegerBlock:
    """A block by its tensors; `changes`: it halves the map, and its shortcut is a convolution."""
    weight = _weight(left, f"{name}.first.weight", (None, inputs, 3, 3))
    outputs = len(weight)
    _require_width(f"{name}.first.weight", outputs)
    first = IntegerConvolution(weight, *_rounding(left, f"{name}.first", (outputs,)), 2 if changes else 1)
    second_weight = _weight(left, f"{name}.second.weight", (outputs, outputs, 3, 3))
    second = IntegerConvolution(second_weight, *_rounding(left, f"{name}.second", (outputs,)))
    shift = _taken(left, f"{name}.shift", torch.int32, (outputs,))
    _require(bool(((shift >= 0) & (shift <= SHIFT)).all()), f"{name}.shift is outside of 0 .. {SHIFT}")
    multiplier = shortcut = None
    if changes:
        shortcut = _weight(left, f"{name}.shortcut", (outputs, inputs, 1, 1))
        added = shortcut.long().abs().flatten(1).sum(1)
    else:
        _require(outputs == inputs, f"{name} changes the number of channels, and may not")
        multiplier = _taken(left, f"{name}.multiplier", torch.int8, (outputs,))
        _require(bool((multiplier >= 0).all()), f"{name}.multiplier is negative")
        added = multiplier.long()
    sums = LEVELS * (second_weight.long().abs().flatten(1).sum(1) + (added << shift.long()))
    _require(bool((sums < SUM).all()), f"sums of {name}.second may overflow 32 bits")
    return IntegerBlock(first, second, shift, multiplier, shortcut)


def _weight(left: dict[str, Tensor], name: str, shape: Sequence[int | None]) -> Tensor:
    """Weights by pairs: of inputs 2i and 2i + 1 the magnitudes sum to `PAIR` at most."""
    weight = _taken(left, name, torch.int8, shape)
    pairs = weight.int().abs().unflatten(1, (-1, 2)).sum(2)
    _require(bool((pairs <= PAIR).all()), f"two neighbouring weights of {name} exceed {PAIR} together")
    return weight


def _rounding(left: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Scale and bias of a convolution."""
    scale = _taken(left, f"{name}.scale", torch.float32, shape[-1:])
    bias = _taken(left, f"{name}.bias", torch.float32, shape)
    _require(bool(((scale > 0) & (scale <= SCALE)).all()), f"{name}.scale is outside of 0 .. {SCALE}")
    _require(bool((bias.abs() <= BIAS).all()), f"{name}.bias exceeds 2^29 or is not a number")
    return scale, bias


def _taken(left: dict[str, Tensor], name: str, dtype: torch.dtype, shape: Sequence[int | None]) -> Tensor:
    tensor = left.pop(name, None)
    _require(tensor is not None, f"{name} is missing")
    assert tensor is not None
    fits = tensor.dim() == len(shape) and all(
        size in (None, own) for size, own in zip(shape, tensor.shape, strict=True)
    )
    wanted = ["any" if size is None else size for size in shape]
    _require(tensor.dtype == dtype and fits,
             f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {wanted}")  # fmt: skip
    return tensor.contiguous()


def _require_width(name: str, outputs: int) -> None:
    right = 0 < outputs <= WIDEST and outputs % CHANNELS == 0
    _require(right, f"{name} has {outputs} outputs, expected a multiple of {CHANNELS} up to {WIDEST}")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)

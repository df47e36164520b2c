"""CIFAR ResNets recognised in whatever module computes one, for the fused kernels.

The module is exported, its graph read operation by operation into an expression, and the expression taken apart from
its end. What is not exactly of the family, three stages of basic blocks on 3x32x32, is declined with the operation at
which that showed; there are no guesses. Batch norms are folded into convolutions in float64.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from . import ops
from .losses import Differentiated, cross_entropy
from .voting import Voting

aten = torch.ops.aten
IMAGE = (3, 32, 32)


def processors() -> list[str]:
    """What fused networks run on here, the best first: "amx", "avx512_bf16". Nothing if SMOOTHFAST_CPU says less."""
    if ops.extension is None or ops.extension.instruction_set() != "avx512":
        return []
    return list(ops.extension.fused_processors())


# ---- expressions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A weight that comes with the replicas, as the noisy ones of a pass do: which, and its shape."""

    number: int
    shape: torch.Size


@dataclass(frozen=True, eq=False)
class Images:
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
    left: Any
    right: Any


@dataclass(frozen=True, eq=False)
class Activated:
    of: Any


@dataclass(frozen=True, eq=False)
class Averaged:
    """Over all pixels."""

    of: Any


@dataclass(frozen=True, eq=False)
class Linear:
    of: Any
    weight: Tensor | Given
    bias: Tensor


# ---- operations ------------------------------------------------------------------------------------------------------


class MismatchError(ValueError):
    """What is not of the family, and where."""


def require(condition: bool, reason: str) -> None:
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
    require(isinstance(x, Convolution), f"it takes {_kind(x)}; only a convolution may come before a batch norm")
    gain = (variance.double() + eps).rsqrt() * (1.0 if weight is None else weight.double())
    return x.scaled(gain, (0.0 if bias is None else bias.double()) - mean.double() * gain)


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of images and constants: a normalisation in front of the network."""

    def applied(x: Any, by: Any) -> Any:
        require(isinstance(x, Images) and isinstance(by, Tensor | float | int), f"it takes {_kind(x)} and {_kind(by)}")
        by = torch.as_tensor(by, dtype=torch.float64)
        require(by.numel() in (1, 3), f"its constant is {list(by.shape)}; one for each channel is possible")
        by = by.reshape(-1, 1, 1)
        shift = function(x.shift, by)
        return Images(function(x.scale, by) if function in (torch.mul, torch.div) else x.scale, shift)

    return applied


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, Images):
        return _arithmetic(torch.add)(left, right)
    return Added(left, right)


def _slice(x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    whole = not start and (end is None or end >= IMAGE[1])
    require(isinstance(x, Activated | Strided) and whole and (step, dim) in ((2, 2), (2, 3), (1, 0), (1, 1)),
            f"it takes every {step}th from {start} to {end} of dimension {dim} of {_kind(x)}")  # fmt: skip
    strided = x if isinstance(x, Strided) else Strided(x)
    return replace(
        strided, rows=strided.rows * (step if dim == 2 else 1), pixels=strided.pixels * (step if dim == 3 else 1)
    )


def _pad(x: Any, padding: Sequence[int], mode: Any = "constant", value: float | None = None) -> Strided:
    zeros = (mode == "constant" or mode == 0) and not value
    channels = list(padding[:4]) == [0] * 4 and len(padding) == 6
    require(isinstance(x, Strided) and zeros and channels, f"it pads {_kind(x)} by {list(padding)}")
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
    require(isinstance(x, Averaged), f"it takes {_kind(x)}; only the mean over pixels may be reshaped")
    return x


def _linear(x: Any, weight: Any, bias: Any = None) -> Linear:
    require(isinstance(x, Averaged), f"it takes {_kind(x)}; the mean over pixels must come before it")
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


def _kind(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__.lower()


# ---- networks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A recognised network.

    Attributes:
        convolutions: in the order of `ops.fused_pack`.
        linear: the last layer.
        scale, shift: what images are multiplied by, and what is then added, float32 [3, 1, 1]; None: nothing.
        noisy: whether some of the weights come with the replicas.
    """

    convolutions: list[Convolution]
    linear: Linear
    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def shape(self) -> list[int]:
        blocks = (len(self.convolutions) - 3) // 6
        widths = [self.convolutions[2 * stage * blocks + (stage > 0) + (stage > 1)].outputs for stage in range(3)]
        return [*widths, blocks, self.linear.weight.shape[0]]

    @property
    def noisy(self) -> bool:
        weights = [*(convolution.weight for convolution in self.convolutions), self.linear.weight]
        return any(isinstance(weight, Given) for weight in weights)

    def packed(self, gradients: bool, drawn: Sequence[Tensor] = ()) -> Tensor:
        """As the kernels take it."""
        weights, gains, biases = zip(
            *((_value(c.weight, drawn), c.gain, c.bias) for c in self.convolutions), strict=True
        )
        return ops.fused_pack(weights, gains, biases, _value(self.linear.weight, drawn), self.linear.bias, gradients)


def _value(weight: Tensor | Given, drawn: Sequence[Tensor]) -> Tensor:
    return drawn[weight.number] if isinstance(weight, Given) else weight


def resembles(base: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether it is worth the look: seconds are spent on one, and a warning on what it finds wanting."""
    sizes = [(part.kernel_size, part.stride) for part in base.modules() if isinstance(part, nn.Conv2d)]
    down = {((3, 3), (2, 2)), ((1, 1), (2, 2))}
    return (
        shape == IMAGE
        and sizes.count(((3, 3), (2, 2))) == 2
        and set(sizes) - down == {((3, 3), (1, 1))}
        and (len(sizes) - sizes.count(((1, 1), (2, 2)))) % 6 == 1
    )


def recognised(network: nn.Module, examples: tuple[Tensor, ...]) -> Network:
    """The network that a module in eval mode computes.

    Args:
        examples: what it takes: replicas [B, 3, 32, 32], then weights that come with them.

    Raises:
        MismatchError: it is none of the family.
    """
    replicas, *given = examples
    require(tuple(replicas.shape[1:]) == IMAGE, f"images are {list(replicas.shape[1:])}; they must be {list(IMAGE)}")
    exported = torch.export.export(network, (torch.zeros(2, *IMAGE), *given)).run_decompositions({})
    return _network(_expression(exported, given))


def _expression(exported: Any, given: Sequence[Tensor]) -> Any:
    """What the module returns. The first of its inputs that are no state of it are the images."""
    values: dict[Node, Any] = {}
    inputs = iter([Images(torch.ones(3, 1, 1).double(), torch.zeros(3, 1, 1).double()),
                   *(Given(number, tensor.shape) for number, tensor in enumerate(given))])  # fmt: skip
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    state = {**exported.state_dict, **exported.constants}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = kinds[node.name]
            values[node] = next(inputs) if spec.kind == InputKind.USER_INPUT else state[spec.target].detach()
        elif node.op == "call_function":
            values[node] = _applied(node, values)
        elif node.op == "output":
            (result,) = node.args[0]
            return values[result]
    raise AssertionError("a graph without an output")


def _applied(node: Node, values: dict[Node, Any]) -> Any:
    rule = OPERATIONS.get(node.target)
    if rule is None:
        raise MismatchError(f"it has {node.target} ({node.name})")
    arguments = torch.fx.node.map_arg(node.args, values.__getitem__)
    options = torch.fx.node.map_arg(node.kwargs, values.__getitem__)
    try:
        return rule(*arguments, **options)
    except MismatchError as mismatch:
        raise MismatchError(f"{node.name}: {mismatch}") from None
    except (TypeError, AttributeError):  # an operation on what no rule foresees
        raise MismatchError(f"{node.name} takes {', '.join(map(_kind, arguments))}") from None


def _network(result: Any) -> Network:
    require(isinstance(result, Linear), f"it ends in {_kind(result)}; that must be a linear layer")
    x, blocks = result.of.of, []
    while isinstance(x, Activated) and isinstance(x.of, Added):
        block, x = _block(x.of)
        blocks.append(block)
    require(isinstance(x, Activated) and isinstance(x.of, Convolution) and isinstance(x.of.of, Images),
            f"before the blocks is {_kind(x)}; that must be a ReLU of a convolution of the images")  # fmt: skip
    first, images = x.of, x.of.of
    require((first.size, first.stride) == (3, 1), "the first convolution must be a 3x3 with a stride of 1")
    convolutions = [first, *(convolution for block in reversed(blocks) for convolution in block)]
    _check_stages([len(block) == 3 for block in reversed(blocks)])
    widths = [convolution.outputs for convolution in convolutions if convolution.size == 3]
    changes = sum(now != before for before, now in pairwise(widths))
    require(changes <= 2 and all(w % 32 == 0 for w in widths if w != first.outputs) and
            (first.outputs == 16 or first.outputs % 32 == 0),
            f"its widths are {sorted(set(widths))}; they must be multiples of 32, the first may be 16")  # fmt: skip
    if (images.scale == 1).all() and (images.shift == 0).all():
        return Network(convolutions, result)
    return Network(convolutions, result, images.scale.float(), images.shift.float())


def _block(added: Added) -> tuple[list[Convolution], Any]:
    """The convolutions of a block, its shortcut first if that is one, and what the block takes."""
    ways = [(last, shortcut) for last, shortcut in ((added.left, added.right), (added.right, added.left))
            if isinstance(last, Convolution) and last.size == 3 and isinstance(last.of, Activated)]  # fmt: skip
    require(bool(ways), f"a block adds {_kind(added.left)} and {_kind(added.right)}; one must be a 3x3 of a ReLU")
    last, shortcut = ways[0]
    first = last.of.of
    require(isinstance(first, Convolution) and first.size == 3 and isinstance(first.of, Activated),
            f"a block has {_kind(first)} before its last convolution; that must be a 3x3 of its input")  # fmt: skip
    require(last.stride == 1, "the last convolution of a block has a stride of 2")
    if shortcut is first.of:
        require(first.stride == 1, "a block with a stride of 2 adds its input as it is")
        return [first, last], first.of
    if isinstance(shortcut, Strided):
        shortcut = _as_convolution(shortcut, last.outputs)
    require(isinstance(shortcut, Convolution) and shortcut.of is first.of,
            f"a block adds {_kind(shortcut)} to a convolution; that must be a shortcut from its input")  # fmt: skip
    require((shortcut.size, shortcut.stride, first.stride) == (1, 2, 2),
            f"a shortcut is a {shortcut.size}x{shortcut.size} with a stride of {shortcut.stride} beside one of "
            f"{first.stride}; it must be a 1x1 where both are 2")  # fmt: skip
    return [shortcut, first, replace(last, bias=last.bias + shortcut.bias)], first.of


def _as_convolution(shortcut: Strided, outputs: int) -> Convolution:
    """Option A of He et al. as a 1x1 by 0 and 1."""
    require((shortcut.rows, shortcut.pixels) == (2, 2), "a shortcut takes not every second row and pixel")
    inputs = outputs - shortcut.before - shortcut.after
    weight = torch.zeros(outputs, inputs, 1, 1)
    weight[range(shortcut.before, shortcut.before + inputs), range(inputs)] = 1
    gain = torch.ones(outputs, dtype=torch.float64)
    return Convolution(shortcut.of, weight, outputs, 1, 2, gain, 0 * gain)


def _check_stages(changes: list[bool]) -> None:
    """Three stages of as many blocks, of which the second and third begin with a change of shape."""
    blocks = len(changes) // 3
    at = [number for number, change in enumerate(changes) if change]
    require(len(changes) == 3 * blocks and blocks > 0 and at == [blocks, 2 * blocks],
            f"it has {len(changes)} blocks, of which {at} change the shape; that must be the first of the second and "
            "of the third of three equal stages")  # fmt: skip


# ---- runners ---------------------------------------------------------------------------------------------------------

ROWS, ROUNDING = 8, 0.05  # of the check; torch's own bf16 is wrong by 0.007 for ResNet-20


def fused(network: nn.Module, examples: tuple[Tensor, ...], processor: str) -> Callable[..., Any]:
    """A network as a function of a micro-batch; it has been compared with the network in float32.

    Args:
        network: a base classifier, or `Differentiated` of one and of the cross-entropy.
        examples: what it takes.

    Raises:
        MismatchError: it is none of the family, or something else comes out.
    """
    if isinstance(network, Differentiated):
        require(network.loss is cross_entropy, "gradients are those of the cross-entropy, and the loss is another")
        replicas, _, *given = examples
        return Fused(_checked(network.base, (replicas, *given), processor), processor, gradients=True).gradients
    return Fused(_checked(network, examples, processor), processor, gradients=False)


def _checked(network: nn.Module, examples: tuple[Tensor, ...], processor: str) -> Network:
    found = recognised(network, examples)
    noise = torch.randn(ROWS, *IMAGE, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        wanted = network(noise.float(), *examples[1:])
        error = (Fused(found, processor, gradients=False)(noise, *examples[1:]) - wanted).norm() / wanted.norm()
    require(bool(error < ROUNDING), f"its logits differ by {error:.3f} of their norm from those in float32")
    return found


class Fused:
    """A recognised network as a function of a micro-batch: to logits, also with the noise before and the votes after
    it, and to gradients of the cross-entropy.

    Args:
        gradients: whether those will be asked for.
    """

    def __init__(self, network: Network, processor: str, gradients: bool) -> None:
        self.network, self.processor, self._gradients = network, processor, gradients
        self._packed = None if network.noisy else network.packed(gradients)

    def __call__(self, replicas: Tensor, *drawn: Tensor) -> Tensor:
        return ops.fused_logits(self._normalised(replicas), *self._numbers(drawn))

    @property
    def classes(self) -> int:
        return self.network.shape[-1]

    def votes(
        self, noisy: ops.Noisy, drawn: Sequence[Tensor], voting: Voting, counts: Tensor, invalid: Tensor
    ) -> Tensor:
        """Logits of a micro-batch whose rows are drawn here, and whose votes are added; see `ops.fused_votes`."""
        if self.network.scale is not None and self.network.shift is not None:
            *rows, scale, shift, clip = noisy
            by, added = self.network.scale.flatten(), self.network.shift.flatten()
            noisy = cast(ops.Noisy, (*rows, scale * by, shift * by + added, clip))
        return ops.fused_votes(noisy, *self._numbers(drawn), counts, invalid, voting)

    def gradients(self, replicas: Tensor, classes: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        logits, gradients = ops.fused_gradients(self._normalised(replicas), classes[:, 0], *self._numbers(drawn))
        return logits, gradients if self.network.scale is None else gradients * self.network.scale

    def _numbers(self, drawn: Sequence[Tensor]) -> tuple[Tensor, list[int], str]:
        packed = self.network.packed(self._gradients, drawn) if self._packed is None else self._packed
        return packed, self.network.shape, self.processor

    def _normalised(self, replicas: Tensor) -> Tensor:
        if self.network.scale is None or self.network.shift is None:
            return replicas
        return torch.addcmul(self.network.shift, replicas.float(), self.network.scale).to(replicas.dtype)

"""CIFAR ResNets recognised in whatever module computes one, for the fused kernels.

The module is exported, its graph read operation by operation into an expression, and the expression taken apart from
its end. What is not exactly of the family, three stages of basic blocks on 3x32x32, is declined with the operation at
which that showed; there are no guesses. Batch norms are folded into convolutions in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from .. import ops
from .expressions import (
    IMAGE,
    OPERATIONS,
    Activated,
    Added,
    Convolution,
    Given,
    Input,
    Linear,
    MismatchError,
    Strided,
    kind,
    require,
)


@dataclass(frozen=True)
class CifarResNet:
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
        """The shape that `ops.fused_logits` takes."""
        blocks = (len(self.convolutions) - 3) // 6
        widths = [self.convolutions[2 * stage * blocks + (stage > 0) + (stage > 1)].outputs for stage in range(3)]
        return [*widths, blocks, self.linear.weight.shape[0]]

    def suits(self, arithmetic: str) -> bool:
        """Whether an arithmetic takes these widths: tiles have 32 outputs, and GPUs widths that double."""
        first, *others = self.shape[:3]
        if arithmetic.startswith("bf16_mma"):
            return (first, *others) in ((16, 32, 64), *([(32, 64, 128)] if arithmetic == "bf16_mma" else []))
        return arithmetic.startswith("winograd") or (
            first in (16, first // 32 * 32) and all(w % 32 == 0 for w in others)
        )

    @property
    def noisy(self) -> bool:
        """Whether some of the weights come with the replicas."""
        weights = [*(convolution.weight for convolution in self.convolutions), self.linear.weight]
        return any(isinstance(weight, Given) for weight in weights)

    def packed(self, arithmetic: str, gradients: bool, drawn: Sequence[Tensor] = ()) -> Tensor:
        """The network as the kernels of an arithmetic take it, uint8 [bytes]."""
        weights, gains, biases = zip(
            *((_value(c.weight, drawn), c.gain, c.bias) for c in self.convolutions), strict=True
        )
        linear = _value(self.linear.weight, drawn), self.linear.bias
        return ops.fused_pack(weights, gains, biases, *linear, arithmetic, gradients)


def _value(weight: Tensor | Given, drawn: Sequence[Tensor]) -> Tensor:
    return drawn[weight.number] if isinstance(weight, Given) else weight


def recognised(network: nn.Module, examples: tuple[Tensor, ...]) -> CifarResNet:
    """The network that a module in eval mode computes.

    Args:
        examples: what it takes: replicas [B, 3, 32, 32], then weights that come with them.

    Raises:
        MismatchError: it is none of the family.
    """
    replicas, *given = examples
    require(tuple(replicas.shape[1:]) == IMAGE, f"images are {list(replicas.shape[1:])}; they must be {list(IMAGE)}")
    # Strict, as torch 2.6 is unless told, it takes a network's own weights for those that come as inputs.
    exported = torch.export.export(network, (torch.zeros(2, *IMAGE), *given), strict=False)
    exported = exported.run_decompositions({})
    return _network(_expression(exported, given))


def _expression(exported: Any, given: Sequence[Tensor]) -> Any:
    """The expression that a module returns. The first of its inputs that are no state of it are the images."""
    values: dict[Node, Any] = {}
    inputs = iter([Input(torch.ones(3, 1, 1).double(), torch.zeros(3, 1, 1).double()),
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
        raise MismatchError(f"{node.name} takes {', '.join(map(kind, arguments))}") from None


def _network(result: Any) -> CifarResNet:
    require(isinstance(result, Linear), f"it ends in {kind(result)}; that must be a linear layer")
    x, blocks = result.of.of, []
    while isinstance(x, Activated) and isinstance(x.of, Added):
        block, x = _block(x.of)
        blocks.append(block)
    require(isinstance(x, Activated) and isinstance(x.of, Convolution) and isinstance(x.of.of, Input),
            f"before the blocks is {kind(x)}; that must be a ReLU of a convolution of the images")  # fmt: skip
    first, images = x.of, x.of.of
    require((first.size, first.stride) == (3, 1), "the first convolution must be a 3x3 with a stride of 1")
    convolutions = [first, *(convolution for block in reversed(blocks) for convolution in block)]
    _check_stages([len(block) == 3 for block in reversed(blocks)])
    widths = [convolution.outputs for convolution in convolutions if convolution.size == 3]
    changes = sum(now != before for before, now in pairwise(widths))
    require(changes <= 2 and all(width % 16 == 0 for width in widths),
            f"its widths are {sorted(set(widths))}; they must be multiples of 16")  # fmt: skip
    if (images.scale == 1).all() and (images.shift == 0).all():
        return CifarResNet(convolutions, result)
    return CifarResNet(convolutions, result, images.scale.float(), images.shift.float())


def _block(added: Added) -> tuple[list[Convolution], Any]:
    """The convolutions of a block, its shortcut first if that is one, and what the block takes."""
    ways = [(last, shortcut) for last, shortcut in ((added.left, added.right), (added.right, added.left))
            if isinstance(last, Convolution) and last.size == 3 and isinstance(last.of, Activated)]  # fmt: skip
    require(bool(ways), f"a block adds {kind(added.left)} and {kind(added.right)}; one must be a 3x3 of a ReLU")
    last, shortcut = ways[0]
    first = last.of.of
    require(isinstance(first, Convolution) and first.size == 3 and isinstance(first.of, Activated),
            f"a block has {kind(first)} before its last convolution; that must be a 3x3 of its input")  # fmt: skip
    require(last.stride == 1, "the last convolution of a block has a stride of 2")
    if shortcut is first.of:
        require(first.stride == 1, "a block with a stride of 2 adds its input as it is")
        return [first, last], first.of
    if isinstance(shortcut, Strided):
        shortcut = _as_convolution(shortcut, last.outputs)
    require(isinstance(shortcut, Convolution) and shortcut.of is first.of,
            f"a block adds {kind(shortcut)} to a convolution; that must be a shortcut from its input")  # fmt: skip
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

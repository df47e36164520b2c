"""The gradient of a base classifier by its images, as a network that every runner can take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions, decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx

from ..turns import MAKING
from .declined import declined
from .precision import in_precision


def traced(network: nn.Module, runner: str, dtype: torch.dtype, examples: tuple[Tensor, ...]) -> nn.Module:
    """A network that calls autograd as one that does not: its operations, forwards and backwards, in a graph.

    OpenVINO chooses its own precision, and takes them in float32.
    """
    replicas, *others = examples
    if runner == "openvino":
        dtype, replicas = torch.float32, replicas.float()
    backward = {op: rule for op, rule in decomposition_table.items() if "backward" in str(op)}
    rules = core_aten_decompositions() | backward | {torch.ops.aten.convolution_backward.default: _convolution_backward}
    try:
        with MAKING.taken():
            function = in_precision(network, dtype, replicas.device)
            graph = make_fx(function, decomposition_table=rules)(replicas, *others)
    except Exception as error:  # of whatever stands in somebody's module
        raise declined(runner, error) from error
    random = [
        node for node in graph.graph.nodes if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    ]
    if random:
        raise declined(runner, ValueError(f"it draws random numbers ({random[0].target})"))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _convolution_backward(
    gradient: Tensor, inputs: Tensor, weight: Tensor, bias: list[int] | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int, mask: list[bool],
) -> Any:  # fmt: skip
    """The gradient by the input: a transposed convolution, for which compilers have fast code."""
    if transposed or mask[1] or mask[2]:
        return NotImplemented
    left = [
        size - ((out - 1) * step - 2 * pad + apart * (kernel - 1) + 1)
        for size, out, kernel, step, pad, apart in zip(
            inputs.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    # OpenVINO 2026.4 confuses the weights of a convolution and of its transpose where they are one constant, with as
    # many channels in as out. Turned round twice, they are another one.
    weight = weight.flip(2, 3).flip(2, 3)
    out = torch.ops.aten.convolution(gradient, weight, None, stride, padding, dilation, True, left, groups)
    return out, None, None

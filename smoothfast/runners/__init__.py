"""Runners: a network as a function of one micro-batch, as it is, compiled, by OpenVINO, or by the fused kernels.

The network is the base classifier, or the gradient of a loss of it (`losses.Differentiated`), which is a network too. A
runner is a file here with a function `make`, which takes a network or raises DeclinedError.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import checks
from ..former import Kept  # noqa: F401  a pickle of version 0.1 names it here
from ..integers import IntegerResNet
from ..interrupts import held_back
from ..turns import MAKING
from . import compiled, eager, fused, openvino
from .calibrated import Calibrated
from .declined import DeclinedError
from .precision import Runner

__all__ = ["RUNNERS", "DeclinedError", "Runner", "make_runners", "micro_batch_of"]

FOR_INTEGERS = ("eager", "fused")
RUNNERS = {"eager": eager.make, "compiled": compiled.make, "openvino": openvino.make, "fused": fused.make}


def make_runners(
    network: nn.Module, kind: str, dtype: torch.dtype, device: torch.device, examples: tuple[Tensor, ...], count: int
) -> list[Runner]:
    """A network as `count` functions of a micro-batch, which may be called at the same time.

    They are made for the number of threads of the calling thread, and by one thread of the process at a time; an
    interrupt waits until they are.

    Args:
        kind: of runner.
        dtype: what is computed in.
        examples: what the network takes, the replicas first; all micro-batches must have these shapes.

    Raises:
        ValueError: there is no such runner.
        DeclinedError: it is not for this dtype or device, or not installed, or cannot take the network.
    """
    checks.choice("runner", kind, RUNNERS)
    if isinstance(network, IntegerResNet) and kind not in FOR_INTEGERS:
        raise DeclinedError(f"runner is {kind!r}, which would round; integers are for {' and '.join(FOR_INTEGERS)}")
    if isinstance(network, Calibrated) and kind != "openvino":
        raise DeclinedError(f"runner is {kind!r}, and precision 'int8' of what is no CIFAR ResNet is for openvino")
    with held_back(), MAKING.taken():
        return RUNNERS[kind](network, dtype, device, examples, count)


def micro_batch_of(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: torch.memory_format
) -> Tensor:
    """Zeros [B, C, ...], as the noise kernel would write replicas."""
    return torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=layout)

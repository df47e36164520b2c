"""Which runner is worth its price: what each takes to make ready, and what it then computes.

The choice depends on the network, the number of forward passes and what is installed, and on no clock and no number of
cores: so a run that is repeated, resumed or shared out is computed by the same function.
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .fused import processors, resembles
from .layers import without_noise
from .runners import RUNNERS, device_of, evaluating

AUTO = ("auto", *RUNNERS)

CORES = 2  # that the choice is made for, however many there are
GPU_PASSES = 100_000  # from which a compiler pays on a GPU; not measured


@dataclass(frozen=True)
class Cost:
    """Seconds to make ready, once and for each layer; then 10^9 operations (a multiplication or an addition) a second
    and core. Of ResNet-20 on an AMD EPYC (family 25; AVX512-BF16) with torch 2.14.1 and OpenVINO 2026.4, first run;
    rough for anything else: OpenVINO is ready with ResNet-110 after 6 s, where this says 8. fp16 is not measured."""

    ready: float
    layer: float
    speed: dict[str, float]  # by precision


COSTS = {
    "eager": Cost(0.0, 0.0, {"fp32": 65, "bf16": 110, "fp16": 110}),
    "openvino": Cost(1.5, 0.03, {"fp32": 95, "bf16": 180}),
    "compiled": Cost(5.0, 0.3, {"fp32": 95, "bf16": 175, "fp16": 175}),
}
FUSED = {  # by what it runs on
    # Of Granite Rapids by a prototype of the kernels; the kernels themselves were not measured there.
    "amx": Cost(0.7, 0.0125, {"bf16": 1800}),
    "avx512_bf16": Cost(0.7, 0.0125, {"bf16": 160}),
}


@dataclass(frozen=True)
class Network:
    """Operations for one image, and layers with weights.

    The gradient by an image takes twice the operations of a forward pass, and no layers more. `family`: it may be one
    that the fused kernels take.
    """

    operations: float
    layers: int
    family: bool = False


def measure(base: nn.Module, shape: tuple[int, ...]) -> Network:
    """Counted on two images [C, H, W] of zeros."""
    images = torch.zeros(2, *shape, device=device_of(base))
    with (
        evaluating(base),
        without_noise(base),
        torch.no_grad(),
        warnings.catch_warnings(),
        FlopCounterMode(display=False) as counter,
    ):
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # of a base compiled already: our hooks
        base(images)
    layers = sum(1 for part in base.modules() if part._parameters)
    return Network(counter.get_total_flops() / 2, layers, resembles(base, shape))


def seconds(runner: str, network: Network, passes: int, precision: str, cores: int = CORES) -> float:
    """About what a runner takes for so many forward passes on a CPU, making it ready included."""
    cost = FUSED[processors()[0]] if runner == "fused" else COSTS[runner]
    ready = cost.ready + cost.layer * network.layers
    return ready + passes * network.operations / (cores * cost.speed[precision] * 1e9)


def installed(network: Network, precision: str) -> list[str]:
    """The runners that there are on this CPU for such a network."""
    found = ["eager"]
    if network.family and precision == "bf16" and processors():
        found.append("fused")
    if find_spec("openvino") is not None and precision in COSTS["openvino"].speed:
        found.append("openvino")
    if shutil.which(os.environ.get("CXX", "g++")) is not None:
        found.append("compiled")
    return found


def candidates(network: Network, passes: int, precision: str, device: torch.device) -> list[str]:
    """The runners to be tried, the one to be preferred first; eager, which takes every network, is the last."""
    if device.type != "cpu":
        compiles = find_spec("triton") is not None and passes >= GPU_PASSES
        return ["compiled", "eager"] if compiles else ["eager"]
    ordered = sorted(installed(network, precision), key=lambda runner: seconds(runner, network, passes, precision))
    return ordered[: ordered.index("eager") + 1]

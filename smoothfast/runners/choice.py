"""The choice of a runner: what each takes to make ready, and what it then computes; and what was made by those chosen.

The choice depends on the network, the number of forward passes and what is installed, and on no clock and no number of
cores: so a run that is repeated, resumed or shared out is computed by the same function.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from .. import ops
from ..integers import IntegerResNet
from ..interrupts import held_back
from ..layers import without_noise
from ..modules import device_of, evaluating, parts, warn, weights_sha256
from .declined import DeclinedError
from .fused import preferred, resembles

CORES = 2  # that the choice is made for, however many there are
WORTH = 10.0  # seconds, of words on another runner
GPU_PASSES = 100_000  # from which a compiler pays on a GPU; not measured


@dataclass(frozen=True)
class Cost:
    """The cost of a runner: seconds to make ready, once and for each layer; then 10^9 operations a second and core.

    An operation is a multiplication or an addition. Of ResNet-20 on an AMD EPYC (family 25; AVX512-BF16) with torch
    2.14.1 and OpenVINO 2026.4, first run; rough for anything else: OpenVINO is ready with ResNet-110 after 6 s, where
    this says 8. fp16 is not measured.
    """

    ready: float
    layer: float
    speed: dict[str, float]  # by precision


COSTS = {
    "eager": Cost(0.0, 0.0, {"fp32": 65, "bf16": 110, "fp16": 110, "int8": 2}),
    "openvino": Cost(1.5, 0.03, {"fp32": 95, "bf16": 180, "int8": 270}),
    "compiled": Cost(5.0, 0.3, {"fp32": 95, "bf16": 175, "fp16": 175}),
}


FUSED = {  # by what it runs on
    # Of an Intel Xeon (family 6, model 207).
    "amx": Cost(0.7, 0.0125, {"bf16": 1300}),
    # By a prototype on that EPYC, 164, 189 and 257 us a sample and core. The Xeon takes 390, 370 and 380.
    "winograd_bf16": Cost(0.7, 0.0125, {"bf16": 495}),
    "winograd_mixed": Cost(0.7, 0.0125, {"bf16": 430}),
    "winograd_fp32": Cost(0.7, 0.0125, {"fp32": 315}),
    # Of the Xeon; nothing is exported.
    "int8_amx": Cost(0.3, 0.0, {"int8": 1600}),
    "int8_avx512_vnni": Cost(0.3, 0.0, {"int8": 560}),
    "int8_avx_vnni": Cost(0.3, 0.0, {"int8": 220}),
    "int8_avx2": Cost(0.3, 0.0, {"int8": 130}),
    "int8_scalar": Cost(0.3, 0.0, {"int8": 17}),
}


@dataclass(frozen=True)
class Workload:
    """The work of a network: operations for one image, and layers with weights.

    The gradient by an image takes twice the operations of a forward pass, and no layers more. `family`: it may be one
    that the fused kernels take.
    """

    operations: float
    layers: int
    family: bool = False


def measure(base: nn.Module, shape: tuple[int, ...]) -> Workload:
    """The workload of a base classifier, counted on two images [C, H, W] of zeros."""
    with held_back():
        from .operations import operations  # brings a quarter of a second of torch along

    images = torch.zeros(2, *shape, device=device_of(base))
    with (
        evaluating(base),
        without_noise(base),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # of a base compiled already: our hooks
        try:
            counted = operations(base, images)
        except Exception as error:  # of a formula of torch's: the network itself has run before
            warn(f"the operations of the base classifier cannot be counted, and so runner is 'eager': {error}")
            counted = 0.0
    layers = sum(1 for part in base.modules() if part._parameters)
    return Workload(counted / 2, layers, isinstance(base, IntegerResNet) or resembles(base, shape))


def seconds(runner: str, workload: Workload, passes: int, precision: str, cores: int = CORES) -> float:
    """Estimates what a runner takes for so many forward passes on a CPU, making it ready included."""
    cost = FUSED[preferred(precision)[0]] if runner == "fused" else COSTS[runner]
    ready = cost.ready + cost.layer * workload.layers
    return ready + passes * workload.operations / (cores * cost.speed[precision] * 1e9)


def _has_vectors() -> bool:
    return ops.extension is not None and ops.extension.instruction_set() != "scalar"


def installed(workload: Workload, precision: str) -> list[str]:
    """The runners that there are on this CPU for such a network."""
    if precision == "int8":
        return for_integers(workload, torch.device("cpu"))
    found = ["eager"]
    if workload.family and preferred(precision) and _has_vectors():
        found.append("fused")
    if find_spec("openvino") is not None and precision in COSTS["openvino"].speed:
        found.append("openvino")
    if shutil.which(os.environ.get("CXX", "g++")) is not None:
        found.append("compiled")
    return found


def candidates(workload: Workload, passes: int, precision: str, device: torch.device) -> list[str]:
    """The runners to be tried, the one to be preferred first; eager, which takes every network, is the last."""
    if precision == "int8":
        return for_integers(workload, device)
    if device.type != "cpu":
        compiles = find_spec("triton") is not None and passes >= GPU_PASSES
        return ["compiled", "eager"] if compiles else ["eager"]
    ordered = sorted(installed(workload, precision), key=lambda runner: seconds(runner, workload, passes, precision))
    return ordered[: ordered.index("eager") + 1]


def far_faster(runner: str, workload: Workload, passes: int, precision: str, device: torch.device) -> str | None:
    """Names the runner that would take at most half the time for so many passes; None where there is none, or no more
    than `WORTH` is to be had."""
    if device.type != "cpu" or precision == "int8":
        return None
    first = candidates(workload, passes, precision, device)[0]
    now, then = (seconds(each, workload, passes, precision) for each in (runner, first))
    return first if then <= now / 2 and now - then >= WORTH else None


def for_integers(workload: Workload, device: torch.device) -> list[str]:
    """The runners for 8 bits. The definition of networks in integers, eager, takes 40 ms a sample: a hundred times what
    kernels take, and the tests of rows alone are some hundred samples."""
    if not workload.family:
        return ["openvino"]
    return ["fused", "eager"] if preferred("int8", device.type) else ["eager"]


class Function(Protocol):
    """A network as a runner is to compute it; `key` is what it is made for, as far as it can be seen."""

    @property
    def runner(self) -> str:
        """The runner to be tried."""

    def key(self) -> Any:
        """The key of what is made of it."""


Asked = TypeVar("Asked", bound=Function)
Made = TypeVar("Made")


class RunnerCache(Generic[Asked, Made]):
    """Keeps what was made of a function by each runner while the function stays the same, and which runner declined."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Any, Made | DeclinedError]] = {}

    def first_accepted(self, functions: Sequence[Asked], make: Callable[[Asked], Made], *others: Any) -> Made:
        """Makes it of the first of some functions whose runner does not decline. One that does is named in a warning,
        the last one raises.

        Args:
            make: makes it of a function, or raises DeclinedError.
            others: what else it is made of; where that is another, it is made anew.
        """
        *preferred, last = functions
        for function in preferred:
            try:
                return self._of(function, make, others)
            except DeclinedError as error:
                warn(f"{error}; the next runner takes its place")
        return self._of(last, make, others)

    @property
    def declined(self) -> dict[str, str]:
        """The reasons of the runners that declined."""
        return {runner: str(made) for runner, (_, made) in self._made.items() if isinstance(made, DeclinedError)}

    def _of(self, function: Asked, make: Callable[[Asked], Made], others: tuple[Any, ...]) -> Made:
        key = function.key(), others
        if self._made.get(function.runner, (None,))[0] != key:
            try:
                self._made[function.runner] = key, make(function)
            except DeclinedError as error:
                self._made[function.runner] = key, error
        made = self._made[function.runner][1]
        if isinstance(made, DeclinedError):
            raise made
        return made


def fingerprint(base: nn.Module, runner: str) -> Any:
    """The fingerprint of what a runner is made for: all but code and attributes of a module, which nobody sees.

    Weights are told by their bytes, since a write through `.data` leaves their versions as they were, and by where they
    are, which a captured graph is bound to.
    """
    places = [tensor.data_ptr() for tensor in chain(base.parameters(), base.buffers())]
    noisy = [getattr(part, "noisy", None) for part in base.modules()]
    # A fork has no threads.
    return runner, parts(base), noisy, places, weights_sha256(base), torch.get_num_threads(), os.getpid()

"""The base classifier as a function of one micro-batch: as it is, compiled, or by OpenVINO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

from .specs import choice

RUNNERS = ("eager", "compiled", "openvino")

Runner = Callable[[Tensor], Tensor]

CUDNN: Any = torch.backends.cudnn
MATMUL: Any = torch.backends.cuda.matmul
# Since 2.9 torch has new names for TF32, and whoever reads an old one, as torch.compile does, must find both say so.
STRICT: list[tuple[Any, str, Any]] = [
    (CUDNN, "benchmark", False),
    (CUDNN, "deterministic", True),
    (CUDNN, "allow_tf32", False),
]
if hasattr(MATMUL, "fp32_precision"):
    STRICT += [(part, "fp32_precision", "ieee") for part in (MATMUL, CUDNN.conv, CUDNN.rnn)]


def make_runner(base: nn.Module, kind: str, dtype: torch.dtype, device: torch.device) -> Runner:
    """The base classifier as a function of one micro-batch.

    Raises:
        ValueError: there is no such runner, or it is not for this dtype or device, or not installed.
    """
    choice("runner", kind, RUNNERS)
    if kind == "openvino":
        return OpenVino(base, dtype, device)
    return in_precision(frozen(base) if kind == "compiled" else base, dtype, device)


def in_precision(network: Runner, dtype: torch.dtype, device: torch.device) -> Runner:
    """By autocast rather than converted weights: batch norms are folded into the convolutions in float32 first."""

    def run(replicas: Tensor) -> Tensor:
        # A cache of casts would be that of an autocast around this one, and a captured graph outlives it.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            return network(replicas)

    return run


def frozen(base: nn.Module) -> Runner:
    """The base classifier compiled for one shape, its present weights folded in as constants."""

    def call(replicas: Tensor) -> Tensor:
        return base(replicas)

    # Dynamo keeps compiled code by code object, and does not look at frozen weights when it takes it up again: an
    # engine needs a code object of its own. As options={"freezing": True} the setting comes too late to have effect.
    call.__code__ = call.__code__.replace(co_name=f"base_{id(base)}")
    compiled = torch.compile(call, dynamic=False)

    def network(replicas: Tensor) -> Tensor:
        with torch._inductor.config.patch(freezing=True):
            return compiled(replicas)

    return network


OPENVINO_TYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVino:
    """The base classifier, converted for the shape of the first micro-batch, its present weights folded in.

    The rows are shared out among as many requests as there are threads, if these divide them, and are read in place.

    Raises:
        ValueError: OpenVINO is not installed or not for this dtype or device; or, when called, cannot convert the
            network.
    """

    def __init__(self, base: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        if find_spec("openvino") is None:
            raise ValueError("runner is 'openvino', which is not installed: pip install smoothfast[openvino]")
        if device.type != "cpu":
            raise ValueError(f"runner is 'openvino', which runs on CPUs; the base classifier is on {device}")
        if dtype not in OPENVINO_TYPES:
            raise ValueError(f"runner is 'openvino', which computes in fp32 or bf16, not in {dtype}")
        self._base, self._dtype, self._openvino = base, dtype, import_module("openvino")
        self._type = getattr(self._openvino.Type, OPENVINO_TYPES[dtype])
        self._requests: list[Any] = []

    @torch.autocast("cpu", enabled=False)  # one around this call would become part of the network
    def __call__(self, replicas: Tensor) -> Tensor:
        if not self._requests:
            self._requests = self._convert(replicas.shape)
        parts = replicas.permute(0, 2, 3, 1).chunk(len(self._requests))
        for request, part in zip(self._requests, parts, strict=True):
            request.set_input_tensor(self._in_place(part))
            request.start_async()
        for request in self._requests:
            request.wait()
        return torch.cat([torch.from_numpy(request.get_output_tensor().data) for request in self._requests])

    def _convert(self, shape: torch.Size) -> list[Any]:
        """Requests that take pixels [rows, H, W, C] as the noise kernel writes them in channels_last."""
        openvino, threads = self._openvino, torch.get_num_threads()
        count = math.gcd(shape[0], threads)
        settings = {
            "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[self._dtype],
            "NUM_STREAMS": count,
            "INFERENCE_NUM_THREADS": threads,
        }
        try:
            exported = torch.export.export(self._base, (torch.zeros(shape[0] // count, *shape[1:]),))
            steps = import_module("openvino.preprocess").PrePostProcessor(openvino.convert_model(exported))
            steps.input().tensor().set_element_type(self._type).set_layout(openvino.Layout("NHWC"))
            steps.input().model().set_layout(openvino.Layout("NCHW"))
            network = openvino.Core().compile_model(steps.build(), "CPU", settings)
        except Exception as error:  # of torch.export and of OpenVINO, which have nothing in common
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"runner is 'openvino', which does not take this base classifier: {reason}") from error
        return [network.create_infer_request() for _ in range(count)]

    def _in_place(self, part: Tensor) -> Any:
        integers = part.view(torch.int16) if self._dtype == torch.bfloat16 else part  # NumPy knows no bfloat16
        return self._openvino.Tensor(integers.numpy(), self._openvino.Shape(list(part.shape)), self._type)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time being; afterwards every submodule is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def strict_arithmetic(device: torch.device) -> Iterator[None]:
    """On CUDA: float32 is not TF32, and cuDNN takes deterministic algorithms, always the same ones."""
    if device.type != "cuda":
        yield
        return
    precision = _readable(torch.get_float32_matmul_precision)
    former = [(module, name, _readable(partial(getattr, module, name))) for module, name, _ in STRICT]
    try:
        torch.set_float32_matmul_precision("highest")
        for module, name, value in STRICT:
            setattr(module, name, value)
        yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        for module, name, value in former:
            if value is not None:
                setattr(module, name, value)


def _readable(setting: Callable[[], Any]) -> Any:
    """None where torch will not tell an old setting since its new one was set, which is restored too."""
    try:
        return setting()
    except RuntimeError:
        return None

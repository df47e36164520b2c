"""OpenVINO: a network converted for CPUs, its present weights folded in as constants."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import shared_copy
from .calibrated import Calibrated, quantised
from .declined import DeclinedError, declined
from .precision import Runner

TYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_ONE = Lock()


def core() -> Any:
    """The core of OpenVINO that all of this process shares, and that is never freed.

    A core gives the thread that makes it a stack for signals; when it is freed, the thread is left with that of a core
    freed before, if there was one (2026.4). From then on any signal that Python handles, as Ctrl-C, is a segmentation
    fault.
    """
    with _ONE:
        return _core()


@cache
def _core() -> Any:
    return import_module("openvino").Core()


@torch.autocast("cpu", enabled=False)  # one around this call would become part of the network
def make(
    network: nn.Module, dtype: torch.dtype, device: torch.device, examples: tuple[Tensor, ...], count: int
) -> list[Runner]:
    """A network converted to OpenVINO, its present weights folded in: one network, a request for each."""
    if find_spec("openvino") is None:
        raise DeclinedError("runner is 'openvino', which is not installed: pip install smoothfast[openvino]")
    if device.type != "cpu":
        raise DeclinedError(f"runner is 'openvino', which runs on CPUs; the base classifier is on {device}")
    if dtype not in TYPES:
        raise DeclinedError(f"runner is 'openvino', which computes in fp32 or bf16, not in {dtype}")
    openvino = import_module("openvino")
    element = getattr(openvino.Type, TYPES[dtype])
    settings = {
        "INFERENCE_PRECISION_HINT": TYPES[dtype],
        "NUM_STREAMS": count,
        "INFERENCE_NUM_THREADS": count,
        "ENABLE_CPU_PINNING": False,  # every process would take the first cores
    }
    try:
        replicas, *others = examples
        plain = network.base if isinstance(network, Calibrated) else network
        # Strict, as torch 2.6 is unless told, it takes a network's own weights for those that come as inputs.
        exported = torch.export.export(_apart(plain), (torch.zeros(replicas.shape), *others), strict=False)
        model = openvino.convert_model(exported)
        model.reshape({place: list(tensor.shape) for place, tensor in enumerate(examples)})  # weights need it
        steps = import_module("openvino.preprocess").PrePostProcessor(model)
        # Pixels [rows, H, W, C], where the noise kernel writes them in channels_last; so are their gradients.
        last = replicas.dim() == 4 and replicas.is_contiguous(memory_format=torch.channels_last)
        for port in (steps.input(0), *map(steps.output, range(1, len(model.outputs)))):
            port.tensor().set_element_type(element)
            if last:
                port.tensor().set_layout(openvino.Layout("NHWC"))
                port.model().set_layout(openvino.Layout("NCHW"))
        model = steps.build()
        if isinstance(network, Calibrated):
            model = quantised(model, network.examples, len(replicas), last)
        converted = core().compile_model(model, "CPU", settings)
    except Exception as error:  # of torch.export and of OpenVINO, which have nothing in common
        raise declined("openvino", error) from error
    return [_asking(converted.create_infer_request(), dtype, last) for _ in range(count)]


def _apart(network: nn.Module) -> nn.Module:
    """A copy of a network: torch.export replaces its tensors for the time being, while others may run it."""
    try:
        return shared_copy(network)
    except Exception:  # of whatever stands in the attributes of somebody's module
        return network


def _asking(request: Any, dtype: torch.dtype, last: bool) -> Runner:
    openvino = import_module("openvino")
    element = getattr(openvino.Type, TYPES[dtype])

    def run(replicas: Tensor, *others: Tensor) -> Any:
        pixels = replicas.permute(0, 2, 3, 1) if last else replicas
        values = pixels.view(torch.int16) if dtype == torch.bfloat16 else pixels  # NumPy knows no bfloat16
        request.set_input_tensor(0, openvino.Tensor(values.numpy(), openvino.Shape(list(pixels.shape)), element))
        for place, tensor in enumerate(others, 1):
            request.set_input_tensor(place, openvino.Tensor(tensor.numpy()))
        request.infer()
        logits, *gradients = [torch.from_numpy(output.data.copy()) for output in request.output_tensors]
        if not gradients:
            return logits
        values = gradients[0].view(dtype)
        return logits, values.permute(0, 3, 1, 2) if last else values

    return run

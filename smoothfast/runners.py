"""A network as a function of one micro-batch: as it is, compiled, by OpenVINO, or by the fused kernels. It is the base
classifier, or the gradient of a loss of it (`losses.Differentiated`), which is a network too."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
import torch._inductor.config
from torch import Tensor, nn

from .fused import fused, processors
from .specs import choice

RUNNERS = ("eager", "compiled", "openvino", "fused")

Made = TypeVar("Made")
Runner = Callable[..., Any]  # replicas [B, C, H, W], and what the network takes beside them


class DeclinedError(ValueError):
    """A runner is not installed, or cannot take a network."""


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


def make_runners(
    network: nn.Module, kind: str, dtype: torch.dtype, device: torch.device, examples: tuple[Tensor, ...], count: int
) -> list[Runner]:
    """A network as `count` functions of a micro-batch, which may be called at the same time.

    They are made for the number of threads of the calling thread.

    Args:
        dtype: what is computed in.
        examples: what the network takes, the replicas first; all micro-batches must have these shapes.

    Raises:
        ValueError: there is no such runner.
        DeclinedError: it is not for this dtype or device, or not installed, or cannot take the network.
    """
    choice("runner", kind, RUNNERS)
    if kind == "fused":
        return [fused_runner(network, dtype, device, examples)] * count
    if kind == "openvino":
        return openvino_runners(network, dtype, device, examples, count)
    if kind == "compiled":
        return [compiled(in_precision(network, dtype, device), examples)] * count
    return [in_precision(module, dtype, device) for module in copies(network, count)]


def micro_batch_of(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros [B, C, H, W], as the noise kernel would write replicas."""
    return torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)


def device_of(base: nn.Module) -> torch.device:
    """Where its weights are; the CPU if it has none."""
    return next((tensor.device for tensor in chain(base.parameters(), base.buffers())), torch.device("cpu"))


def in_precision(network: Runner, dtype: torch.dtype, device: torch.device) -> Runner:
    """By autocast rather than converted weights: batch norms are folded into the convolutions in float32 first."""

    def run(*inputs: Tensor) -> Any:
        # A cache of casts would be that of an autocast around this one, and a captured graph outlives it.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            return network(*inputs)

    return run


def copies(base: nn.Module, count: int) -> list[nn.Module]:
    """A module and copies of it with the same weights: in `forward` it may keep things on itself for later layers.

    Where it cannot be copied, one that lets in a call at a time takes their place.
    """
    try:
        return [base, *(shared_copy(base) for _ in range(count - 1))]
    except Exception as error:  # of whatever stands in the attributes of somebody's module
        warnings.warn(f"the base classifier cannot be copied, and so keeps one core busy: {error}", stacklevel=2)
        return [OneAtATime(base)] * count


def shared_copy(base: nn.Module) -> nn.Module:
    """A copy of a module that shares all parameters and buffers with it."""
    return deepcopy(base, {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())})


class OneAtATime(nn.Module):
    """A module that threads call one after the other."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self._free = base, Lock()

    def forward(self, *inputs: Tensor) -> Any:
        with self._free:
            return self.base(*inputs)


def compiled(network: Runner, examples: tuple[Tensor, ...]) -> Runner:
    """A network compiled for one shape, its present weights folded in as constants."""

    def call(*inputs: Tensor) -> Any:
        return network(*inputs)

    # Dynamo keeps compiled code by code object, and does not look at frozen weights when it takes it up again: an
    # engine needs a code object of its own. As options={"freezing": True} the setting comes too late to have effect.
    call.__code__ = call.__code__.replace(co_name=f"base_{id(call)}")
    function = torch.compile(call, dynamic=False)
    try:
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            function(*examples)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Dynamo, of Inductor, of a compiler of C++
        raise declined("compiled", error) from error
    return function


OPENVINO_TYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}


@torch.autocast("cpu", enabled=False)  # one around this call would become part of the network
def openvino_runners(
    network: nn.Module, dtype: torch.dtype, device: torch.device, examples: tuple[Tensor, ...], count: int
) -> list[Runner]:
    """A network converted to OpenVINO, its present weights folded in: one network, a request for each."""
    if find_spec("openvino") is None:
        raise DeclinedError("runner is 'openvino', which is not installed: pip install smoothfast[openvino]")
    if device.type != "cpu":
        raise DeclinedError(f"runner is 'openvino', which runs on CPUs; the base classifier is on {device}")
    if dtype not in OPENVINO_TYPES:
        raise DeclinedError(f"runner is 'openvino', which computes in fp32 or bf16, not in {dtype}")
    openvino = import_module("openvino")
    element = getattr(openvino.Type, OPENVINO_TYPES[dtype])
    settings = {
        "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[dtype],
        "NUM_STREAMS": count,
        "INFERENCE_NUM_THREADS": count,
        "ENABLE_CPU_PINNING": False,  # every process would take the first cores
    }
    try:
        replicas, *others = examples
        exported = torch.export.export(network, (torch.zeros(replicas.shape), *others))
        model = openvino.convert_model(exported)
        model.reshape({place: list(tensor.shape) for place, tensor in enumerate(examples)})  # weights need it
        steps = import_module("openvino.preprocess").PrePostProcessor(model)
        # Pixels [rows, H, W, C], as the noise kernel writes them in channels_last; so are their gradients.
        images = [output for output in range(len(model.outputs)) if len(model.output(output).partial_shape) == 4]
        for port in (steps.input(0), *map(steps.output, images)):
            port.tensor().set_element_type(element).set_layout(openvino.Layout("NHWC"))
            port.model().set_layout(openvino.Layout("NCHW"))
        converted = openvino.Core().compile_model(steps.build(), "CPU", settings)
    except Exception as error:  # of torch.export and of OpenVINO, which have nothing in common
        raise declined("openvino", error) from error
    return [_asking(converted.create_infer_request(), dtype) for _ in range(count)]


def fused_runner(network: nn.Module, dtype: torch.dtype, device: torch.device, examples: tuple[Tensor, ...]) -> Runner:
    """A CIFAR ResNet, or the gradient of one, by the fused kernels, which any number of threads may call at once."""
    if device.type != "cpu" or not processors():
        there = (
            f"the base classifier is on {device}"
            if processors()
            else "this one has neither, or smoothfast._C is not built"
        )
        raise DeclinedError(f"runner is 'fused', for CPUs with AMX or AVX512-BF16; {there}")
    if dtype != torch.bfloat16:
        raise DeclinedError(f"runner is 'fused', which computes in bf16, not in {dtype}")
    try:
        return fused(network, examples, processors()[0])
    except Exception as error:  # of torch.export too
        raise declined("fused", error) from error


def declined(runner: str, error: Exception) -> DeclinedError:
    reason = str(error).strip().partition("\n")[0]
    return DeclinedError(f"runner is {runner!r}, which does not take this base classifier: {reason}")


def _asking(request: Any, dtype: torch.dtype) -> Runner:
    openvino = import_module("openvino")
    element = getattr(openvino.Type, OPENVINO_TYPES[dtype])

    def run(replicas: Tensor, *others: Tensor) -> Any:
        pixels = replicas.permute(0, 2, 3, 1)
        values = pixels.view(torch.int16) if dtype == torch.bfloat16 else pixels  # NumPy knows no bfloat16
        request.set_input_tensor(0, openvino.Tensor(values.numpy(), openvino.Shape(list(pixels.shape)), element))
        for place, tensor in enumerate(others, 1):
            request.set_input_tensor(place, openvino.Tensor(tensor.numpy()))
        request.infer()
        outputs = [torch.from_numpy(output.data.copy()) for output in request.output_tensors]
        outputs = [out.view(dtype).permute(0, 3, 1, 2) if out.dim() == 4 else out for out in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


class Kept(Generic[Made]):
    """What is made for a runner, as long as its key stays the same; and, as long, which runner declined."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, Made | DeclinedError]] = {}

    def first(self, runners: list[str], key: Callable[[str], Any], make: Callable[[str], Made]) -> Made:
        """By the first of some runners that does not decline. One that does is named in a warning, the last one raises.

        Args:
            key: of a runner, what is made for it now.
            make: makes it for a runner.
        """
        *preferred, last = runners
        for runner in preferred:
            try:
                return self._made(runner, key(runner), make)
            except DeclinedError as error:
                warnings.warn(f"{error}; the next runner takes its place", stacklevel=5)
        return self._made(last, key(last), make)

    @property
    def declined(self) -> dict[str, str]:
        """Why, by the runners that have."""
        return {runner: str(made) for runner, (_, made) in self._kept.items() if isinstance(made, DeclinedError)}

    def _made(self, runner: str, key: Any, make: Callable[[str], Made]) -> Made:
        if self._kept.get(runner, (None,))[0] != key:
            try:
                self._kept[runner] = key, make(runner)
            except DeclinedError as error:
                self._kept[runner] = key, error
        made = self._kept[runner][1]
        if isinstance(made, DeclinedError):
            raise made
        return made


def fingerprint(base: nn.Module, runner: str) -> Any:
    """What a runner is made for, as far as it can be seen: code and attributes of a module cannot."""
    # Other runners than eager have the weights frozen in, so their versions are part of what it is.
    tensors = list(base.state_dict(keep_vars=True).values())
    weights = [(t.data_ptr(), t._version) for t in tensors]
    parts = [
        (id(m), len(m._forward_hooks), len(m._forward_pre_hooks), getattr(m, "noisy", None)) for m in base.modules()
    ]
    # A write through .data leaves the version as it was.
    checksum = sum(float(t.detach().double().sum()) for t in tensors) if runner != "eager" else None
    return runner, parts, weights, checksum, torch.get_num_threads(), os.getpid()  # a fork has no threads


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

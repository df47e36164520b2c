"""Precisions, and arithmetic that does not depend on settings of the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import names
from ..checks import choice

Runner = Callable[..., Any]
"""A network as a function of a micro-batch: replicas [B, C, H, W], and what the network takes beside them, to logits;
to logits and gradients, if the network is the gradient of a loss."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
"""The dtype of replicas by precision. Networks in integers round them to levels of pixels."""


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that a name means here: "auto" is bf16 where the hardware multiplies in it (AMX, AVX512-BF16, CUDA
    from Ampere on), else fp32."""
    choice("precision", precision, names.PRECISIONS)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and capable else "fp32"


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


def in_precision(network: Runner, dtype: torch.dtype, device: torch.device) -> Runner:
    """A network that computes in a dtype, by autocast rather than converted weights: batch norms are
    folded into the convolutions in float32 first."""

    def run(*inputs: Tensor) -> Any:
        # A cache of casts would be that of an autocast around this one, and a captured graph outlives it.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            return network(*inputs)

    return run


@contextmanager
def strict_arithmetic(device: torch.device) -> Iterator[None]:
    """Strict arithmetic for the time being, on CUDA: float32 is not TF32, and cuDNN takes deterministic
    algorithms, always the same ones."""
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
    """A setting of torch; None where torch will not tell an old one since its new name was set, restored too."""
    try:
        return setting()
    except RuntimeError:
        return None

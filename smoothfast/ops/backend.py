"""The choice of backend: what serves the ops on each kind of device.

A device is served by the compiled kernels if the extension has some for it, else, if it is a GPU, by Triton, else by
`reference`; `backends` tells. `SMOOTHFAST_BACKEND=triton` puts Triton first on GPUs, `cuda` insists on the compiled
CUDA kernels, `reference` leaves only that.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

BACKENDS = ("auto", "cuda", "triton", "reference")
OPS = ("noisy_replicas", "tally", "replica_sum", "attack_step", "perturb_weights")
GPUS = ("cuda", "xpu")  # to torch those of ROCm are cuda too


def backends() -> dict[str, str]:
    """The backend that serves each kind of device (compiled, triton or reference), and why none that would come before
    does: "triton (smoothfast._C was compiled without CUDA sources)"."""
    return {device: live + (f" ({'; '.join(reasons)})" if reasons else "") for device, (live, reasons) in LIVE.items()}


def _asked() -> str:
    backend = os.environ.get("SMOOTHFAST_BACKEND", "auto")
    if backend not in BACKENDS:
        raise ValueError(f"SMOOTHFAST_BACKEND is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    return backend


def _load_extension() -> Any:
    """The compiled module, or None where it was not built or is switched off."""
    if _asked() == "reference" or find_spec("smoothfast._C") is None:
        return None
    try:
        return import_module("smoothfast._C")
    except ImportError as error:
        raise ImportError(
            f"smoothfast._C does not load beside torch {torch.__version__} ({error}). It was built against another "
            "torch: reinstall with `pip install --no-build-isolation --force-reinstall --no-deps smoothfast`, or set "
            "SMOOTHFAST_BACKEND=reference to run without it."
        ) from error


def _choose(device: str) -> tuple[str, list[str]]:
    """The backend of a kind of device, and what keeps those before it from serving it."""
    order = {"triton": ["triton", "compiled"]}.get(_asked(), ["compiled", "triton"])
    reasons: list[str] = []
    for backend in order if device in GPUS else ["compiled"]:
        reason = _no_compiled(device) if backend == "compiled" else _no_triton()
        if not reason:
            return backend, reasons
        reasons.append(reason)
    if _asked() == "cuda" and device == "cuda":
        raise ImportError(f"SMOOTHFAST_BACKEND is 'cuda', but {reasons[0]}; `auto` takes what there is.")
    return "reference", list(dict.fromkeys(reasons))


def _no_compiled(device: str) -> str:
    if extension is None:
        return "SMOOTHFAST_BACKEND=reference" if _asked() == "reference" else "smoothfast._C is not built"
    key = device.upper()
    found = all(torch._C._dispatch_has_kernel_for_dispatch_key(f"smoothfast::{op}", key) for op in OPS)
    return "" if found else f"smoothfast._C was compiled without {key} sources"


def _no_triton() -> str:
    if _asked() in ("cuda", "reference"):
        return f"SMOOTHFAST_BACKEND={_asked()}"
    return "" if find_spec("triton") else "triton is not installed"


extension = _load_extension()
LIVE = {device: _choose(device) for device in ("cpu", *GPUS)}  # before the kernels of Triton are registered too

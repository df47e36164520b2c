"""The environment of a run: versions, processor, GPUs. Results may depend on it in the last bits of logits alone."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import ops
from .version import __version__

LIBRARIES = ("numpy", "scipy", "safetensors", "torchvision", "triton", "openvino")


def environment() -> dict[str, Any]:
    """The environment of a run, recorded beside the settings: logits may differ in their last bits in another one."""
    extension = ops.extension
    installed = {name: version for name, version in libraries().items() if version is not None}
    return {
        "smoothfast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "kernels": extension.instruction_set() if extension is not None else "reference",
        **installed,
    }


@cache
def libraries() -> dict[str, str | None]:
    """Versions of what runs beside torch, None where it is not installed."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: installed(name) for name in LIBRARIES}


def devices() -> list[dict[str, Any]]:
    """Name, compute capability (not of XPU) and memory of every GPU that torch sees."""
    found = []
    for kind in ops.GPUS:
        module = torch.get_device_module(kind)
        for index in range(module.device_count() if module.is_available() else 0):
            about = module.get_device_properties(index)
            capability = f"{about.major}.{about.minor}" if hasattr(about, "major") else None
            memory = round(about.total_memory / 2**30, 1)
            found.append({"device": f"{kind}:{index}", "name": about.name, "capability": capability, "GiB": memory})
    return found


def driver() -> str | None:
    """The latest CUDA release that the driver supports, None where there is no driver."""
    supported = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(supported))
    except OSError:
        return None
    return f"{supported.value // 1000}.{supported.value % 1000 // 10}"


@cache
def processor() -> str:
    """The processor's name, family and model, as the system tells it."""
    about: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            about.setdefault(name.strip(), value.strip())
    name = about.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {about['cpu family']}, model {about['model']})" if "cpu family" in about else name

"""A data set through a smoothed classifier into a log: what `smoothfast certify`, `predict` and `demo` do."""

from __future__ import annotations

import ctypes
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import ops
from .data import Labelled
from .distributed import Alone
from .engine import Engine, Job
from .logs import Row, RunLog, put_in_order
from .procedures import Decision, Procedure
from .smoothing import checked_images
from .specs import at_least
from .version import __version__

LIBRARIES = ("numpy", "scipy", "safetensors", "torchvision", "triton", "openvino")


def chosen(count: int, skip: int, limit: int | None) -> list[int]:
    """Indices 0, skip, 2 skip, … of a data set, at most `limit` of them."""
    at_least(1, skip=skip, max=limit)
    return list(range(0, count, skip))[:limit]


def log_run(
    engine: Engine,
    data: Labelled,
    indices: list[int],
    procedure: Callable[[int, float], Procedure],
    settings: dict[str, Any],
    path: Path,
    resume: bool = False,
    progress: Callable[[Iterable[Row], int, int], Iterable[Row]] = lambda rows, *_: rows,
    group: Alone | None = None,
) -> None:
    """Decides the images `indices` of a data set and writes a row for each as soon as it is decided.

    In the end rows are in the order of the images, also where several processes wrote them as they came.

    Args:
        engine: for images like the first of these.
        data: images and labels; the index of an image is the id its noise is drawn under.
        indices: which of them.
        procedure: makes the procedure of one image from its label and the deviation of the noise (`noise.Law`).
        settings: what else the results depend on; the choices of the engine are added.
        path: the log.
        resume: go on with the log if there is one.
        progress: wraps the rows for display: (rows, number to come, number done before).
        group: the processes that share the work, see `distributed.joined`; this one if not given.
    """
    group = group or Alone()
    settings = settings | engine.meta
    group.agree(settings | {"images": len(data)})

    def begin() -> list[int]:
        with RunLog(path, settings, environment() | {"processes": group.size}, resume) as log:
            return [index for index in indices if index not in log.done]

    def write(rows: Iterable[Row]) -> None:
        with RunLog(path, settings, resume=True) as log:
            for row in progress(rows, len(left), len(log.done)):
                log.append(row)
        put_in_order(path)

    left = group.first(begin)
    group.gather(_rows(engine, data, left, procedure, group), write)


def _rows(
    engine: Engine,
    data: Labelled,
    indices: list[int],
    procedure: Callable[[int, float], Procedure],
    group: Alone,
) -> Iterator[Row]:
    """A row for each image that this process takes."""
    taken: deque[tuple[int, int]] = deque()  # index and label of images under way

    def jobs() -> Iterator[Job]:
        for index in group.take(indices):
            image, label = data[index]
            taken.append((index, label))
            alike = checked_alike(image, index, engine.shape, engine.image_dtype)
            yield Job(alike, index, procedure(label, engine.deviation))

    started = time.perf_counter()
    for decision in group.decide(engine, jobs()):
        now = time.perf_counter()
        yield _row(*taken.popleft(), decision, now - started)
        started = now


def checked_alike(image: Tensor, index: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The image `index` of a data set as `checked_images` has it, if it is like the first one of a run."""
    checked: Tensor = checked_images(image[None])[0]
    if checked.shape != tuple(shape) or checked.dtype != dtype:
        raise ValueError(
            f"image {index} is {checked.dtype} {tuple(checked.shape)}; the first one is {dtype} {tuple(shape)}, and a "
            "run needs images of one kind"
        )
    return checked


def _row(index: int, label: int, decision: Decision, seconds: float) -> Row:
    counts = decision.counts
    tested = decision.label if decision.label >= 0 else decision.tested
    top = tested if tested >= 0 else int(counts.argmax())
    others = np.delete(counts, top)
    return Row(
        idx=index,
        label=label,
        predict=decision.label,
        radius=decision.radius,
        time=seconds,
        samples=decision.samples,
        nA=int(counts[top]),
        nB=int(others.max()),
        invalid=decision.invalid,
        p_lower=decision.p_lower,
        p_upper=decision.p_upper,
        decision=decision.outcome,
    )


def environment() -> dict[str, Any]:
    """What a run happened on; recorded beside the settings, and no result depends on it."""
    extension = ops.extension
    return {
        "smoothfast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "kernels": extension.instruction_set() if extension is not None else "reference",
    }


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


def processor() -> str:
    """The processor's name, family and model, as the system tells it."""
    about: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            about.setdefault(name.strip(), value.strip())
    name = about.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {about['cpu family']}, model {about['model']})" if "cpu family" in about else name

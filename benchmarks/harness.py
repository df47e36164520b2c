"""Timing: contenders run in turn, medians are compared, every row carries the machine.

On a GPU the clock is read when the device has nothing left to do.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from smoothfast import ops, runs

CPU = torch.device("cpu")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Row:
    """One contender in one setting.

    Attributes:
        benchmark, setting, contender: what was timed.
        unit: of `median`, `best` and `worst`, per element, row or sample.
        ratio: median of the baseline / median of this one; above 1 is faster than the baseline.
        baseline: the contender the ratio is against.
        device: "cpu", or the name of the GPU.
        kernels: the instruction set of the CPU; on a GPU, the backend.
    """

    benchmark: str
    setting: str
    contender: str
    median: float
    best: float
    worst: float
    unit: str
    ratio: float
    baseline: str
    device: str
    threads: int
    processor: str
    kernels: str
    torch: str
    date: str


def devices() -> list[torch.device]:
    """The CPU, and the current GPU where there is one."""
    return [CPU, torch.device("cuda")] if torch.cuda.is_available() else [CPU]


def kernels(device: torch.device) -> str:
    """What serves the ops of the package there."""
    if device.type == "cpu":
        return str(runs.environment()["kernels"])
    return ops.backends()[device.type].partition(" ")[0]


def implementations(op: str, device: torch.device) -> dict[str, Callable[..., Any]]:
    """An op with the arguments of its schema, by what is added to the contender's name: as it is served, and on a GPU
    by Triton too."""
    found: dict[str, Callable[..., Any]] = {"": getattr(torch.ops.smoothfast, op)}
    if device.type != "cpu" and kernels(device) != "triton" and find_spec("triton"):
        found[", Triton"] = getattr(import_module(f"smoothfast.kernels.{op}"), op)
    return found


def calls_on(device: torch.device) -> int:
    """How many calls of a short op are timed at once: on a GPU, so many that their launches overlap."""
    return 1 if device.type == "cpu" else 50


def compare(
    benchmark: str,
    setting: str,
    contenders: Mapping[str, Callable[[], object]],
    per: float,
    unit: str,
    repeats: int,
    baseline: str | None = None,
    device: torch.device = CPU,
    calls: int = 1,
) -> list[Row]:
    """Times the contenders in turn, `repeats` rounds after one to warm up, so that a drift of the machine meets all.

    Args:
        contenders: name to a call; a ratio is against `baseline`, or the last of them.
        per: what a call's seconds are divided by, in the unit (1e-9 times the elements for ns an element).
        device: what the calls leave work on.
        calls: how many are timed at once.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(repeats):
        for name, call in contenders.items():
            seconds[name].append(_seconds(call, device, calls) / (calls * per))
    reference = baseline or list(contenders)[-1]
    environment = runs.environment()
    return [
        Row(
            benchmark=benchmark,
            setting=setting,
            contender=name,
            median=round(median(times), 4),
            best=round(min(times), 4),
            worst=round(max(times), 4),
            unit=unit,
            ratio=round(median(seconds[reference]) / median(times), 3),
            baseline=reference,
            device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
            threads=torch.get_num_threads(),
            processor=environment["processor"],
            kernels=kernels(device),
            torch=environment["torch"],
            date=date.today().isoformat(),
        )
        for name, times in seconds.items()
    ]


def _seconds(call: Callable[[], object], device: torch.device, calls: int) -> float:
    """From an idle device to an idle device."""
    synchronize = torch.get_device_module(device).synchronize
    synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize()
    return time.perf_counter() - started


def report(rows: list[Row], out: Path | None) -> None:
    """Prints rows as they come in and appends them to a CSV file."""
    for row in rows:
        print(
            f"{row.setting:48} {row.contender:36} {row.median:10.3f} {row.unit:16} x{row.ratio:<7.2f} "
            f"({row.best:.3f} .. {row.worst:.3f})",
            flush=True,
        )
    if out is None:
        return
    new = not out.exists()
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)

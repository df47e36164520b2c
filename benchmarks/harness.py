"""Figures as rows: contenders run in turn, ratios are taken within a round, every row carries the machine.

On a GPU the clock is read when the device has nothing left to do.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothfast import data, models, ops
from smoothfast.environment import environment
from smoothfast.runners.fused import preferred
from smoothfast.smoothing import SmoothedClassifier
from smoothfast.specs import DEMO_INTEGERS
from smoothfast.weights import DEMO, read_weights

CPU = torch.device("cpu")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
RATES = ("TFLOP/s",)  # units of which more is better

FORGET = Path("/proc/self/clear_refs")  # of Linux: the peak of the process's memory counts anew after a 5
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one contender in one setting; None is what was not taken.

    Attributes:
        benchmark, setting, contender: what was measured.
        value: median over the repeats; where there is an error, the mean.
        error: standard error of the mean.
        low, high: quartiles of the repeats.
        min, max: the extremes of the repeats.
        repeats: rounds of timing; for a mean, images or repetitions.
        unit: of the six before.
        ratio: median over the rounds of what the baseline took / what this one took in the same round, of rates the
            inverse: above 1 is better than the baseline.
        baseline: the contender that the ratio is against.
        memory: peak of the process in MiB while this one ran, with all that the other contenders hold.
        device: "cpu", or the name of the GPU.
        kernels: the instruction set of the CPU; on a GPU, the backend.
    """

    benchmark: str
    setting: str
    contender: str
    value: float
    error: float | None = None
    low: float | None
    high: float | None
    min: float | None
    max: float | None
    repeats: int | None
    unit: str
    ratio: float | None = None
    baseline: str = ""
    memory: float | None = None
    device: str
    threads: int | None
    processor: str
    kernels: str
    torch: str
    date: str


HEADER = [field.name for field in fields(Row)]
NUMBERS = {field.name: int if "int" in field.type else float for field in fields(Row) if field.type != "str"}


# ---- what is measured on ---------------------------------------------------------------------------------------------


def devices() -> list[torch.device]:
    """The CPU, and the current GPU where there is one; those of a kind alone where SMOOTHFAST_BENCH_ON names it."""
    there = [CPU, torch.device("cuda")] if torch.cuda.is_available() else [CPU]
    return [device for device in there if os.environ.get("SMOOTHFAST_BENCH_ON") in (None, device.type)]


def kernels(device: torch.device) -> str:
    """The backend that serves the ops of the package on a device; on the CPU, the instruction set of its kernels."""
    if device.type == "cpu":
        return str(environment()["kernels"])
    return ops.backends()[device.type].partition(" ")[0]


def implementations(op: str, device: torch.device) -> dict[str, Callable[..., Any]]:
    """An op with the arguments of its schema, by what is added to the contender's name: as it is served, and on a GPU
    by Triton too."""
    found: dict[str, Callable[..., Any]] = {"": getattr(torch.ops.smoothfast, op)}
    if device.type != "cpu" and kernels(device) != "triton" and find_spec("triton"):
        found[", Triton"] = getattr(import_module(f"smoothfast.kernels.{op}"), op)
    return found


def calls_on(device: torch.device) -> int:
    """Number of calls of a short op that are timed at once: on a GPU, so many that their launches overlap."""
    return 1 if device.type == "cpu" else 50


def embedded(device: torch.device = CPU) -> SmoothedClassifier:
    """The embedded network under its noise, sigma 0.25, by the runner for much work."""
    runner = "openvino" if device.type == "cpu" and find_spec("openvino") else "compiled"
    network = models.resnet20()
    weights = read_weights(DEMO)
    weights.load_into(network)
    network = network.eval().to(device)
    return SmoothedClassifier(network, 0.25, 10, normalize=weights.settings["normalize"], runner=runner)


def fastest(device: torch.device = CPU) -> SmoothedClassifier:
    """The embedded network in integers, by the fused kernels, where there are vectors for them; else as `embedded`."""
    network = read_weights(DEMO_INTEGERS).integers
    if device.type != "cpu" or preferred("int8")[:1] in ([], ["int8_scalar"]):
        return embedded(device)
    assert network is not None
    return SmoothedClassifier(network, 0.25, 10, runner="fused")


def embedded_images(count: int) -> tuple[Tensor, Tensor, list[int]]:
    """The embedded images, `count` of them, with labels and ids: evenly spaced, since they lie in the order of
    classes."""
    everything = data.demo()
    if not 1 <= count <= len(everything):
        raise ValueError(f"max is {count}; it must be 1 .. {len(everything)}, the number of embedded images")
    ids = [position * len(everything) // count for position in range(count)]
    return everything.images[ids], everything.labels[ids], ids


def described(smoothed: SmoothedClassifier, images: Tensor) -> str:
    """The embedded network as rows name it: with the runner and precision that its engine chose."""
    meta = smoothed.engine(images).meta
    return f"ResNet-20, {meta['runner']} {meta['precision']}"


# ---- timing ----------------------------------------------------------------------------------------------------------


def timed(
    contenders: Mapping[str, Callable[[], object]], repeats: int, device: torch.device = CPU, calls: int = 1
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a call of each contender in each round, and the most memory that the process had in one, in MiB.

    They run in turn, `repeats` rounds after one to warm up, so that a drift of the machine meets all.

    Args:
        contenders: name to a call.
        device: what the calls leave work on.
        calls: how many are timed at once.
    """
    took: dict[str, list[float]] = {name: [] for name in contenders}
    memory: dict[str, float] = {}
    for call in contenders.values():
        call()
    for _ in range(repeats):
        for name, call in contenders.items():
            forget_peak()
            took[name].append(seconds(call, device, calls) / calls)
            if os.access(FORGET, os.W_OK):
                memory[name] = max(memory.get(name, 0.0), peak())
    return took, memory


def seconds(call: Callable[[], object], device: torch.device = CPU, calls: int = 1) -> float:
    """Seconds that all calls take, from an idle device to an idle device."""
    synchronize = torch.get_device_module(device).synchronize
    synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize()
    return time.perf_counter() - started


def forget_peak() -> None:
    """Makes `peak` count from here on, where the system lets it."""
    if os.access(FORGET, os.W_OK):
        FORGET.write_text("5")


def peak() -> float:
    """The most memory that this process has had, in MiB; on Linux. Not by getrusage: a process that another one started
    has the peak of that one in it."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def whole_process(*words: str, **variables: str) -> str:
    """Output of `python -m` words to stdout, in a process of its own with these environment variables.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-4000:]}")
    return done.stdout


# ---- rows ------------------------------------------------------------------------------------------------------------


def compare(
    benchmark: str,
    setting: str,
    contenders: Mapping[str, Callable[[], object]],
    per: float,
    unit: str,
    repeats: int,
    *,
    device: torch.device = CPU,
    calls: int = 1,
) -> list[Row]:
    """Rows of contenders that are timed in turn, see `timed`; ratios are against the last.

    Args:
        per: what a call's seconds are divided by, in the unit (1e-9 times the elements for ns an element).
    """
    took, memory = timed(contenders, repeats, device, calls)
    figures = {name: [second / per for second in rounds] for name, rounds in took.items()}
    return rows(benchmark, setting, figures, unit, list(contenders)[-1:], device, memory)


def rows(
    benchmark: str,
    setting: str,
    figures: Mapping[str, Sequence[float]],
    unit: str,
    baselines: Sequence[str],
    device: torch.device = CPU,
    memory: Mapping[str, float] | None = None,
) -> list[Row]:
    """Rows of figures that were taken in rounds.

    Args:
        figures: by contender, one for each round.
        baselines: ratios are against the one with the least median.
        memory: MiB by contender.
    """
    baseline = min(baselines, key=lambda name: median(figures[name]))
    found = []
    for name, taken in figures.items():
        pairs = zip(figures[baseline], taken, strict=True)
        against = {
            "ratio": _digits(median(own / base if unit in RATES else base / own for base, own in pairs)),
            "baseline": baseline,
            "memory": _digits(memory[name]) if memory and name in memory else None,
        }
        found.append(_row(benchmark, setting, name, unit, taken, device, value=median(taken), **against))
    return found


def means(
    benchmark: str, setting: str, figures: Mapping[str, ArrayLike], unit: str, device: torch.device = CPU
) -> list[Row]:
    """Rows of means, over the images or repetitions [N] of each contender, with their standard errors."""
    found = []
    for name, given in figures.items():
        taken = np.asarray(given, np.float64)
        error = _digits(taken.std() / np.sqrt(len(taken)))
        found.append(_row(benchmark, setting, name, unit, taken, device, value=taken.mean(), error=error))
    return found


def _row(
    benchmark: str, setting: str, contender: str, unit: str, taken: Any, device: torch.device, value: float,
    **others: Any,
) -> Row:  # fmt: skip
    least, low, high, most = (_digits(quantile) for quantile in np.quantile(taken, [0, 0.25, 0.75, 1]))
    return Row(
        benchmark=benchmark, setting=setting, contender=contender, value=_digits(value), low=low, high=high, min=least,
        max=most, repeats=len(taken), unit=unit, **others, **_machine(device),
    )  # fmt: skip


def _machine(device: torch.device) -> dict[str, Any]:
    about = environment()
    return {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "processor": about["processor"] + held(),
        "kernels": kernels(device),
        "torch": about["torch"],
        "date": date.today().isoformat(),
    }


def held() -> str:
    """The instruction set that OpenVINO and torch's oneDNN are held to by the environment, for comparisons as on a
    processor that has no more; nothing where they are not."""
    to = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f", oneDNN held to {to}" if to else ""


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


# ---- files -----------------------------------------------------------------------------------------------------------


def report(groups: Iterable[list[Row]], out: Path | None) -> list[Row]:
    """Prints rows as they come in, appends them to a CSV file, and returns them all.

    Raises:
        ValueError: the file is there and begins with another header.
    """
    if out is not None:
        _require_header(out)
    found = []
    for group in groups:
        found += group
        print("\n".join(_printed(group)), flush=True)
        if out is not None:
            with out.open("a", newline="") as file:
                writer = csv.DictWriter(file, HEADER)
                if not file.tell():
                    writer.writeheader()
                writer.writerows(asdict(row) for row in group)
    return found


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return [Row(**{name: _parsed(name, cell) for name, cell in cells.items()}) for cells in csv.DictReader(file)]


def _parsed(name: str, cell: str) -> Any:
    return (NUMBERS[name](cell) if cell else None) if name in NUMBERS else cell


def _require_header(out: Path) -> None:
    if out.exists() and out.stat().st_size and out.open(newline="").readline().strip() != ",".join(HEADER):
        raise ValueError(f"out is {out}, whose first line is not the header of these rows; name another file")


def _printed(group: list[Row]) -> Iterator[str]:
    """A line for each setting, and one for each of its rows."""
    setting = None
    for row in group:
        if row.setting != setting:
            yield f"{row.benchmark}: {row.setting}"
        setting = row.setting
        beside = f"+- {row.error:<8.3g}" if row.ratio is None else f"x{row.ratio:<10.3f}"
        memory = "" if row.memory is None else f"{row.memory:,.0f} MiB"
        yield (
            f"  {row.contender:40} {row.value:10.5g} {row.unit:16} {beside} ({row.low:.4g} .. {row.high:.4g}) {memory}"
        )

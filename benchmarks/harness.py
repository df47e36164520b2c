"""Timing: contenders run in turn, medians are compared, every row carries the machine."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from statistics import median

import torch

from smoothfast import runs

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One contender in one setting.

    Attributes:
        benchmark, setting, contender: what was timed.
        unit: of `median`, `best` and `worst`, per element, row or sample.
        ratio: median of the baseline / median of this one; above 1 is faster than the baseline.
        baseline: the contender the ratio is against.
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
    threads: int
    processor: str
    kernels: str
    torch: str
    date: str


def compare(
    benchmark: str,
    setting: str,
    contenders: Mapping[str, Callable[[], object]],
    per: float,
    unit: str,
    repeats: int,
    baseline: str | None = None,
) -> list[Row]:
    """Times the contenders in turn, `repeats` rounds after one to warm up, so that a drift of the machine meets all.

    Args:
        contenders: name to a call; a ratio is against `baseline`, or the last of them.
        per: what a call's seconds are divided by, in the unit (1e-9 times the elements for ns an element).
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(repeats):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - started) / per)
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
            threads=torch.get_num_threads(),
            processor=environment["processor"],
            kernels=environment["kernels"],
            torch=environment["torch"],
            date=date.today().isoformat(),
        )
        for name, times in seconds.items()
    ]


def report(rows: list[Row], out: Path | None) -> None:
    """Prints rows as they come in and appends them to a CSV file."""
    for row in rows:
        print(
            f"{row.setting:44} {row.contender:34} {row.median:10.3f} {row.unit:16} x{row.ratio:<7.2f} "
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

"""Certification by one thread and by more, up to as many as torch takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from smoothfast.smoothing import SmoothedClassifier

from . import harness

N, REPEATS = 20_000, 5


def main(out: Path | None) -> list[harness.Row]:
    """1, 2, 4, … and all threads."""
    most = torch.get_num_threads()
    counts = [2**power for power in range(most.bit_length()) if 2**power < most]
    return harness.report([rows([*counts, most], N)], out)


def rows(counts: Sequence[int], n: int) -> list[harness.Row]:
    """One image at fixed n, against one thread."""
    former = torch.get_num_threads()
    image = harness.embedded_images(1)[0]
    by_name: dict[str, int] = {f"{count} thread{'s' * (count > 1)}": count for count in counts}
    contenders: dict[str, Callable[[], object]] = {}
    try:
        for name, count in by_name.items():
            torch.set_num_threads(count)
            smoothed = harness.embedded()
            setting = f"{harness.described(smoothed, image)}, certify, n = {n:,}"
            contenders[name] = partial(_certify, smoothed, image, n, count)
        took, memory = harness.timed(contenders, REPEATS)
    finally:
        torch.set_num_threads(former)
    figures = {name: [seconds / n * 1e6 for seconds in rounds] for name, rounds in took.items()}
    found = harness.rows("threads", setting, figures, "us/sample", list(contenders)[:1], memory=memory)
    return [replace(row, threads=by_name[row.contender]) for row in found]


def _certify(smoothed: SmoothedClassifier, image: torch.Tensor, n: int, threads: int) -> None:
    torch.set_num_threads(threads)
    smoothed.certify(image, 100, n - 100)

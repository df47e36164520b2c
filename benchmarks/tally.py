"""`tally` against argmax + bincount on the device, and against argmax + copy + a Python loop as published."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import baselines, harness

ROWS = 10_000


def main(out: Path | None) -> list[harness.Row]:
    """10,000 rows of 10 and of 1,000 classes, float32 and bfloat16."""
    forms = product(harness.devices(), (10, 1000), (torch.float32, torch.bfloat16))
    return harness.report((rows(ROWS, classes, dtype, device) for device, classes, dtype in forms), out)


def rows(count: int, classes: int, dtype: torch.dtype, device: torch.device) -> list[harness.Row]:
    setting = f"{classes} classes {str(dtype).removeprefix('torch.')}"
    return harness.compare(
        "tally", setting, contenders(count, classes, dtype, device), count * 1e-9, "ns/row", 11, device=device,
        calls=harness.calls_on(device),
    )  # fmt: skip


def contenders(count: int, classes: int, dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Each returns the votes by class, those of the package on top of all that it counted before."""
    logits = torch.randn(count, classes, device=device).to(dtype)
    slots = torch.zeros(count, dtype=torch.int64, device=device)

    def counting(tally: Callable[..., None]) -> Callable[[], Tensor]:
        counts, invalid = (torch.zeros(size, dtype=torch.int64, device=device) for size in ((1, classes), (1,)))

        def call() -> Tensor:
            tally(logits, slots, counts, invalid)
            return counts[0]

        return call

    ours = harness.implementations("tally", device)
    return {
        **{f"tally{by}": counting(tally) for by, tally in ours.items()},
        "torch argmax + bincount": lambda: baselines.torch_votes(logits),
        "argmax + Python loop (published)": lambda: baselines.published_votes(logits),
    }

"""`tally` against argmax + bincount on the device, and against argmax + copy + a Python loop as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from smoothfast import ops

from . import harness

ROWS = 10_000


def main(out: Path | None) -> None:
    """10,000 rows of 10 and of 1,000 classes, float32 and bfloat16."""
    for classes in (10, 1000):
        for dtype in (torch.float32, torch.bfloat16):
            harness.report(_rows(classes, dtype), out)


def _rows(classes: int, dtype: torch.dtype) -> list[harness.Row]:
    logits = torch.randn(ROWS, classes).to(dtype)
    slots = torch.zeros(ROWS, dtype=torch.int64)
    counts, invalid = torch.zeros(1, classes, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)

    def published() -> np.ndarray:
        votes = np.zeros(classes, dtype=int)
        for vote in logits.argmax(1).numpy():
            votes[vote] += 1
        return votes

    contenders = {
        "tally": lambda: ops.tally(logits, slots, counts, invalid),
        "torch argmax + bincount": lambda: torch.bincount(logits.argmax(1), minlength=classes),
        "argmax + Python loop (published)": published,
    }
    setting = f"{classes} classes {str(dtype).removeprefix('torch.')}"
    return harness.compare("tally", setting, contenders, ROWS * 1e-9, "ns/row", 11)

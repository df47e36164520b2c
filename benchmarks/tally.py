"""`tally` against argmax + bincount on the device, and against argmax + copy + a Python loop as published; by the other
voting rules against softmax or logits + `index_add_`, and argsort + `scatter_add_`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smoothfast.names import VOTINGS
from smoothfast.voting import voting_rule

from . import baselines, harness

ROWS = 10_000
CLASSES = (10, 1000)


def main(out: Path | None) -> list[harness.Row]:
    """10,000 rows of 10 and of 1,000 classes: float32 and bfloat16 by votes, float32 by the other rules."""
    votes = product(VOTINGS[:1], CLASSES, (torch.float32, torch.bfloat16))
    others = product(VOTINGS[1:], CLASSES, (torch.float32,))
    forms = product(harness.devices(), (*votes, *others))
    return harness.report((rows(ROWS, classes, dtype, device, rule) for device, (rule, classes, dtype) in forms), out)


def rows(
    count: int, classes: int, dtype: torch.dtype, device: torch.device, voting: str = "prediction"
) -> list[harness.Row]:
    """Rows in nanoseconds a row of logits."""
    rule = "" if voting == "prediction" else f"{voting}, "
    setting = f"{rule}{classes} classes {str(dtype).removeprefix('torch.')}"
    return harness.compare(
        "tally", setting, contenders(count, classes, dtype, device, voting), count * 1e-9, "ns/row", 11, device=device,
        calls=harness.calls_on(device),
    )  # fmt: skip


def contenders(
    count: int, classes: int, dtype: torch.dtype, device: torch.device, voting: str = "prediction"
) -> dict[str, Callable[[], Any]]:
    """Contenders that return what all rows give the classes of one image, in units of the package or as float32; those
    of the package on top of all that it counted before."""
    logits = torch.randn(count, classes, device=device).to(dtype)
    slots = torch.zeros(count, dtype=torch.int64, device=device)
    rule = voting_rule(voting, classes).to(device)

    def counting(tally: Callable[..., None]) -> Callable[[], Tensor]:
        counts, invalid = (torch.zeros(size, dtype=torch.int64, device=device) for size in ((1, classes), (1,)))

        def call() -> Tensor:
            tally(logits, slots, counts, invalid, rule.name, rule.weights)
            return counts[0]

        return call

    ours = harness.implementations("tally", device)
    others: dict[str, dict[str, Callable[[], Any]]] = {
        "prediction": {
            "torch argmax + bincount": lambda: baselines.torch_votes(logits),
            "argmax + Python loop (published)": lambda: baselines.published_votes(logits),
        },
        "weighted": {"torch argsort + scatter_add_": lambda: baselines.ranked_sum(logits)},
        "soft": {"torch softmax + index_add_": lambda: baselines.row_sum(logits.float().softmax(1), slots)},
        "logit": {"torch index_add_": lambda: baselines.row_sum(logits.float(), slots)},
    }
    return {**{f"tally{by}": counting(tally) for by, tally in ours.items()}, **others[voting]}

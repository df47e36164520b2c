"""`replica_sum` against `index_add_` in float32, and against a view and a sum, which need sorted rows, as many each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from . import baselines, harness
from .harness import DTYPES, FORMATS


def main(out: Path | None) -> list[harness.Row]:
    """64 images of 32x32 pixels with 16 rows each, 4 of 224x224 with 8; bfloat16 and float32, both memory formats."""
    forms = product(harness.devices(), ((32, 64, 16), (224, 4, 8)), DTYPES, FORMATS)
    return harness.report((rows(*sizes, dtype, form, device) for device, sizes, dtype, form in forms), out)


def rows(size: int, images: int, each: int, dtype: str, memory_format: str, device: torch.device) -> list[harness.Row]:
    """Rows in nanoseconds an element of the replicas."""
    setting = f"{size}x{size} {dtype} {memory_format}, {images} images x {each} rows"
    named = contenders(size, images, each, dtype, memory_format, device)
    per = images * each * 3 * size * size * 1e-9
    return harness.compare(
        "replica_sum", setting, named, per, "ns/element", 51, device=device, calls=harness.calls_on(device)
    )


def contenders(
    size: int, images: int, each: int, dtype: str, memory_format: str, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """Contenders that return the sums, float32 [images, 3, size, size]."""
    gradients = torch.randn(images * each, 3, size, size, device=device).to(DTYPES[dtype])
    gradients = gradients.contiguous(memory_format=FORMATS[memory_format])
    slots = torch.arange(images, device=device).repeat_interleave(each)
    scale = torch.tensor([4.0, 4.1, 3.8], device=device)
    ours = harness.implementations("replica_sum", device)
    return {
        **{f"replica_sum{by}": partial(kernel, gradients, slots, scale, images) for by, kernel in ours.items()},
        "torch view + sum": lambda: baselines.view_sum(gradients, scale.view(-1, 1, 1), images),
        "torch index_add_": lambda: baselines.index_add_sum(gradients, slots, scale.view(-1, 1, 1), images),
    }

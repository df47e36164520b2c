"""Images handed over at once: early stopping leaves cores idle where few are, and does not where there are many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import harness

Decide = Callable[..., Any]  # images and their ids to what has `samples`

SIZES = (1, 2, 8, 32, 128)
IMAGES, REPEATS = 128, 3
N_PREDICT, N_CERTIFY, RADIUS = 1_000, 4_000, 0.25  # the most samples an image


def main(out: Path | None, images: int = IMAGES) -> list[harness.Row]:
    """Sequential prediction and certification of the same embedded images, in groups of 1 .. 128."""
    sizes = [size for size in SIZES if size <= images]
    return harness.report((group for device in harness.devices() for group in groups(images, sizes, device)), out)


def groups(count: int, sizes: Sequence[int], device: torch.device) -> Iterator[list[harness.Row]]:
    """Rows in microseconds a sample and in seconds an image, against one image at a time."""
    images, _, ids = harness.embedded_images(count)
    smoothed = harness.embedded(device)
    predict = partial(smoothed.predict, n=N_PREDICT, method="sequential")
    certify = partial(smoothed.certify, n=N_CERTIFY, method="sequential", radius=RADIUS)
    calls: dict[str, Decide] = {
        f"predict, n <= {N_PREDICT:,}": predict,
        f"certify at {RADIUS}, n <= {N_CERTIFY:,}": certify,
    }
    for what, decide in calls.items():
        setting = f"{harness.described(smoothed, images)}, {what}, {count} images"
        contenders = {f"{size} at once": partial(_in_groups, decide, images, ids, size) for size in sizes}
        samples = _in_groups(decide, images, ids, count)
        took, memory = harness.timed(contenders, REPEATS, device)
        for unit, per in (("us/sample", samples * 1e-6), ("s/image", count)):
            figures = {name: [seconds / per for seconds in rounds] for name, rounds in took.items()}
            yield harness.rows("flights", setting, figures, unit, list(contenders)[:1], device, memory)


def _in_groups(decide: Decide, images: Tensor, ids: list[int], size: int) -> int:
    """Number of samples drawn, which is the same for groups of any size."""
    parts = zip(images.split(size), torch.tensor(ids).split(size), strict=True)
    return sum(int(decide(part, image_ids=numbers).samples.sum()) for part, numbers in parts)

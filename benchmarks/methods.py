"""Certification by a fixed number of samples, and by methods that stop when they have seen enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from smoothfast.smoothing import Certificate

from . import harness

N, IMAGES, REPEATS = 10_000, 20, 3
METHODS = {
    "fixed": {"method": "fixed"},
    "is the radius 0.25? (sequential)": {"method": "sequential", "radius": 0.25},
    "within 0.05 sigma (tolerance)": {"method": "tolerance", "tolerance": 0.05},
}


def main(out: Path | None, images: int = IMAGES) -> list[harness.Row]:
    """Certifies `images` of the embedded images, n = 10,000 at most."""
    return harness.report((group for device in harness.devices() for group in groups(images, N, device)), out)


def groups(count: int, n: int, device: torch.device) -> Iterator[list[harness.Row]]:
    """Seconds an image, against fixed n, and samples an image."""
    images, _, ids = harness.embedded_images(count)
    smoothed = harness.embedded(device)
    setting = f"{harness.described(smoothed, images)}, n <= {n:,}, {count} images"
    contenders: dict[str, Callable[[], Certificate]] = {
        name: partial(smoothed.certify, images, n=n, image_ids=ids, **options)  # type: ignore[arg-type]
        for name, options in METHODS.items()
    }
    samples = {name: call().samples.numpy() for name, call in contenders.items()}
    yield harness.means("methods", setting, samples, "samples/image", device)
    took, memory = harness.timed(contenders, REPEATS, device)
    figures = {name: [seconds / count for seconds in rounds] for name, rounds in took.items()}
    yield harness.rows("methods", setting, figures, "s/image", list(contenders)[:1], device, memory)

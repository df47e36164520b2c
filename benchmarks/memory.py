"""Peak memory of a process by samples and by images: neither should matter.

Linux alone tells it. The base classifier is cheap, so that what grows would be the engine's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from smoothfast.engine import BaseFunction, Engine, Job
from smoothfast.noise import lattice_law
from smoothfast.procedures import Count

from . import harness

SIZES = ((1_000, 1), (100_000, 1), (1_000, 10), (1_000, 1_000))  # samples an image, images
REPEATS = 3


class Cheap(nn.Module):
    """Logits of 10 classes from the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [N, 10]."""
        return self.linear(images.mean((2, 3)))


def main(out: Path | None) -> list[harness.Row]:
    """1,000 and 100,000 samples of an image; 10 and 1,000 images."""
    return harness.report([rows(SIZES, REPEATS)], out)


def rows(sizes: Sequence[tuple[int, int]], repeats: int) -> list[harness.Row]:
    """Rows of peak memory, each in fresh processes, against the first."""
    figures = {
        f"n = {samples:,}, images: {images:,}": [
            float(harness.whole_process("smoothfast.benchmarks.memory", str(samples), str(images)))
            for _ in range(repeats)
        ]
        for samples, images in sizes
    }
    return harness.rows("memory", "mean colour + linear, 32x32", figures, "MiB", list(figures)[:1])


def run(samples: int, images: int) -> int:
    """Votes of images that are made when the engine asks for them; how many there were."""
    engine = Engine(BaseFunction.resolved(Cheap().eval(), lattice_law(0.25), (3, 32, 32), torch.uint8))
    jobs = (
        Job(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), image_id, Count(samples))
        for image_id in range(images)
    )
    return sum(int(decision.counts.sum()) for decision in engine.run(jobs))


if __name__ == "__main__":
    asked = int(sys.argv[1]), int(sys.argv[2])
    assert run(*asked) == asked[0] * asked[1]
    print(harness.peak())

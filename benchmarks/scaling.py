"""Gains and costs of more samples: accuracy, abstention, radii and seconds by the number of samples.

Noise is a pure function of seed, image and sample, so the votes of n samples are the first of those of more: one pass
over the images counts for every n. The time of n samples is that of one image, from image to votes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smoothfast.engine import Engine, Job
from smoothfast.noise import Stream
from smoothfast.procedures import UNDECIDED, Count, Decision, Draw, FixedPredict, Votes
from smoothfast.statistics import certified_radius, own_and_rival, share_bounds

from . import harness

NS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
N0, ALPHA, SIGMA, RADII = 100, 0.001, 0.25, (0.25, 0.5)
IMAGES = 10

# What is counted, as units of rows.
VOTED, PREDICTED, ABSTAINED = "right by vote", "right by PREDICT", "abstained"
CERTIFIED, RADIUS, TIME = tuple(f"certified at {radius}" for radius in RADII), "certified radius", "s/image"


class Recorder:
    """A procedure that decides nothing: the votes [K + 1] of a stream after each of `looks` samples, growing."""

    def __init__(self, stream: Stream, looks: Sequence[int]) -> None:
        self.votes: list[Votes] = []
        self._stream, self._looks = stream, looks

    @property
    def most(self) -> int:
        """Samples that it draws."""
        return self._looks[-1]

    def begin(self) -> Draw:
        """The draw that leads to the first look."""
        return Draw(self._stream, 0, self._looks[0])

    def update(self, votes: Votes) -> Draw | Decision:
        """Records the votes of a look; the draw that leads to the next one, or a decision for no class."""
        self.votes.append(votes + self.votes[-1] if self.votes else votes.copy())
        look = len(self.votes)
        if look == len(self._looks):
            counts = self.votes[-1]
            return Decision(-1, counts[:-1], int(counts[-1]), self.most, UNDECIDED)
        return Draw(self._stream, self._looks[look - 1], self._looks[look] - self._looks[look - 1])


def main(out: Path | None, images: int = IMAGES) -> list[harness.Row]:
    """Runs the embedded network on `images` of the embedded images, n = 1 .. 100,000."""
    return harness.report((group for device in harness.devices() for group in groups(images, NS, device)), out)


def groups(count: int, ns: Sequence[int], device: torch.device) -> Iterator[list[harness.Row]]:
    """Rows of each figure by n: over `count` images, and the time of one."""
    images, labels, ids = harness.embedded_images(count)
    smoothed = harness.fastest(device)
    engine = smoothed.engine(images)
    setting = f"{harness.described(smoothed, images)}, {count} embedded images, sigma {SIGMA}, alpha {ALPHA}"
    names = [f"n = {n:,}" for n in ns]
    votes = counted(engine, images, ids, ns)
    for unit, figures in judged(votes, labels.numpy(), ns, engine.function.deviation).items():
        yield harness.means("scaling", setting, dict(zip(names, figures.T, strict=True)), unit, device)
    contenders = {name: partial(_sample, engine, images[0], n) for name, n in zip(names, ns, strict=True)}
    yield harness.compare("scaling", setting, contenders, 1, TIME, 3, device=device)


def counted(engine: Engine, images: Tensor, ids: list[int], ns: Sequence[int]) -> dict[Stream, Votes]:
    """Votes [N, looks, K + 1]: those that select at n0 samples, those of PREDICT and of CERTIFY at every n."""
    found = {}
    for stream, looks in ((Stream.SELECT, (N0,)), (Stream.PREDICT, ns), (Stream.ESTIMATE, ns)):
        recorders = [Recorder(stream, looks) for _ in ids]
        for _ in engine.run(map(Job, images, ids, recorders)):
            pass
        found[stream] = np.stack([recorder.votes for recorder in recorders])
    return found


def judged(
    votes: dict[Stream, Votes], labels: NDArray[np.int64], ns: Sequence[int], deviation: float
) -> dict[str, NDArray[np.float64]]:
    """Figures [N, looks] by name: what PREDICT and CERTIFY make of the votes, CERTIFY with the multi-class bound; a
    wrong class has radius 0."""
    voted = votes[Stream.PREDICT][..., :-1].argmax(-1)
    predicted, _ = FixedPredict(ns[-1], ALPHA).judge(votes[Stream.PREDICT])
    selected = votes[Stream.SELECT][:, :, :-1].argmax(-1)
    own, rival = own_and_rival(votes[Stream.ESTIMATE], selected)
    bounds = share_bounds(own, rival, ns, ALPHA, "multiclass", deviation=deviation)
    true = labels[:, None]
    radii = certified_radius(*bounds, SIGMA) * (selected == true)
    certified = {name: radii >= radius for name, radius in zip(CERTIFIED, RADII, strict=True)}
    return {
        VOTED: voted == true, PREDICTED: predicted == true, ABSTAINED: predicted < 0, RADIUS: radii, **certified,
    }  # fmt: skip


def _sample(engine: Engine, image: Tensor, n: int) -> None:
    for _ in engine.run([Job(image, 0, Count(n))]):
        pass

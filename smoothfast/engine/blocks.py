"""Blocks of samples, packed into micro-batches where all is known beforehand: for `gradients`.

The samples of an image come in blocks of `BLOCK`. A block lies in one micro-batch, so its sum does not depend on what
else is there, and sums over blocks are taken in the order of the blocks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 8  # samples; a micro-batch of fewer rows makes blocks smaller


@dataclass(frozen=True)
class Block:
    """Samples `first` .. `first + count - 1` of an image."""

    image: int
    first: int
    count: int


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    Attributes:
        table: int64 [3, rows]: image, block and sample of each row, -1 where it is padding.
        count: blocks in it.
        places: blocks and their images, int64 [2, …] each: the first blocks of all images, then the second ones, …, so
            that images are all different within a place.
    """

    table: Tensor
    count: int
    places: list[Tensor]


def packed(images: int, samples: int, rows: int, together: int | None, alike: bool = False) -> Iterator[Batch]:
    """Micro-batches of so many rows, on the host, in which each image has `samples` samples.

    Args:
        together: how many samples of an image may be in a micro-batch; None: any number.
        alike: whether all samples in a micro-batch must have the same number.
    """
    together = 1 if alike else together
    most = min(together or samples, rows)
    size = min(BLOCK, most)
    starts = [(start, min(size, samples - start)) for start in range(0, samples, size)]
    blocks = (Block(image, *start) for image in range(images) for start in starts)
    if together is not None:  # sample by sample, so that micro-batches are full of different images
        blocks = (Block(image, *start) for start in starts for image in range(images))
    taken: list[Block] = []
    used, held = 0, Counter[int]()
    for block in blocks:
        other = bool(taken) and alike and block.first != taken[0].first
        if used + block.count > rows or held[block.image] + block.count > (together or samples) or other:
            yield _batch(taken, rows)
            taken, used, held = [], 0, Counter()
        taken.append(block)
        used += block.count
        held[block.image] += block.count
    if taken:
        yield _batch(taken, rows)


def _batch(blocks: list[Block], rows: int) -> Batch:
    cells = [
        (block.image, number, block.first + sample)
        for number, block in enumerate(blocks)
        for sample in range(block.count)
    ]
    table = torch.tensor(cells + [(-1, -1, -1)] * (rows - len(cells)))
    seen: Counter[int] = Counter()
    places: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, block in enumerate(blocks):
        places[seen[block.image]].append((number, block.image))
        seen[block.image] += 1
    return Batch(table.T.contiguous(), len(blocks), [torch.tensor(place).T.contiguous() for place in places.values()])

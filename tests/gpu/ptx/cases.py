"""Arguments of the ops, such that kernels go through all that they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from smoothfast import ops
from smoothfast.names import VOTINGS
from smoothfast.noise import Law, Stream, gaussian_law, lattice_law, stream_key, within
from smoothfast.ops import philox
from smoothfast.voting import voting_rule

ARCHS = (80, 90)
VOTINGS = VOTINGS
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCHEDULES = ({}, *({"schedule": "warp", "seed": seed} for seed in (1, 2, 3)))
# What the shapes are for: vectorised and interleaved; a row that ends in the middle of a tile, of 16 bytes and of a
# channel; one element; four interleaved planes; more planes than are interleaved; several chunks, the last one short.
SHAPES = ((3, 32, 32), (3, 5, 7), (1, 1, 1), (4, 8, 8), (6, 8, 8), (3, 40, 40), (2, 4, 4), (5, 9, 11))
ROWS = torch.tensor([(1, 7, 0), (-1, 0, 0), (0, 2**44 - 1, 2**40 - 1), (2, 2**32 + 1, 2**32 - 1), (-5, -1, -1)])

PASSES = torch.tensor([3, 2**32 - 1, 2**32, 2**40 - 1, 3])


def law_of(name: str, sigmas: Sequence[float], image_dtype: torch.dtype) -> Law:
    return (
        lattice_law(sigmas) if name == "lattice" else gaussian_law(sigmas, 1 if image_dtype.is_floating_point else 255)
    )


def arguments(
    shape: tuple[int, int, int],
    law: str = "lattice",
    image_dtype: torch.dtype = torch.uint8,
    dtype: torch.dtype = torch.bfloat16,
    channels_last: bool = False,
    clip: bool = False,
    per_channel: bool = False,
    rows: Tensor = ROWS,
) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator)
    images = images / 255 if image_dtype.is_floating_point else images
    channels = shape[0]
    sigmas = [0.5, 0.12, 1.0, 0.25, 0.3, 0.4][: channels if per_channel else 1]
    statistics = ([0.485, 0.456, 0.406, 0.5, 0.4, 0.3][:channels], [0.229, 0.224, 0.225, 0.3, 0.2, 0.25][:channels])
    scale, shift = ops.affine(statistics, channels, image_dtype)
    chosen = law_of(law, sigmas, image_dtype)
    key = stream_key(2**63 + 5, Stream.ESTIMATE)
    return images, *rows.T.contiguous(), key, law, chosen.table, scale, shift, clip, dtype, channels_last


def same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.equal(found.contiguous(), expected.contiguous())


KINDS = (("lattice", torch.uint8), ("gaussian", torch.uint8), ("gaussian", torch.float32))


def tied(case: tuple[Any, ...]) -> tuple[Any, ...]:
    """The case with a law under which dozens of its words tie with a threshold, of which the lower bits are random, and
    many more share all float bits with the guide's; every backend must settle them alike."""
    images, slots, image_ids, sample_ids, key, law, table, *rest = case
    high, low, guide = (part.clone() for part in table)
    live = slots >= 0
    words = philox.random_words(images[0].numel(), image_ids[live], sample_ids[live], key)[0][::7].clone()
    at = torch.searchsorted(high[0], words).clamp(max=high.shape[1] - 1)
    random = torch.randint(-(2**63), 2**63 - 1, at.shape, generator=torch.Generator().manual_seed(1))
    high[0, at], low[0, at] = words, random
    octave_bits = next(k for k in range(24) if 31 * 2**k + 1 >= guide.shape[1])
    shift = 23 - octave_bits
    signed = (words | 1).to(torch.int32)
    bits = signed.abs().float().view(torch.int32)
    bucket = ((bits >> shift) - (127 << octave_bits)).long()
    mask = (1 << shift) - 1
    guide[0, bucket] = guide[0, bucket] & ~mask | bits & mask
    return images, slots, image_ids, sample_ids, key, law, [high, low, guide], *rest


def votes(
    rows: int, classes: int, dtype: torch.dtype, seed: int = 0, voting: str = "prediction"
) -> tuple[Tensor, Tensor, Tensor, Tensor, str, Tensor | None]:
    """Logits of few values, so that ties abound, with zeros of both signs and, in some rows, what is not finite. Those
    whose values count are more spread out, a few of them too large."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 3, (rows, classes), generator=generator).to(dtype) / 2
    logits[::3] *= -1  # with zeros of both signs
    logits[2::4] = -logits[2::4].abs()
    logits[2::4, ::3] += 0.0
    if voting in ("soft", "logit"):
        logits *= 3.7
        logits[5::9, ::2] *= 3000
        logits[3::5] -= 40
    for row, value in ((1, float("nan")), (4, float("inf")), (8, float("-inf")), (9, torch.finfo(dtype).max)):
        if row < rows:
            logits[row, row * 7 % classes] = value
    slots = torch.randint(-1, 4, (rows,), generator=generator)
    weights = voting_rule("weighted", min(classes, 6)).weights if voting == "weighted" else None
    return logits, slots, torch.full((4, classes), 5), torch.arange(4), voting, weights


def gradients(shape: tuple[int, ...], rows: int, dtype: torch.dtype, channels_last: bool) -> tuple[Any, ...]:
    """Rows of 3 images and of padding, which holds NaN; a fourth image has no rows."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, *shape, generator=generator).to(dtype)
    slots = torch.randint(-1, 3, (rows,), generator=generator)
    values[slots < 0] = float("nan")
    form = torch.channels_last if channels_last else torch.contiguous_format
    return values.contiguous(memory_format=form), slots, torch.rand(shape[0], generator=generator) + 0.5, 4


def attack(shape: tuple[int, ...], norm: str, eps: float) -> tuple[Any, ...]:
    """Steps of three images: of gradients with zeros, NaN and no length, some of them clipped to the range."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, *shape, generator=generator)
    adversarial = (images + eps * (torch.rand(images.shape, generator=generator) - 0.5)).clamp(0, 1)
    slopes = torch.randn(images.shape, generator=generator)
    slopes.flatten(1)[0, ::5] = 0
    slopes[1] = 0
    slopes.view(-1)[-1] = float("nan")
    return adversarial, images, slopes, norm, 0.8 * eps, eps, 0.1, 0.9


# What the networks are for: one tile; a layer in two chunks of the kernels; layers of one tile to several.
NETWORKS = ((1,), (70,), (3, 1, 40, 2, 30))


def network(layers: Sequence[int], rank: int, dtype: torch.dtype, passes: Tensor = PASSES) -> tuple[Any, ...]:
    """Layers of so many tiles, the last two of them swapped, and one tile with the last numbers that there are."""
    generator = torch.Generator().manual_seed(sum(layers) + rank)
    count = sum(layers) + 1
    weights, scales = torch.randn(2, count, 64, generator=generator)
    factors = torch.randn(rank, count, 64, generator=generator) / 4
    places = [(layer * 2**28 + 5, tile) for layer, tiles in enumerate(layers) for tile in range(tiles)]
    tiles = torch.tensor([*places, (2**32 - 1, 2**28 - 1)]).T.contiguous()
    tiles[:, -3:-1] = tiles[:, -3:-1].flip(1)
    return (
        weights,
        scales.abs(),
        factors,
        tiles,
        passes,
        within(stream_key(2**63 + 5, Stream.PREDICT), Stream.WEIGHT),
        dtype,
    )


def asked_for(request: pytest.FixtureRequest, tests: Sequence[Any]) -> bool:
    """Whether all of these tests, or some cases of each, are part of this run."""
    return all(any(getattr(item, "function", None) is test for item in request.session.items) for test in tests)

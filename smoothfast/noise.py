"""Noise as users ask for it: that of one image, by law, seed, image id, sample ids and stream.

Noise is a pure function of these and of nothing else: not of batch size, order, dtype, memory format, thread count,
device, or whether a run was resumed. docs/noise.md states the contract."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from .ops.laws import Law, float_law, gaussian_law, lattice_law, lattice_thresholds, no_noise
from .ops.philox import key_words, philox, row_words, stream_key, uniforms, within
from .streams import MAX_IMAGE_ID, MAX_SAMPLE_ID, Stream

__all__ = [
    "MAX_IMAGE_ID",
    "MAX_SAMPLE_ID",
    "Law",
    "Stream",
    "float_law",
    "gaussian",
    "gaussian_law",
    "lattice",
    "lattice_law",
    "lattice_thresholds",
    "no_noise",
    "stream_key",
    "uniform",
    "uniforms",
    "within",
]


def lattice(
    shape: Sequence[int],
    sigma: float,
    seed: int,
    image_id: int,
    sample_ids: Sequence[int] | Tensor,
    stream: Stream = Stream.ESTIMATE,
) -> Tensor:
    """Lattice noise of one image: int16 [S, *shape], in units of one grey level (1/255).

    Args:
        shape: [C, H, W], or any shape; elements are numbered in row-major order.
        sigma: standard deviation in [0, 1] pixel units; the exact value of the float. At most 19.
        seed, image_id, sample_ids, stream: what the noise is a function of.
    """
    if sigma > 19:
        raise ValueError(f"sigma is {sigma}; int16 holds lattice noise up to sigma 19")
    zeros = torch.zeros(1, 1, 1, math.prod(shape), dtype=torch.uint8)
    noise = _draw(zeros, lattice_law(sigma), seed, image_id, sample_ids, stream)
    return noise.to(torch.int16).view(-1, *shape)


def gaussian(
    shape: Sequence[int],
    sigma: float,
    seed: int,
    image_id: int,
    sample_ids: Sequence[int] | Tensor,
    stream: Stream = Stream.ESTIMATE,
) -> Tensor:
    """Gaussian noise of one image: float32 [S, *shape], in [0, 1] pixel units. Arguments as for `lattice`."""
    zeros = torch.zeros(1, 1, 1, math.prod(shape))
    return _draw(zeros, gaussian_law(sigma), seed, image_id, sample_ids, stream).view(-1, *shape)


def uniform(seed: int, image_id: int) -> float:
    """A uniform number in (0, 1] for the randomized bounds of an image: the stream RANDOMIZE, rounded up to 2^-53."""
    if not 0 <= image_id <= MAX_IMAGE_ID:
        raise ValueError(f"image_id is {image_id}; it must lie in 0 .. 2**44 - 1")
    key, zero = stream_key(seed, Stream.RANDOMIZE), torch.tensor(0)
    counter = [zero, *row_words(torch.tensor(image_id), zero, key[1])]
    high, low, *_ = philox(counter, key_words(key))
    return ((int(high) << 21 | int(low) >> 11) + 1) / 2**53


def _draw(
    zeros: Tensor, law: Law, seed: int, image_id: int, sample_ids: Sequence[int] | Tensor, stream: Stream
) -> Tensor:
    samples = torch.as_tensor(sample_ids, dtype=torch.int64).reshape(-1)
    return ops.noisy_replicas(
        zeros,
        slots=torch.zeros_like(samples),
        image_ids=torch.full_like(samples, image_id),
        sample_ids=samples,
        key=stream_key(seed, stream),
        law=law,
        scale=torch.ones(1),
        shift=torch.zeros(1),
    )

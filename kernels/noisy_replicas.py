"""noisy_replicas in Triton, equal to the CPU backend bit for bit: csrc/random/ has the same laws in C++.

A program writes up to BLOCK elements of one channel of one row, beginning at a multiple of 64. What the row and the
channel decide stays scalar, and strides make one kernel of both memory formats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothfast.ops import arguments

from . import on_device_of
from .gaussian import box_muller
from .philox import in_element_order, make_key, make_row, philox, refining_bits

BLOCK = 1024
# A product and a sum stay two roundings, as on the CPU; where one is meant, the kernels say tl.fma.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
SIZES = ["channels", "strips", "sigmas", "thresholds", "entries", "octave_bits"]  # whose values make no new kernels


def noisy_replicas(
    images: Tensor,
    slots: Tensor,
    image_ids: Tensor,
    sample_ids: Tensor,
    key: Tensor,
    law: str,
    table: Sequence[Tensor],
    scale: Tensor,
    shift: Tensor,
    clip: bool,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """The op that `reference.noisy_replicas` defines, but for the check of the ids, which would wait for the device."""
    arguments.check_noisy_replicas(images, slots, image_ids, sample_ids, key, law, table, scale, shift, dtype)
    if dtype == torch.int16:
        raise RuntimeError(f"noisy_replicas: dtype int16 is for CPUs; images are on {images.device}")
    channels, plane = images.shape[1], math.prod(images.shape[2:])
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (len(slots), *images.shape[1:])
    out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format)
    if out.numel() == 0:
        return out
    # Before the plane of a channel come up to 64 - gcd elements of the 64 that its first one shares words with.
    strips = triton.cdiv(plane + 64 - math.gcd(plane, 64), BLOCK)
    limit = (1.0 if images.is_floating_point() else 255.0) if clip else None
    tensors = [part.contiguous() for part in (images, slots, image_ids, sample_ids, key, scale, shift, *table)]
    form = (channels, plane, strips, out.stride(1), out.stride(3), limit, BLOCK)
    grid = (len(slots) * strips * channels,)
    with on_device_of(out):
        if law == "lattice":
            (sigmas, thresholds), entries = table[0].shape, table[2].shape[1]
            octave_bits = (entries // 31).bit_length() - 1  # 31 octaves and one entry
            sizes = (sigmas, thresholds, entries, octave_bits)
            lattice_replicas[grid](out, *tensors, *sizes, *form, **OPTIONS)
        else:
            gaussian_replicas[grid](out, *tensors, len(table[0]), *form, **OPTIONS)
    return out


# ---- the lattice law: csrc/random/lattice.h ------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def lattice_replicas(
    out: tl.tensor,
    images: tl.tensor,
    slots: tl.tensor,
    image_ids: tl.tensor,
    sample_ids: tl.tensor,
    key: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    guide: tl.tensor,
    sigmas: tl.tensor,
    thresholds: tl.tensor,
    entries: tl.tensor,
    octave_bits: tl.tensor,
    channels: tl.tensor,
    plane: tl.tensor,
    strips: tl.tensor,
    channel_stride: tl.tensor,
    pixel_stride: tl.tensor,
    limit: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Writes a block of elements of a replica under lattice noise."""
    row, channel, element, pixel = place(channels, plane, strips, block)
    slot = tl.load(slots + row)
    value = tl.zeros([block], tl.float32)
    if slot >= 0:
        k0, k1 = make_key(tl.load(key))
        c1, c2, c3 = make_row(tl.load(image_ids + row), tl.load(sample_ids + row), tl.load(key + 1))
        w0, w1, w2, w3 = philox(blocks_from(element, block), c1, c2, c3, k0, k1)
        words = in_element_order(w0, w1, w2, w3)
        sigma = channel % sigmas  # one serves all channels, or each has its own
        noise, unsure = guided_draw(words, guide + sigma * entries, 23 - octave_bits)
        # About one word in 100,000 is decided by the thresholds themselves, one word at a time.
        lanes = tl.arange(0, block)
        lane = tl.min(tl.where(unsure, lanes, block))
        while lane < block:
            word = tl.sum(tl.where(lanes == lane, words, 0).to(tl.int64))
            refined = refining_bits((element + lane).to(tl.uint32), c1, c2, c3, k0, k1)
            first = sigma * thresholds
            settled = exact_draw(word, refined, high + first, low + first, thresholds)
            noise = tl.where(lanes == lane, settled, noise)
            lane = tl.min(tl.where(unsure & (lanes > lane), lanes, block))
        pixels = load(images + slot * channels * plane + element, pixel, plane, block)
        value = finish((pixels.to(tl.int32) + noise).to(tl.float32), channel, scale, shift, limit)
    store(out + row * channels * plane, value, channel, pixel, plane, channel_stride, pixel_stride, block)


@triton.jit
def guided_draw(words: tl.tensor, guide: tl.tensor, shift: tl.tensor) -> tuple[tl.tensor, ...]:
    """N by one entry of the guide, and whether the word shares all float bits with a threshold."""
    signed = (words | 1).to(tl.int32, bitcast=True)
    bits = tl.abs(signed).to(tl.float32).to(tl.int32, bitcast=True)
    mask = (1 << shift) - 1
    entry = tl.load(guide - (127 << (23 - shift)) + (bits >> shift))
    here, threshold = bits & mask, entry & mask
    magnitude = (entry >> shift) + (here > threshold).to(tl.int32)
    return tl.where(signed < 0, -magnitude, magnitude), here == threshold


@triton.jit
def exact_draw(
    word: tl.tensor, refined: tl.tensor, high: tl.tensor, low: tl.tensor, thresholds: tl.tensor
) -> tl.tensor:
    """The definition: how many thresholds are <= (word, refined), less half of them; scalars, by bisection."""
    first, last = thresholds * 0, thresholds
    while first < last:
        middle = (first + last) // 2
        upper, lower = tl.load(high + middle), tl.load(low + middle).to(tl.uint64, bitcast=True)
        reached = (upper < word) | ((upper == word) & (lower <= refined))
        first, last = tl.where(reached, middle + 1, first), tl.where(reached, last, middle)
    return first - thresholds // 2


# ---- the Gaussian law ----------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def gaussian_replicas(
    out: tl.tensor,
    images: tl.tensor,
    slots: tl.tensor,
    image_ids: tl.tensor,
    sample_ids: tl.tensor,
    key: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    sigma: tl.tensor,
    sigmas: tl.tensor,
    channels: tl.tensor,
    plane: tl.tensor,
    strips: tl.tensor,
    channel_stride: tl.tensor,
    pixel_stride: tl.tensor,
    limit: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Writes a block of elements of a replica under Gaussian noise."""
    row, channel, element, pixel = place(channels, plane, strips, block)
    slot = tl.load(slots + row)
    value = tl.zeros([block], tl.float32)
    if slot >= 0:
        k0, k1 = make_key(tl.load(key))
        c1, c2, c3 = make_row(tl.load(image_ids + row), tl.load(sample_ids + row), tl.load(key + 1))
        w0, w1, w2, w3 = philox(blocks_from(element, block), c1, c2, c3, k0, k1)
        z0, z1 = box_muller(w0, w1)
        z2, z3 = box_muller(w2, w3)
        noise = in_element_order(z0, z1, z2, z3)
        pixels = load(images + slot * channels * plane + element, pixel, plane, block)
        noisy = tl.fma(noise, tl.load(sigma + channel % sigmas), pixels.to(tl.float32))
        value = finish(noisy, channel, scale, shift, limit)
    store(out + row * channels * plane, value, channel, pixel, plane, channel_stride, pixel_stride, block)


# ---- both laws -----------------------------------------------------------------------------------------------------


@triton.jit
def place(channels: tl.tensor, plane: tl.tensor, strips: tl.tensor, block: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Row and channel of this program, its first element, and where that stands in the plane: up to 63 before it."""
    strip = tl.program_id(0)
    channel = strip % channels  # fastest, so that the channels of interleaved pixels are written together
    row = (strip // channels // strips).to(tl.int64)
    begin = channel.to(tl.int64) * plane
    element = begin // 64 * 64 + (strip // channels % strips).to(tl.int64) * block
    return row, channel, element, element - begin


@triton.jit
def blocks_from(element: tl.tensor, block: tl.constexpr) -> tl.tensor:
    """Numbers of the Philox blocks that a block of elements draws from."""
    return (element // 4).to(tl.uint32) + tl.arange(0, block // 4).to(tl.uint32)


@triton.jit
def inside(pixel: tl.tensor, plane: tl.tensor, block: tl.constexpr) -> tl.tensor:
    """Whether elements of a block lie in the plane."""
    at = pixel.to(tl.int32) + tl.arange(0, block)
    return (at >= 0) & (at < plane)


@triton.jit
def load(first: tl.tensor, pixel: tl.tensor, plane: tl.tensor, block: tl.constexpr) -> tl.tensor:
    """Pixels of a block of elements, where they lie in the plane."""
    return tl.load(first + tl.arange(0, block), inside(pixel, plane, block))


@triton.jit
def finish(noisy: tl.tensor, channel: tl.tensor, scale: tl.tensor, shift: tl.tensor, limit: tl.constexpr) -> tl.tensor:
    """Noisy pixels, clipped to 0 .. limit if there is one, and normalised."""
    if limit is not None:  # NaN stays NaN
        noisy = tl.where(noisy < 0, 0.0, noisy)
        noisy = tl.where(noisy > limit, limit, noisy)
    return tl.fma(noisy, tl.load(scale + channel), tl.load(shift + channel))


@triton.jit
def store(
    image: tl.tensor,
    value: tl.tensor,
    channel: tl.tensor,
    pixel: tl.tensor,
    plane: tl.tensor,
    channel_stride: tl.tensor,
    pixel_stride: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Writes a block of elements by the strides of the replica."""
    first = image + channel.to(tl.int64) * channel_stride + pixel * pixel_stride
    tl.store(first + tl.arange(0, block) * pixel_stride, value, inside(pixel, plane, block))

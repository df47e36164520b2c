"""Philox4x32-10 (Salmon et al. 2011) and the counter layout of the noise contract (docs/noise.md), as in
csrc/random/philox.h. Words are uint32: tensors, or scalars where a whole program shares them, whose part of the rounds
then stays scalar. Sums that may wrap say so, since Triton checks the others when it debugs."""

from __future__ import annotations

import triton
import triton.language as tl

MULTIPLIER0 = tl.constexpr(0xD2511F53)
MULTIPLIER1 = tl.constexpr(0xCD9E8D57)
WEYL0 = tl.constexpr(0x9E3779B9)
WEYL1 = tl.constexpr(0xBB67AE85)
VERSION = tl.constexpr(1)
LOW_RANK = tl.constexpr(2**32)  # added to the number of a layer for normals that its weights share
REFINE = tl.constexpr(3)  # low half of the tag byte of refining bits; the stream is the high half


@triton.jit
def high_word(bits: tl.tensor) -> tl.tensor:
    """The upper 32 bits of 64."""
    return (bits >> 32).to(tl.uint32)


@triton.jit
def philox(
    c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor, k0: tl.tensor, k1: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Philox4x32-10: four counter words and two key words to four random words."""
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * MULTIPLIER0, c2.to(tl.uint64) * MULTIPLIER1
        c0, c1 = high_word(p1) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = high_word(p0) ^ c3 ^ k1, p0.to(tl.uint32)
        k0 = tl.add(k0, WEYL0, sanitize_overflow=False)
        k1 = tl.add(k1, WEYL1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def make_key(seed: tl.tensor) -> tuple[tl.tensor, ...]:
    """The two key words of a seed."""
    return seed.to(tl.uint32), high_word(seed)


@triton.jit
def make_row(image_id: tl.tensor, sample_id: tl.tensor, tag: tl.tensor) -> tuple[tl.tensor, ...]:
    """Counter words 1, 2 and 3, which all blocks of one replica share."""
    c3 = high_word(image_id) << 20 | high_word(sample_id) << 12 | tag.to(tl.uint32) << 4 | VERSION
    return sample_id.to(tl.uint32), image_id.to(tl.uint32), c3


@triton.jit
def refining_bits(
    element: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor, k0: tl.tensor, k1: tl.tensor
) -> tl.tensor:
    """The 64 bits that decide a lattice draw whose word ties with a threshold."""
    stream = c3 >> 4 & 0xFF
    high, low, _, _ = philox(element, c1, c2, c3 & 0xFFFFF00F | (stream << 4 | REFINE) << 4, k0, k1)
    return high.to(tl.uint64) << 32 | low


@triton.jit
def in_element_order(w0: tl.tensor, w1: tl.tensor, w2: tl.tensor, w3: tl.tensor) -> tl.tensor:
    """The words of successive blocks as a list of elements: word w of block b at 64 (b // 16) + 16 w + b % 16."""
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [blocks, w // 2, w % 2]
    words = tl.reshape(words, [w0.numel // 16, 16, 2, 2])
    return tl.reshape(tl.permute(words, 0, 2, 3, 1), [4 * w0.numel])

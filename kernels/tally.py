"""tally in Triton. As on the CPU all floating types are compared as integers of their width: sign and magnitude order
them, -0 equals 0, and a full exponent marks what is not finite. Integer atomics make the counts deterministic. Soft and
logit voting give what csrc/rules/soft_votes.h gives, bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothfast.ops import arguments

from . import on_device_of

BLOCK = 1024
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # where nothing is said of fusion, Triton warns
FORMATS = {
    torch.float64: (torch.int64, tl.float64, 0x7FF0000000000000),
    torch.float32: (torch.int32, tl.float32, 0x7F800000),
    torch.bfloat16: (torch.int16, tl.bfloat16, 0x7F80),
    torch.float16: (torch.int16, tl.float16, 0x7C00),
}
LEAST_EXPONENT = tl.constexpr(-32.0)
MOST_FLOAT32 = tl.constexpr(2.0**128 - 2.0**104)
LARGEST_LOGIT = tl.constexpr(2.0**12)
PROBABILITY_UNITS, LOGIT_UNITS, TERM_UNITS = (tl.constexpr(2.0**bits) for bits in (32, 20, 40))


def tally(
    logits: Tensor,
    slots: Tensor,
    counts: Tensor,
    invalid: Tensor,
    voting: str = "prediction",
    weights: Tensor | None = None,
) -> None:
    """The op that `reference.tally` defines."""
    arguments.check_tally(logits, slots, counts, invalid, voting, weights)
    rows, classes = logits.shape
    if rows == 0:
        return
    integers, floats, exponent = FORMATS[logits.dtype]
    class_block = min(triton.next_power_of_2(classes), BLOCK)
    row_block = BLOCK // class_block
    tensors = (logits.detach().view(integers), slots, counts, invalid)
    strides = [stride for tensor in tensors for stride in tensor.stride()]
    ranked = (slots[:0], 0) if weights is None else (weights.contiguous(), len(weights))
    grid = (triton.cdiv(rows, row_block),)
    with on_device_of(logits):
        tally_rows[grid](
            *tensors, *ranked, rows, classes, *strides, floats, exponent, voting, row_block, class_block, **OPTIONS
        )


@triton.jit(do_not_specialize=["ranks", "rows", "classes"])
def tally_rows(
    logits: tl.tensor,
    slots: tl.tensor,
    counts: tl.tensor,
    invalid: tl.tensor,
    weights: tl.tensor,
    ranks: tl.tensor,
    rows: tl.tensor,
    classes: tl.tensor,
    logits_row: tl.tensor,
    logits_class: tl.tensor,
    slots_row: tl.tensor,
    counts_image: tl.tensor,
    counts_class: tl.tensor,
    invalid_image: tl.tensor,
    floats: tl.constexpr,
    exponent: tl.constexpr,
    voting: tl.constexpr,
    row_block: tl.constexpr,
    class_block: tl.constexpr,
) -> None:
    """Counts a block of rows."""
    row = tl.program_id(0).to(tl.int64) * row_block + tl.arange(0, row_block)
    lanes = tl.arange(0, class_block)[None, :]
    logits += row[:, None] * logits_row
    live = (row < rows)[:, None]
    best, winner, broken = best_of(logits, live, lanes, classes, logits_class, exponent, None, None)
    slot = tl.load(slots + row * slots_row, row < rows, -1)
    valid = (slot >= 0) & (broken == 0)
    one = tl.full([row_block], 1, tl.int64)
    tl.atomic_add(invalid + slot * invalid_image, one, (slot >= 0) & (broken != 0), "relaxed")
    counts += slot * counts_image
    if voting == "prediction":
        tl.atomic_add(counts + winner.to(tl.int64) * counts_class, one, valid, "relaxed")
    elif voting == "weighted":
        for rank in range(ranks):
            weight = tl.load(weights + rank) + tl.zeros([row_block], tl.int64)
            tl.atomic_add(counts + winner.to(tl.int64) * counts_class, weight, valid, "relaxed")
            best, winner, broken = best_of(logits, live, lanes, classes, logits_class, exponent, best, winner)
    else:
        largest = number(load(logits, winner[:, None], logits_class, live), floats)
        units = tl.zeros([row_block, 1], tl.float64)
        if voting == "soft":
            sums = tl.zeros([row_block, class_block], tl.int64)
            for first in range(0, classes, class_block):
                inside = live & (first + lanes < classes)
                term = exponential(number(load(logits, first + lanes, logits_class, inside), floats) - largest)
                sums += tl.where(inside, fixed(term.to(tl.float64) * TERM_UNITS), 0)
            total = tl.sum(sums, 1)[:, None].to(tl.float64)
            units = tl.full([row_block, 1], PROBABILITY_UNITS * TERM_UNITS, tl.float64) / total
        for first in range(0, classes, class_block):
            index = first + lanes
            inside = live & (index < classes)
            logit = number(load(logits, index, logits_class, inside), floats)
            if voting == "soft":
                share = fixed(exponential(logit - largest).to(tl.float64) * units)
            else:
                share = fixed(clip(logit, LARGEST_LOGIT).to(tl.float64) * LOGIT_UNITS)
            at = counts[:, None] + index.to(tl.int64) * counts_class
            tl.atomic_add(at, share, inside & valid[:, None], "relaxed")


@triton.jit
def load(logits: tl.tensor, index: tl.tensor, logits_class: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """The bits of some classes of all rows."""
    return tl.load(logits + index.to(tl.int64) * logits_class, inside, 0)


@triton.jit
def ordered(bits: tl.tensor) -> tl.tensor:
    """Integers in the order of the floating numbers that have these bits."""
    magnitude = bits & 2 ** (bits.dtype.primitive_bitwidth - 1) - 1
    return tl.where(bits < 0, -magnitude, magnitude)


@triton.jit
def best_of(
    logits: tl.tensor,
    live: tl.tensor,
    lanes: tl.tensor,
    classes: tl.tensor,
    logits_class: tl.tensor,
    exponent: tl.constexpr,
    best_before: tl.tensor,
    winner_before: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """The largest logit of each row, the first class that has it, and whether a logit is not finite. Given the first
    two of the rank before, not None, those of the classes that rank after it."""
    integer: tl.constexpr = logits.dtype.element_ty
    # Every lane keeps the best of its classes, the first one on ties.
    best = tl.full([live.shape[0], lanes.shape[1]], -(2 ** (integer.primitive_bitwidth - 1)), integer)
    vote = tl.zeros(best.shape, tl.int32)
    broken = tl.zeros(best.shape, tl.int32)
    for first in range(0, classes, lanes.shape[1]):
        index = first + lanes
        inside = live & (index < classes)
        bits = load(logits, index, logits_class, inside)
        broken |= ((bits & exponent) == exponent).to(tl.int32)
        value = ordered(bits)
        better = inside & (value > best)
        if best_before is not None:
            tied = (value == best_before[:, None]) & (index > winner_before[:, None])
            better &= (value < best_before[:, None]) | tied
        best = tl.where(better, value, best)
        vote = tl.where(better, index, vote)
    largest = tl.max(best, 1)
    return largest, tl.min(tl.where(best == largest[:, None], vote, classes), 1), tl.max(broken, 1)


# ---- csrc/rules/soft_votes.h -----------------------------------------------------------------------------------------


@triton.jit
def number(bits: tl.tensor, floats: tl.constexpr) -> tl.tensor:
    """A logit as float32; float64 is clamped to its range, then rounded."""
    value = bits.to(floats, bitcast=True)
    if floats == tl.float64:
        value = clip(value, MOST_FLOAT32)
    return value.to(tl.float32)


@triton.jit
def clip(value: tl.tensor, most: tl.constexpr) -> tl.tensor:
    """The value, but at least -most and at most most."""
    value = tl.where(value > -most, value, -most)
    return tl.where(value < most, value, most)


@triton.jit
def fixed(value: tl.tensor) -> tl.tensor:
    """The nearest integer, to even on ties, of float64 up to 2^51."""
    return (value + 6755399441055744.0).to(tl.int64, bitcast=True) - 0x4338000000000000


@triton.jit
def exponential(x: tl.tensor) -> tl.tensor:
    """exp(x) in float32, for x <= 0."""
    x = tl.where(x > LEAST_EXPONENT, x, LEAST_EXPONENT)
    shifted = tl.fma(x, 1.44269504, 12582912.0)
    octaves = shifted - 12582912.0
    r = tl.fma(octaves, 1.90465421e-9, tl.fma(octaves, -0.693147182, x))
    p = tl.fma(r, 1.38144661e-3, 8.36878084e-3)
    p = tl.fma(p, r, 4.16683927e-2)
    p = tl.fma(p, r, 1.66665196e-1)
    p = tl.fma(p, r, 4.99999940e-1)
    mantissa = tl.fma(p, r * r, r) + 1.0
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    bits = tl.add(mantissa.to(tl.int32, bitcast=True), exponent, sanitize_overflow=False)
    return bits.to(tl.float32, bitcast=True)

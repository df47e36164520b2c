"""tally in Triton. As on the CPU all floating types are compared as integers of their width: sign and magnitude order
them, -0 equals 0, and a full exponent marks what is not finite. Integer atomics make the counts deterministic."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothfast import arguments

from . import on_device_of

BLOCK = 1024
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # where nothing is said of fusion, Triton warns
EXPONENTS = {
    torch.float64: (torch.int64, 0x7FF0000000000000),
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}


def tally(logits: Tensor, slots: Tensor, counts: Tensor, invalid: Tensor) -> None:
    """`reference.tally`."""
    arguments.check_tally(logits, slots, counts, invalid)
    rows, classes = logits.shape
    if rows == 0:
        return
    integers, exponent = EXPONENTS[logits.dtype]
    class_block = min(triton.next_power_of_2(classes), BLOCK)
    row_block = BLOCK // class_block
    tensors = (logits.detach().view(integers), slots, counts, invalid)
    strides = [stride for tensor in tensors for stride in tensor.stride()]
    grid = (triton.cdiv(rows, row_block),)
    with on_device_of(logits):
        tally_rows[grid](*tensors, rows, classes, *strides, exponent, row_block, class_block, **OPTIONS)


@triton.jit(do_not_specialize=["rows", "classes"])
def tally_rows(
    logits: tl.tensor,
    slots: tl.tensor,
    counts: tl.tensor,
    invalid: tl.tensor,
    rows: tl.tensor,
    classes: tl.tensor,
    logits_row: tl.tensor,
    logits_class: tl.tensor,
    slots_row: tl.tensor,
    counts_image: tl.tensor,
    counts_class: tl.tensor,
    invalid_image: tl.tensor,
    exponent: tl.constexpr,
    row_block: tl.constexpr,
    class_block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * row_block + tl.arange(0, row_block)
    lanes = tl.arange(0, class_block)[None, :]
    integer: tl.constexpr = logits.dtype.element_ty
    largest: tl.constexpr = 2 ** (integer.primitive_bitwidth - 1) - 1
    # Every lane keeps the best of its classes, the first one on ties.
    best = tl.full([row_block, class_block], -largest - 1, integer)
    vote = tl.zeros([row_block, class_block], tl.int32)
    broken = tl.zeros([row_block, class_block], tl.int32)
    for first in range(0, classes, class_block):
        index = first + lanes
        inside = (row[:, None] < rows) & (index < classes)
        at = logits + row[:, None] * logits_row + index.to(tl.int64) * logits_class
        bits = tl.load(at, inside, 0)
        broken |= ((bits & exponent) == exponent).to(tl.int32)
        magnitude = bits & largest
        ordered = tl.where(bits < 0, -magnitude, magnitude)
        better = inside & (ordered > best)
        best = tl.where(better, ordered, best)
        vote = tl.where(better, index, vote)
    winner = tl.min(tl.where(best == tl.max(best, 1)[:, None], vote, classes), 1)
    finite = tl.max(broken, 1) == 0
    slot = tl.load(slots + row * slots_row, row < rows, -1)
    one = tl.full([row_block], 1, tl.int64)
    tl.atomic_add(
        counts + slot * counts_image + winner.to(tl.int64) * counts_class, one, (slot >= 0) & finite, "relaxed"
    )
    tl.atomic_add(invalid + slot * invalid_image, one, (slot >= 0) & (finite == 0), "relaxed")

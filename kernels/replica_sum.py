"""replica_sum in Triton, equal to the CPU backend bit for bit: the rows of an image are added one by one in float32.

A program adds BLOCK neighbours in the memory of the gradients, so that either format is read in whole lines.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothfast.ops import arguments

from . import on_device_of

BLOCK = 1024
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # the scale does not merge into the last sum


def replica_sum(gradients: Tensor, slots: Tensor, scale: Tensor, images: int) -> Tensor:
    """The op that `reference.replica_sum` defines, but that the device does not check the slots."""
    arguments.check_replica_sum(gradients, slots, scale, images)
    channels, plane = gradients.shape[1], math.prod(gradients.shape[2:])
    out = torch.empty((images, *gradients.shape[1:]), dtype=torch.float32, device=gradients.device)
    if out.numel() == 0:
        return out
    channels_last = not gradients.is_contiguous() and gradients.is_contiguous(memory_format=torch.channels_last)
    source = gradients if channels_last else gradients.contiguous()
    by_slot, rows = slots.sort(stable=True)
    first = torch.searchsorted(by_slot, torch.arange(images + 1, device=slots.device))  # of an image among the rows
    strips = triton.cdiv(channels * plane, BLOCK)
    tensors = (source, rows, first, scale.contiguous())
    with on_device_of(out):
        sum_rows[(images * strips,)](
            out, *tensors, channels * plane, channels, plane, strips, channels_last, BLOCK, **OPTIONS
        )
    return out


@triton.jit(do_not_specialize=["channels", "plane", "strips"])
def sum_rows(
    out: tl.tensor,
    gradients: tl.tensor,
    rows: tl.tensor,
    first: tl.tensor,
    scale: tl.tensor,
    elements: tl.tensor,
    channels: tl.tensor,
    plane: tl.tensor,
    strips: tl.tensor,
    channels_last: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Sums the rows of an image for a block of its elements."""
    image = (tl.program_id(0) // strips).to(tl.int64)
    at = tl.program_id(0) % strips * block + tl.arange(0, block)
    inside = at < elements
    total = tl.zeros([block], tl.float32)
    for i in range(tl.load(first + image), tl.load(first + image + 1)):
        row = tl.load(rows + i)
        total += tl.load(gradients + row * elements + at, inside, 0).to(tl.float32)
    channel = at % channels if channels_last else at // plane
    place = channel * plane + at // channels if channels_last else at
    tl.store(out + image * elements + place, tl.load(scale + channel, inside, 0) * total, inside)

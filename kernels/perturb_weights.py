"""perturb_weights in Triton, equal to the CPU backend bit for bit.

A program takes TILES tiles in one pass, of any layers; each draws the normals that its layer shares once more, all 64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothfast.ops import arguments

from . import on_device_of
from .gaussian import box_muller
from .philox import LOW_RANK, in_element_order, make_key, make_row, philox

TILES = 16
# A product and a sum stay two roundings, as on the CPU; where one is meant, the kernels say tl.fma.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def perturb_weights(
    weights: Tensor, scales: Tensor, factors: Tensor, tiles: Tensor, passes: Tensor, key: Tensor, dtype: torch.dtype
) -> Tensor:
    """The op that `reference.perturb_weights` defines, but for the check of the numbers, which would wait for the
    device."""
    arguments.check_perturb_weights(weights, scales, factors, tiles, passes, key, dtype)
    count, rank = len(weights), len(factors)
    out = torch.empty((len(passes), *weights.shape), dtype=dtype, device=weights.device)
    if out.numel() == 0:
        return out
    tensors = [part.contiguous() for part in (weights, scales, factors, tiles, passes, key)]
    grid = (triton.cdiv(count, TILES) * len(passes),)
    with on_device_of(out):
        perturb_tiles[grid](out, *tensors, count, len(passes), rank, TILES, **OPTIONS)
    return out


@triton.jit(do_not_specialize=["count", "pass_count", "rank"])
def perturb_tiles(
    out: tl.tensor,
    weights: tl.tensor,
    scales: tl.tensor,
    factors: tl.tensor,
    places: tl.tensor,
    passes: tl.tensor,
    key: tl.tensor,
    count: tl.tensor,
    pass_count: tl.tensor,
    rank: tl.tensor,
    tiles: tl.constexpr,
) -> None:
    """Writes some tiles of the weights of a pass."""
    at_pass = (tl.program_id(0) % pass_count).to(tl.int64)  # fastest, so that the passes of a tile read it together
    first = (tl.program_id(0) // pass_count).to(tl.int64) * tiles
    sample, tag = tl.load(passes + at_pass), tl.load(key + 1)
    k0, k1 = make_key(tl.load(key))
    # A Philox block a lane: 16 lanes a tile.
    lanes = tl.arange(0, 16 * tiles)
    tile = first + lanes // 16
    layer = tl.load(places + tile, tile < count, 0)
    number = tl.load(places + count + tile, tile < count, 0)
    block = (lanes % 16).to(tl.uint32)
    own = normals(number.to(tl.uint32) * 16 + block, layer, sample, tag, k0, k1)

    column = tl.arange(0, 64)[None, :]
    row = first + tl.arange(0, tiles)[:, None]
    at, inside = row * 64 + column, row < count
    total = tl.fma(tl.load(scales + at, inside, 0), own, tl.load(weights + at, inside, 0))
    if rank > 0:
        shared = normals(block, layer + LOW_RANK, sample, tag, k0, k1).to(tl.int32, bitcast=True)
        for k in range(rank):
            # The one bit pattern that is not masked, so that the sum is exact.
            normal = tl.sum(tl.where(column == k, shared, 0), 1).to(tl.float32, bitcast=True)
            total = tl.fma(tl.load(factors + at, inside, 0), normal[:, None], total)
            factors += count.to(tl.int64) * 64
    tl.store(out + at_pass * count * 64 + at, total, inside)


@triton.jit
def normals(
    block: tl.tensor, layer: tl.tensor, sample: tl.tensor, tag: tl.tensor, k0: tl.tensor, k1: tl.tensor
) -> tl.tensor:
    """Normals of tiles, [tiles, 64], from a Philox block a lane."""
    c1, c2, c3 = make_row(layer, sample, tag)
    w0, w1, w2, w3 = philox(block, c1, c2, c3, k0, k1)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return tl.reshape(in_element_order(z0, z1, z2, z3), [block.numel // 16, 64])

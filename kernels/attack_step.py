"""attack_step in Triton, equal to the CPU backend bit for bit: csrc/rules/attack.h has the same arithmetic in C++.

Float64 quotients and roots are correctly rounded by definition; of float32 there are only sums here. In Triton -x is
0 - x, which loses the sign of a zero: hence `negative`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from smoothfast.ops import arguments, reference

from . import on_device_of

BLOCK = 1024
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # a product and a sum stay two roundings
LANES = tl.constexpr(reference.LANES)
PARTS = tl.constexpr(4)  # elements of a lane that are read at once
SHRINK = tl.constexpr(1 - reference.MARGIN)


def attack_step(
    adversarial: Tensor, images: Tensor, gradients: Tensor, norm: str, alpha: float, eps: float, low: float, high: float
) -> None:
    """The op that `reference.attack_step` defines."""
    arguments.check_attack_step(adversarial, images, gradients, norm, alpha, eps, low, high)
    if adversarial.numel() == 0:
        return
    target = adversarial.contiguous()
    tensors = (target, images.contiguous(), gradients.contiguous())
    limits = reference.limits(alpha, eps, low, high)
    count, elements = len(target), target[0].numel()
    with on_device_of(target):
        if norm == "linf":
            linf_step[(triton.cdiv(target.numel(), BLOCK),)](*tensors, *limits, target.numel(), BLOCK, **OPTIONS)
        else:
            l2_step[(count,)](*tensors, *limits, elements, **OPTIONS)
    if target.data_ptr() != adversarial.data_ptr():
        adversarial.copy_(target)


# ---- linf -----------------------------------------------------------------------------------------------------------


@triton.jit
def linf_step(
    adversarial: tl.tensor,
    images: tl.tensor,
    gradients: tl.tensor,
    alpha: tl.tensor,
    eps: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    elements: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Steps and projects a block of elements in Linf."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    here, image = tl.load(adversarial + at, inside), tl.load(images + at, inside)
    gradient = tl.load(gradients + at, inside)
    step = tl.where(gradient > 0, alpha, tl.where(gradient < 0, negative(alpha), 0.0))  # 0 for NaN
    within = clip(here + step, negative(upper_bound(negative(image), eps)), upper_bound(image, eps))
    tl.store(adversarial + at, clip(within, low, high), inside)


@triton.jit
def upper_bound(image: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """The largest float32 that is at most image + eps; TwoSum gives what the sum lost."""
    bound = image + eps
    part = bound - image
    lost = (image - (bound - part)) + (eps - part)
    return tl.where(lost >= 0, bound, next_towards(bound, image))


# ---- l2 -------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["elements"])
def l2_step(
    adversarial: tl.tensor,
    images: tl.tensor,
    gradients: tl.tensor,
    alpha: tl.tensor,
    eps: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    elements: tl.tensor,
) -> None:
    """Steps and projects one image in L2."""
    elements = elements.to(tl.int64)
    begin = tl.program_id(0).to(tl.int64) * elements
    adversarial, images, gradients = adversarial + begin, images + begin, gradients + begin
    squares = tl.zeros([LANES], tl.float64)
    for first in range(0, elements, LANES * PARTS):
        for part in tl.static_range(PARTS):
            at = first + part * LANES + tl.arange(0, LANES)
            slope = tl.load(gradients + at, at < elements, 0).to(tl.float64)
            squares += slope * slope
    total = sum_lanes(squares)
    step = tl.where((total > 0) & (total < float("inf")), tl.full([1], alpha, tl.float64) / tl.sqrt(total), 0.0)
    squares = tl.zeros([LANES], tl.float64)
    for first in range(0, elements, LANES * PARTS):
        for part in tl.static_range(PARTS):
            at = first + part * LANES + tl.arange(0, LANES)
            _, shift = shifts(adversarial, images, gradients, at, at < elements, step)
            squares += shift * shift
    norm = tl.sqrt(sum_lanes(squares))
    limit = tl.full([1], eps, tl.float64) * SHRINK
    factor = tl.where(norm > limit, limit / norm, 1.0)
    for first in range(0, elements, LANES):
        at = first + tl.arange(0, LANES)
        image, shift = shifts(adversarial, images, gradients, at, at < elements, step)
        tl.store(adversarial + at, clip(shifted(image, shift * factor), low, high), at < elements)


@triton.jit
def sum_lanes(lanes: tl.tensor) -> tl.tensor:
    """Sum [1] of lanes: halves are added, lane i + LANES / 2 to lane i and so on. A tl.sum of two promises an order,
    one of all lanes does not."""
    for _ in tl.static_range(8):
        lanes = tl.sum(tl.reshape(lanes, [2, lanes.numel // 2]), 0)
    return lanes


@triton.jit
def shifts(
    adversarial: tl.tensor, images: tl.tensor, gradients: tl.tensor, at: tl.tensor, inside: tl.tensor, step: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Images, and how far from them the step leads; zeros where nothing is inside."""
    image, slope = tl.load(images + at, inside, 0), tl.load(gradients + at, inside, 0).to(tl.float64)
    before = tl.load(adversarial + at, inside, 0).to(tl.float64) - image.to(tl.float64)
    return image, before + tl.where(step > 0, slope * step, 0.0)


@triton.jit
def shifted(image: tl.tensor, shift: tl.tensor) -> tl.tensor:
    """The image after a shift, no further away than the shift leads."""
    near = (image.to(tl.float64) + shift).to(tl.float32)
    beyond = tl.abs(near.to(tl.float64) - image.to(tl.float64)) > tl.abs(shift)
    return tl.where(beyond, next_towards(near, image), near)


# ---- both norms -----------------------------------------------------------------------------------------------------


@triton.jit
def clip(value: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """The value, but at least low and at most high; NaN stays NaN."""
    value = tl.where(value < low, low, value)
    return tl.where(value > high, high, value)


@triton.jit
def negative(value: tl.tensor) -> tl.tensor:
    """The value with the other sign, 0 included."""
    return value * -1.0


@triton.jit
def next_towards(value: tl.tensor, target: tl.tensor) -> tl.tensor:
    """The float next to `value` on the way to `target`, another value."""
    away = tl.where((value > 0) == (target > value), 1, -1)
    bits = tl.add(value.to(tl.int32, bitcast=True), away, sanitize_overflow=False)
    least = tl.where(target > 0, 1, -0x7FFFFFFF)  # of either sign: bits 1 and 0x80000001
    return tl.where(value == 0, least, bits).to(tl.float32, bitcast=True)

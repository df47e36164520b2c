"""The kernels as typed functions.

Their schemas live in csrc/ops.cpp. Where the extension is absent, or `SMOOTHFAST_BACKEND=reference`, the same schemas
are inferred from the signatures in `reference`. `backend` chooses what serves a device, `registration` tells torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import choice
from ..normalization import Normalization
from ..voting import PREDICTION, Voting
from . import reference, registration
from .backend import GPUS, OPS, backends, extension
from .laws import Law

__all__ = [
    "GPUS",
    "OPS",
    "Noisy",
    "affine",
    "attack_step",
    "backends",
    "extension",
    "fused_gradients",
    "fused_logits",
    "fused_pack",
    "fused_pack_integers",
    "fused_votes",
    "noisy_replicas",
    "perturb_weights",
    "planes",
    "reference",
    "registration",
    "replica_sum",
    "tally",
]

Noisy = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Law, Tensor, Tensor, bool]
"""Arguments of `noisy_replicas`, but for those that say in what form it returns the replicas."""


def noisy_replicas(
    images: Tensor,
    slots: Tensor,
    image_ids: Tensor,
    sample_ids: Tensor,
    key: Tensor,
    law: Law,
    scale: Tensor,
    shift: Tensor,
    clip: bool = False,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Noisy, normalised copies of images, one write per element.

    Row r is `cast(fma(images[slots[r]] + noise, scale, shift))` with the noise of image id `image_ids[r]` and sample id
    `sample_ids[r]`; rows with `slots[r] < 0` are padding and hold zeros.

    Args:
        images: uint8 (0..255) or float32 [S, C, ...], of any rank from 2 on. The lattice law needs uint8.
        slots: int64 [R], which image a row copies.
        image_ids: int64 [R], below 2**44.
        sample_ids: int64 [R], below 2**40.
        key: int64 [2] from `noise.stream_key`.
        law: from `noise.lattice_law` or `noise.gaussian_law`, its sigma in units of these images.
        scale, shift: float32 [C], from `affine`.
        clip: clamp to the range of the images after the noise; then part of the base classifier.
        dtype: float32, bfloat16 or float16; on CPUs int16 too, to which results are rounded and clamped. It holds
            lattice noise on uint8 as it is, with scale 1 and shift 0.
        memory_format: contiguous or, of images [S, C, H, W], channels_last. Neither changes the noise.

    Returns:
        [R, C, ...]. Differentiable with respect to float images: the gradient of an image is the sum over its rows.
    """
    replicas: Tensor = torch.ops.smoothfast.noisy_replicas(
        planes(images),
        slots,
        image_ids,
        sample_ids,
        key,
        law.name,
        law.table,
        scale,
        shift,
        clip,
        dtype,
        memory_format == torch.channels_last,
    )
    return replicas.view(len(slots), *images.shape[1:])


def planes(images: Tensor) -> Tensor:
    """Images of any rank [N, C, ...] as the kernels take them, [N, C, H, W]: what follows the channels is one plane, in
    its order; features [N, D] are D channels of one pixel. A view, where that can be."""
    if images.dim() in (2, 3):
        return images[:, :, None, None] if images.dim() == 2 else images[:, :, None]
    return images.flatten(2, -2) if images.dim() > 4 else images


def tally(logits: Tensor, slots: Tensor, counts: Tensor, invalid: Tensor, voting: Voting = PREDICTION) -> None:
    """Adds what rows of logits give each class to the counts of their slots, in place.

    Args:
        logits: floating [R, K].
        slots: int64 [R]; rows with a negative slot are padding and count nowhere.
        counts: int64 [S, K], by class, in units of `voting.unit`; with the voting rules of this package 2^31 - 1 rows
            cannot overflow a count.
        invalid: int64 [S], rows with a logit that is not finite; they give no class anything.
        voting: the rule. By default a row votes for its argmax, the lowest index on ties. Every backend ranks classes
            alike, in the dtype of the logits. For "soft" and "logit" those of float64 are rounded to float32, and the
            compiled and the Triton kernels give the same bits; `reference` does for "logit", while its probabilities
            are those of float64, rounded.
    """
    torch.ops.smoothfast.tally(logits, slots, counts, invalid, voting.name, voting.weights)


def replica_sum(gradients: Tensor, slots: Tensor, scale: Tensor, images: int) -> Tensor:
    """Sums the rows of every image: the backward pass of `noisy_replicas`.

    Rows are added one by one in their order, in float32, so that every backend and every number of threads gives the
    same bits.

    Args:
        gradients: float32, bfloat16 or float16 [R, C, ...].
        slots: int64 [R], the image of a row, below `images`; rows with a negative slot are padding and count nowhere.
        scale: float32 [C], what the sums are multiplied by.
        images: how many images there are.

    Returns:
        float32 [images, C, ...], contiguous. Differentiable with respect to the gradients.
    """
    sums: Tensor = torch.ops.smoothfast.replica_sum(planes(gradients), slots, scale, images)
    return sums.view(images, *gradients.shape[1:])


def attack_step(
    adversarial: Tensor, images: Tensor, gradients: Tensor, norm: str, alpha: float, eps: float, low: float, high: float
) -> None:
    """A step of an attack and its projection, in place: no result leaves the ball or the range of pixels.

    That holds in real arithmetic, for any finite adversarial and any gradients: every rounding goes towards the image.
    Autograd does not see the step.

    Args:
        adversarial: float32 [N, C, ...], contiguous where the rank is above 4, the attack so far, written. It shares no
            memory with the others.
        images: float32 [N, C, ...], the centres of the balls; they must lie in [low, high], which nobody checks.
        gradients: float32 [N, C, ...], of what the attack makes larger. With linf, NaN counts as 0; with l2, an image
            whose gradient is zero or not finite makes no step.
        norm: "linf" (a step is alpha times the sign) or "l2" (alpha times the gradient of unit norm).
        alpha: length of the step, at least 0, in units of the images.
        eps: radius of the ball, at least 0, in units of the images; rounded down to float32. With l2, 2**-28 of it
            stays free for the roundings of the norm.
        low, high: the range of pixels; infinite where there is none.

    Raises:
        ValueError: norm is neither "linf" nor "l2".
    """
    choice("norm", norm, reference.NORMS)
    each = map(planes, (adversarial, images, gradients))
    torch.ops.smoothfast.attack_step(*each, norm, alpha, eps, low, high)


def perturb_weights(
    weights: Tensor,
    scales: Tensor,
    factors: Tensor,
    tiles: Tensor,
    passes: Tensor,
    key: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Noisy weights of all layers of a network, for several of its passes.

    The weights of a layer, in their logical order, fill whole tiles of 64 of which the last one is padded. Those of
    pass p are `weights + scales * xi + sum(factors[k] * z[k])`: xi has a standard normal number for each weight, z has
    one for each k that all weights of a layer share, and all are drawn anew in each pass, as a pure function of key,
    layer, pass and place. So the weights of a layer have covariance diag(scales^2) + factors^T factors.

    Args:
        weights: float32 [T, 64].
        scales: float32 [T, 64], standard deviations.
        factors: float32 [r, T, 64], r at most 64.
        tiles: int64 [2, T], the layer of each tile, below 2**32, and its number within the layer, below 2**28.
        passes: int64 [P], below 2**40.
        key: int64 [2] from `noise.within`.
        dtype: float32, bfloat16 or float16.

    Returns:
        [P, T, 64]. Differentiable with respect to weights, scales and factors.
    """
    return torch.ops.smoothfast.perturb_weights(weights, scales, factors, tiles, passes, key, dtype)


def fused_pack(
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    biases: Sequence[Tensor],
    linear: Tensor,
    linear_bias: Tensor,
    arithmetic: str,
    gradients: bool,
) -> Tensor:
    """A CIFAR ResNet as `fused_logits` and `fused_gradients` take it: weights as an arithmetic reads them.

    Args:
        weights: float32 [outputs, inputs, 3, 3] of the convolutions in their order, and [outputs, inputs, 1, 1] of the
            two shortcuts, each before those of its block: 3 + 6 n of them.
        gains, biases: float64 [outputs] of each, as batch norms have them: what outputs are multiplied by, and what is
            then added. The bias of a shortcut is not read; it is part of that of the block's last convolution.
        linear, linear_bias: float32 [K, C], [K].
        arithmetic: "amx" or "avx512_bf16" (tiles of bf16, the same for both), "winograd_bf16", "winograd_mixed" (bf16,
            but float32 in the last stage) or "winograd_fp32"; for GPUs "bf16_mma" or "bf16_mma_pairs", the same for
            both, which take widths of 16, 32 and 64, the former also 32, 64 and 128.
        gradients: whether gradients are wanted too; those of GPUs have none.

    Returns:
        uint8 [bytes], on the CPU.
    """
    return torch.ops.smoothfast.fused_pack(weights, gains, biases, linear, linear_bias, arithmetic, gradients)


def fused_pack_integers(
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    biases: Sequence[Tensor],
    multipliers: Sequence[Tensor],
    shifts: Sequence[Tensor],
    linear: Tensor,
    linear_bias: Tensor,
    unit: float,
    arithmetic: str,
) -> Tensor:
    """A CIFAR ResNet in integers as `fused_logits` and `fused_votes` take it, by an arithmetic called int8.

    All of these compute one function, bit for bit. A map has numbers 0..255; a sum of it with weights is exact, and
    becomes a number of the next map as `clamp(round(fma(float32(sum), scale, bias)), 0, 255)`, where conversion, fused
    multiply-add and rounding go to nearest even, in float32. To the sums of the last layer of a block
    `sum << shift` is added, of its shortcut, or of its inputs times their multipliers. Logits are integers times unit.

    Args:
        weights: of the convolutions in their order, each shortcut before those of its block, 3 + 6 n of them: int16
            [outputs, 3, 3, 3] of pixels, of magnitudes up to 4095 that add up to 65535 at most for an output; then int8
            [outputs, inputs, 3, 3], of shortcuts [outputs, inputs, 1, 1]. The magnitudes of two of them, for inputs 2 i
            and 2 i + 1, add up to 128 at most, for processors that add their products in 16 bits.
        scales: float32 [outputs], in (0, 0.5]; of shortcuts [0].
        biases: float32 [outputs], of magnitudes up to 2**29; of shortcuts [0]. The first [3, 3, outputs]: in the top
            row, in others, in the bottom row, and in the left pixel, in others, in the right one.
        multipliers: int8 [outputs], 0..127, of the last layer of a block without a shortcut; of others [0].
        shifts: int32 [outputs], 0..24, of the last layer of a block; of others [0].
        linear, linear_bias: int16 [K, C], int32 [K], for the sums of the last map over its pixels.
        unit: of logits, positive.
        arithmetic: the one that takes it. Those of CPUs all take the same, and so do "int8_mma" and "int8_mma_pairs".

    Returns:
        uint8 [bytes], on the CPU.

    Raises:
        RuntimeError: an argument is not as above, or lets a sum reach 2**31.
    """
    return torch.ops.smoothfast.fused_pack_integers(
        weights, scales, biases, multipliers, shifts, linear, linear_bias, unit, arithmetic
    )


def fused_logits(replicas: Tensor, packed: Tensor, shape: Sequence[int], arithmetic: str) -> Tensor:
    """Logits of a CIFAR ResNet, all of whose activations stay in the L2 of a core, or in shared memory.

    Those of a row do not depend on the rows beside it, on where it is among them, or on threads.

    Args:
        replicas: [R, 3, 32, 32], float32 by "winograd_fp32", int16 in integers, else bfloat16.
        packed: from `fused_pack`, or from `fused_pack_integers`.
        shape: three widths, multiples of 16 (for tiles of 32, but for the first; on GPUs see packing), the blocks of
            a stage, and K.
        arithmetic: the one that it was packed for, of those that `extension.fused_arithmetics` names; each rounds in
            its own way, "bf16_mma" and "bf16_mma_pairs" of GPUs in one. Those in integers do not: "int8_amx",
            "int8_avx512_vnni", "int8_avx_vnni", "int8_avx2" and "int8_scalar", on GPUs "int8_mma" and "int8_mma_pairs",
            differ in speed alone.

    Returns:
        float32 [R, K].
    """
    return torch.ops.smoothfast.fused_logits(replicas, packed, shape, arithmetic)


def fused_votes(
    noisy: Noisy,
    packed: Tensor,
    shape: Sequence[int],
    arithmetic: str,
    counts: Tensor,
    invalid: Tensor,
    voting: Voting = PREDICTION,
) -> Tensor:
    """Votes of images by a CIFAR ResNet: `noisy_replicas`, `fused_logits` and `tally` in one call, bit for
    bit.

    Replicas and activations stay in the L2 of a core, or in shared memory. Rows of padding are not computed; their
    logits are 0.

    Args:
        noisy: of images [S, 3, 32, 32].
        packed, shape, arithmetic: as of `fused_logits`.
        counts, invalid, voting: as of `tally`.

    Returns:
        float32 [R, K].
    """
    *rows, law, scale, shift, clip = noisy
    return torch.ops.smoothfast.fused_votes(
        *rows, law.name, law.table, scale, shift, clip, packed, shape, arithmetic, counts, invalid, voting.name,
        voting.weights,
    )  # fmt: skip


def fused_gradients(
    replicas: Tensor, classes: Tensor, packed: Tensor, shape: Sequence[int], arithmetic: str
) -> tuple[Tensor, Tensor]:
    """Logits as of `fused_logits`, and the gradients of the cross-entropy of each row by its replica.

    Args:
        classes: int64 [R].
        packed: from `fused_pack` with gradients.

    Returns:
        float32 [R, K] and [R, 3, 32, 32].
    """
    return torch.ops.smoothfast.fused_gradients(replicas, classes, packed, shape, arithmetic)


def affine(normalize: Normalization | None, channels: int, image_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`scale` and `shift` of `noisy_replicas`, float32 [C]: (x - mean) / std on images in [0, 1], or x as it is."""
    mean, std = normalize if normalize is not None else ([0.0] * channels, [1.0] * channels)
    mean, std = (list(values) * (channels if len(values) == 1 else 1) for values in (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"normalize has {len(mean)} means and {len(std)} stds; the images have {channels} channels")
    if not all(s > 0 and math.isfinite(s) for s in std):
        raise ValueError(f"normalize has std {list(std)}; every std must be positive")
    if not all(map(math.isfinite, mean)):
        raise ValueError(f"normalize has mean {list(mean)}; every mean must be finite")
    levels = 1 if image_dtype.is_floating_point else 255
    scale = torch.tensor([1 / (levels * s) for s in std], dtype=torch.float32)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32)
    return scale, shift

"""Checks of the arguments of the ops, by shape, dtype and device: for the fake kernels, `reference` and Triton.

csrc/ops.cpp says the same to the compiled kernels, in the same words. Values on a device are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPLICA_DTYPES = (*FLOAT_DTYPES, torch.int16)
LOGIT_DTYPES = (torch.float64, *FLOAT_DTYPES)
TILE = 64  # elements
FLOAT32_END = 2.0**128 - 2.0**103  # from here on a double rounds to infinity


def check_noisy_replicas(
    images: Tensor,
    slots: Tensor,
    image_ids: Tensor,
    sample_ids: Tensor,
    key: Tensor,
    law: str,
    table: Sequence[Tensor],
    scale: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
) -> None:
    """Raises RuntimeError unless the arguments of `noisy_replicas` are as its docstring says."""
    _check(images.dim() == 4, "noisy_replicas: images must be [S, C, H, W], not {}", images.shape)
    kind = images.dtype in (torch.uint8, torch.float32)
    _check(kind, "noisy_replicas: images must be uint8 or float32, not {}", images.dtype)
    channels = images.shape[1]
    _check(slots.dim() == 1, "noisy_replicas: slots must be int64 [R], not {}", slots)
    for name, index in (("slots", slots), ("image_ids", image_ids), ("sample_ids", sample_ids)):
        _check_index("noisy_replicas", name, index, slots.shape[0])
    _check_index("noisy_replicas", "key", key, 2)
    kind = dtype in REPLICA_DTYPES
    _check(kind, "noisy_replicas: dtype must be float32, bfloat16, float16 or int16, not {}", dtype)
    for name, constant in (("scale", scale), ("shift", shift)):
        _check_channels("noisy_replicas", name, constant, channels)
    _check(law in ("lattice", "gaussian"), "noisy_replicas: law must be 'lattice' or 'gaussian', not '{}'", law)
    kind = law != "lattice" or images.dtype == torch.uint8
    _check(kind, "noisy_replicas: the lattice law needs uint8 images, not {}", images.dtype)
    _check(_is_table_of(law, table), "noisy_replicas: table must come from noise.{}_law", law)
    sigmas = table[0].shape[0]
    fits = sigmas in (1, channels)
    _check(fits, "noisy_replicas: sigma has {} entries; the images have {} channels", sigmas, channels)
    _check_size("noisy_replicas", images)
    _check_devices("noisy_replicas", images, (slots, image_ids, sample_ids, key, scale, shift, *table))


def check_tally(
    logits: Tensor, slots: Tensor, counts: Tensor, invalid: Tensor, voting: str, weights: Tensor | None
) -> None:
    """Raises RuntimeError unless the arguments of `tally` are as its docstring says."""
    kind = logits.dim() == 2 and logits.is_floating_point() and logits.shape[1] > 0
    _check(kind, "tally: logits must be floating [R, K], not {}", logits)
    kind = logits.dtype in LOGIT_DTYPES
    _check(kind, "tally: logits must be float64, float32, bfloat16 or float16, not {}", logits.dtype)
    _check_index("tally", "slots", slots, logits.shape[0])
    kind = counts.dim() == 2 and counts.dtype == torch.int64 and counts.shape[1] == logits.shape[1]
    _check(kind, "tally: counts must be int64 [S, {}], not {}", logits.shape[1], counts)
    _check_index("tally", "invalid", invalid, counts.shape[0])
    known = voting in ("prediction", "weighted", "soft", "logit")
    _check(known, "tally: voting must be 'prediction', 'weighted', 'soft' or 'logit', not '{}'", voting)
    if voting != "weighted":
        _check(weights is None, "tally: weights belong to voting 'weighted', not to '{}'", voting)
    elif weights is None:
        _check(False, "tally: voting 'weighted' needs weights")
    else:
        kind = weights.dim() == 1 and weights.dtype == torch.int64 and 0 < weights.shape[0] <= logits.shape[1]
        _check(kind, "tally: weights must be int64 [1 .. {}], not {}", logits.shape[1], weights)
    _check_devices("tally", logits, (slots, counts, invalid, *(() if weights is None else (weights,))))


def check_replica_sum(gradients: Tensor, slots: Tensor, scale: Tensor, images: int) -> None:
    """Raises RuntimeError unless the arguments of `replica_sum` are as its docstring says."""
    _check(gradients.dim() == 4, "replica_sum: gradients must be [R, C, H, W], not {}", gradients.shape)
    kind = gradients.dtype in FLOAT_DTYPES
    _check(kind, "replica_sum: gradients must be float32, bfloat16 or float16, not {}", gradients.dtype)
    _check_index("replica_sum", "slots", slots, gradients.shape[0])
    _check_channels("replica_sum", "scale", scale, gradients.shape[1])
    _check(images >= 0, "replica_sum: images must be at least 0, not {}", images)
    _check_size("replica_sum", gradients)
    _check_devices("replica_sum", gradients, (slots, scale))


def check_attack_step(
    adversarial: Tensor, images: Tensor, gradients: Tensor, norm: str, alpha: float, eps: float, low: float, high: float
) -> None:
    """Raises RuntimeError unless the arguments of `attack_step` are as its docstring says."""
    kind = adversarial.dim() == 4 and adversarial.dtype == torch.float32
    _check(kind, "attack_step: adversarial must be float32 [N, C, H, W], not {}", adversarial)
    for name, tensor in (("images", images), ("gradients", gradients)):
        kind = tensor.dtype == torch.float32 and tensor.shape == adversarial.shape
        _check(kind, "attack_step: {} must be float32 {}, not {}", name, adversarial.shape, tensor)
    _check(norm in ("linf", "l2"), "attack_step: norm must be 'linf' or 'l2', not '{}'", norm)
    finite = 0 <= alpha < FLOAT32_END
    _check(finite, "attack_step: alpha must be at least 0 and finite in float32, not {}", alpha)
    _check(0 <= eps < math.inf, "attack_step: eps must be at least 0 and finite, not {}", eps)
    _check(low <= high, "attack_step: low must be at most high, not {} and {}", low, high)
    _check_size("attack_step", adversarial)
    _check_devices("attack_step", adversarial, (images, gradients))


def check_perturb_weights(
    weights: Tensor, scales: Tensor, factors: Tensor, tiles: Tensor, passes: Tensor, key: Tensor, dtype: torch.dtype
) -> None:
    """Raises RuntimeError unless the arguments of `perturb_weights` are as its docstring says."""
    kind = weights.dim() == 2 and weights.shape[1] == TILE and weights.dtype == torch.float32
    _check(kind, "perturb_weights: weights must be float32 [T, 64], not {}", weights)
    kind = scales.shape == weights.shape and scales.dtype == torch.float32
    _check(kind, "perturb_weights: scales must be float32 {}, not {}", weights.shape, scales)
    kind = factors.dim() == 3 and factors.shape[1:] == weights.shape and factors.dtype == torch.float32
    _check(kind, "perturb_weights: factors must be float32 [r, {}, 64], not {}", weights.shape[0], factors)
    _check(factors.shape[0] <= TILE, "perturb_weights: factors have rank {}; at most 64 is possible", factors.shape[0])
    kind = tiles.dim() == 2 and tiles.dtype == torch.int64 and tiles.shape == (2, weights.shape[0])
    _check(kind, "perturb_weights: tiles must be int64 [2, {}], not {}", weights.shape[0], tiles)
    kind = passes.dim() == 1 and passes.dtype == torch.int64
    _check(kind, "perturb_weights: passes must be int64 [P], not {}", passes)
    _check_index("perturb_weights", "key", key, 2)
    kind = dtype in FLOAT_DTYPES
    _check(kind, "perturb_weights: dtype must be float32, bfloat16 or float16, not {}", dtype)
    _check_devices("perturb_weights", weights, (scales, factors, tiles, passes, key))


def _check(holds: bool, message: str, *facts: Any) -> None:
    torch._check(holds, lambda: message.format(*map(_text, facts)))


def _text(fact: Any) -> str:
    if isinstance(fact, Tensor):
        return f"{fact.dtype} {_text(fact.shape)}"
    return str(list(fact) if isinstance(fact, torch.Size) else fact)


def _check_index(op: str, name: str, index: Tensor, rows: int) -> None:
    kind = index.dim() == 1 and index.dtype == torch.int64 and index.shape[0] == rows
    _check(kind, "{}: {} must be int64 [{}], not {}", op, name, rows, index)


def _check_channels(op: str, name: str, constant: Tensor, channels: int) -> None:
    kind = constant.dim() == 1 and constant.dtype == torch.float32 and constant.shape[0] == channels
    _check(kind, "{}: {} must be float32 [{}], not {}", op, name, channels, constant)


def _check_size(op: str, images: Tensor) -> None:
    bits = 31 if images.device.type in ("cuda", "xpu") else 32  # that number the elements of an image
    _check(math.prod(images.shape[1:]) < 2**bits, "{}: an image may have at most 2^{} - 1 elements", op, bits)


def _check_devices(op: str, first: Tensor, others: Sequence[Tensor]) -> None:
    for other in others:
        same = other.device == first.device
        _check(same, "{}: tensors are on {} and {}; all must be on one device", op, first.device, other.device)


def _is_table_of(law: str, table: Sequence[Tensor]) -> bool:
    """Whether the table of constants has the form of its law."""
    kinds = [(part.dtype, part.dim()) for part in table]
    if law == "gaussian":
        return kinds == [(torch.float32, 1)]
    if kinds != [(torch.int64, 2), (torch.int64, 2), (torch.int32, 2)]:
        return False
    high, low, guide = table
    return high.shape == low.shape and high.shape[0] == guide.shape[0]

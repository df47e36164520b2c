"""The kernels as typed functions, with their fake kernels, their gradients, and the choice of backend.

The schemas live in csrc/ops.cpp. Where the extension is absent, or `SMOOTHFAST_BACKEND=reference`, the same schemas are
inferred from the signatures in `reference`; where a device has no compiled kernel, `reference` serves it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import reference
from .noise import Law

BACKENDS = ("auto", "reference")
REPLICA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Statistics = tuple[Sequence[float], Sequence[float]]


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
        images: uint8 (0..255) or float32 (0..1) [S, C, H, W]. The lattice law needs uint8.
        slots: int64 [R], which image a row copies.
        image_ids: int64 [R], below 2**44.
        sample_ids: int64 [R], below 2**40.
        key: int64 [2] from `noise.stream_key`.
        law: from `noise.lattice_law` or `noise.gaussian_law`, its sigma in units of these images.
        scale, shift: float32 [C], from `affine`.
        clip: clamp to the range of the images after the noise; then part of the base classifier.
        dtype: float32, bfloat16 or float16.
        memory_format: contiguous or channels_last. Neither changes the noise.

    Returns:
        [R, C, H, W]. Differentiable with respect to float images: the gradient of an image is the sum over its rows.
    """
    return torch.ops.smoothfast.noisy_replicas(
        images,
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


def tally(logits: Tensor, slots: Tensor, counts: Tensor, invalid: Tensor) -> None:
    """Adds the votes of logits to the counts of their slots, in place.

    Args:
        logits: floating [R, K]; the vote of a row is its argmax, the lowest index on ties.
        slots: int64 [R]; rows with a negative slot are padding and count nowhere.
        counts: int64 [S, K], votes by class.
        invalid: int64 [S], rows with a logit that is not finite; they vote for no class.
    """
    torch.ops.smoothfast.tally(logits, slots, counts, invalid)


def affine(normalize: Statistics | None, channels: int, image_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`scale` and `shift` of `noisy_replicas`, float32 [C]: (x - mean) / std on images in [0, 1], or x as it is."""
    mean, std = normalize if normalize is not None else ([0.0] * channels, [1.0] * channels)
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


# ---- registration --------------------------------------------------------------------------------------------------


def _load_extension() -> Any:
    """The compiled module, or None where it was not built or is switched off."""
    backend = os.environ.get("SMOOTHFAST_BACKEND", "auto")
    if backend not in BACKENDS:
        raise ValueError(f"SMOOTHFAST_BACKEND is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    if backend == "reference" or find_spec("smoothfast._C") is None:
        return None
    try:
        return import_module("smoothfast._C")
    except ImportError as error:
        raise ImportError(
            f"smoothfast._C does not load beside torch {torch.__version__} ({error}). It was built against another "
            "torch: reinstall with `pip install --no-build-isolation --force-reinstall --no-deps smoothfast`, or set "
            "SMOOTHFAST_BACKEND=reference to run without it."
        ) from error


def _register(op: Callable[..., Any], mutates: tuple[str, ...] = ()) -> None:
    name = f"smoothfast::{op.__name__}"
    if extension is None:
        torch.library.custom_op(name, op, mutates_args=mutates)
    else:
        torch.library.impl(name, "default", op)


extension = _load_extension()
_register(reference.noisy_replicas)
_register(reference.tally, mutates=("counts", "invalid"))


@torch.library.register_fake("smoothfast::noisy_replicas")
def _noisy_replicas_fake(
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
    torch._check(images.dim() == 4, lambda: f"images must be [S, C, H, W], not {tuple(images.shape)}")
    torch._check(dtype in REPLICA_DTYPES, lambda: f"dtype is {dtype}; it must be float32, bfloat16 or float16")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (slots.shape[0], *images.shape[1:])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format)


@torch.library.register_fake("smoothfast::tally")
def _tally_fake(logits: Tensor, slots: Tensor, counts: Tensor, invalid: Tensor) -> None:
    torch._check(logits.dim() == 2, lambda: f"logits must be [R, K], not {tuple(logits.shape)}")


def _noisy_replicas_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, slots, *_, scale, _, clip, _, _ = inputs
    if clip and images.requires_grad:
        raise ValueError("clip is True; gradients with respect to images need clip=False")
    ctx.save_for_backward(slots, scale)
    ctx.images, ctx.table = images.shape, [None] * len(inputs[6])


def _noisy_replicas_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    slots, scale = ctx.saved_tensors
    live = (grad.float() * scale.view(-1, 1, 1)).masked_fill((slots < 0).view(-1, 1, 1, 1), 0)
    images = grad.new_zeros(ctx.images, dtype=torch.float32).index_add(0, slots.clamp(min=0), live)
    return (images, *[None] * 5, ctx.table, *[None] * 5)


torch.library.register_autograd(
    "smoothfast::noisy_replicas", _noisy_replicas_backward, setup_context=_noisy_replicas_setup
)

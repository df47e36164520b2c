"""The kernels as typed functions, with their fake kernels, their gradients, and the choice of backend.

The schemas live in csrc/ops.cpp. Where the extension is absent, or `SMOOTHFAST_BACKEND=reference`, the same schemas are
inferred from the signatures in `reference`.

A device is served by the compiled kernels if the extension has some for it, else, if it is a GPU, by Triton, else by
`reference`; `backends` tells. `SMOOTHFAST_BACKEND=triton` puts Triton first on GPUs, `cuda` insists on the compiled
CUDA kernels, `reference` leaves only that. Triton is imported when a kernel of it is called.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import arguments, reference
from .noise import Law
from .specs import choice
from .voting import PREDICTION, Voting

BACKENDS = ("auto", "cuda", "triton", "reference")
OPS = ("noisy_replicas", "tally", "replica_sum", "attack_step", "perturb_weights")
GPUS = ("cuda", "xpu")  # to torch those of ROCm are cuda too
Statistics = tuple[Sequence[float], Sequence[float]]
Noisy = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Law, Tensor, Tensor, bool]
"""What `noisy_replicas` makes of which images: its arguments but for the form of what it returns."""


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
        gradients: float32, bfloat16 or float16 [R, C, H, W].
        slots: int64 [R], the image of a row, below `images`; rows with a negative slot are padding and count nowhere.
        scale: float32 [C], what the sums are multiplied by.
        images: how many images there are.

    Returns:
        float32 [images, C, H, W], contiguous. Differentiable with respect to the gradients.
    """
    return torch.ops.smoothfast.replica_sum(gradients, slots, scale, images)


def attack_step(
    adversarial: Tensor, images: Tensor, gradients: Tensor, norm: str, alpha: float, eps: float, low: float, high: float
) -> None:
    """A step of an attack and its projection, in place: no result leaves the ball or the range of pixels.

    That holds in real arithmetic, for any finite adversarial and any gradients: every rounding goes towards the image.
    Autograd does not see the step.

    Args:
        adversarial: float32 [N, C, H, W], the attack so far, written. It shares no memory with the others.
        images: float32 [N, C, H, W], the centres of the balls; they must lie in [low, high], which nobody checks.
        gradients: float32 [N, C, H, W], of what the attack makes larger. With linf, NaN counts as 0; with l2, an image
            whose gradient is zero or not finite makes no step.
        norm: "linf" (a step is alpha times the sign) or "l2" (alpha times the gradient of unit norm).
        alpha: length of the step, at least 0, in units of the images.
        eps: radius of the ball, at least 0, in units of the images; rounded down to float32. With l2, 2**-28 of it
            stays free for the roundings of the norm.
        low, high: the range of pixels.

    Raises:
        ValueError: norm is neither "linf" nor "l2".
    """
    choice("norm", norm, reference.NORMS)
    torch.ops.smoothfast.attack_step(adversarial, images, gradients, norm, alpha, eps, low, high)


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
    gradients: bool,
) -> Tensor:
    """A CIFAR ResNet as `fused_logits` and `fused_gradients` take it: weights in bf16, in the tiles of matrix units.

    Args:
        weights: float32 [outputs, inputs, 3, 3] of the convolutions in their order, and [outputs, inputs, 1, 1] of the
            two shortcuts, each before those of its block: 3 + 6 n of them.
        gains, biases: float64 [outputs] of each, as batch norms have them: what outputs are multiplied by, and what is
            then added. The bias of a shortcut is not read; it is part of that of the block's last convolution.
        linear, linear_bias: float32 [K, C], [K].
        gradients: whether gradients are wanted too.

    Returns:
        uint8 [bytes].
    """
    return torch.ops.smoothfast.fused_pack(weights, gains, biases, linear, linear_bias, gradients)


def fused_logits(replicas: Tensor, packed: Tensor, shape: Sequence[int], processor: str) -> Tensor:
    """Logits of a CIFAR ResNet, all of whose activations stay in the L2 of a core.

    Those of a row do not depend on the rows beside it, on where it is among them, or on threads.

    Args:
        replicas: bfloat16 [R, 3, 32, 32].
        packed: from `fused_pack`.
        shape: three widths, multiples of 32 (the first may be 16), the blocks of a stage, and K.
        processor: one of those that `fused.processors` names; sums are rounded in another order by each.

    Returns:
        float32 [R, K].
    """
    return torch.ops.smoothfast.fused_logits(replicas, packed, shape, processor)


def fused_votes(
    noisy: Noisy,
    packed: Tensor,
    shape: Sequence[int],
    processor: str,
    counts: Tensor,
    invalid: Tensor,
    voting: Voting = PREDICTION,
) -> Tensor:
    """From images to votes: `noisy_replicas` in bfloat16, `fused_logits` and `tally` in one call, bit for bit.

    Replicas and activations stay in the L2 of a core. Rows of padding are not computed; their logits are 0.

    Args:
        noisy: of images [S, 3, 32, 32].
        packed, shape, processor: as of `fused_logits`.
        counts, invalid, voting: as of `tally`.

    Returns:
        float32 [R, K].
    """
    *rows, law, scale, shift, clip = noisy
    return torch.ops.smoothfast.fused_votes(
        *rows, law.name, law.table, scale, shift, clip, packed, shape, processor, counts, invalid, voting.name,
        voting.weights,
    )  # fmt: skip


def fused_gradients(
    replicas: Tensor, classes: Tensor, packed: Tensor, shape: Sequence[int], processor: str
) -> tuple[Tensor, Tensor]:
    """The same logits, and the gradients of the cross-entropy of each row by its replica.

    Args:
        classes: int64 [R].
        packed: from `fused_pack` with gradients.

    Returns:
        float32 [R, K] and [R, 3, 32, 32].
    """
    return torch.ops.smoothfast.fused_gradients(replicas, classes, packed, shape, processor)


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


# ---- the choice of backend -------------------------------------------------------------------------------------------


def backends() -> dict[str, str]:
    """By kind of device, the backend that serves it (compiled, triton or reference) and why none that would come before
    does: "triton (smoothfast._C was compiled without CUDA sources)"."""
    return {device: live + (f" ({'; '.join(reasons)})" if reasons else "") for device, (live, reasons) in _live.items()}


def _asked() -> str:
    backend = os.environ.get("SMOOTHFAST_BACKEND", "auto")
    if backend not in BACKENDS:
        raise ValueError(f"SMOOTHFAST_BACKEND is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    return backend


def _load_extension() -> Any:
    """The compiled module, or None where it was not built or is switched off."""
    if _asked() == "reference" or find_spec("smoothfast._C") is None:
        return None
    try:
        return import_module("smoothfast._C")
    except ImportError as error:
        raise ImportError(
            f"smoothfast._C does not load beside torch {torch.__version__} ({error}). It was built against another "
            "torch: reinstall with `pip install --no-build-isolation --force-reinstall --no-deps smoothfast`, or set "
            "SMOOTHFAST_BACKEND=reference to run without it."
        ) from error


def _choose(device: str) -> tuple[str, list[str]]:
    """The backend of a kind of device, and what keeps those before it from serving it."""
    order = {"triton": ["triton", "compiled"]}.get(_asked(), ["compiled", "triton"])
    reasons: list[str] = []
    for backend in order if device in GPUS else ["compiled"]:
        reason = _no_compiled(device) if backend == "compiled" else _no_triton()
        if not reason:
            return backend, reasons
        reasons.append(reason)
    if _asked() == "cuda" and device == "cuda":
        raise ImportError(f"SMOOTHFAST_BACKEND is 'cuda', but {reasons[0]}; `auto` takes what there is.")
    return "reference", list(dict.fromkeys(reasons))


def _no_compiled(device: str) -> str:
    if extension is None:
        return "SMOOTHFAST_BACKEND=reference" if _asked() == "reference" else "smoothfast._C is not built"
    key = device.upper()
    found = all(torch._C._dispatch_has_kernel_for_dispatch_key(f"smoothfast::{op}", key) for op in OPS)
    return "" if found else f"smoothfast._C was compiled without {key} sources"


def _no_triton() -> str:
    if _asked() in ("cuda", "reference"):
        return f"SMOOTHFAST_BACKEND={_asked()}"
    return "" if find_spec("triton") else "triton is not installed"


extension = _load_extension()
_live = {device: _choose(device) for device in ("cpu", *GPUS)}  # before the kernels of Triton are registered too


# ---- registration ----------------------------------------------------------------------------------------------------


def _register(op: Callable[..., Any], mutates: tuple[str, ...] = ()) -> None:
    name = f"smoothfast::{op.__name__}"
    if extension is None:
        torch.library.custom_op(name, op, mutates_args=mutates)
    else:
        torch.library.impl(name, "default", op)
    for device in GPUS:
        if _live[device][0] == "triton":
            with warnings.catch_warnings():  # torch may say that a kernel from C++ is overridden; that was asked for
                warnings.simplefilter("ignore")
                torch.library.impl(name, device, lambda *arguments: _triton(op.__name__)(*arguments))


@cache
def _triton(name: str) -> Callable[..., Any]:
    """The Triton twin of an op. Imports Triton."""
    return getattr(import_module(f"smoothfast.kernels.{name}"), name)


_register(reference.noisy_replicas)
_register(reference.tally, mutates=("counts", "invalid"))
_register(reference.replica_sum)
_register(reference.attack_step, mutates=("adversarial",))
_register(reference.perturb_weights)


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
    arguments.check_noisy_replicas(images, slots, image_ids, sample_ids, key, law, table, scale, shift, dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (slots.shape[0], *images.shape[1:])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format)


@torch.library.register_fake("smoothfast::tally")
def _tally_fake(
    logits: Tensor,
    slots: Tensor,
    counts: Tensor,
    invalid: Tensor,
    voting: str = "prediction",
    weights: Tensor | None = None,
) -> None:
    arguments.check_tally(logits, slots, counts, invalid, voting, weights)


@torch.library.register_fake("smoothfast::replica_sum")
def _replica_sum_fake(gradients: Tensor, slots: Tensor, scale: Tensor, images: int) -> Tensor:
    arguments.check_replica_sum(gradients, slots, scale, images)
    return gradients.new_empty((images, *gradients.shape[1:]), dtype=torch.float32)


@torch.library.register_fake("smoothfast::attack_step")
def _attack_step_fake(
    adversarial: Tensor, images: Tensor, gradients: Tensor, norm: str, alpha: float, eps: float, low: float, high: float
) -> None:
    arguments.check_attack_step(adversarial, images, gradients, norm, alpha, eps, low, high)


@torch.library.register_fake("smoothfast::perturb_weights")
def _perturb_weights_fake(
    weights: Tensor, scales: Tensor, factors: Tensor, tiles: Tensor, passes: Tensor, key: Tensor, dtype: torch.dtype
) -> Tensor:
    arguments.check_perturb_weights(weights, scales, factors, tiles, passes, key, dtype)
    return weights.new_empty((passes.shape[0], *weights.shape), dtype=dtype)


def _noisy_replicas_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, slots, *_, scale, _, clip, _, _ = inputs
    if clip and images.requires_grad:
        raise ValueError("clip is True; gradients with respect to images need clip=False")
    ctx.save_for_backward(slots, scale)
    ctx.images, ctx.table = images.shape[0], [None] * len(inputs[6])


def _noisy_replicas_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    slots, scale = ctx.saved_tensors
    images = torch.ops.smoothfast.replica_sum(grad, slots, scale, ctx.images)
    return (images, *[None] * 5, ctx.table, *[None] * 5)


torch.library.register_autograd(
    "smoothfast::noisy_replicas", _noisy_replicas_backward, setup_context=_noisy_replicas_setup
)


def _replica_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradients, slots, scale, _ = inputs
    ctx.save_for_backward(slots, scale)
    ctx.dtype = gradients.dtype


def _replica_sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Every row of an image gets what the image gets: the second derivatives of `noisy_replicas` need it."""
    slots, scale = ctx.saved_tensors
    rows = (grad * scale.view(-1, 1, 1))[slots.clamp(min=0)].masked_fill((slots < 0).view(-1, 1, 1, 1), 0)
    return rows.to(ctx.dtype), None, None, None


torch.library.register_autograd("smoothfast::replica_sum", _replica_sum_backward, setup_context=_replica_sum_setup)


def _perturb_weights_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, scales, factors, *_ = inputs
    ctx.save_for_backward(scales, factors, *inputs[3:6])


def _perturb_weights_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The noise is drawn again: as weights of scale 1, and as those of the factors that pick z[k] as element k."""
    scales, factors, tiles, passes, key = ctx.saved_tensors
    grad, zeros, rank = grad.float(), torch.zeros_like(scales), factors.shape[0]
    picks = torch.eye(rank, 64, device=scales.device)[:, None].expand(factors.shape).contiguous()
    own = perturb_weights(zeros, torch.ones_like(scales), factors[:0], tiles, passes, key)
    shared = perturb_weights(zeros, zeros, picks, tiles, passes, key)[..., :rank]
    return grad.sum(0), (grad * own).sum(0), torch.einsum("pte,ptk->kte", grad, shared), None, None, None, None


torch.library.register_autograd(
    "smoothfast::perturb_weights", _perturb_weights_backward, setup_context=_perturb_weights_setup
)


# ---- what the extension alone has, for CPUs --------------------------------------------------------------------------

if extension is not None:

    @torch.library.register_fake("smoothfast::fused_logits")
    def _fused_logits_fake(replicas: Tensor, packed: Tensor, shape: Sequence[int], processor: str) -> Tensor:
        return replicas.new_empty((replicas.shape[0], shape[4]), dtype=torch.float32)

    @torch.library.register_fake("smoothfast::fused_votes")
    def _fused_votes_fake(images: Tensor, slots: Tensor, *others: Any) -> Tensor:
        return images.new_empty((slots.shape[0], others[9][4]), dtype=torch.float32)

    @torch.library.register_fake("smoothfast::fused_gradients")
    def _fused_gradients_fake(
        replicas: Tensor, classes: Tensor, packed: Tensor, shape: Sequence[int], processor: str
    ) -> tuple[Tensor, Tensor]:
        logits = replicas.new_empty((replicas.shape[0], shape[4]), dtype=torch.float32)
        return logits, replicas.new_empty(replicas.shape, dtype=torch.float32)

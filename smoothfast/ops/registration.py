"""Registration of the ops with torch: the backend of each device, fake kernels and gradients.

Triton is imported when a kernel of it is called.
"""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from . import arguments, reference
from .backend import GPUS, LIVE, extension


def _register(op: Callable[..., Any], mutates: tuple[str, ...] = ()) -> None:
    name = f"smoothfast::{op.__name__}"
    if extension is None:
        torch.library.custom_op(name, op, mutates_args=mutates)
    else:
        torch.library.impl(name, "default", op)
    for device in GPUS:
        if LIVE[device][0] == "triton":
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


# ---- fake kernels ----------------------------------------------------------------------------------------------------


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


if extension is not None:  # which alone has the fused networks

    @torch.library.register_fake("smoothfast::fused_logits")
    def _fused_logits_fake(replicas: Tensor, packed: Tensor, shape: Sequence[int], arithmetic: str) -> Tensor:
        return _logits(replicas, replicas.shape[0], shape)

    @torch.library.register_fake("smoothfast::fused_votes")
    def _fused_votes_fake(
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
        packed: Tensor,
        shape: Sequence[int],
        arithmetic: str,
        counts: Tensor,
        invalid: Tensor,
        voting: str = "prediction",
        weights: Tensor | None = None,
    ) -> Tensor:
        return _logits(images, slots.shape[0], shape)

    @torch.library.register_fake("smoothfast::fused_gradients")
    def _fused_gradients_fake(
        replicas: Tensor, classes: Tensor, packed: Tensor, shape: Sequence[int], arithmetic: str
    ) -> tuple[Tensor, Tensor]:
        return _logits(replicas, replicas.shape[0], shape), replicas.new_empty(replicas.shape, dtype=torch.float32)


def _logits(like: Tensor, rows: int, shape: Sequence[int]) -> Tensor:
    """Logits [rows, K] of a fused network, whose shape ends in K."""
    return like.new_empty((rows, shape[-1]), dtype=torch.float32)


# ---- gradients -------------------------------------------------------------------------------------------------------


def _arguments(op: Callable[..., Any]) -> Any:
    """A named tuple of the arguments of an op; its gradients are one too, None where there is none."""
    return namedtuple(op.__name__, signature(op).parameters)


NoisyReplicas = _arguments(reference.noisy_replicas)
ReplicaSum = _arguments(reference.replica_sum)
PerturbWeights = _arguments(reference.perturb_weights)


def _none(arguments: Any) -> Any:
    return arguments._make([None] * len(arguments._fields))


def _noisy_replicas_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    given = NoisyReplicas(*inputs)
    if given.clip and given.images.requires_grad:
        raise ValueError("clip is True; gradients with respect to images need clip=False")
    ctx.save_for_backward(given.slots, given.scale)
    ctx.images, ctx.table = given.images.shape[0], [None] * len(given.table)


def _noisy_replicas_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    slots, scale = ctx.saved_tensors
    images = torch.ops.smoothfast.replica_sum(grad, slots, scale, ctx.images)
    return tuple(_none(NoisyReplicas)._replace(images=images, table=ctx.table))


def _replica_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    given = ReplicaSum(*inputs)
    ctx.save_for_backward(given.slots, given.scale)
    ctx.dtype = given.gradients.dtype


def _replica_sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of the rows: each row of an image gets what the image gets. The second derivatives of `noisy_replicas`
    need it."""
    slots, scale = ctx.saved_tensors
    rows = (grad * scale.view(-1, 1, 1))[slots.clamp(min=0)].masked_fill((slots < 0).view(-1, 1, 1, 1), 0)
    return tuple(_none(ReplicaSum)._replace(gradients=rows.to(ctx.dtype)))


def _perturb_weights_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    given = PerturbWeights(*inputs)
    ctx.save_for_backward(given.scales, given.factors, given.tiles, given.passes, given.key)


def _perturb_weights_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of weights, scales and factors. The noise is drawn again: as weights of scale 1, and as those of the
    factors that pick z[k] as element k."""
    scales, factors, *numbers = ctx.saved_tensors
    grad, zeros, rank = grad.float(), torch.zeros_like(scales), factors.shape[0]
    picks = torch.eye(rank, 64, device=scales.device)[:, None].expand(factors.shape).contiguous()
    draw = torch.ops.smoothfast.perturb_weights
    own = draw(zeros, torch.ones_like(scales), factors[:0], *numbers, torch.float32)
    shared = draw(zeros, zeros, picks, *numbers, torch.float32)[..., :rank]
    shares = torch.einsum("pte,ptk->kte", grad, shared)
    return tuple(_none(PerturbWeights)._replace(weights=grad.sum(0), scales=(grad * own).sum(0), factors=shares))


for _op, _backward, _setup in (
    ("noisy_replicas", _noisy_replicas_backward, _noisy_replicas_setup),
    ("replica_sum", _replica_sum_backward, _replica_sum_setup),
    ("perturb_weights", _perturb_weights_backward, _perturb_weights_setup),
):
    torch.library.register_autograd(f"smoothfast::{_op}", _backward, setup_context=_setup)

"""Fused: CIFAR ResNets by kernels that keep all activations of a sample in the L2 of a core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import ops
from ..losses import Differentiated, cross_entropy
from ..voting import Voting
from .declined import DeclinedError, declined
from .expressions import IMAGE, require
from .precision import Runner
from .resnets import CifarResNet, recognised

ROWS, ROUNDING = 8, 0.05  # of the check; torch's own bf16 is wrong by 0.007 for ResNet-20


def processors() -> list[str]:
    """Names what fused networks run on here, the best first: "amx", "avx512_bf16". None if SMOOTHFAST_CPU says less."""
    if ops.extension is None or ops.extension.instruction_set() != "avx512":
        return []
    return list(ops.extension.fused_processors())


def resembles(base: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether it is worth the look: seconds are spent on one, and a warning on what it finds wanting."""
    sizes = [(part.kernel_size, part.stride) for part in base.modules() if isinstance(part, nn.Conv2d)]
    down = {((3, 3), (2, 2)), ((1, 1), (2, 2))}
    return (
        shape == IMAGE
        and sizes.count(((3, 3), (2, 2))) == 2
        and set(sizes) - down == {((3, 3), (1, 1))}
        and (len(sizes) - sizes.count(((1, 1), (2, 2)))) % 6 == 1
    )


def make(
    network: nn.Module, dtype: torch.dtype, device: torch.device, examples: tuple[Tensor, ...], count: int
) -> list[Runner]:
    """A CIFAR ResNet, or the gradient of one, by the fused kernels, which any number of threads may call at once."""
    if device.type != "cpu" or not processors():
        there = (
            f"the base classifier is on {device}"
            if processors()
            else "this one has neither, or smoothfast._C is not built"
        )
        raise DeclinedError(f"runner is 'fused', for CPUs with AMX or AVX512-BF16; {there}")
    if dtype != torch.bfloat16:
        raise DeclinedError(f"runner is 'fused', which computes in bf16, not in {dtype}")
    try:
        return [fused(network, examples, processors()[0])] * count
    except Exception as error:  # of torch.export too
        raise declined("fused", error) from error


def fused(network: nn.Module, examples: tuple[Tensor, ...], processor: str) -> Callable[..., Any]:
    """A network as a function of a micro-batch; it has been compared with the network in float32.

    Args:
        network: a base classifier, or `Differentiated` of one and of the cross-entropy.
        examples: what it takes.

    Raises:
        MismatchError: it is none of the family, or something else comes out.
    """
    if isinstance(network, Differentiated):
        require(network.loss is cross_entropy, "gradients are those of the cross-entropy, and the loss is another")
        replicas, _, *given = examples
        return Fused(_checked(network.base, (replicas, *given), processor), processor, gradients=True).gradients
    return Fused(_checked(network, examples, processor), processor, gradients=False)


def _checked(network: nn.Module, examples: tuple[Tensor, ...], processor: str) -> CifarResNet:
    found = recognised(network, examples)
    noise = torch.randn(ROWS, *IMAGE, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        wanted = network(noise.float(), *examples[1:])
        error = (Fused(found, processor, gradients=False)(noise, *examples[1:]) - wanted).norm() / wanted.norm()
    require(bool(error < ROUNDING), f"its logits differ by {error:.3f} of their norm from those in float32")
    return found


class Fused:
    """A recognised network as a function of a micro-batch: to logits, also with the noise before and the votes after
    it, and to gradients of the cross-entropy.

    Args:
        gradients: whether those will be asked for.
    """

    def __init__(self, network: CifarResNet, processor: str, gradients: bool) -> None:
        self.network, self.processor, self._gradients = network, processor, gradients
        self._packed = None if network.noisy else network.packed(gradients)

    def __call__(self, replicas: Tensor, *drawn: Tensor) -> Tensor:
        return ops.fused_logits(self._normalised(replicas), *self._numbers(drawn))

    @property
    def classes(self) -> int:
        """The number of classes, K."""
        return self.network.shape[-1]

    def votes(
        self, noisy: ops.Noisy, drawn: Sequence[Tensor], voting: Voting, counts: Tensor, invalid: Tensor
    ) -> Tensor:
        """Logits of a micro-batch whose rows are drawn here, and whose votes are added; see `ops.fused_votes`."""
        if self.network.scale is not None and self.network.shift is not None:
            *rows, scale, shift, clip = noisy
            by, added = self.network.scale.flatten(), self.network.shift.flatten()
            noisy = cast(ops.Noisy, (*rows, scale * by, shift * by + added, clip))
        return ops.fused_votes(noisy, *self._numbers(drawn), counts, invalid, voting)

    def gradients(self, replicas: Tensor, classes: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and gradients [B, 3, 32, 32] of a micro-batch; see `ops.fused_gradients`."""
        logits, gradients = ops.fused_gradients(self._normalised(replicas), classes[:, 0], *self._numbers(drawn))
        return logits, gradients if self.network.scale is None else gradients * self.network.scale

    def _numbers(self, drawn: Sequence[Tensor]) -> tuple[Tensor, list[int], str]:
        packed = self.network.packed(self._gradients, drawn) if self._packed is None else self._packed
        return packed, self.network.shape, self.processor

    def _normalised(self, replicas: Tensor) -> Tensor:
        if self.network.scale is None or self.network.shift is None:
            return replicas
        return torch.addcmul(self.network.shift, replicas.float(), self.network.scale).to(replicas.dtype)

"""Fused: CIFAR ResNets by kernels that keep all activations of a sample in the L2 of a core, or in shared memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from .. import ops
from ..integers import IntegerResNet
from ..integers.network import LEVELS
from ..losses import Differentiated, cross_entropy
from ..voting import Voting
from .declined import DeclinedError, declined
from .expressions import IMAGE, MismatchError, require
from .precision import Runner
from .resnets import CifarResNet, recognised

ROWS = 8  # of the check
EXACT = 1e-5  # of the norm of logits, by which those in float32 may differ; 5e-7 for ResNet-20
WORSE = 2.0  # so many times as wrong as torch's own bf16 may those in bf16 be
ON_GPUS = ("bf16_mma", "bf16_mma_pairs", "int8_mma", "int8_mma_pairs")  # none of which was timed
PREFERRED = {  # by precision, the fastest first
    "bf16": ("amx", "winograd_bf16", "winograd_mixed", *ON_GPUS[:2]),
    "fp32": ("winograd_fp32",),
    "int8": ("int8_amx", "int8_avx512_vnni", "int8_avx_vnni", "int8_avx2", "int8_scalar", *ON_GPUS[2:]),
}
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def arithmetics() -> list[str]:
    """Names what fused networks are computed by here: "winograd_fp32" wherever `smoothfast._C` is built; with
    AVX512-BF16 "winograd_bf16" and "winograd_mixed", and "avx512_bf16", tiles for tests of those of "amx". Fewer where
    SMOOTHFAST_CPU says less. Those of networks in integers, which all compute one function, are `preferred("int8")`."""
    return [name for name in _live("cpu") if not name.startswith("int8")]


def preferred(precision: str, device: str = "cpu") -> list[str]:
    """The arithmetics for a precision on a kind of device, the fastest first."""
    there = _live(device)
    return [name for name in PREFERRED.get(precision, ()) if name in there]


def _live(device: str) -> list[str]:
    if ops.extension is None or device not in ("cpu", "cuda"):
        return []
    if device == "cuda":
        built = torch._C._dispatch_has_kernel_for_dispatch_key("smoothfast::fused_votes", "CUDA")
        return list(ON_GPUS) if built else []
    return list(ops.extension.fused_arithmetics())


def dtype_of(arithmetic: str) -> torch.dtype:
    """The dtype of replicas that an arithmetic takes."""
    if arithmetic.startswith("int8"):
        return torch.int16
    return torch.float32 if arithmetic == "winograd_fp32" else torch.bfloat16


@runtime_checkable
class FromImages(Protocol):
    """A runner that draws the noise and counts the votes itself."""

    @property
    def classes(self) -> int:
        """The number of classes, K."""

    def votes(
        self, noisy: ops.Noisy, drawn: Sequence[Tensor], voting: Voting, counts: Tensor, invalid: Tensor
    ) -> Tensor:
        """Logits [B, K] of a micro-batch whose rows are drawn here, and whose votes are added."""


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
    if not _live(device.type):
        raise DeclinedError(f"runner is 'fused', {_lacking(device)}")
    if isinstance(network, IntegerResNet):
        try:
            return [FusedIntegers(network, preferred("int8", device.type)[0])] * count
        except Exception as error:  # what the op checks is told by RuntimeErrors
            raise declined("fused", error) from error
    if device.type == "cuda" and (len(examples) > 1 or isinstance(network, Differentiated)):
        raise DeclinedError("runner is 'fused', which on GPUs has neither gradients nor noise in the weights")
    there = preferred(NAMES.get(dtype, ""), device.type)
    if not there:
        lacking = " here: this processor has neither AMX nor AVX512-BF16" if dtype == torch.bfloat16 else ""
        lacking = lacking if device.type == "cpu" else " on GPUs"
        raise DeclinedError(f"runner is 'fused', which does not compute in {dtype}{lacking}")
    try:
        return [fused(network, examples, there)] * count
    except Exception as error:  # of torch.export too
        raise declined("fused", error) from error


def _lacking(device: torch.device) -> str:
    """Names what the runner lacks for a device."""
    if ops.extension is None:
        return "for CPUs and CUDA; smoothfast._C is not built"
    if device.type != "cuda":
        return f"for CPUs and CUDA; the base classifier is on {device}"
    return f"for CPUs, since smoothfast._C was compiled without CUDA sources; the base classifier is on {device}"


def fused(network: nn.Module, examples: tuple[Tensor, ...], arithmetics: Sequence[str]) -> Callable[..., Any]:
    """A network as a function of a micro-batch; it has been compared with the network in float32.

    Args:
        network: a base classifier, or `Differentiated` of one and of the cross-entropy.
        examples: what it takes.
        arithmetics: of one dtype, the fastest first: the first that is exact enough for this network is taken.

    Raises:
        MismatchError: it is none of the family, or something else comes out.
    """
    if isinstance(network, Differentiated):
        require(network.loss is cross_entropy, "gradients are those of the cross-entropy, and the loss is another")
        replicas, _, *given = examples
        return Fused(*_checked(network.base, (replicas, *given), arithmetics), gradients=True).gradients
    return Fused(*_checked(network, examples, arithmetics), gradients=False, device=examples[0].device)


@torch.no_grad()
def _checked(network: nn.Module, examples: tuple[Tensor, ...], arithmetics: Sequence[str]) -> tuple[CifarResNet, str]:
    """A network that is recognised, and the arithmetic that is chosen for it; on CPUs, where its device is another."""
    device = examples[0].device
    if device.type != "cpu":
        network, examples = deepcopy(network).cpu(), (examples[0].cpu(),)
    found, drawn = recognised(network, examples), examples[1:]
    noise = torch.randn(ROWS, *IMAGE, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", enabled=False):
        wanted = network(noise.float(), *drawn)
    suited, most = [name for name in arithmetics if found.suits(name)], EXACT
    taken = "multiples of 32" if device.type == "cpu" else "16, 32, 64 or 32, 64, 128"
    require(bool(suited), f"its widths are {found.shape[:3]}; {', '.join(arithmetics)} takes {taken}")
    if dtype_of(suited[0]) == torch.bfloat16:
        with torch.autocast("cpu", torch.bfloat16):
            most = WORSE * _error(network(noise.float(), *drawn), wanted)
    errors = {}
    for name in suited:
        logits = Fused(found, name, gradients=False, device=device)(noise.to(device, dtype_of(name)), *drawn)
        errors[name] = _error(logits.cpu(), wanted)
        if errors[name] <= most:
            return found, name
    told = ", ".join(f"{error:.2g} of their norm by {name}" for name, error in errors.items())
    raise MismatchError(f"its logits differ from those in float32 by {told}; {most:.2g} is allowed")


def _error(logits: Tensor, wanted: Tensor) -> float:
    return float((logits.float() - wanted).norm() / wanted.norm())


class Fused:
    """A recognised network as a function of a micro-batch: to logits, also with the noise before and the votes after
    it, and to gradients of the cross-entropy.

    Args:
        gradients: whether those will be asked for.
        device: of replicas.
    """

    def __init__(
        self, network: CifarResNet, arithmetic: str, gradients: bool, device: torch.device | None = None
    ) -> None:
        self.network, self.arithmetic, self._gradients = network, arithmetic, gradients
        self._packed = None if network.noisy else network.packed(arithmetic, gradients).to(device)
        self._normalization = None
        if network.scale is not None and network.shift is not None:
            self._normalization = network.scale.to(device), network.shift.to(device)

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
        if self._normalization is not None:
            *rows, scale, shift, clip = noisy
            by, added = (constant.flatten() for constant in self._normalization)
            noisy = cast(ops.Noisy, (*rows, scale * by, shift * by + added, clip))
        return ops.fused_votes(noisy, *self._numbers(drawn), counts, invalid, voting)

    def gradients(self, replicas: Tensor, classes: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and gradients [B, 3, 32, 32] of a micro-batch; see `ops.fused_gradients`."""
        logits, gradients = ops.fused_gradients(self._normalised(replicas), classes[:, 0], *self._numbers(drawn))
        return logits, gradients if self._normalization is None else gradients * self._normalization[0]

    def _numbers(self, drawn: Sequence[Tensor]) -> tuple[Tensor, list[int], str]:
        packed = self.network.packed(self.arithmetic, self._gradients, drawn) if self._packed is None else self._packed
        return packed, self.network.shape, self.arithmetic

    def _normalised(self, replicas: Tensor) -> Tensor:
        if self._normalization is None:
            return replicas
        scale, shift = self._normalization
        return torch.addcmul(shift, replicas.float(), scale).to(replicas.dtype)


class FusedIntegers:
    """A network in integers as a function of a micro-batch, to logits, also with the noise before and the votes after
    it. It has been compared with the definition, on some rows.

    Args:
        arithmetic: any of those in integers on the device; all give the same bits.

    Raises:
        MismatchError: other logits come out.
    """

    def __init__(self, network: IntegerResNet, arithmetic: str) -> None:
        device = network.linear.device
        self._numbers = network.packed(arithmetic).to(device), network.shape, arithmetic
        noise = 2 * torch.randn(ROWS, *IMAGE, generator=torch.Generator().manual_seed(0))
        definition = network if device.type == "cpu" else deepcopy(network).cpu()  # float64 of a GPU is not needed
        found = self(noise.to(device)).cpu()
        require(torch.equal(found, definition(noise)), "its logits are not those of its definition")

    def __call__(self, replicas: Tensor) -> Tensor:
        most = torch.iinfo(torch.int16).max
        return self.of_levels((replicas.float() * LEVELS).round().clamp(-most - 1, most).to(torch.int16))

    def of_levels(self, levels: Tensor) -> Tensor:
        """Logits [B, K] of a micro-batch in levels, int16."""
        return ops.fused_logits(levels, *self._numbers)

    @property
    def classes(self) -> int:
        """The number of classes, K."""
        return self._numbers[1][-1]

    def votes(
        self, noisy: ops.Noisy, drawn: Sequence[Tensor], voting: Voting, counts: Tensor, invalid: Tensor
    ) -> Tensor:
        """Logits of a micro-batch whose rows are drawn here, in levels; see `ops.fused_votes`."""
        images, *rows, _, shift, clip = noisy
        levels = torch.full_like(shift, 1 if images.dtype == torch.uint8 else LEVELS)
        noisy = cast(ops.Noisy, (images, *rows, levels, torch.zeros_like(shift), clip))
        return ops.fused_votes(noisy, *self._numbers, counts, invalid, voting)

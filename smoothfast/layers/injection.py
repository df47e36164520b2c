"""Noise put into a whole network, taken out of it, switched on and off; and what in a network is noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import choice, not_negative
from ..modules import device_of, evaluating
from ..ops.philox import stream_key
from ..streams import Stream
from .noisy import (
    GRANULARITIES,
    KINDS,
    RANK,
    ActivationNoise,
    CNIConv2d,
    CNILinear,
    Drawn,
    PNIConv2d,
    PNILinear,
    WeightNoise,
    check_rank,
)

CONVOLUTIONS: dict[str, type[PNIConv2d | CNIConv2d]] = {"pni": PNIConv2d, "cni": CNIConv2d}
LINEARS: dict[str, type[PNILinear | CNILinear]] = {"pni": PNILinear, "cni": CNILinear}


def inject_noise(
    model: nn.Module,
    kind: str = "cni",
    *,
    linear: str = "pni",
    activations: str | None = None,
    shape: Sequence[int] | None = None,
    rank: int = RANK,
    granularity: str = "element",
    seed: int = 0,
) -> nn.Module:
    """Gives the convolutions and linear layers of a network noisy weights, in place; `remove_noise` takes it back.

    The network stays what it is in all else: its weights, its names, its hooks. Layers whose type is a subclass of
    `nn.Conv2d` or `nn.Linear` are left alone, since they may use their weights in other ways.

    Args:
        model: any network; its weights stay the means of the noisy ones.
        kind: "cni" or "pni", of the convolutions.
        linear: "pni" (as in the networks of Nemcovsky et al. 2019, whatever the convolutions have) or "cni".
        activations: "input" or "output" of the convolutions, to which noise of the same kind is added too.
        shape: (C, H, W) of the images; needed for activations.
        rank: of V, for cni.
        granularity: "element", "channel" or "layer": what has an alpha of its own, for pni.
        seed: of the noise in calls of the network itself.

    Returns:
        The model.

    Raises:
        ValueError: an argument is out of its range, or the model has no layer to give noise to, or noise already.
    """
    choice("kind", kind, KINDS)
    choice("linear", linear, KINDS)
    choice("granularity", granularity, GRANULARITIES)
    check_rank(rank)
    stream_key(seed, Stream.FORWARD)  # checks it
    if noisy_layers(model):
        raise ValueError("model has noise in it already; remove_noise(model) takes it out")
    plain = [part for part in model.modules() if type(part) in (nn.Conv2d, nn.Linear)]
    if not plain:
        raise ValueError(f"model is {type(model).__name__}, which has no nn.Conv2d and no nn.Linear")
    if activations is not None:
        _inject_activations(model, kind, activations, shape, rank, seed)
    for layer, part in enumerate(plain):
        kinds: Any = (CONVOLUTIONS[kind], kind) if type(part) is nn.Conv2d else (LINEARS[linear], linear)
        part.__class__ = kinds[0]
        how: Any = rank if kinds[1] == "cni" else granularity
        part.add_noise(how, layer, seed)  # type: ignore[operator]
    return model


def remove_noise(model: nn.Module) -> nn.Module:
    """Makes the layers of a network plain again, in place, with the weights that they have; returns the model."""
    plain_weights(model)
    for part in list(model.modules()):
        for hooks, where in ((part._forward_pre_hooks, "input"), (part._forward_hooks, "output")):
            for number in [number for number, hook in hooks.items() if hook is HOOKS[where]]:
                del hooks[number]
                delattr(part, f"{where}_noise")
    return model


def plain_weights(model: nn.Module) -> nn.Module:
    """Makes the weights of a network plain again, in place, and leaves noise on activations; returns the model."""
    for part in list(model.modules()):
        if isinstance(part, WeightNoise):
            for name in ("alpha", "diagonal", "factors", "key", "passes", "noisy", "layer", "given"):
                if hasattr(part, name):
                    delattr(part, name)
            part.__class__ = nn.Conv2d if isinstance(part, nn.Conv2d) else nn.Linear  # type: ignore[assignment]
    return model


def noisy_layers(model: nn.Module) -> list[Drawn]:
    """The parts of a network that have noise, switched on or off, in the order of its modules."""
    return [part for part in model.modules() if isinstance(part, Drawn)]


def draws_noise(model: nn.Module) -> bool:
    """Whether a network has noise that is switched on."""
    return any(part.noisy for part in noisy_layers(model))


def noise_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the noise: alpha, diagonal and factors of all layers. Weight decay would drive them to 0 (He et
    al. 2019)."""
    named = ("alpha", "diagonal", "factors")
    return [getattr(part, name) for part in noisy_layers(model) for name in named if hasattr(part, name)]


@torch.no_grad()
def scale_noise(model: nn.Module, factor: float) -> nn.Module:
    """Multiplies the standard deviation of all noise in a network, in place; returns the model.

    Networks that were trained without noise do not bear the initial strengths of PNI and CNI, which are for training
    from scratch.
    """
    not_negative(factor=factor)
    for part in noisy_layers(model):
        for name, power in (("alpha", 1), ("diagonal", 2), ("factors", 1)):  # the diagonal has variances
            if hasattr(part, name):
                getattr(part, name).mul_(factor**power)
    return model


@contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """Switches the noise of a network off for the time being."""
    noisy = [part for part in noisy_layers(model) if part.noisy]
    for part in noisy:
        part.noisy = False
    try:
        yield
    finally:
        for part in noisy:
            part.noisy = True


def _noisy_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *others = inputs
    return module.input_noise(first), *others  # type: ignore[operator]


def _noisy_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return module.output_noise(output)  # type: ignore[operator]


HOOKS = {"input": _noisy_input, "output": _noisy_output}  # which find the noise on the module, also on a copy of it


def _inject_activations(
    model: nn.Module, kind: str, where: str, shape: Sequence[int] | None, rank: int, seed: int
) -> None:
    choice("activations", where, HOOKS)
    if shape is None:
        raise ValueError("shape is not given; noise on activations needs (C, H, W) of the images")
    shapes = _activation_shapes(model, where, shape)
    for layer, (part, size) in enumerate(shapes.items()):
        noise = ActivationNoise(size, kind, rank, layer, seed).to(part.weight.device)
        part.register_module(f"{where}_noise", noise)
        if where == "input":
            part.register_forward_pre_hook(_noisy_input)
        else:
            part.register_forward_hook(_noisy_output)


def _activation_shapes(model: nn.Module, where: str, shape: Sequence[int]) -> dict[nn.Conv2d, torch.Size]:
    """Shapes of what goes into each convolution, or comes out of it, for one image."""
    shapes: dict[nn.Conv2d, torch.Size] = {}

    def note(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes[module] = (inputs[0] if where == "input" else output).shape[1:]

    handles = [part.register_forward_hook(note) for part in model.modules() if type(part) is nn.Conv2d]
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, *shape, device=device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return shapes

"""Layers with noise in their weights or activations, and networks made of them.

PNI (He et al. 2019, CVPR, "Parametric noise injection"): W + alpha std(W) xi, alpha learned, std(W) a constant.
CNI (Zheltonozhskii et al. 2020, arXiv 2003.02188; Nemcovsky et al. 2019, arXiv 1911.07198): coloured noise
W + sqrt(|std(W) d| + 1e-8) xi + V z, d and V learned; the 1e-8 keeps the gradient finite at d = 0.

A forward pass draws the noise of a layer once, for the whole batch. It is a pure function of (seed, layer, pass,
element), and passes are counted by the layer itself. Where many passes of a network are made, in training, attacks and
by a `SmoothedClassifier`, all its layers are drawn in one launch (`Bank`), under numbers given from outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .noise import Stream, stream_key, within
from .runners import device_of, evaluating
from .specs import at_least, choice, not_negative

ALPHA = 0.25  # initial, of PNI
DIAGONAL = 0.25**2  # initial, of CNI: a variance in units of std(W)
FACTOR = 0.01  # initial, of CNI
RANK = 5
EPSILON = 1e-8  # below the square root
TILE = 64


class Drawn(nn.Module):
    """A module that draws noise: under its own seed and count of passes, or under a key and a pass that it is given.

    Attributes:
        noisy: whether it does.
        layer: its number in the network.
        given: key and passes to use instead of its own.
    """

    stream: Stream
    key: Tensor
    passes: Tensor
    noisy: bool
    layer: int
    given: tuple[Tensor, Tensor] | None

    def start(self, layer: int, seed: int) -> None:
        """Sets the numbers under which noise is drawn; the next pass is pass 0."""
        at_least(0, layer=layer)
        self.noisy, self.layer, self.given = True, layer, None
        device = next(self.parameters()).device
        key = within(stream_key(seed, Stream.FORWARD), self.stream)
        self.register_buffer("key", key.to(device), persistent=False)
        self.register_buffer("passes", torch.zeros(1, dtype=torch.int64, device=device), persistent=False)

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Key and pass [1] of this draw."""
        if self.given is not None:
            key, passes = self.given
            return within(key, self.stream), passes
        drawn = self.passes.clone()
        self.passes += 1
        return self.key, drawn


class WeightNoise(Drawn):
    """A layer whose weights are drawn anew in each pass."""

    stream = Stream.WEIGHT
    weight: Tensor

    def scales(self) -> Tensor:
        """Standard deviations of independent noise, of the shape of the weights."""
        raise NotImplementedError

    def low_rank(self) -> Tensor:
        """Factors V [r, n] of noise on n weights with covariance V^T V."""
        return self.weight.new_empty(0, self.weight.numel())

    def drawn_weight(self) -> Tensor:
        """The weights of a pass; without noise, the weights."""
        if not self.noisy:
            return self.weight
        key, passes = self.numbers()
        (weights,) = Bank.of([self], self.layer).draw(passes, key)
        return weights[0]


class _Convolution(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.drawn_weight(), self.bias)  # type: ignore[operator]


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.drawn_weight(), self.bias)  # type: ignore[operator]


class PNI(WeightNoise):
    """W + alpha std(W) xi. No gradient goes through std(W), so that of alpha is the gradient of the weights times
    std(W) xi (He et al. 2019, eq. 6, 7).

    Attributes:
        alpha: of the shape of the weights, or one for each output channel, or one for the layer; of any sign.
    """

    alpha: nn.Parameter

    def add_noise(self, granularity: str = "element", layer: int = 0, seed: int = 0) -> None:
        choice("granularity", granularity, GRANULARITIES)
        dims = self.weight.dim()
        shapes = {"element": self.weight.shape, "channel": (len(self.weight), *[1] * (dims - 1)), "layer": [1] * dims}
        self.alpha = nn.Parameter(self.weight.new_full(tuple(shapes[granularity]), ALPHA))
        self.start(layer, seed)

    def scales(self) -> Tensor:
        return (self.alpha * self.weight.detach().std()).expand_as(self.weight)


class CNI(WeightNoise):
    """W + sqrt(|std(W) d| + 1e-8) xi + V z, with covariance diag(|std(W) d|) + V^T V.

    Attributes:
        diagonal: d, of the shape of the weights.
        factors: V [rank, n] of n weights.
    """

    diagonal: nn.Parameter
    factors: nn.Parameter

    def add_noise(self, rank: int = RANK, layer: int = 0, seed: int = 0) -> None:
        _check_rank(rank)
        self.diagonal = nn.Parameter(torch.full_like(self.weight, DIAGONAL))
        self.factors = nn.Parameter(self.weight.new_full((rank, self.weight.numel()), FACTOR))
        self.start(layer, seed)

    def scales(self) -> Tensor:
        return ((self.weight.std() * self.diagonal).abs() + EPSILON).sqrt()

    def low_rank(self) -> Tensor:
        return self.factors


class PNIConv2d(PNI, _Convolution):
    """`nn.Conv2d` with PNI weights; takes the arguments of both."""

    def __init__(self, *args: Any, granularity: str = "element", layer: int = 0, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_noise(granularity, layer, seed)


class PNILinear(PNI, _Linear):
    """`nn.Linear` with PNI weights; takes the arguments of both. The bias has no noise."""

    def __init__(self, *args: Any, granularity: str = "element", layer: int = 0, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_noise(granularity, layer, seed)


class CNIConv2d(CNI, _Convolution):
    """`nn.Conv2d` with CNI weights; takes the arguments of both."""

    def __init__(self, *args: Any, rank: int = RANK, layer: int = 0, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_noise(rank, layer, seed)


class CNILinear(CNI, _Linear):
    """`nn.Linear` with CNI weights; takes the arguments of both. The bias has no noise."""

    def __init__(self, *args: Any, rank: int = RANK, layer: int = 0, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_noise(rank, layer, seed)


class ActivationNoise(Drawn):
    """Noise on activations [B, *shape], drawn once in a pass for the whole batch.

    Its scale is the standard deviation of each image's activations. That of the whole batch, as published, would make
    the output for an image depend on what it is computed beside; for one image they are the same.

    Args:
        shape: of the activations of an image.
        kind: "pni" (x + alpha std(x) xi) or "cni" (x + sqrt(|std(x) d| + 1e-8) xi + V z).
        rank: of V.
        layer, seed: as of the other layers.
    """

    stream = Stream.ACTIVATION

    def __init__(
        self, shape: Sequence[int], kind: str = "pni", rank: int = RANK, layer: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        choice("kind", kind, KINDS)
        self.kind, self.shape = kind, tuple(shape)
        if kind == "pni":
            self.alpha = nn.Parameter(torch.full(self.shape, ALPHA))
        else:
            self.diagonal = nn.Parameter(torch.full(self.shape, DIAGONAL))
            self.factors = nn.Parameter(torch.full((rank, math.prod(self.shape)), FACTOR))
        self.start(layer, seed)

    def forward(self, x: Tensor) -> Tensor:
        if not self.noisy:
            return x
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"activations are {tuple(x.shape)}; this noise was made for [B, {', '.join(map(str, self.shape))}]"
            )
        spread = x.float().flatten(1).std(1).view(-1, *[1] * len(self.shape))
        key, passes = self.numbers()
        return (x + getattr(self, f"_{self.kind}")(spread, key, passes)).to(x.dtype)

    def _pni(self, spread: Tensor, key: Tensor, passes: Tensor) -> Tensor:
        ones = torch.ones_like(self.alpha)
        return spread.detach() * self.alpha * self._draw(ones, self.alpha.new_empty(0, self.alpha.numel()), key, passes)

    def _cni(self, spread: Tensor, key: Tensor, passes: Tensor) -> Tensor:
        ones = torch.ones_like(self.diagonal)
        own = self._draw(ones, self.factors[:0], key, passes)
        return ((spread * self.diagonal).abs() + EPSILON).sqrt() * own + self._draw(0 * ones, self.factors, key, passes)

    def _draw(self, scales: Tensor, factors: Tensor, key: Tensor, passes: Tensor) -> Tensor:
        bank = Bank.made([torch.zeros_like(scales)], [scales], [factors], self.layer)
        (noise,) = bank.draw(passes, key)
        return noise[0]


KINDS = ("pni", "cni")
GRANULARITIES = ("element", "channel", "layer")
CONVOLUTIONS: dict[str, type[PNIConv2d | CNIConv2d]] = {"pni": PNIConv2d, "cni": CNIConv2d}
LINEARS: dict[str, type[PNILinear | CNILinear]] = {"pni": PNILinear, "cni": CNILinear}


def _check_rank(rank: int) -> None:
    at_least(0, rank=rank)
    if rank > TILE:
        raise ValueError(f"rank is {rank}; it must be at most {TILE}")


@dataclass(frozen=True)
class Bank:
    """The weights of several layers with the scales and factors of their noise, as `ops.perturb_weights` takes them.

    Attributes:
        weights, scales, factors, tiles: its arguments.
        shapes: of the weights of the layers.
    """

    weights: Tensor
    scales: Tensor
    factors: Tensor
    tiles: Tensor
    shapes: tuple[torch.Size, ...]

    @staticmethod
    def of(layers: Sequence[WeightNoise], first: int = 0) -> Bank:
        """Layers are numbered from `first` on, in their order. Autograd goes through."""
        return Bank.made(
            [layer.weight for layer in layers],
            [layer.scales() for layer in layers],
            [layer.low_rank() for layer in layers],
            first,
        )

    @staticmethod
    def made(weights: Sequence[Tensor], scales: Sequence[Tensor], factors: Sequence[Tensor], first: int) -> Bank:
        rank = max(len(part) for part in factors)
        counts = [_tiles(len(weight.flatten())) for weight in weights]
        device = weights[0].device
        layers = torch.cat([torch.full((count,), layer) for layer, count in enumerate(counts, first)])
        numbers = torch.cat([torch.arange(count) for count in counts])
        return Bank(
            torch.cat([_tiled(weight.flatten()) for weight in weights]),
            torch.cat([_tiled(scale.flatten()) for scale in scales]),
            torch.cat([_ranked(_tiled(part), rank) for part in factors], 1),
            torch.stack([layers, numbers]).to(device),
            tuple(weight.shape for weight in weights),
        )

    def draw(self, passes: Tensor, key: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The weights [P, *shape] of each layer in passes [P]."""
        drawn = ops.perturb_weights(self.weights, self.scales, self.factors, self.tiles, passes, key, dtype)
        parts = drawn.split([_tiles(shape.numel()) for shape in self.shapes], 1)
        return [
            part.flatten(1)[:, : shape.numel()].unflatten(1, shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]


def _tiles(elements: int) -> int:
    return math.ceil(elements / TILE)


def _tiled(values: Tensor) -> Tensor:
    """The last dimension in tiles of 64, the last one filled with zeros."""
    padding = -values.shape[-1] % TILE
    return nn.functional.pad(values, (0, padding)).unflatten(-1, (-1, TILE))


def _ranked(factors: Tensor, rank: int) -> Tensor:
    return nn.functional.pad(factors, (0, 0, 0, 0, 0, rank - len(factors)))


# ---- networks --------------------------------------------------------------------------------------------------------


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
    _check_rank(rank)
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
    """What is learned about noise: alpha, diagonal and factors of all layers. Weight decay would drive them to 0 (He et
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
    """Of what goes into the convolutions, or comes out, for one image."""
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

"""The layers: a plain one each, with weights, or activations, that are drawn anew in every pass."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import at_least, choice
from ..ops.philox import stream_key, within
from ..streams import Stream
from .bank import TILE, Bank

ALPHA = 0.25  # initial, of PNI
DIAGONAL = 0.25**2  # initial, of CNI: a variance in units of std(W)
FACTOR = 0.01  # initial, of CNI
RANK = 5
EPSILON = 1e-8  # below the square root
KINDS = ("pni", "cni")
GRANULARITIES = ("element", "channel", "layer")


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

    @abstractmethod
    def scales(self) -> Tensor:
        """Standard deviations of independent noise, of the shape of the weights."""

    def low_rank(self) -> Tensor:
        """Factors V [r, n] of noise on n weights with covariance V^T V."""
        return self.weight.new_empty(0, self.weight.numel())

    def drawn_weight(self) -> Tensor:
        """The weights of a pass; without noise, the weights."""
        if not self.noisy:
            return self.weight
        key, passes = self.numbers()
        (weights,) = bank_of([self], self.layer).draw(passes, key)
        return weights[0]


def bank_of(layers: Sequence[WeightNoise], first: int = 0) -> Bank:
    """The weights of layers, numbered from `first` on in their order, with their noise. Autograd goes through."""
    return Bank.made(
        [layer.weight for layer in layers],
        [layer.scales() for layer in layers],
        [layer.low_rank() for layer in layers],
        first,
    )


class _Convolution(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.drawn_weight(), self.bias)  # type: ignore[operator]


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.drawn_weight(), self.bias)  # type: ignore[operator]


class PNI(WeightNoise):
    """Noisy weights W + alpha std(W) xi. No gradient goes through std(W), so that of alpha is the gradient of the
    weights times std(W) xi (He et al. 2019, eq. 6, 7).

    Attributes:
        alpha: of the shape of the weights, or one for each output channel, or one for the layer; of any sign.
    """

    alpha: nn.Parameter

    def add_noise(self, granularity: str = "element", layer: int = 0, seed: int = 0) -> None:
        """Gives the layer its alpha, and the numbers that its noise is drawn under."""
        choice("granularity", granularity, GRANULARITIES)
        dims = self.weight.dim()
        shapes = {"element": self.weight.shape, "channel": (len(self.weight), *[1] * (dims - 1)), "layer": [1] * dims}
        self.alpha = nn.Parameter(self.weight.new_full(tuple(shapes[granularity]), ALPHA))
        self.start(layer, seed)

    def scales(self) -> Tensor:
        """Standard deviations alpha std(W), of the shape of the weights."""
        return (self.alpha * self.weight.detach().std()).expand_as(self.weight)


class CNI(WeightNoise):
    """Noisy weights W + sqrt(|std(W) d| + 1e-8) xi + V z, with covariance diag(|std(W) d|) + V^T V.

    Attributes:
        diagonal: d, of the shape of the weights.
        factors: V [rank, n] of n weights.
    """

    diagonal: nn.Parameter
    factors: nn.Parameter

    def add_noise(self, rank: int = RANK, layer: int = 0, seed: int = 0) -> None:
        """Gives the layer its diagonal and factors, and the numbers that its noise is drawn under."""
        check_rank(rank)
        self.diagonal = nn.Parameter(torch.full_like(self.weight, DIAGONAL))
        self.factors = nn.Parameter(self.weight.new_full((rank, self.weight.numel()), FACTOR))
        self.start(layer, seed)

    def scales(self) -> Tensor:
        """Standard deviations sqrt(|std(W) d| + 1e-8), of the shape of the weights."""
        return ((self.weight.std() * self.diagonal).abs() + EPSILON).sqrt()

    def low_rank(self) -> Tensor:
        """The factors V [rank, n]."""
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
        """Activations x [B, *shape] with the noise of this pass, or x itself where noise is switched off."""
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


def check_rank(rank: int) -> None:
    """Raises ValueError unless a rank of noise is in 0 .. 64, the most that a tile of normals serves."""
    at_least(0, rank=rank)
    if rank > TILE:
        raise ValueError(f"rank is {rank}; it must be at most {TILE}")

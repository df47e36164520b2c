"""CIFAR ResNets in integers: random ones, as the kernels and as the definition take them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from smoothfast import ops
from smoothfast.integers import IntegerResNet
from smoothfast.integers.exact import network_of

MOST_OF_IMAGE, SUM_OF_IMAGE = 4095, 65535  # of weights of the image layer, and of their sums for one output
PAIR = 128  # the sum of two weights that are added in 16 bits


@dataclass
class Integers:
    """The arguments of `ops.fused_pack_integers`, of a network with these widths, blocks in a stage and classes."""

    shape: list[int]
    weights: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    multipliers: list[Tensor] = field(default_factory=list)
    shifts: list[Tensor] = field(default_factory=list)
    linear: Tensor = field(default_factory=lambda: torch.zeros(0))
    linear_bias: Tensor = field(default_factory=lambda: torch.zeros(0))
    unit: float = 0.0

    def packed(self, arithmetic: str = "int8_scalar") -> Tensor:
        """The network as the kernels of an arithmetic take it."""
        lists = self.weights, self.scales, self.biases, self.multipliers, self.shifts
        return ops.fused_pack_integers(*lists, self.linear, self.linear_bias, self.unit, arithmetic)

    def tensors(self) -> dict[str, Tensor]:
        """The `state_dict` of its definition."""
        columns = {"weight": self.weights, "scale": self.scales, "bias": self.biases}
        own = {"multiplier": self.multipliers, "shift": self.shifts}
        layers = iter(range(len(self.weights)))

        def of(layer: int, name: str, lists: dict[str, list[Tensor]]) -> dict[str, Tensor]:
            return {f"{name}.{part}": each[layer] for part, each in lists.items() if each[layer].numel()}

        made = of(next(layers), "image", columns)
        for block in range(3 * self.shape[3]):
            name, layer = f"blocks.{block}", next(layers)
            if self.weights[layer].shape[-1] == 1:
                made[f"{name}.shortcut"], layer = self.weights[layer], next(layers)
            made |= of(layer, f"{name}.first", columns)
            layer = next(layers)
            made |= of(layer, f"{name}.second", columns) | of(layer, name, own)
        return made | {"linear": self.linear, "linear_bias": self.linear_bias, "unit": torch.tensor(self.unit)}

    def definition(self) -> IntegerResNet:
        """The network in plain PyTorch."""
        return network_of(self.tensors())

    def add(
        self,
        weight: Tensor,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        multiplier: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        """Adds a layer."""
        self.weights.append(weight)
        self.scales.append(torch.zeros(0) if scale is None else scale)
        self.biases.append(torch.zeros(0) if bias is None else bias)
        self.multipliers.append(torch.zeros(0, dtype=torch.int8) if multiplier is None else multiplier)
        self.shifts.append(torch.zeros(0, dtype=torch.int32) if shift is None else shift)


def drawn(widths: tuple[int, int, int], blocks: int, classes: int, seed: int = 0) -> Integers:
    """A random network whose weights have the whole range, and whose maps have all numbers, ties of roundings too."""
    return _Drawing([*widths, blocks, classes], seed).network


class _Drawing:
    def __init__(self, shape: list[int], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.network = Integers(shape)
        *widths, blocks, classes = shape
        weight = self._uniform(-MOST_OF_IMAGE, MOST_OF_IMAGE, widths[0], 3, 3, 3)
        largest = weight.abs().sum((1, 2, 3), keepdim=True).amax()
        weight = (weight * min(1.0, SUM_OF_IMAGE / largest)).trunc()
        scale = self._scale(weight, 150.0)
        self.network.add(weight.short(), scale, self._bias(3, 3, widths[0]))
        inputs = widths[0]
        for stage, outputs in enumerate(widths):
            for block in range(blocks):
                self._add_block(inputs, outputs, changes=stage > 0 and block == 0)
                inputs = outputs
        self.network.linear = self._uniform(-2047, 2047, classes, inputs).short()
        self.network.linear_bias = self._uniform(-(10**6), 10**6, classes).int()
        self.network.unit = 0.1 + seed / 3

    def _add_block(self, inputs: int, outputs: int, changes: bool) -> None:
        if changes:
            self.network.add(self._paired(outputs, inputs, 1).char())
        first, second = self._paired(outputs, inputs, 3), self._paired(outputs, outputs, 3)
        multiplier = None if changes else self._uniform(0, 127, outputs).char()
        self.network.add(first.char(), self._scale(first, 80.0), self._bias(outputs))
        shift = self._uniform(0, 8, outputs).int()
        self.network.add(second.char(), self._scale(second, 80.0), self._bias(outputs), multiplier, shift)

    def _paired(self, outputs: int, inputs: int, size: int) -> Tensor:
        """Weights of which two neighbouring inputs use up the sum that they may have, or nearly so."""
        first = self._uniform(-PAIR, PAIR - 1, outputs, inputs // 2, size, size)
        second = (self._uniform(-100, 100, *first.shape) / 100 * (PAIR - first.abs())).trunc().clamp(-PAIR, PAIR - 1)
        return torch.stack([first, second], 2).flatten(1, 2)

    def _scale(self, weight: Tensor, input_: float) -> Tensor:
        """Scales by which sums spread over the numbers of a map; half of them are powers of 2, for ties."""
        spread = weight.double().square().sum((1, 2, 3)).sqrt() * input_
        scale = 100 / spread * 2 ** (self._uniform(-100, 100, len(weight)) / 100)
        return torch.where(torch.arange(len(weight)) % 2 == 0, 2 ** scale.log2().round(), scale).float()

    def _bias(self, *shape: int) -> Tensor:
        return (self._uniform(-100, 200, *shape) / 2).float()

    def _uniform(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=self.generator).double()


def random_tensors(widths: tuple[int, int, int], blocks: int, classes: int, seed: int = 0) -> dict[str, Tensor]:
    """The `state_dict` of a random network."""
    return drawn(widths, blocks, classes, seed).tensors()

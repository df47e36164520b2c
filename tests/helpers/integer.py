"""Random networks in integers."""

from __future__ import annotations

import torch
from torch import Tensor

PAIR = 128  # the sum of two weights that are added in 16 bits
IMAGE_WEIGHT, IMAGE_SUM = 4095, 65_535  # of the image layer: of a weight, and of an output


def random_tensors(widths: list[int], blocks: int, classes: int, seed: int = 0) -> dict[str, Tensor]:
    """The `state_dict` of a random network whose weights have the whole range, and whose maps have all levels; scales
    are powers of 2 in part, for ties of roundings."""
    return _Drawing(seed).tensors(widths, blocks, classes)


class _Drawing:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def tensors(self, widths: list[int], blocks: int, classes: int) -> dict[str, Tensor]:
        weight = self._uniform(-IMAGE_WEIGHT, IMAGE_WEIGHT, widths[0], 3, 3, 3)
        weight = (weight * (IMAGE_SUM / weight.abs().sum((1, 2, 3), keepdim=True)).clamp_max(1)).trunc()
        made = {"image.weight": weight.short(), "image.scale": self._scale(weight, 150.0)}
        made["image.bias"] = self._bias(3, 3, widths[0])
        inputs = widths[0]
        for number in range(3 * blocks):
            outputs = widths[number // blocks]
            name, changes = f"blocks.{number}", number in (blocks, 2 * blocks)
            made |= self._convolution(f"{name}.first", outputs, inputs) | self._convolution(
                f"{name}.second", outputs, outputs
            )
            made[f"{name}.shift"] = self._uniform(0, 8, outputs).int()
            if changes:
                made[f"{name}.shortcut"] = self._paired(outputs, inputs, 1).char()
            else:
                made[f"{name}.multiplier"] = self._uniform(0, 127, outputs).char()
            inputs = outputs
        made["linear"] = self._uniform(-2047, 2047, classes, inputs).short()
        made["linear_bias"] = self._uniform(-(10**6), 10**6, classes).int()
        made["unit"] = torch.tensor(0.1)
        return made

    def _convolution(self, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
        weight = self._paired(outputs, inputs, 3)
        scale, bias = self._scale(weight, 80.0), self._bias(outputs)
        return {f"{name}.weight": weight.char(), f"{name}.scale": scale, f"{name}.bias": bias}

    def _paired(self, outputs: int, inputs: int, size: int) -> Tensor:
        """Weights of which two neighbouring inputs use up the sum that they may have, or nearly so."""
        first = self._uniform(-PAIR, PAIR - 1, outputs, inputs // 2, size, size)
        second = (self._uniform(-100, 100, *first.shape) / 100 * (PAIR - first.abs())).trunc().clamp(-PAIR, PAIR - 1)
        return torch.stack([first, second], 2).flatten(1, 2)

    def _scale(self, weight: Tensor, size: float) -> Tensor:
        """Scales by which sums of inputs of a size spread over the levels of a map."""
        spread = weight.square().sum((1, 2, 3)).sqrt() * size
        scale = 100 / spread * 2 ** (self._uniform(-100, 100, len(weight)) / 100)
        return torch.where(torch.arange(len(weight)) % 2 == 0, 2 ** scale.log2().round(), scale).float()

    def _bias(self, *shape: int) -> Tensor:
        return (self._uniform(-100, 200, *shape) / 2).float()

    def _uniform(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=self.generator).double()

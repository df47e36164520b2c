"""The noisy weights of many layers, drawn in one launch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import ops

TILE = 64  # weights


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
    def made(weights: Sequence[Tensor], scales: Sequence[Tensor], factors: Sequence[Tensor], first: int) -> Bank:
        """The bank of layers that are numbered from `first` on, in their order. Autograd goes through."""
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

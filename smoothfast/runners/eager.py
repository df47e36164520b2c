"""Eager: a network as it is, a copy for each lane."""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import shared_copy, warn
from .precision import Runner, in_precision


def make(
    network: nn.Module, dtype: torch.dtype, device: torch.device, examples: tuple[Tensor, ...], count: int
) -> list[Runner]:
    """A network as `count` functions, which see its weights of the moment."""
    return [in_precision(module, dtype, device) for module in copies(network, count)]


def copies(base: nn.Module, count: int) -> list[nn.Module]:
    """A module and copies of it with the same weights: in `forward` it may keep things on itself for later layers.

    Where it cannot be copied, one that lets in a call at a time takes their place.
    """
    try:
        return [base, *(shared_copy(base) for _ in range(count - 1))]
    except Exception as error:  # of whatever stands in the attributes of somebody's module
        warn(f"the base classifier cannot be copied, and so keeps one core busy: {error}")
        return [OneAtATime(base)] * count


class OneAtATime(nn.Module):
    """A module that threads call one after the other."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self._free = base, Lock()

    def forward(self, *inputs: Tensor) -> Any:
        """Calls the module when no other thread does."""
        with self._free:
            return self.base(*inputs)

"""Order of the images: which of them are held out, which a step takes, and seeds for generators of torch."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

SPLIT = 2019  # seed of the permutation that begins with the held-out images


def split(count: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Indices int64 of the images to train on, and of so many that are held out, each in order.

    A larger held-out part contains a smaller one, and no seed changes it: no run, and no fine-tune of its weights, is
    validated on images that the other was trained on.
    """
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT))
    return mixed[held_out:].sort().values, mixed[:held_out].sort().values


@lru_cache(maxsize=2)
def order(count: int, seed: int) -> Tensor:
    """A permutation int64 [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def torch_seed(*numbers: int) -> int:
    """A seed for generators of torch, of which neighbouring numbers give unrelated ones."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1

"""Compiled: a network by torch.compile for one shape, its present weights folded in as constants."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .declined import declined
from .precision import Runner, in_precision


def make(
    network: nn.Module, dtype: torch.dtype, device: torch.device, examples: tuple[Tensor, ...], count: int
) -> list[Runner]:
    """A network compiled once, which any number of threads may call at once."""
    return [compiled(in_precision(network, dtype, device), examples)] * count


def compiled(network: Runner, examples: tuple[Tensor, ...]) -> Runner:
    """A network compiled for the shapes of the examples.

    Raises:
        DeclinedError: it cannot be compiled.
    """
    inductor = import_module("torch._inductor.config")  # a second of CPU time, which others need not pay

    def call(*inputs: Tensor) -> Any:
        return network(*inputs)

    # Dynamo keeps compiled code by code object, and does not look at frozen weights when it takes it up again: an
    # engine needs a code object of its own. As options={"freezing": True} the setting comes too late to have effect.
    call.__code__ = call.__code__.replace(co_name=f"base_{id(call)}")
    function = torch.compile(call, dynamic=False)
    try:
        with torch.no_grad(), inductor.patch(freezing=True):
            function(*examples)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Dynamo, of Inductor, of a compiler of C++
        raise declined("compiled", error) from error
    return function

"""Helpers for modules of any kind: where they are, copies that share weights, eval mode for the time being."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from pathlib import Path

import torch
from torch import nn


def device_of(base: nn.Module) -> torch.device:
    """The device of a module's weights; the CPU if it has none."""
    return next((tensor.device for tensor in chain(base.parameters(), base.buffers())), torch.device("cpu"))


def shared_copy(base: nn.Module) -> nn.Module:
    """A copy of a module that shares all parameters and buffers with it."""
    return deepcopy(base, {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())})


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time being; afterwards every submodule is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


CALLED_THROUGH = tuple(f"{Path(str(module)).parent}{os.sep}" for module in (__file__, nn.__file__))


def warn(message: str) -> None:
    """Warns at the line that called this package, however deep within it the reason was found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(CALLED_THROUGH):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)

"""Helpers for modules of any kind: where they are, copies that share weights, eval mode for the time being."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def device_of(base: nn.Module) -> torch.device:
    """The device of a module's weights; the CPU if it has none."""
    return next((tensor.device for tensor in chain(base.parameters(), base.buffers())), torch.device("cpu"))


class FunctionModule(nn.Module):
    """A function from images to logits as a module, which has no weights that anybody sees."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.training = False

    def forward(self, images: Tensor) -> Any:
        """Returns what the function makes of images [B, ...]."""
        return self.function(images)


def as_module(base: Any, argument: str) -> nn.Module:
    """A base classifier as a module: itself, or one that calls it. Of one by torch.compile the module or function that
    it was made of: engines call it in more ways than it was compiled for, and choose a runner of their own.

    Raises:
        ValueError: it cannot be called.
    """
    if isinstance(base, nn.Module):
        return _original(base)
    if not callable(base) or isinstance(base, type):
        raise ValueError(f"{argument} is {base!r:.80}; it must be a module or a function from images to logits")
    return FunctionModule(getattr(base, "_torchdynamo_orig_callable", base))


def _original(module: nn.Module) -> nn.Module:
    """The module that torch.compile was given; where hooks are on what it returned, they are kept, and so is that."""
    original = getattr(module, "_orig_mod", None)
    hooked = module._forward_hooks or module._forward_pre_hooks
    return original if isinstance(original, nn.Module) and not hooked else module


def shared_copy(base: nn.Module) -> nn.Module:
    """A copy of a module that shares all parameters and buffers with it, and calls nothing that torch.compile made."""
    copy = deepcopy(base, {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())})
    for part in copy.modules():
        vars(part).update(_uncompiled(part))
    return copy


def weights_sha256(base: nn.Module) -> str:
    """The SHA-256 of a module's parameters and buffers, persistent or not: names, dtypes, shapes and bytes in order.

    It reads all of them once: 2 ms for ResNet-20 and 110 ms for ResNet-50 at best, on one core of a busy machine.
    """
    found = hashlib.sha256()
    for name, tensor in _state(base):
        for values in _plain(tensor.detach()):
            found.update(f"{name} {values.dtype} {list(values.shape)};".encode())
            here = values.cpu().contiguous()  # kept until it is read
            found.update(_bytes(here))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    """The bytes of a contiguous tensor where they are; by NumPy, FSDP could not resize their storage afterwards."""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


def _state(base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; then other tensors of its state, as the packed weights of quantised layers."""
    yield from base.named_parameters()
    yield from base.named_buffers()
    for name, value in base.state_dict(keep_vars=True).items():
        for tensor in value if isinstance(value, tuple) else ():
            if isinstance(tensor, Tensor):
                yield name, tensor


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """Dense tensors that a tensor is made of: itself, or what a subclass wraps, as the shard of a DTensor that is
    here."""
    if is_traceable_wrapper_subclass(tensor):
        inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])  # a mesh may be among them
        for part in inner:
            if isinstance(part, Tensor):
                yield from _plain(part)
    else:
        yield tensor.dequantize() if tensor.is_quantized else tensor.to_dense()


class Identities:
    """Objects that are to be the very same: equal to a later collection of these alone.

    They are kept, since an object that is gone may leave its `id` to another.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        self._objects = tuple(objects)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identities) or len(self._objects) != len(other._objects):
            return False
        return all(mine is yours for mine, yours in zip(self._objects, other._objects, strict=True))

    __hash__ = None  # type: ignore[assignment]


def parts(base: nn.Module) -> Identities:
    """Submodules, their hooks and those of all modules, and what stands in the place of a `forward`."""
    everywhere = nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks
    found: list[Any] = [hook for hooks in everywhere for hook in hooks.values()]
    for part in base.modules():
        found += [part, *part._forward_pre_hooks.values(), vars(part).get("forward"), *part._forward_hooks.values()]
    return Identities(found)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time being; afterwards every submodule is in the mode it was in.

    What torch.compile made of submodules, or of a module in place, is not called then: for the first call of a
    ResNet-20 that took 75 seconds, as it compiles anew for every shape, dtype, mode and thread that it meets.
    """
    parts = list(module.modules())
    training = [part for part in parts if part.training]
    compiled = [(vars(part), name, plain) for part in parts for name, plain in _uncompiled(part)]
    kept = [(state, name, state[name]) for state, name, _ in compiled if name in state]
    for part in training:
        part.training = False
    for state, name, plain in compiled:
        state[name] = plain
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for state, name, _ in compiled:
            del state[name]
        for state, name, former in kept:
            state[name] = former


def _uncompiled(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes of a module by which it calls what torch.compile made, and what to put in their place."""
    if vars(part).get("_compiled_call_impl") is not None:  # by `Module.compile`
        yield "_compiled_call_impl", None
    own, original = vars(part).get("forward"), getattr(part, "_orig_mod", None)
    if original is not None and own not in (None, original.__call__):  # by `torch.compile` of a module
        yield "forward", original.__call__
    elif (method := getattr(own, "_torchdynamo_orig_callable", None)) is not None:  # of its method
        yield "forward", method
    elif own is None:  # of that of its class
        forward = getattr(getattr(type(part), "forward", None), "_torchdynamo_orig_callable", None)
        if forward is not None:
            yield "forward", MethodType(forward, part)


# This package; torch.nn, and Dynamo, which stands between it and a caller that is not compiled too (`untraced`).
_FOLDERS = Path(__file__).parent, Path(nn.__file__).parent, Path(torch.__file__).parent / "_dynamo"
CALLED_THROUGH = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)


_HINTED: set[str] = set()


def hint(subject: str, message: str) -> None:
    """Warns once in a process on each subject: of what is no mistake, and could be better."""
    if subject not in _HINTED:
        _HINTED.add(subject)
        warn(message)


def warn(message: str) -> None:
    """Warns at the line that called this package, however deep within it the reason was found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(CALLED_THROUGH):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)

"""Methods that torch.compile leaves alone: one graph break, in place of seconds in which it traces an engine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Class = TypeVar("Class", bound=type)


def untraced(*names: str) -> Callable[[Class], Class]:
    """Makes methods of a class, which it defines itself, ones that dynamo runs as they are.

    `torch.compiler.disable` would import dynamo here, a second for all who compile nothing: it is asked at a call, and
    where dynamo is loaded, since nothing else traces.
    """

    def of(kind: Class) -> Class:
        for name in names:
            setattr(kind, name, _untraced(vars(kind)[name]))
        return kind

    return of


def _untraced(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            return torch.compiler.disable(method)(*arguments, **named)
        return method(*arguments, **named)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # else this function is traced where it is called
    return call

"""Objects that introduce themselves: by the call that makes them again, as far as it can be written in a line."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from torch import nn

from .modules import FunctionModule


def brief(module: nn.Module) -> str:
    """The text of a network in a few words: its class, or the function that it is."""
    if isinstance(module, FunctionModule):
        return getattr(module.function, "__name__", type(module.function).__name__)
    return f"{type(module).__name__}(...)"


def parameters(kind: type) -> dict[str, Any]:
    """The names of what a class and those that it is made from are made with, in the order of the class, and their
    defaults; `Parameter.empty` where there is none."""
    found: dict[str, Any] = {}
    for each in kind.__mro__:
        if "__init__" in vars(each) and each is not object:
            for name, parameter in list(signature(vars(each)["__init__"]).parameters.items())[1:]:
                found.setdefault(name, parameter.default)
    return found


def introduction(thing: object, subject: str, told: Mapping[str, Any]) -> str:
    """The call that makes a thing: its class, what it is made of, and those of its settings that are not as they are by
    themselves."""
    usual = parameters(type(thing))
    shown = [f"{name}={value!r}" for name, value in told.items() if value != usual.get(name, Parameter.empty)]
    return f"{type(thing).__name__}({', '.join([subject, *shown])})"

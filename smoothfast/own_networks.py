"""Networks of the user's own code, in the forms in which people have them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

from torch import nn

from .checks import told
from .modules import FunctionModule

NO_CLASSES = "num_classes is not given, and neither the weights nor the data tell it; pass num_classes= or --classes"
CLASSES = ("num_classes", "n_classes", "classes", "num_labels")  # how people call the number of logits
NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def own_network(spec: str, given: Any, num_classes: int | None) -> nn.Module:
    """The network that an object of the user's stands for: itself; what a class or function makes, with the number of
    classes where it takes that and without arguments where it takes none; or a function of images.

    Raises:
        ValueError: it is none of these, or raises an error, which is told with the place in the user's code.
    """
    if isinstance(given, nn.Module):
        return given
    if not callable(given):
        raise ValueError(
            f"model is {spec!r}, which is of {type(given).__name__}; it must be an nn.Module or a callable"
        )
    parameters = _parameters(given)
    if not inspect.isclass(given) and _takes_images(parameters):
        return FunctionModule(given)
    arguments = _arguments(spec, parameters, num_classes)
    try:
        network = _made(given, arguments)
    except Exception as error:
        raise ValueError(f"model is {spec!r}, which raised {told(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"model is {spec!r}, which returned {type(network).__name__}; it must return an nn.Module")
    return network


def _made(given: Callable[..., Any], arguments: dict[str, int]) -> Any:
    """Makes a network; without arguments where a callable hands those of any name on to one that does not take them, as
    a class without an `__init__` does."""
    try:
        return given(**arguments)
    except TypeError as error:
        if any(f"unexpected keyword argument '{name}'" in str(error) for name in arguments):
            return given()
        raise


def _parameters(given: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The parameters of a callable; the documented one where it tells none."""
    try:
        return inspect.signature(given).parameters
    except (TypeError, ValueError):  # of classes in C
        return {CLASSES[0]: Parameter(CLASSES[0], Parameter.KEYWORD_ONLY)}


def _required(parameters: Mapping[str, Parameter]) -> list[str]:
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is Parameter.empty and parameter.kind not in VARIABLE
    ]


def _takes_images(parameters: Mapping[str, Parameter]) -> bool:
    required = _required(parameters)
    return len(required) == 1 and required[0] not in CLASSES and parameters[required[0]].kind != Parameter.KEYWORD_ONLY


def _arguments(spec: str, parameters: Mapping[str, Parameter], num_classes: int | None) -> dict[str, int]:
    """The arguments to make a network with."""
    called = next((name for name in CLASSES if name in parameters and parameters[name].kind in NAMED), None)
    others = [name for name in _required(parameters) if name != called]
    if others:
        raise ValueError(f"model is {spec!r}, which takes {', '.join(others)}; it must take num_classes= or nothing")
    if called is None:
        open_ended = any(parameter.kind == Parameter.VAR_KEYWORD for parameter in parameters.values())
        return {CLASSES[0]: num_classes} if open_ended and num_classes is not None else {}
    if num_classes is None and parameters[called].default is Parameter.empty:
        raise ValueError(NO_CLASSES)
    return {} if num_classes is None else {called: num_classes}

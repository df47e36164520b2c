"""Values given as text: one of a few names, or an object as `package.module:name`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any


def choice(argument: str, value: str, accepted: Iterable[str]) -> None:
    """Raises ValueError unless the value is one of those accepted."""
    if value not in accepted:
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(accepted)}")


def resolve(spec: str, argument: str, accepted: str) -> Any:
    """The object that `package.module:name` names."""
    module, colon, name = spec.partition(":")
    if not colon:
        raise ValueError(f"{argument} is {spec!r}; it must be {accepted}")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: ".relative:x" and ":x"
        raise ValueError(f"{argument} is {spec!r}, which cannot be imported ({error}); accepted: {accepted}") from error

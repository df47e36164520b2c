"""Values that users give: in their range; as text, one of a few names, a number as 8/255, or an object as
`package.module:name`; and the same as in the run that is gone on with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from importlib import import_module
from operator import index
from pathlib import Path
from typing import Any


def choice(argument: str, value: str, accepted: Iterable[str]) -> None:
    """Raises ValueError unless the value is one of those accepted."""
    if value not in accepted:
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(accepted)}")


def at_least(least: int, **values: int | None) -> None:
    """Raises ValueError unless every value is an integer of at least so much, or None; by name."""
    for name, value in values.items():
        if value is not None and index(value) < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")


def positive(**values: float | None) -> None:
    """Raises ValueError unless every value is positive and finite, or None; by name."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite")


def not_negative(**values: float | None) -> None:
    """Raises ValueError unless every value is at least 0 and finite, or None; by name."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be at least 0 and finite")


def fraction(argument: str, value: str) -> float:
    """The number that a text like 0.5, 1e-3 or 8/255 stands for."""
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{argument} is {value!r}; it must be a number as 0.03 or 8/255") from None


def same_settings(path: Path, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ValueError unless a file of a run was made with the settings that are given; names each that differs."""
    # Compared as JSON text, in which a tuple and the list read back for it are the same.
    old, new = ({name: json.dumps(value, sort_keys=True) for name, value in side.items()} for side in (kept, given))
    differing = [
        f"{name} was {old.get(name, 'not set')}, is now {new.get(name, 'not set')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differing:
        raise ValueError(f"{path} was made with other settings: {'; '.join(differing)}")


def resolve(spec: str, argument: str, accepted: str) -> Any:
    """The object that `package.module:name` names."""
    module, colon, name = spec.partition(":")
    if not colon:
        raise ValueError(f"{argument} is {spec!r}; it must be {accepted}")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: ".relative:x" and ":x"
        raise ValueError(f"{argument} is {spec!r}, which cannot be imported ({error}); accepted: {accepted}") from error

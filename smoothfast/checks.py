"""Checks of values that users give: in their range, one of a few names, a number as 8/255, an object as
`package.module:name`. Each raises ValueError that names the argument, its value and what would be right."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module
from operator import index
from typing import Any

LEAST_SIGMA = 1e-6  # of noise, in pixel units; about 1e-38 numbers of float32 are subnormal, and kernels differ
LARGEST_SIGMA = 4.0  # likewise; nine of ten noisy pixels are then out of their range


def choice(argument: str, value: str, accepted: Iterable[str]) -> None:
    """Raises ValueError unless the value is one of those accepted."""
    if value not in accepted:
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(accepted)}")


def at_least(least: int, **values: int | None) -> None:
    """Raises ValueError unless every value is an integer of at least so much, or None; by name."""
    for name, value in values.items():
        if value is not None and index(value) < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")


def at_most(most: float, **values: float | None) -> None:
    """Raises ValueError unless every value is at most so much, or None; by name."""
    for name, value in values.items():
        if value is not None and value > most:
            raise ValueError(f"{name} is {value}; it must be at most {most:,}")


def positive(**values: float | None) -> None:
    """Raises ValueError unless every value is positive and finite, or None; by name."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite")


def noise_level(**values: float | None) -> None:
    """Raises ValueError unless every value is a standard deviation that noise can have, or None; by name."""
    for name, value in values.items():
        if value is not None and not LEAST_SIGMA <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be finite and at least {LEAST_SIGMA}, in [0, 1] pixel units")


def in_pixel_units(argument: str, value: float, most: float) -> None:
    """Raises ValueError where a value is too large for images in [0, 1], as one in units of 8 bits is."""
    if value > most:
        raise ValueError(
            f"{argument} is {value:g}; it is at most {most:g} in [0, 1] pixel units: did you mean {value:g}/255?"
        )


def not_negative(**values: float | None) -> None:
    """Raises ValueError unless every value is at least 0 and finite, or None; by name."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be at least 0 and finite")


def seed_in_range(seed: int) -> None:
    """Raises ValueError unless a seed has 64 bits."""
    if not 0 <= index(seed) < 2**64:
        raise ValueError(f"seed is {seed}; it must lie in 0 .. 2**64 - 1")


def fraction(argument: str, value: str) -> float:
    """The number that a text like 0.5, 1e-3 or 8/255 stands for."""
    above, slash, below = value.partition("/")
    try:  # not by Fraction, which takes 1e999999999 for an integer and makes it
        number = int(above) / int(below) if slash else float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{argument} is {value!r:.50}; it must be a number as 0.03 or 8/255")
    return number


def imported(spec: str, argument: str, accepted: str) -> Any:
    """The object that `package.module:name` names."""
    module, colon, name = spec.partition(":")
    if not colon:
        raise ValueError(f"{argument} is {spec!r}; it must be {accepted}")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: ".relative:x" and ":x"
        raise ValueError(f"{argument} is {spec!r}, which cannot be imported ({error}); accepted: {accepted}") from error

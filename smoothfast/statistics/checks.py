"""Checks of arguments that the statistics share; each names the argument, its value and what it must be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# `betainc` underflows from about 1e-290, so smaller tails cannot be told from 0.
LEAST_ALPHA = 1e-100


def require(holds: NDArray[np.bool_], name: str, values: Floats, wanted: str) -> None:
    """Raises ValueError about the first of `values` for which `holds` is false."""
    if not np.all(holds):
        first = np.broadcast_to(values, np.shape(holds))[~holds].flat[0]
        raise ValueError(f"{name} is {first:.12g}; it must be {wanted}")


def require_level(values: ArrayLike, name: str = "alpha") -> Floats:
    """Error levels: at least 1e-100 and below 1."""
    level = np.asarray(values, np.float64)
    require((level >= LEAST_ALPHA) & (level < 1), name, level, f"at least {LEAST_ALPHA} and below 1")
    return level


def probability(name: str, values: ArrayLike) -> Floats:
    """Probabilities: in [0, 1]."""
    p = np.asarray(values, np.float64)
    require((p >= 0) & (p <= 1), name, p, "in [0, 1]")
    return p


def positive(name: str, values: ArrayLike) -> Floats:
    """Scales and radii that cannot be 0."""
    scale = np.asarray(values, np.float64)
    require((scale > 0) & np.isfinite(scale), name, scale, "positive and finite")
    return scale


def successes(k: ArrayLike, n: Floats) -> Floats:
    """Whole numbers in 0..n."""
    count = np.asarray(k, np.float64)
    require((count >= 0) & (count <= n) & (count == np.floor(count)), "k", count, "a whole number in 0..n")
    return count


def whole(name: str, values: ArrayLike, least: int) -> Floats:
    """Whole numbers of at least `least`."""
    number = np.asarray(values, np.float64)
    fits = (number >= least) & (number == np.floor(number)) & np.isfinite(number)
    require(fits, name, number, f"a whole number of at least {least}")
    return number

"""Radii within which a class keeps its lead, by noise law and norm; each at or below its exact value.

Sources: Cohen et al. 2019, arXiv 1902.02918 (Gaussian noise, L2); Yang et al. 2020, arXiv 2002.08118 (uniform and
Laplace noise, L1).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .checks import Floats, positive, probability, require
from .special import ndtr, ndtri

# `ndtri` errs by up to 5.1 ulp (just above exp(-2), where it changes formula), and 8 epsilon are at least 8 ulp; `ndtr`
# by up to 1.5 (2 + z^2) epsilon in its lower tail (`smoothfast selftest`), of the margin 8 (2 + z^2) epsilon below.
_QUANTILE_MARGIN = 8 * np.finfo(np.float64).eps

# Takes off more than a difference and two products can round up.
_ROUND_DOWN = 1 - 4 * np.finfo(np.float64).eps


def gaussian_quantile_lower(p: ArrayLike) -> Floats:
    """Lower bound of the standard normal quantile of p in [0, 1]; -inf at 0, inf at 1."""
    quantile: Floats = ndtri(probability("p", p))
    return quantile * (1 - _QUANTILE_MARGIN * np.sign(quantile))


def gaussian_quantile_upper(p: ArrayLike) -> Floats:
    """Upper bound of the standard normal quantile of p in [0, 1]; -inf at 0, inf at 1."""
    quantile: Floats = ndtri(probability("p", p))
    return quantile * (1 + _QUANTILE_MARGIN * np.sign(quantile))


def gaussian_probability_lower(z: ArrayLike) -> Floats:
    """Lower bound of the standard normal distribution function, also where z itself was rounded."""
    return ndtr(z) * (1 - _probability_margin(z))


def gaussian_probability_upper(z: ArrayLike) -> Floats:
    """Upper bound of the standard normal distribution function, also where z itself was rounded."""
    return np.minimum(ndtr(z) * (1 + _probability_margin(z)), 1.0)


def certified_radius(p_lower: ArrayLike, p_upper: ArrayLike, sigma: ArrayLike) -> Floats:
    """L2 radius under Gaussian or lattice noise (Cohen et al. 2019, theorem 1).

    sigma/2 * (quantile(p_lower) - quantile(p_upper)) with the standard normal quantile. Where p_upper = 1 - p_lower
    this is Cohen's sigma * quantile(p_lower).

    Args:
        p_lower: lower bound of the class's probability, in [0, 1].
        p_upper: upper bound of the probability of each other class, in [0, 1].
        sigma: standard deviation of the noise, positive and finite; the radius has its unit.

    Returns:
        The radius, 0 where p_lower <= p_upper; shape of the arguments broadcast together.

    Raises:
        ValueError: a probability or sigma is out of its range.
    """
    p_lower, p_upper = probability("p_lower", p_lower), probability("p_upper", p_upper)
    sigma = positive("sigma", sigma)
    with np.errstate(invalid="ignore"):  # inf - inf, where both bounds are 0 or both are 1
        gap = gaussian_quantile_lower(p_lower) - gaussian_quantile_upper(p_upper)
    return np.maximum(np.where(p_lower > p_upper, sigma / 2 * gap * _ROUND_DOWN, 0.0), 0.0)


def uniform_radius(p_lower: ArrayLike, p_upper: ArrayLike, half_width: ArrayLike) -> Floats:
    """L1 radius under noise uniform on [-half_width, half_width] in every element (Yang et al. 2020).

    half_width * (p_lower - p_upper): a shift by d moves at most |d|_1 / (2 half_width) of the mass, away from the class
    and to its rival. Where p_upper = 1 - p_lower this is 2 half_width (p_lower - 1/2).

    Args and errors as for `certified_radius`; `half_width` is the law's standard deviation times sqrt(3).
    """
    p_lower, p_upper = probability("p_lower", p_lower), probability("p_upper", p_upper)
    half_width = positive("half_width", half_width)
    return np.maximum(half_width * (p_lower - p_upper) * _ROUND_DOWN, 0.0)


def laplace_radius(p_lower: ArrayLike, scale: ArrayLike) -> Floats:
    """L1 radius under Laplace noise of this scale in every element (Yang et al. 2020): -scale * log(2 (1 - p_lower)).

    Args:
        p_lower: lower bound of the class's probability, in [0, 1]; all others share the rest.
        scale: the law's standard deviation over sqrt(2), positive and finite; the radius has its unit.

    Returns:
        The radius, 0 where p_lower <= 1/2; shape of the arguments broadcast together.
    """
    p_lower, scale = probability("p_lower", p_lower), positive("scale", scale)
    with np.errstate(divide="ignore"):
        radius = -scale * np.log(2 * (1 - p_lower))  # 1 - p is exact where the radius is positive
    return np.maximum(radius * _ROUND_DOWN, 0.0)


def converted_radius(radius: ArrayLike, norm: float, to: float, dimension: int) -> Floats:
    """A radius in one norm as a radius in another: the largest ball of norm `to` inside the ball of `norm`.

    It is the same number where to <= norm, and shrinks by dimension ** (1/norm - 1/to) where to > norm.

    Args:
        radius: at least 0.
        norm, to: at least 1; `math.inf` for the largest element.
        dimension: number of elements of an image.

    Raises:
        ValueError: an argument is out of its range.
    """
    radius = np.asarray(radius, np.float64)
    require(radius >= 0, "radius", radius, "at least 0")
    for name, order in (("norm", norm), ("to", to)):
        if not order >= 1:
            raise ValueError(f"{name} is {order}; it must be at least 1")
    if dimension < 1:
        raise ValueError(f"dimension is {dimension}; it must be at least 1")
    if to <= norm:
        return radius[()]
    exponent = 1 / norm - (0.0 if math.isinf(to) else 1 / to)
    # An exponent that is rounded by an epsilon moves the power by log(dimension) epsilon.
    return radius / dimension**exponent * (1 - (4 + 2 * math.log(dimension)) * np.finfo(np.float64).eps)


def _probability_margin(z: ArrayLike) -> Floats:
    # An argument that is rounded by an epsilon moves the function by at most (1 + z^2) epsilon of itself.
    return np.minimum((2 + np.square(np.asarray(z, np.float64))) * _QUANTILE_MARGIN, 1.0)

"""Confidence bounds, radii and tests on vote counts, rounded so that no guarantee is overstated.

Pure functions on NumPy arrays, in float64 whatever comes in. Arguments broadcast against one
another; scalars give scalars. Lower bounds and radii end up at or below their exact value, upper
bounds at or above it.

Sources: Clopper and Pearson 1934 (exact binomial bounds); Cohen et al. 2019, arXiv 1902.02918
(radius, PREDICT, CERTIFY); Hung and Fithian 2019, arXiv 1610.03944 (the test behind PREDICT).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv, ndtri

Floats = NDArray[np.float64]

# Share of alpha spent on the lower bound of the top class; the upper bound of its rivals gets the
# rest. Computed at n = 1e5 and alpha = 0.001: 0.9 costs at most 0.004 sigma of radius against
# spending all of it, an even split 0.024 sigma.
TOP_SHARE = {"multiclass": 0.9, "cohen": 1.0}

# Demanded of every tail probability: to stay this far (relative) below its level. `betainc` errs by
# less than 3e-11 up to n = 1e8, as long as it does not underflow, which it does from about 1e-250.
_TAIL_MARGIN = 1e-9
_LEAST_ALPHA = 1e-100

# `ndtri` errs by up to 5.1 ulp (just above exp(-2), where it changes formula); 8 epsilon are at
# least 8 ulp.
_QUANTILE_MARGIN = 8 * np.finfo(np.float64).eps

# Takes off more than a difference and two products can round up.
_ROUND_DOWN = 1 - 4 * np.finfo(np.float64).eps


def clopper_pearson_lower(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Floats:
    """One-sided exact lower bound of a binomial probability (Clopper and Pearson 1934).

    The bound p satisfies P(X >= k) <= alpha for X ~ Binomial(n, p); it exceeds the true probability
    in at most a share alpha of all repetitions.

    Args:
        k: successes, 0..n.
        n: samples, at least 1.
        alpha: error level, at least 1e-100 (smaller tails are not to be trusted) and below 1.

    Returns:
        The bound in [0, 1), 0 where k = 0; shape of the arguments broadcast together.

    Raises:
        ValueError: an argument is out of its range, or a count is not a whole number.
    """
    return _clopper_pearson_lower(*_binomial(k, n, alpha))


def clopper_pearson_upper(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Floats:
    """One-sided exact upper bound of a binomial probability (Clopper and Pearson 1934).

    The mirror image of `clopper_pearson_lower`, with the same arguments and errors: the bound p
    satisfies P(X <= k) <= alpha for X ~ Binomial(n, p).

    Returns:
        The bound in (0, 1], 1 where k = n; shape of the arguments broadcast together.
    """
    k, n, alpha = _binomial(k, n, alpha)
    return _complement(_clopper_pearson_lower(n - k, n, alpha))


def gaussian_quantile_lower(p: ArrayLike) -> Floats:
    """Lower bound of the standard normal quantile of p in [0, 1]; -inf at 0, inf at 1."""
    quantile: Floats = ndtri(_probability("p", p))
    return quantile * (1 - _QUANTILE_MARGIN * np.sign(quantile))


def gaussian_quantile_upper(p: ArrayLike) -> Floats:
    """Upper bound of the standard normal quantile of p in [0, 1]; -inf at 0, inf at 1."""
    quantile: Floats = ndtri(_probability("p", p))
    return quantile * (1 + _QUANTILE_MARGIN * np.sign(quantile))


def certified_radius(p_lower: ArrayLike, p_upper: ArrayLike, sigma: ArrayLike) -> Floats:
    """L2 radius within which a class keeps its lead, rounded down (Cohen et al. 2019, theorem 1).

    sigma/2 * (quantile(p_lower) - quantile(p_upper)) with the standard normal quantile. Where
    p_upper = 1 - p_lower this is Cohen's sigma * quantile(p_lower).

    Args:
        p_lower: lower bound of the class's probability, in [0, 1].
        p_upper: upper bound of the probability of each other class, in [0, 1].
        sigma: standard deviation of the noise, positive and finite; the radius has its unit.

    Returns:
        The radius, 0 where p_lower <= p_upper; shape of the arguments broadcast together.

    Raises:
        ValueError: a probability or sigma is out of its range.
    """
    p_lower, p_upper = _probability("p_lower", p_lower), _probability("p_upper", p_upper)
    sigma = np.asarray(sigma, np.float64)
    _require((sigma > 0) & np.isfinite(sigma), "sigma", sigma, "positive and finite")
    with np.errstate(invalid="ignore"):  # inf - inf, where both bounds are 0 or both are 1
        gap = gaussian_quantile_lower(p_lower) - gaussian_quantile_upper(p_upper)
    return np.maximum(np.where(p_lower > p_upper, sigma / 2 * gap * _ROUND_DOWN, 0.0), 0.0)


def class_bounds(
    counts: ArrayLike,
    label: ArrayLike,
    alpha: float,
    bound: str,
) -> tuple[Floats, Floats]:
    """Bounds of the probability of a class and of its strongest rival, jointly at level alpha.

    With "cohen" the rival gets all that the class leaves, p_upper = 1 - p_lower (Cohen et al.
    2019). With "multiclass" the class is bounded at 0.9 alpha, and the rival also by the largest
    count of the others at 0.1 alpha. That takes no union over the others: the largest count is at
    least the count of the true runner-up, and the bound grows with the count.

    Args:
        counts: [..., K] votes of independent samples. n is the sum of a row, so samples without a
            class (non-finite logits) need a column of their own.
        label: [...] or scalar, the class, chosen without a look at `counts`. Any label outside
            0..K-1, such as an abstention, has p_lower = 0.
        alpha: error level, 0 < alpha < 1.
        bound: "multiclass" or "cohen".

    Returns:
        p_lower [...] and p_upper [...].

    Raises:
        ValueError: alpha or bound is out of its range, or a row of counts is empty or negative.
    """
    counts = np.asarray(counts)
    level = _top_level(alpha, bound)
    n = counts.sum(-1)
    top = np.arange(counts.shape[-1]) == np.expand_dims(label, -1)
    p_lower = clopper_pearson_lower(np.where(top, counts, 0).sum(-1), n, level)
    p_upper = _complement(p_lower)
    if bound == "multiclass":
        rival = np.where(top, 0, counts).max(-1)
        p_upper = np.minimum(p_upper, clopper_pearson_upper(rival, n, alpha - level))
    return p_lower, p_upper


def binomial_test(n1: ArrayLike, n2: ArrayLike) -> Floats:
    """Two-sided p-value of n1 heads and n2 tails of a fair coin.

    Given the two largest counts it tests, for any number of classes, that the winner is the most
    probable one (PREDICT of Cohen et al. 2019, after Hung and Fithian 2019).

    Args:
        n1: count, at least 0.
        n2: count, at least 0.

    Returns:
        The p-value, 1 at ties; shape of the arguments broadcast together.

    Raises:
        ValueError: a count is negative or not a whole number.
    """
    n1, n2 = np.asarray(n1, np.float64), np.asarray(n2, np.float64)
    _require((n1 >= 0) & (n1 == np.floor(n1)), "n1", n1, "a whole number of at least 0")
    _require((n2 >= 0) & (n2 == np.floor(n2)), "n2", n2, "a whole number of at least 0")
    tail: Floats = betainc(np.maximum(n1, n2), np.minimum(n1, n2) + 1, 0.5)
    return np.minimum(2 * tail, 1.0)


def samples_to_certify(alpha: float, bound: str) -> int:
    """Least n at which n unanimous votes certify a class with `class_bounds`.

    They give p_lower = level**(1/n), where level is the class's share of alpha, and need 1/2.

    Raises:
        ValueError: alpha is out of its range, or bound is neither "multiclass" nor "cohen".
    """
    return math.floor(-math.log2(_top_level(alpha, bound))) + 1


def samples_to_predict(alpha: float) -> int:
    """Least n at which n unanimous votes pass `binomial_test` at level alpha: 2 * 0.5**n <= alpha.

    Raises:
        ValueError: alpha is out of its range.
    """
    _require_level(alpha)
    return math.ceil(-math.log2(alpha)) + 1


def _binomial(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> tuple[Floats, Floats, Floats]:
    k, n, alpha = (np.asarray(values, np.float64) for values in (k, n, alpha))
    _require((n >= 1) & (n == np.floor(n)), "n", n, "a whole number of at least 1")
    _require((k >= 0) & (k <= n) & (k == np.floor(k)), "k", k, "a whole number in 0..n")
    _require_level(alpha)
    return k, n, alpha


def _clopper_pearson_lower(k: Floats, n: Floats, alpha: Floats) -> Floats:
    bound: Floats = betaincinv(k, n - k + 1, alpha * (1 - 2 * _TAIL_MARGIN))
    # Without a quantile, as at k = 0, descend from k / n.
    bound = np.where(np.isnan(bound), k / n, bound)
    # The quantile is a guess until its tail, P(X >= k), is seen to be small enough. The last step
    # leads to 0, which needs no proof.
    for step in 2.0 ** np.arange(-52, 1):
        proven = betainc(k, n - k + 1, bound) <= alpha * (1 - _TAIL_MARGIN)
        if np.all(proven):
            break
        bound = np.where(proven, bound, bound * (1 - step))
    return bound[()]


def _complement(p: Floats) -> Floats:
    """1 - p, rounded up but not above 1."""
    return np.nextafter(1 - p, 1)


def _top_level(alpha: float, bound: str) -> float:
    _require_level(alpha)
    if bound not in TOP_SHARE:
        raise ValueError(f"bound is {bound!r}; it must be one of {', '.join(TOP_SHARE)}")
    return alpha * TOP_SHARE[bound]


def _probability(name: str, values: ArrayLike) -> Floats:
    p = np.asarray(values, np.float64)
    _require((p >= 0) & (p <= 1), name, p, "in [0, 1]")
    return p


def _require_level(alpha: ArrayLike) -> None:
    alpha = np.asarray(alpha, np.float64)
    fits = (alpha >= _LEAST_ALPHA) & (alpha < 1)
    _require(fits, "alpha", alpha, f"at least {_LEAST_ALPHA} and below 1")


def _require(holds: NDArray[np.bool_], name: str, values: Floats, wanted: str) -> None:
    if not np.all(holds):
        first = np.broadcast_to(values, np.shape(holds))[~holds].flat[0]
        raise ValueError(f"{name} is {first:.12g}; it must be {wanted}")

"""Confidence bounds, each on the safe side of its exact value, and tests on the votes of a fixed number of samples.

Sources: Clopper and Pearson 1934 (exact binomial bounds); Stevens 1950 (their randomized form); Cohen et al. 2019,
arXiv 1902.02918 (PREDICT, CERTIFY); Hung and Fithian 2019, arXiv 1610.03944 (the test behind PREDICT).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import Floats, require, require_level, successes, whole
from .special import betainc, betaincinv

# Share of alpha spent on the lower bound of the top class; the upper bound of its rivals gets the
# rest. Computed at n = 1e5 and alpha = 0.001: 0.9 costs at most 0.004 sigma of radius against
# spending all of it, an even split 0.024 sigma.
TOP_SHARE = {"multiclass": 0.9, "cohen": 1.0}

LEVEL = 0.95  # of confidence intervals that are shown, unless another is asked for

# Demanded of every tail probability: to stay this far (relative) below its level. `betainc` errs by
# less than 3e-11 up to n = 1e8, as long as it does not underflow, which it does from about 1e-290.
_TAIL_MARGIN = 1e-9


def clopper_pearson_lower(k: ArrayLike, n: ArrayLike, alpha: ArrayLike, u: ArrayLike = 1.0) -> Floats:
    """One-sided exact lower bound of a binomial probability (Clopper and Pearson 1934).

    The bound p satisfies P(X > k) + u P(X = k) <= alpha for X ~ Binomial(n, p); it exceeds the true probability in at
    most a share alpha of all repetitions, for u = 1 as well as for a u drawn uniformly from (0, 1], which makes that
    share exactly alpha.

    Args:
        k: successes, 0..n.
        n: samples, at least 1.
        alpha: error level, at least 1e-100 (smaller tails are not to be trusted) and below 1.
        u: 1, or one uniform number that is drawn independently of k and before it is known.

    Returns:
        The bound in [0, 1), 0 where k = 0 and u > alpha; shape of the arguments broadcast together.

    Raises:
        ValueError: an argument is out of its range, or a count is not a whole number.
    """
    return _clopper_pearson_lower(*_binomial(k, n, alpha), _uniform(u))


def clopper_pearson_upper(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Floats:
    """One-sided exact upper bound of a binomial probability (Clopper and Pearson 1934).

    The mirror image of `clopper_pearson_lower`, with the same arguments and errors: the bound p
    satisfies P(X <= k) <= alpha for X ~ Binomial(n, p).

    Returns:
        The bound in (0, 1], 1 where k = n; shape of the arguments broadcast together.
    """
    k, n, alpha = _binomial(k, n, alpha)
    return complement(_clopper_pearson_lower(n - k, n, alpha, np.float64(1)))


def clopper_pearson_interval(k: ArrayLike, n: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Two-sided exact confidence interval of a binomial probability: both bounds, each at half the error level.

    It misses the true probability with probability at most 1 - level. Arguments and errors are those of
    `clopper_pearson_lower`, and `level` lies between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")
    alpha = (1 - level) / 2
    return clopper_pearson_lower(k, n, alpha), clopper_pearson_upper(k, n, alpha)


def class_bounds(
    counts: ArrayLike,
    label: ArrayLike,
    alpha: ArrayLike,
    bound: str,
    u: ArrayLike = 1.0,
    deviation: float = 0.0,
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
        u: for the lower bound, see `clopper_pearson_lower`.
        deviation: total variation between the law the votes come from and the one to be bounded.

    Returns:
        p_lower [...] and p_upper [...].

    Raises:
        ValueError: alpha or bound is out of its range, or a row of counts is empty or negative.
    """
    own, rival = own_and_rival(counts, label)
    return share_bounds(own, rival, np.asarray(counts).sum(-1), alpha, bound, u, deviation)


def share_bounds(
    own: ArrayLike,
    rival: ArrayLike,
    n: ArrayLike,
    alpha: ArrayLike,
    bound: str,
    u: ArrayLike = 1.0,
    deviation: float = 0.0,
) -> tuple[Floats, Floats]:
    """`class_bounds` of the votes for the class and for its largest rival, of n samples."""
    level = top_level(alpha, bound)
    p_lower = lowered(clopper_pearson_lower(own, n, level, u), deviation)
    p_upper = complement(p_lower)
    if bound == "multiclass":
        rival_upper = clopper_pearson_upper(rival, n, np.asarray(alpha) - level)
        p_upper = np.minimum(p_upper, raised(rival_upper, deviation))
    return p_lower, p_upper


def own_and_rival(counts: ArrayLike, label: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The votes for a class [...] and the largest count of the others [...], of counts [..., K]."""
    counts = np.asarray(counts)
    top = np.arange(counts.shape[-1]) == np.expand_dims(label, -1)
    return np.where(top, counts, 0).sum(-1), np.where(top, 0, counts).max(-1)


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
    n1, n2 = whole("n1", n1, 0), whole("n2", n2, 0)
    tail: Floats = betainc(np.maximum(n1, n2), np.minimum(n1, n2) + 1, 0.5)
    return np.minimum(2 * tail, 1.0)


def samples_to_certify(alpha: float, bound: str) -> int:
    """Least n at which n unanimous votes certify a class with `class_bounds`.

    They give p_lower = level**(1/n), where level is the class's share of alpha, and need 1/2.

    Raises:
        ValueError: alpha is out of its range, or bound is neither "multiclass" nor "cohen".
    """
    return math.floor(-math.log2(float(top_level(alpha, bound)))) + 1


def samples_to_predict(alpha: float) -> int:
    """Least n at which n unanimous votes pass `binomial_test` at level alpha: 2 * 0.5**n <= alpha.

    Raises:
        ValueError: alpha is out of its range.
    """
    require_level(alpha)
    return math.ceil(-math.log2(alpha)) + 1


def complement(p: ArrayLike) -> Floats:
    """1 - p, rounded up but not above 1."""
    return np.nextafter(1 - np.asarray(p, np.float64), 1)


def lowered(p: Floats, deviation: float) -> Floats:
    """A lower bound of p - deviation, at least 0."""
    return np.maximum(np.nextafter(p - deviation, 0), 0) if deviation else p


def raised(p: Floats, deviation: float) -> Floats:
    """An upper bound of p + deviation, at most 1."""
    return np.minimum(np.nextafter(p + deviation, 1), 1) if deviation else p


def top_level(alpha: ArrayLike, bound: str) -> Floats:
    """The class's share of alpha.

    Raises:
        ValueError: alpha or bound is out of its range.
    """
    if bound not in TOP_SHARE:
        raise ValueError(f"bound is {bound!r}; it must be one of {', '.join(TOP_SHARE)}")
    return require_level(alpha) * TOP_SHARE[bound]


def _binomial(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> tuple[Floats, Floats, Floats]:
    n = whole("n", n, 1)
    return successes(k, n), n, require_level(alpha)


def _uniform(u: ArrayLike) -> Floats:
    u = np.asarray(u, np.float64)
    require((u > 0) & (u <= 1), "u", u, "above 0 and at most 1")
    return u


def _clopper_pearson_lower(k: Floats, n: Floats, alpha: Floats, u: Floats) -> Floats:
    guess: Floats = betaincinv(k, n - k + 1, alpha * (1 - 2 * _TAIL_MARGIN))
    # Without a quantile, as at k = 0, descend from k / n.
    bound = np.where(np.isnan(guess), k / n, guess)
    if np.any(u < 1):
        bound = _randomized_guess(k, n, alpha, u, bound)
    # The guess is no bound until its tail is seen to be small enough. The last step leads to 0, which needs no proof.
    for step in 2.0 ** np.arange(-52, 1):
        proven = _tail(k, n, bound, u) <= alpha * (1 - _TAIL_MARGIN)
        if np.all(proven):
            break
        bound = np.where(proven, bound, bound * (1 - step))
    return bound[()]


def _randomized_guess(k: Floats, n: Floats, alpha: Floats, u: Floats, low: Floats) -> Floats:
    """A guess at the randomized bound, by bisection between the bound of k and 1; below 1 also where k = n and u <=
    alpha would prove 1."""
    k, n, alpha, u, low = np.broadcast_arrays(k, n, alpha, u, low)
    high = np.full_like(low, np.nextafter(1, 0))
    for _ in range(60):
        middle = (low + high) / 2
        fits = _tail(k, n, middle, u) <= alpha * (1 - 2 * _TAIL_MARGIN)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return low


def _tail(k: Floats, n: Floats, p: Floats, u: Floats) -> Floats:
    """P(X > k) + u P(X = k) for X ~ Binomial(n, p), as a mean of two tails."""
    at_least: Floats = betainc(k, n - k + 1, p)
    if np.all(u == 1):
        return at_least
    more = np.where(k < n, betainc(np.minimum(k + 1, n), np.maximum(n - k, 1), p), 0.0)
    return u * at_least + (1 - u) * more

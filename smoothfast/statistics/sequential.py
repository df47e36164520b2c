"""Tests that look at growing numbers of samples and stop as soon as they may.

Sources: Armitage, McPherson and Rowe 1969 (exact boundaries of repeated binomial tests); Robbins 1970 and Howard et al.
2021, arXiv 1810.08240 (mixture martingales); Hung and Fithian 2019, arXiv 1610.03944 (one look of PREDICT).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bounds import complement, lowered, raised, top_level
from .checks import Floats, probability, require, require_level, successes, whole
from .radii import gaussian_probability_lower, gaussian_probability_upper
from .special import betaincc, betaln, ndtri

Counts = NDArray[np.int64]

# Relative. A tail is a sum of products of SciPy's probabilities, one for each look, all positive and each true to 2e-12
# up to n = 1e6: 52 looks move it by 1e-10. The mass that `_window` leaves out is 3e-13 of alpha a look.
_MARGIN = 1e-9

MOST_SAMPLES = 1_000_000  # of a sequential test: as far as SciPy's probabilities are known to be that true

_CORNER_STEP = 0.05  # in standard normal quantiles: a radius is resolved to 0.025 sigma at worst


def geometric_looks(first: int, n: int, ratio: float) -> tuple[int, ...]:
    """Sample numbers round(first * ratio^j) below n, then n itself; a number comes once. first, n >= 1, ratio > 1."""
    if not (first >= 1 and ratio > 1 and n >= 1):
        raise ValueError(f"first is {first}, n {n} and ratio {ratio}; they must be at least 1, at least 1 and above 1")
    looks = {n}
    size = float(first)
    while round(size) < n:
        looks.add(round(size))
        size *= ratio
    return tuple(sorted(looks))


class Boundaries(NamedTuple):
    """Boundaries at which a sequential test of a binomial probability stops, by look.

    Attributes:
        looks: [J] cumulative sample numbers.
        efficacy: [J] the probability is shown to exceed p0 at k >= efficacy, which no path reaches where no count
            shows it.
        futility: [J] it is shown not to at k <= futility, likewise.
    """

    looks: Counts
    efficacy: Counts
    futility: Counts


def sequential_boundaries(p0: float, looks: ArrayLike, alpha: float = 0.001, beta: float | None = None) -> Boundaries:
    """Exact boundaries of a group-sequential test of a binomial probability against p0.

    They carry the law of the count under p0 from look to look, without what has stopped, so that no level is lost to a
    union over looks. Each look gets alpha / J and what the looks before it could not spend. The two boundaries are
    computed apart: to stop for futility can only lower the risk of a false efficacy.

    Args:
        p0: the probability under test, in (0, 1).
        looks: [J] cumulative sample numbers, increasing. They must not depend on the votes.
        alpha: for every probability <= p0, the risk that efficacy is crossed at any look.
        beta: for every probability >= p0, the risk that futility is crossed; alpha if not given.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < p0 < 1:
        raise ValueError(f"p0 is {p0}; it must lie between 0 and 1")
    sizes = _checked_looks(looks)
    efficacy = _crossing(p0, sizes, float(require_level(alpha)))
    failures = _crossing(float(complement(p0)), sizes, float(require_level(alpha if beta is None else beta, "beta")))
    n = np.array(sizes)
    return Boundaries(n, efficacy, n - failures)


def evidence(k: ArrayLike, n: ArrayLike, p: ArrayLike) -> Floats:
    """Logarithm of the evidence of k successes in n that a probability exceeds p, valid at every n at once.

    The e-process of the one-sided mixture Beta(1/2, 1/2) on (p, 1): under any probability <= p it ever reaches
    log(1 / alpha) with probability at most alpha, however often one looks and whenever one stops.

    Args:
        k: successes, 0..n.
        n: samples, at least 0.
        p: the probability in question, in (0, 1).

    Returns:
        log E; shape of the arguments broadcast together.
    """
    n, p = whole("n", n, 0), probability("p", p)
    k = successes(k, n)
    require((p > 0) & (p < 1), "p", p, "between 0 and 1")
    a, b = k + 0.5, n - k + 0.5
    mass = betaincc(a, b, p)
    rare = mass < 1e-290
    with np.errstate(divide="ignore"):
        mixture = betaln(a, b) - betaln(0.5, 0.5) + np.log(mass) - np.log(betaincc(0.5, 0.5, p))
    plain: Floats = mixture - k * np.log(p) - (n - k) * np.log1p(-p)
    if not rare.any():
        return plain
    k, n, p, rare, plain = np.broadcast_arrays(k, n, p, rare, plain)
    likely = plain.copy()
    likely[rare] = _log_unlikely(k[rare], n[rare], p[rare])
    return likely[()]


def anytime_lower(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Floats:
    """Lower bound of a binomial probability that holds at all n at once: the least p that `evidence` does not refute.

    Wider than Clopper-Pearson at a fixed n, but one may look after every sample and stop at will.

    Returns:
        The bound in [0, 1), 0 where it would be below 1e-9; shape of the arguments broadcast together.
    """
    k, n, alpha = np.broadcast_arrays(np.asarray(k, np.float64), whole("n", n, 1), require_level(alpha))
    threshold = -np.log(alpha) + _MARGIN + 1e-14 * n  # betaln errs by 2e-10 at n = 1e5, 4e-7 at 1e8
    low, high = np.full(k.shape, 1e-9), np.clip(k / n, 2e-9, 1 - 1e-9)
    refuted_at_all = evidence(k, n, low) >= threshold
    # One crossing, so bisection finds it. With d = k - n p, the density w of the mixture and h(p) = w(p) over its mass
    # above p, the evidence E has d log E / dp = (1 - 1/E) h - d / (p (1 - p)), and p (1 - p) h <= 1/2. That is below 0
    # for d >= 1/2; for a smaller d > 0, because 1 - 1/E < log E <= d^2 / (n p (1 - p)).
    for _ in range(60):
        middle = (low + high) / 2
        refuted = evidence(k, n, middle) >= threshold
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return np.where(refuted_at_all, low, 0.0)[()]


class RadiusTest(NamedTuple):
    """A group-sequential test whether the certified radius is at least r; J looks, I corners.

    A corner is a pair of probabilities (p, q) at which a class with p and a rival with q have radius r. The radius
    exceeds r where the class is above p and every rival below q, for any one corner; it is less where the class is
    below p and some rival above q.

    Attributes:
        looks: [J] cumulative sample numbers.
        p, q: [I] the corners, p falling. The first has q = 1 - p: there the class alone decides, as in Cohen's bound.
        certified_own, certified_rival: [J, I] votes: at least for the class, and at most for its largest rival.
        failed_own, failed_rival: [J, I] votes: at most for the class, and at least for its largest rival.
    """

    looks: Counts
    p: Floats
    q: Floats
    certified_own: Counts
    certified_rival: Counts
    failed_own: Counts
    failed_rival: Counts

    def corner(self, look: int, own: ArrayLike, rival: ArrayLike) -> Counts:
        """The first corner that these votes certify; -1 if there is none."""
        own, rival = np.asarray(own)[..., None], np.asarray(rival)[..., None]
        holds = (own >= self.certified_own[look]) & (rival <= self.certified_rival[look])
        return np.where(holds.any(-1), holds.argmax(-1), -1)

    def failed(self, look: int, own: ArrayLike, rival: ArrayLike) -> NDArray[np.bool_]:
        """Whether these votes show that the radius is less."""
        own, rival = np.asarray(own)[..., None], np.asarray(rival)[..., None]
        shown: NDArray[np.bool_] = ((own <= self.failed_own[look]) & (rival >= self.failed_rival[look])).any(-1)
        return shown


def radius_test(
    z: float, looks: tuple[int, ...], alpha: float, beta: float, bound: str, rivals: int, deviation: float = 0.0
) -> RadiusTest:
    """The test whether the radius is at least z sigma: `radius_tests` of one radius, with its arguments."""
    (test,) = radius_tests((z,), looks, alpha, beta, bound, rivals, deviation)
    return test


@lru_cache(maxsize=32)
def radius_tests(
    z: tuple[float, ...], looks: tuple[int, ...], alpha: float, beta: float, bound: str, rivals: int, deviation: float
) -> tuple[RadiusTest, ...]:
    """The tests whether the radius is at least z sigma, for each z, from exact boundaries of their corners.

    Levels hold for all corners of all radii together. Say the radius is less than z sigma. Then no corner of z has both
    its p below the class's probability and its q above the true rival's; so a false answer takes votes that show the
    class above a p that is not below its own probability, or the rival below a q that is not above its own. Boundaries
    are monotone along the corners of all radii, so each of these takes a crossing of one boundary, that of the nearest
    corner: 0.9 alpha for the class, 0.1 alpha for the rival. As in `class_bounds`, the largest count bounds every rival
    from above; from below it takes a union, beta / (rivals + 1) for each class.

    Args:
        z: radii / sigma, at least 0; a tuple.
        looks: cumulative sample numbers, increasing; a tuple.
        alpha: risk to certify any z where the radius is less.
        beta: risk to deny any where it is not.
        bound: "multiclass", or "cohen": the one corner where the class alone decides.
        rivals: number of other classes, at least 1.
        deviation: total variation between the law the votes come from and the one the radius is of.
    """
    n = _checked_looks(looks)
    if rivals < 1:
        raise ValueError(f"rivals is {rivals}; it must be at least 1")
    radii = np.asarray(z, np.float64)
    require((radii >= 0) & np.isfinite(radii), "radius / sigma", radii, "at least 0 and finite")
    own_level = float(top_level(alpha, bound))
    risk = float(require_level(beta, "beta"))
    shifts = [np.zeros(1) for _ in radii]
    if bound == "multiclass":
        risk /= rivals + 1
        shifts = [_corner_shifts(each, n[-1], alpha - own_level) for each in z]
    shift, radii = np.concatenate(shifts), np.repeat(radii, [each.size for each in shifts])
    p_above, q_below = gaussian_probability_upper(radii - shift), gaussian_probability_lower(-radii - shift)
    p_below, q_above = gaussian_probability_lower(radii - shift), gaussian_probability_upper(-radii - shift)

    sizes = np.array(n)[:, None]
    certified_own = _rising(_crossings(raised(p_above, deviation), n, own_level), p_above)
    failed_own = sizes - _rising(_crossings(complement(lowered(p_below, deviation)), n, risk), -p_below)
    certified_rival, failed_rival = np.repeat(sizes, shift.size, 1), np.zeros_like(failed_own)
    if bound == "multiclass":
        shown = _rising(_crossings(complement(lowered(q_below, deviation)), n, alpha - own_level), -q_below)
        # A class above the first p of a radius leaves its rivals no more than q: nothing to show.
        certified_rival = np.where(shift > 0, sizes - shown, sizes)
        failed_rival = _rising(_crossings(raised(q_above, deviation), n, risk), q_above)
    boundaries = p_above, q_below, certified_own, certified_rival, failed_own, failed_rival
    ends = np.flatnonzero(shift == 0)[1:]
    parts = zip(*(np.split(each, ends, -1) for each in boundaries), strict=True)
    return tuple(RadiusTest(*map(_shared, (np.array(n), *part))) for part in parts)


def _corner_shifts(z: float, n: int, alpha: float) -> Floats:
    """Shifts of z from the corner (Phi(z), Phi(-z)) down to where no votes of n samples show a rival to be below q."""
    least: float = -ndtri(-math.log(alpha) / n) if n > -2 * math.log(alpha) else 0.0
    return np.arange(0, max(least - z, 0) + _CORNER_STEP, _CORNER_STEP)


def _crossings(p: Floats, looks: tuple[int, ...], alpha: float) -> Counts:
    """Efficacy boundaries [J, I], one for each probability."""
    return np.stack([_crossing(float(each), looks, alpha) for each in p], 1)


@lru_cache(maxsize=1024)
def _crossing(p0: float, looks: tuple[int, ...], alpha: float) -> Counts:
    """Least counts [J] that show a probability above p0, at level alpha over all looks; n + 1 if there is none."""
    from scipy.stats import binom  # brings 0.8 s of CPU time along, which others need not pay

    lowest, law = 0, np.ones(1)  # law[i]: probability of lowest + i successes, and of not having stopped
    spent, before = 0.0, 0
    boundary = []
    for look, n in enumerate(looks, 1):
        first, last = _window(n - before, p0, alpha)
        law = np.convolve(law, binom.pmf(np.arange(first, last + 1), n - before, p0))
        lowest, before = lowest + first, n
        cut = max(_window(n, p0, alpha)[0] - lowest, 0)
        lowest, law = lowest + cut, law[cut:]
        tail = np.append(law[::-1].cumsum()[::-1], 0.0)
        stop = int(np.argmax(tail <= alpha * look / len(looks) * (1 - _MARGIN) - spent))
        boundary.append(lowest + stop)
        spent += tail[stop]
        law = law[:stop]
    return _shared(np.array(boundary))


def _shared(values: NDArray[Any]) -> NDArray[Any]:
    """The array, read-only: a cache hands it out again and again."""
    values.setflags(write=False)
    return values


def _window(n: int, p: float, alpha: float) -> tuple[int, int]:
    """The range of counts outside of which the probability is below 1e-13 alpha on either side (Bernstein's
    inequality): less than the margin allows for, on thousands of looks."""
    bits = math.log(1e13 / alpha)
    reach = bits / 3 + math.sqrt(bits * bits / 9 + 2 * bits * n * p * (1 - p))
    return max(math.floor(n * p - reach), 0), min(math.ceil(n * p + reach), n)


def _rising(boundary: Counts, along: Floats) -> Counts:
    """The least boundary [J, I] above this one that rises along some numbers [I]."""
    order = np.argsort(along, kind="stable")
    risen = np.empty_like(boundary)
    risen[:, order] = np.maximum.accumulate(boundary[:, order], 1)
    return risen


def _log_unlikely(k: Floats, n: Floats, p: Floats) -> Floats:
    """`evidence` where the mass of Beta(k + 1/2, n - k + 1/2) above p underflows. That takes a k far below n p, where a
    series of positive terms falls fast."""
    b = n - k + 0.5
    term = 1 / b
    total, j = term, 0
    while np.any(term > total * 2.0**-60):
        term = term * (1 - p) * (n + 1 + j) / (b + j + 1)
        total, j = total + term, j + 1
    return np.log(total * np.sqrt(p * (1 - p)) / (2 * np.arccos(np.sqrt(p))))


def _checked_looks(looks: ArrayLike) -> tuple[int, ...]:
    sizes = whole("looks", looks, 1)
    if sizes.ndim != 1 or not sizes.size:
        raise ValueError(f"looks have shape {sizes.shape}; they must be [J], with J at least 1")
    require(np.diff(sizes, prepend=0) > 0, "looks", sizes, "more than the one before it")
    require(sizes <= MOST_SAMPLES, "looks", sizes, f"at most {MOST_SAMPLES:,}, as far as the boundaries are proven")
    return tuple(int(size) for size in sizes)

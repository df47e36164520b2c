"""Rounding to the safe side: bounds, quantiles, radii and boundaries against numbers of 256 bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from mpmath import mp, mpf
from numpy.typing import NDArray

from .. import statistics
from .definition import BITS
from .effort import Effort
from .records import Check, Finding, judged

SUBJECT = "Rounding"
EPSILON = 2.0**-52
TAIL = 1e-8  # of its level, by which the tail at a bound may be below it; 1e-9 is what the bound asks for
Floats = NDArray[np.float64]


def checks(effort: Effort) -> Iterator[Check]:
    """Makes the checks of this subject."""
    for name, function in (("lower", statistics.clopper_pearson_lower), ("upper", statistics.clopper_pearson_upper)):
        yield Check(SUBJECT, f"Clopper-Pearson, {name}", partial(clopper_pearson, effort, function))
    for way, sign in (("lower", -1), ("upper", 1)):
        quantile = getattr(statistics, f"gaussian_quantile_{way}")
        probability = getattr(statistics, f"gaussian_probability_{way}")
        yield Check(SUBJECT, f"normal quantile, {way}", partial(quantiles, effort, quantile, sign))
        yield Check(SUBJECT, f"normal distribution function, {way}", partial(probabilities, effort, probability, sign))
    yield Check(SUBJECT, "radius", partial(radii, effort))
    yield Check(SUBJECT, "risk of sequential boundaries", boundaries)


def _rng(effort: Effort) -> np.random.Generator:
    return np.random.default_rng(effort.seed)


def _held(excess: list[float], limit: str) -> Finding:
    """Judges how far values are on the safe side, in units of what is allowed: 0 to 1; NaN fails."""
    passed = bool(excess) and all(0 <= part <= 1 for part in excess)
    return judged(passed, f"{len(excess):,} points, {min(excess):.2f} to {max(excess):.2f} of the way", limit)


# ---- Clopper and Pearson ---------------------------------------------------------------------------------------------


def clopper_pearson(effort: Effort, bound: Callable[..., Any]) -> Finding:
    """Holds the tail at each bound against its level: below it, and not by much."""
    rng, count = _rng(effort), effort.points
    n = np.floor(10 ** rng.uniform(0, 5, count)).astype(int)
    k = rng.integers(0, n + 1)
    k[: count // 5], k[count // 5 : count // 3] = 0, n[count // 5 : count // 3]
    near = rng.random(count) < 0.5  # of one end, as the votes of a good classifier are
    k = np.where(near, n - np.minimum(n, k // 50), k)
    alpha = 10 ** rng.uniform(-12, -0.3, count)
    is_lower = bound is statistics.clopper_pearson_lower
    p = bound(k, n, alpha)
    if not is_lower:
        k, p = n - k, [1 - mpf(float(each)) for each in p]
    excess = []
    for k_, n_, level, p_ in zip(k.tolist(), n.tolist(), alpha.tolist(), p, strict=True):
        if k_ == 0 and p_ != 0:
            excess.append(-1.0)  # no votes bound nothing
        elif k_ > 0:
            with mp.workprec(BITS):
                # A place of float64 at the end of an upper bound, 1 - p, moves the tail by k/p of that.
                allowed = TAIL if is_lower else TAIL + 2 * k_ / mpf(p_) * EPSILON
                excess.append(float((1 - _tail(k_, n_, mpf(p_)) / mpf(level)) / allowed))
    return _held(excess, f"tail below its level by at most {TAIL:g} of it{'' if is_lower else ' and a last place'}")


def _tail(k: int, n: int, p: Any) -> Any:
    """P(X >= k) for X ~ Binomial(n, p): the first term, times a series of ratios."""
    term = mp.binomial(n, k) * p**k * (1 - p) ** (n - k)
    total, odds = term, p / (1 - p)
    for j in range(k, n):
        term *= odds * (n - j) / (j + 1)
        total += term
        if term < total * mpf(2) ** -100:
            break
    return total


# ---- the normal law --------------------------------------------------------------------------------------------------


def _probabilities(effort: Effort) -> Floats:
    """Probabilities in the middle, near both ends, and about exp(-2), where SciPy changes its formula."""
    rng, each = _rng(effort), effort.points // 4
    tiny, at = 10 ** rng.uniform(-30, -1, each), math.exp(-2)
    return np.concatenate([rng.random(each), tiny, 1 - 10 ** rng.uniform(-15, -1, each),
                           at * (1 + rng.uniform(-1e-3, 1e-3, each))])  # fmt: skip


def _quantile(p: float) -> Any:
    """The quantile of a float, from SciPy's by three steps of Newton's method at 256 bits."""
    from scipy.special import ndtri

    with mp.workprec(BITS):
        z = mpf(float(ndtri(p)))
        for _ in range(4):
            excess = mp.ncdf(z) - mpf(p) if p < 0.5 else (1 - mpf(p)) - mp.ncdf(-z)
            z -= excess / mp.npdf(z)
        return z


def quantiles(effort: Effort, function: Callable[..., Any], sign: int) -> Finding:
    """Holds bounds of quantiles against the quantiles: 8 epsilon, and the 5.1 by which SciPy errs."""
    p = _probabilities(effort)
    excess = []
    for found, exact in zip(function(p).tolist(), map(_quantile, p.tolist()), strict=True):
        with mp.workprec(BITS):
            excess.append(float(sign * (mpf(found) - exact) / (abs(exact) * 14 * EPSILON)))
    return _held(excess, "outwards by at most 14 epsilon of it")


def probabilities(effort: Effort, function: Callable[..., Any], sign: int) -> Finding:
    """Holds bounds of the distribution function against it: 8 (2 + z^2) epsilon, and what SciPy errs by."""
    z = _rng(effort).uniform(-11, 8, effort.points)
    excess = []
    for found, at in zip(function(z).tolist(), z.tolist(), strict=True):
        with mp.workprec(BITS):
            exact = mp.ncdf(mpf(at))
            allowed = exact * 9 * (2 + at * at) * EPSILON
            excess.append(float(sign * (mpf(found) - exact) / allowed))
    return _held(excess, "outwards by at most 9 (2 + z^2) epsilon of it")


def radii(effort: Effort) -> Finding:
    """Holds radii against the exact ones of their bounds."""
    rng = _rng(effort)
    lower = _probabilities(effort)
    upper = np.where(rng.random(len(lower)) < 0.5, np.nextafter(1 - lower, 1), lower * rng.random(len(lower)))
    sigma, keep = rng.uniform(0.01, 2, len(lower)), lower > upper
    lower, upper, sigma = lower[keep], upper[keep], sigma[keep]
    excess = []
    found = statistics.certified_radius(lower, upper, sigma)
    for radius, p, q, unit in zip(found.tolist(), lower.tolist(), upper.tolist(), sigma.tolist(), strict=True):
        with mp.workprec(BITS):
            a, b = _quantile(p), _quantile(q)
            exact = mpf(unit) / 2 * (a - b)
            allowed = mpf(unit) / 2 * (14 * (abs(a) + abs(b)) + 8 * (a - b)) * EPSILON
            excess.append(float((exact - mpf(radius)) / allowed))
    return _held(excess, "inwards by at most 14 epsilon of both quantiles and 8 of the radius")


# ---- sequential boundaries -------------------------------------------------------------------------------------------


def boundaries() -> Finding:
    """Holds the risk of sequential boundaries, from the exact law of the count, against their level."""
    alpha, looks = 0.01, (16, 23, 32, 45, 64, 90, 128)
    excess = []
    for p0 in (0.1, 0.3, 0.5, 0.84):
        made = statistics.sequential_boundaries(p0, looks, alpha)
        failures = [n - k for n, k in zip(looks, made.futility.tolist(), strict=True)]
        with mp.workprec(BITS):
            for p, boundary in ((mpf(p0), made.efficacy.tolist()), (1 - mpf(p0), failures)):
                excess.append(float((mpf(alpha) - _risk(p, looks, boundary)) / mpf(alpha)))
    return _held(excess, f"between 0 and {alpha}")


def _risk(p: Any, looks: tuple[int, ...], boundary: list[int]) -> Any:
    """The probability that a count reaches its boundary at a look, for trials of probability p."""
    law, risk, n = [mpf(1)], mpf(0), 0
    for look, least in zip(looks, boundary, strict=True):
        for _ in range(look - n):
            law = [a * (1 - p) + b * p for a, b in zip([*law, mpf(0)], [mpf(0), *law], strict=True)]
        n = look
        risk += mp.fsum(law[least:])
        law = [*law[:least], *[mpf(0)] * (len(law) - least)] if least < len(law) else law
    return risk

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
    for name, act in (("lower", lower_bounds), ("upper", upper_bounds)):
        yield Check(SUBJECT, f"Clopper-Pearson, {name}", partial(act, effort))
    for name, act in (
        ("quantile, lower", lower_quantiles),
        ("quantile, upper", upper_quantiles),
        ("distribution function, lower", lower_probabilities),
        ("distribution function, upper", upper_probabilities),
    ):
        yield Check(SUBJECT, f"normal {name}", partial(act, effort))
    yield Check(SUBJECT, "radius", partial(radii, effort))
    yield Check(SUBJECT, "risk of sequential boundaries", boundaries)


def _rng(effort: Effort) -> np.random.Generator:
    return np.random.default_rng(effort.seed)


def _held(excess: list[float], limit: str) -> Finding:
    """Judges how far values are on the safe side, in units of what is allowed: 0 to 1; NaN fails."""
    passed = bool(excess) and all(0 <= part <= 1 for part in excess)
    return judged(passed, f"{len(excess):,} points, {min(excess):.2f} to {max(excess):.2f} of the way", limit)


# ---- Clopper and Pearson ---------------------------------------------------------------------------------------------


def lower_bounds(effort: Effort) -> Finding:
    """Holds the tail at each lower bound against its level: below it, and not by much."""
    k, n, alpha = _counts(effort)
    bounds = map(mpf, statistics.clopper_pearson_lower(k, n, alpha).tolist())
    excess = [_shortfall(*point) / TAIL for point in zip(k.tolist(), n.tolist(), alpha.tolist(), bounds, strict=True)]
    return _held(excess, f"tail below its level by at most {TAIL:g} of it")


def upper_bounds(effort: Effort) -> Finding:
    """Holds the tail at each upper bound against its level, as that of the failures. A place of float64 at the end of
    the bound moves it too, by k/p of that."""
    k, n, alpha = _counts(effort)
    failures, excess = n - k, []
    bounds = statistics.clopper_pearson_upper(failures, n, alpha).tolist()
    for count, size, level, bound in zip(k.tolist(), n.tolist(), alpha.tolist(), bounds, strict=True):
        with mp.workprec(BITS):
            p = 1 - mpf(bound)
        allowed = TAIL + float(2 * count / p) * EPSILON if p else TAIL
        excess.append(_shortfall(count, size, level, p) / allowed)
    return _held(excess, f"tail below its level by at most {TAIL:g} of it and a last place")


def _counts(effort: Effort) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Successes, at least one, samples and levels: counts anywhere, all of the samples and nearly all."""
    rng, count = _rng(effort), effort.points
    n = np.floor(10 ** rng.uniform(0, 5, count)).astype(np.int64)
    k = rng.integers(1, n + 1)
    k[: count // 6] = n[: count // 6]
    k[count // 6 : count // 2] = np.maximum(n - k // 50, 1)[count // 6 : count // 2]
    return k, n, 10 ** rng.uniform(-12, -0.3, count)


def _shortfall(k: int, n: int, level: float, p: Any) -> float:
    """Distance of the tail of k successes in n at p below its level, as a part of it."""
    with mp.workprec(BITS):
        return float(1 - _tail(k, n, p) / mpf(level))


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


def lower_quantiles(effort: Effort) -> Finding:
    """Holds lower bounds of quantiles against the quantiles."""
    return _quantiles(effort, statistics.gaussian_quantile_lower, -1)


def upper_quantiles(effort: Effort) -> Finding:
    """Holds upper bounds of quantiles against the quantiles."""
    return _quantiles(effort, statistics.gaussian_quantile_upper, 1)


def _quantiles(effort: Effort, function: Callable[..., Any], outwards: int) -> Finding:
    """Allows the 8 epsilon of the margin, the 5.1 by which SciPy errs, and one rounding."""
    p = _probabilities(effort)
    excess = []
    for found, exact in zip(function(p).tolist(), map(_quantile, p.tolist()), strict=True):
        with mp.workprec(BITS):
            excess.append(float(outwards * (mpf(found) - exact) / (abs(exact) * 14 * EPSILON)))
    return _held(excess, "outwards by at most 14 epsilon of it")


def lower_probabilities(effort: Effort) -> Finding:
    """Holds lower bounds of the distribution function against it."""
    return _distribution(effort, statistics.gaussian_probability_lower, -1)


def upper_probabilities(effort: Effort) -> Finding:
    """Holds upper bounds of the distribution function against it."""
    return _distribution(effort, statistics.gaussian_probability_upper, 1)


def _distribution(effort: Effort, function: Callable[..., Any], outwards: int) -> Finding:
    """Allows the 8 (2 + z^2) epsilon of the margin, and 3 for SciPy, which was seen to err by 1.5 (2 + z^2)."""
    z = _rng(effort).uniform(-11, 8, effort.points)
    excess = []
    for found, at in zip(function(z).tolist(), z.tolist(), strict=True):
        with mp.workprec(BITS):
            exact = mp.ncdf(mpf(at))
            excess.append(float(outwards * (mpf(found) - exact) / (exact * 11 * (2 + at * at) * EPSILON)))
    return _held(excess, "outwards by at most 11 (2 + z^2) epsilon of it")


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

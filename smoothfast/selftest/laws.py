"""Laws of noise: cells, moments, tails and correlations of what the package draws, against exact probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from mpmath import mp, mpf
from numpy.typing import NDArray
from torch import Tensor

from .. import noise
from ..noise import Stream
from . import definition
from .effort import Effort
from .records import Check, Finding, by_chance, judged, none_differ

SUBJECT = "Laws"
SIGMAS = (0.12, 0.25, 0.5, 1.0)
EXPECTED = 20  # draws in a cell at least: cells of a tail that would have fewer are one
POWERS = {"mean": 1, "variance": 2, "skewness": 3, "kurtosis": 4}
TAILS = (3, 4, 5)  # in standard deviations
CELLS = 200  # of the Gaussian law, all equally probable
CHUNK = 2**22  # elements drawn at once
HOME = (2**33 + 5, 2**34 + 3, 2**35 + 7)  # image, sample and what is added to the seed
LAWS: dict[str, Callable[..., Tensor]] = {"lattice": noise.lattice, "gaussian": noise.gaussian}
Floats = NDArray[np.float64]


def checks(effort: Effort) -> Iterator[Check]:
    """Makes the checks of this subject."""
    for sigma in SIGMAS:
        yield Check(SUBJECT, f"lattice {sigma}: thresholds", partial(thresholds, sigma))
        yield Check(SUBJECT, f"lattice {sigma}: deviation from the rounded Gaussian law", partial(deviation, sigma))
        yield Check(SUBJECT, f"lattice {sigma}: cells, moments, tails", partial(lattice_law, effort, sigma))
    yield Check(SUBJECT, "gaussian: cells, moments, tails", partial(gaussian_law, effort))
    for name in LAWS:
        yield Check(SUBJECT, f"{name}: correlations", partial(correlations, effort, name))


def thresholds(sigma: float) -> Finding:
    """Holds the table of a lattice law against mpmath."""
    found = noise.lattice_thresholds(sigma)
    most = definition.reach(sigma)
    if len(found) != 2 * most:
        return judged(False, f"{len(found)} thresholds", str(2 * most))
    wanted = (definition.threshold(i, sigma) for i in range(-most, most))
    return none_differ(sum(a != b for a, b in zip(found, wanted, strict=True)), 2 * most, "thresholds")


def deviation(sigma: float) -> Finding:
    """Holds the total variation between a lattice law and the rounded Gaussian law against what certificates allow."""
    most = definition.reach(sigma)
    with mp.workprec(definition.BITS):
        edges = [mp.ncdf(mpf(2 * i + 1) / (510 * mpf(sigma))) for i in range(-most - 1, most + 1)]
        law = [after - before for before, after in pairwise(edges)]
        apart = sum(abs(_exact(p) - q) for p, q in zip(definition.cells(sigma), law, strict=True))
        distance: Any = (apart + edges[0] + 1 - edges[-1]) / 2
    allowed = noise.lattice_law(sigma).deviation(1)
    return judged(0.8 * allowed < distance <= allowed, f"{float(distance):.3e}", f"{allowed:.1e}, used by 0.8 at least")


def _exact(number: Fraction) -> Any:
    return mpf(number.numerator) / number.denominator


# ---- one law ---------------------------------------------------------------------------------------------------------


def lattice_law(effort: Effort, sigma: float) -> Finding:
    """Counts the grey levels of lattice noise."""
    probabilities = np.array([float(p) for p in definition.cells(sigma)])
    most = len(probabilities) // 2
    counts = np.zeros(len(probabilities), np.int64)
    for part in _parts(effort, noise.lattice, sigma):
        levels = part.long() + most
        if int(levels.min()) < 0 or int(levels.max()) >= len(counts):
            return judged(False, f"a level beyond {most}", f"{most}")
        counts += torch.bincount(levels, minlength=len(counts)).numpy()
    values = np.arange(-most, most + 1) / (255 * sigma)
    sums = [float(counts @ values**k) for k in POWERS.values()]
    moments = [float(probabilities @ values**k) for k in range(9)]
    tails = {t: (int(counts[abs(values) > t].sum()), float(probabilities[abs(values) > t].sum())) for t in TAILS}
    return _judged_law(counts, probabilities, sums, moments, tails)


def gaussian_law(effort: Effort) -> Finding:
    """Counts Gaussian noise in cells of equal probability."""
    from scipy.special import ndtr  # 0.3 s of CPU time

    counts, sums, beyond = np.zeros(CELLS, np.int64), np.zeros(len(POWERS)), np.zeros(len(TAILS), np.int64)
    for part in _parts(effort, noise.gaussian, 1.0):
        z = part.double().numpy()
        powers = (z, z * z, z * z * z, (z * z) ** 2)  # NumPy's own power takes ten times as long
        counts += np.bincount((ndtr(z) * CELLS).astype(np.int64).clip(0, CELLS - 1), minlength=CELLS)
        sums += [power.sum() for power in powers]
        beyond += [np.count_nonzero(abs(z) > t) for t in TAILS]
    moments = [float(math.prod(range(1, k, 2)) if k % 2 == 0 else 0) for k in range(9)]
    tails = {t: (int(n), 2 * float(ndtr(-t))) for t, n in zip(TAILS, beyond, strict=True)}
    return _judged_law(counts, np.full(CELLS, 1 / CELLS), list(sums), moments, tails)


def _parts(effort: Effort, draw: Callable[..., Tensor], sigma: float) -> Iterator[Tensor]:
    """Draws the elements of a law, in parts, flat."""
    image, first, shift = HOME
    rows = -(-effort.draws // 2**16)
    for start in range(0, rows, CHUNK // 2**16):
        samples = range(first + start, first + min(start + CHUNK // 2**16, rows))
        yield draw((2**16,), sigma, (effort.seed + shift) % 2**64, image, samples).flatten()


def _judged_law(
    counts: NDArray[np.int64],
    probabilities: Floats,
    sums: list[float],
    moments: list[float],
    tails: dict[int, tuple[int, float]],
) -> Finding:
    """Judges a law by its cells, by sums of powers, whose moments are known, and by counts in its tails."""
    from scipy.stats import binom  # 0.8 s of CPU time

    n = int(counts.sum())
    p_values = {"cells": _cells(counts, probabilities)}
    for (name, k), total in zip(POWERS.items(), sums, strict=True):
        spread = math.sqrt((moments[2 * k] - moments[k] ** 2) * n)
        p_values[name] = _two_sided((total - n * moments[k]) / spread)
    for t, (count, p) in tails.items():
        least = min(binom.cdf(count, n, p), binom.sf(count - 1, n, p))
        p_values[f"beyond {t} sigma"] = min(2 * float(least), 1.0)
    return by_chance(p_values)


def _cells(counts: NDArray[np.int64], probabilities: Floats) -> float:
    """P-value, two-sided, of the chi-square of counts; cells at both ends are put together until one has enough."""
    from scipy.stats import chi2

    n, below, above = counts.sum(), probabilities.cumsum(), probabilities[::-1].cumsum()
    first = int(np.argmax(below * n >= EXPECTED))
    last = len(counts) - 1 - int(np.argmax(above * n >= EXPECTED))
    starts = [0, *range(first + 1, last + 1)]
    found, expected = np.add.reduceat(counts, starts), np.add.reduceat(probabilities, starts) * n
    statistic, freedom = float(((found - expected) ** 2 / expected).sum()), len(starts) - 1
    return min(2 * float(min(chi2.sf(statistic, freedom), chi2.cdf(statistic, freedom))), 1.0)


def _two_sided(score: float) -> float:
    return math.erfc(abs(score) / math.sqrt(2))


# ---- two draws -------------------------------------------------------------------------------------------------------


def correlations(effort: Effort, name: str) -> Finding:
    """Correlates noise with that of other elements, samples, images, seeds and streams, in value and in square."""
    sigma, n = 0.25, effort.pairs
    image, sample, shift = HOME
    seed = (effort.seed + shift) % 2**64

    def draw(seed: int, image: int, sample: int, stream: Stream = Stream.ESTIMATE) -> Tensor:
        return LAWS[name]((n,), sigma, seed % 2**64, image, [sample], stream)[0].double()

    here = draw(seed, image, sample)
    pairs = {f"element {lag}": (here[:-lag], here[lag:]) for lag in (1, 16, 64)}
    for step, told in ((1, "1"), (2**32, "2^32")):
        pairs[f"sample {told}"] = here, draw(seed, image, sample + step)
        pairs[f"image {told}"] = here, draw(seed, image + step, sample)
        pairs[f"seed {told}"] = here, draw(seed + step, image, sample)
    others = (Stream[stream] for stream in definition.STREAMS if stream not in ("ESTIMATE", "RANDOMIZE"))
    pairs |= {f"stream {stream.name}": (here, draw(seed, image, sample, stream)) for stream in others}
    unit, fourth = _unit(name, sigma)
    p_values = {}
    for along, (a, b) in pairs.items():
        a, b = a / unit, b / unit
        p_values[along] = _two_sided(float(a @ b) / math.sqrt(len(a)))
        squares = float((a.square() - 1) @ (b.square() - 1)) / (fourth - 1)
        p_values[f"{along}, squares"] = _two_sided(squares / math.sqrt(len(a)))
    return by_chance(p_values)


def _unit(name: str, sigma: float) -> tuple[float, float]:
    """The exact standard deviation of a law, and its fourth moment in units of that."""
    if name == "gaussian":
        return sigma, 3.0
    levels = range(-definition.reach(sigma), definition.reach(sigma) + 1)
    law = list(zip(levels, definition.cells(sigma), strict=True))
    variance, fourth = (float(sum(p * level**k for level, p in law)) for k in (2, 4))
    return math.sqrt(variance), fourth / variance**2

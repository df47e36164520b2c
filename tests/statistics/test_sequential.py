"""Sequential tests against exact rational arithmetic, enumeration of all paths, 200-bit arithmetic and tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import binom, norm

from smoothfast.statistics import (
    Boundaries,
    RadiusTest,
    anytime_lower,
    clopper_pearson_lower,
    evidence,
    geometric_looks,
    radius_test,
    radius_tests,
    sequential_boundaries,
)

mp.mp.prec = 200
MARGIN = Fraction(1, 10**9)  # relative, off every level
MANY = geometric_looks(16, 100_000, 2**0.25)
Mask = NDArray[np.bool_]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---- looks -----------------------------------------------------------------------------------------------------------


def test_geometric_looks_of_the_certificates() -> None:
    assert MANY[:6] == (16, 19, 23, 27, 32, 38)
    assert MANY[-3:] == (77936, 92682, 100_000)
    assert len(MANY) == 52


def test_geometric_looks_come_once() -> None:
    assert geometric_looks(1, 10, 1.2) == (1, 2, 3, 4, 5, 6, 7, 9, 10)
    assert geometric_looks(2, 16, 2) == (2, 4, 8, 16)


@pytest.mark.parametrize("first", [7, 8, 100])
def test_geometric_looks_end_in_n_however_large_the_first(first: int) -> None:
    assert geometric_looks(first, 7, 2) == (7,)


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 10**6), st.floats(1.05, 10))
def test_geometric_looks_increase_up_to_n(first: int, n: int, ratio: float) -> None:
    looks = geometric_looks(first, n, ratio)
    assert looks[-1] == n
    assert looks[0] == min(first, n)
    for before, after in pairwise(looks):
        assert before < after <= ratio * before + (ratio + 1) / 2 + 1e-6


# ---- boundaries, small n: exact rational arithmetic ------------------------------------------------------------------


def step(law: dict[int, Fraction], p: Fraction) -> dict[int, Fraction]:
    """The law of a count after one more sample."""
    after: dict[int, Fraction] = {}
    for k, mass in law.items():
        after[k] = after.get(k, Fraction(0)) + mass * (1 - p)
        after[k + 1] = after.get(k + 1, Fraction(0)) + mass * p
    return after


def exact_boundary(p: Fraction, looks: list[int], alpha: Fraction) -> list[int]:
    """Each look may spend alpha / J and what is left; it stops at the least count whose tail fits."""
    law, spent, boundary = {0: Fraction(1)}, Fraction(0), []
    for n in range(1, looks[-1] + 1):
        law = step(law, p)
        if n not in looks:
            continue
        allowed = alpha * (looks.index(n) + 1) / len(looks) * (1 - MARGIN) - spent
        stop, tail = max(law) + 1, Fraction(0)
        while stop - 1 in law and tail + law[stop - 1] <= allowed:
            stop -= 1
            tail += law[stop]
        boundary.append(stop)
        spent += tail
        law = {k: mass for k, mass in law.items() if k < stop}
    return boundary


def exact_crossing(p: Fraction, looks: list[int], boundary: list[int]) -> Fraction:
    """The probability of a count at or above the boundary at any look."""
    law, crossed = {0: Fraction(1)}, Fraction(0)
    for n in range(1, looks[-1] + 1):
        law = step(law, p)
        if n in looks:
            stop = boundary[looks.index(n)]
            crossed += sum(mass for k, mass in law.items() if k >= stop)
            law = {k: mass for k, mass in law.items() if k < stop}
    return crossed


LOOKS = [[1], [12], [5, 12], [3, 7, 8, 20], [1, 2, 3, 4, 5, 6, 7, 8], [10, 11, 29, 30], [4, 8, 16, 30]]


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("p0", [0.02, 0.31, 0.5, 0.8413, 0.97])
def test_boundaries_are_those_of_rational_arithmetic(p0: float, alpha: float) -> None:
    p, beta = Fraction(p0), 0.7 * alpha
    for looks in LOOKS:
        made = sequential_boundaries(p0, looks, alpha, beta)
        assert made.looks.tolist() == looks
        assert made.efficacy.tolist() == exact_boundary(p, looks, Fraction(alpha))
        failures = (made.looks - made.futility).tolist()
        assert failures == exact_boundary(1 - p, looks, Fraction(beta))
        assert exact_crossing(p, looks, made.efficacy.tolist()) <= Fraction(alpha)
        assert exact_crossing(1 - p, looks, failures) <= Fraction(beta)


@settings(deadline=None, max_examples=40)
@given(
    st.floats(1e-3, 0.999),
    st.sets(st.integers(1, 20), min_size=1, max_size=6).map(sorted),
    st.floats(1e-9, 0.99),
    st.floats(0, 1),
)
def test_boundaries_hold_their_level_below_p0(p0: float, looks: list[int], alpha: float, share: float) -> None:
    boundary = sequential_boundaries(p0, looks, alpha).efficacy.tolist()
    at_p0 = exact_crossing(Fraction(p0), looks, boundary)
    assert exact_crossing(Fraction(p0) * Fraction(share), looks, boundary) <= at_p0 <= Fraction(alpha)


def test_crossing_is_strictly_rarer_below_p0() -> None:
    looks = [5, 12, 20, 30]
    boundary = sequential_boundaries(0.6, looks, 0.05).efficacy.tolist()
    risks = [exact_crossing(Fraction(p), looks, boundary) for p in (0.3, 0.5, 0.59, 0.6)]
    assert 0 < risks[0] < risks[1] < risks[2] < risks[3] <= Fraction(0.05)
    assert risks[3] > Fraction(0.025)


def test_a_tail_that_equals_its_level_is_not_trusted() -> None:
    assert sequential_boundaries(0.5, [5], 2**-5).efficacy == [6]
    assert sequential_boundaries(0.5, [5], 2**-5 * (1 + 2e-9)).efficacy == [5]


def test_one_look_is_clopper_pearson() -> None:
    for p0, n, alpha in [(0.5, 100, 0.001), (0.8413, 1000, 0.01), (0.1, 10_000, 1e-6)]:
        k = int(sequential_boundaries(p0, [n], alpha).efficacy[0])
        assert clopper_pearson_lower(k - 1, n, alpha) < p0 <= clopper_pearson_lower(k, n, alpha)


def test_no_count_shows_anything_at_the_first_looks() -> None:
    made = sequential_boundaries(0.5, [1, 2, 3], 0.001)
    np.testing.assert_array_equal(made.efficacy, [2, 3, 4])
    np.testing.assert_array_equal(made.futility, [-1, -1, -1])


# ---- boundaries, large n ---------------------------------------------------------------------------------------------


def crossing(
    p: float,
    looks: Any,
    boundary: Any,
    convolve: Callable[..., NDArray[np.float64]] = np.convolve,
) -> float:
    """The probability of a count at or above the boundary at any look, from all counts 0..n."""
    law, crossed, before = np.ones(1), 0.0, 0
    for n, stop in zip(looks, boundary, strict=True):
        law = convolve(law, binom.pmf(np.arange(n - before + 1), n - before, p))
        crossed += law[stop:].sum()
        law, before = law[:stop], n
    return float(crossed)


@pytest.mark.parametrize("p0", [0.1, 0.5, norm.cdf(1), norm.cdf(3)])
def test_boundaries_spend_their_level_at_100_000_samples(p0: float) -> None:
    alpha = 0.001
    made = sequential_boundaries(p0, MANY, alpha)
    for p, boundary in ((p0, made.efficacy), (1 - p0, made.looks - made.futility)):
        # The error of the transform is absolute: 1e-16 in every one of 1e5 cells.
        assert 0.99 * alpha < crossing(p, MANY, boundary, fftconvolve) <= alpha + 1e-11
        assert crossing(0.99 * p, MANY, boundary, fftconvolve) < 0.9 * alpha


@pytest.mark.parametrize("alpha", [1e-12, 1e-30, 1e-100, 0.999])
@pytest.mark.parametrize("p0", [1e-6, 0.2, norm.cdf(1), 1 - 1e-6])
def test_boundaries_hold_extreme_levels(p0: float, alpha: float) -> None:
    looks = geometric_looks(16, 2000, 2**0.5)
    made = sequential_boundaries(p0, looks, alpha)
    for p, boundary in ((p0, made.efficacy), (1 - p0, made.looks - made.futility)):
        risk = crossing(p, looks, boundary)
        assert risk <= alpha
        if p0 in (0.2, norm.cdf(1)):
            assert risk > 0.5 * alpha


@pytest.mark.parametrize("alpha", [0.05, 1e-12, 1e-30])
@pytest.mark.parametrize("p0", [1e-300, 1e-6, 1 - 1e-6, 1 - 2**-53])
def test_boundaries_of_extreme_probabilities_are_counts(p0: float, alpha: float) -> None:
    made = sequential_boundaries(p0, MANY, alpha)
    assert made.efficacy.dtype == made.futility.dtype == np.int64
    assert ((made.efficacy >= 1) & (made.efficacy <= made.looks + 1)).all()
    assert ((made.futility >= -1) & (made.futility <= made.looks - 1)).all()
    # One look alone at level alpha is the least that any of them could ask for.
    assert (binom.sf(made.efficacy - 1.0, made.looks, p0) <= alpha).all()


@pytest.mark.parametrize("p0", [0.1, 0.5, norm.cdf(1)])
def test_boundaries_are_monotone_in_alpha(p0: float) -> None:
    """One look's boundary is; of several only their last, as a stricter test may save more for later looks."""
    alphas = np.logspace(-30, -0.1, 40)
    for looks in ([1000], [50, 100, 1000]):
        made = [sequential_boundaries(p0, looks, alpha) for alpha in alphas]
        assert (np.diff([each.efficacy[0] for each in made]) <= 0).all()
        assert (np.diff([each.futility[0] for each in made]) >= 0).all()
    strict, lax = sequential_boundaries(p0, MANY, 1e-6), sequential_boundaries(p0, MANY, 1e-3)
    assert (strict.efficacy >= lax.efficacy).all()
    assert (strict.futility <= lax.futility).all()


def test_futility_is_the_mirror_image() -> None:
    """A dyadic p0 has an exact complement but for the last bit, by which it is rounded up."""
    made, mirrored = sequential_boundaries(0.75, MANY, 0.001, 0.01), sequential_boundaries(0.25, MANY, 0.01, 0.001)
    np.testing.assert_array_equal(made.futility, made.looks - mirrored.efficacy)
    np.testing.assert_array_equal(made.efficacy, made.looks - mirrored.futility)


def test_beta_is_alpha_if_not_given() -> None:
    for a, b in zip(sequential_boundaries(0.7, MANY, 0.01), sequential_boundaries(0.7, MANY, 0.01, 0.01), strict=True):
        np.testing.assert_array_equal(a, b)
    assert isinstance(sequential_boundaries(0.7, MANY), Boundaries)


def test_efficacy_and_futility_do_not_meet() -> None:
    made = sequential_boundaries(norm.cdf(1), MANY, 0.001)
    assert (made.futility < made.efficacy).all()
    share = np.array([made.futility[-1], made.efficacy[-1]]) / 100_000
    assert share[0] < norm.cdf(1) < share[1]
    assert share[1] - share[0] < 0.01


# ---- evidence --------------------------------------------------------------------------------------------------------


def incomplete_beta(a: mp.mpf, b: mp.mpf, x: mp.mpf) -> mp.mpf:
    """The integral of q^(a-1) (1-q)^(b-1) from 0 to x over x^a (1-x)^b: a series of positive terms."""
    term = 1 / a
    total, j = term, 0
    while term > total * mp.mpf(2) ** -120:
        term *= x * (a + b + j) / (a + 1 + j)
        total += term
        j += 1
    return total


def exact_evidence(k: int, n: int, p_: float) -> mp.mpf:
    """log of the integral of (q/p)^k ((1-q)/(1-p))^(n-k) over q in (p, 1) with the weight Beta(1/2, 1/2)."""
    p, a, b = mp.mpf(p_), mp.mpf(k) + 0.5, mp.mpf(n - k) + 0.5
    weight = mp.sqrt(p * (1 - p))
    if p > 0.5 or k < n * p - 5 * mp.sqrt(n * p * (1 - p)) - 5:
        mass = incomplete_beta(b, a, 1 - p) * weight
    else:  # as a difference, where the series is the shorter one
        mass = mp.exp(mp.log(mp.beta(a, b)) - k * mp.log(p) - (n - k) * mp.log1p(-p))
        mass -= incomplete_beta(a, b, p) * weight
    return mp.log(mass / (2 * mp.acos(mp.sqrt(p))))


EVIDENCE = [
    (0, 0, 0.3), (1, 1, 0.5), (0, 1, 0.5), (3, 10, 0.3), (0, 10, 0.99), (10, 10, 0.01), (10, 10, 1e-9),
    (180, 1000, 0.3), (300, 1000, 0.3), (1000, 1000, 1e-6), (900, 1000, 0.001), (9990, 10_000, 0.998),
    (50_000, 100_000, 0.5), (48_000, 100_000, 0.5), (45_000, 100_000, 0.5), (60_000, 100_000, 0.59),
    (99_000, 100_000, 0.9), (99_000, 100_000, 0.1), (100_000, 100_000, 1e-3), (0, 100_000, 1e-6),
    (99_999, 100_000, 1 - 1e-9),
]  # fmt: skip


def test_exact_evidence_is_the_formula() -> None:
    half = mp.mpf(0.5)
    for k, n, p in [(0, 0, 0.3), (3, 10, 0.3), (10, 10, 0.01), (0, 10, 0.99), (40, 60, 0.55), (10, 60, 0.55)]:
        ratio = mp.betainc(k + half, n - k + half, p, 1) / mp.betainc(half, half, p, 1)
        exact = mp.log(ratio) - k * mp.log(p) - (n - k) * mp.log(1 - mp.mpf(p))
        assert abs(exact_evidence(k, n, p) - exact) < 1e-25


@pytest.mark.parametrize(("k", "n", "p"), EVIDENCE)
def test_evidence_is_true_to_a_billionth(k: int, n: int, p: float) -> None:
    assert float(abs(evidence(k, n, p) - exact_evidence(k, n, p))) < 1e-9


def test_evidence_is_never_nan_nor_infinitely_strong(rng: np.random.Generator) -> None:
    n = np.floor(10 ** rng.uniform(0, 5, 3000))
    k = np.floor(rng.random(3000) * (n + 1))
    p = np.concatenate([rng.random(1000), 10 ** rng.uniform(-12, 0, 1000), 1 - 10 ** rng.uniform(-12, -0.01, 1000)])
    found = evidence(k, n, p)
    assert (found < math.inf).all()  # false for NaN
    assert np.isfinite(found[k >= n * p]).all()


def test_evidence_broadcasts() -> None:
    found = evidence(np.arange(11)[:, None], 10, [0.2, 0.5])
    assert found.shape == (11, 2)
    assert found[7, 1] == evidence(7, 10, 0.5)
    assert evidence(0, 0, 0.5) == 0
    assert (np.diff(found, axis=0) > 0).all()  # grows with k
    assert (np.diff(evidence(8, 10, np.linspace(0.05, 0.8, 50))) < 0).all()


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, norm.cdf(1), 0.999])
@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_evidence_has_mean_1_at_p_and_less_below(p: float, n: int) -> None:
    """Over all 2^n sequences of votes, grouped by their count."""
    k = np.arange(n + 1)
    found = np.exp(evidence(k, n, p))
    means = [float(binom.pmf(k, n, share * p) @ found) for share in (0, 0.3, 0.9, 0.99, 1)]
    assert means[-1] == pytest.approx(1, rel=1e-11)
    assert (np.diff(means) > 0).all()


@pytest.mark.parametrize("p", [0.01, 0.5, norm.cdf(1), 0.99])
def test_evidence_does_not_grow_in_the_mean_from_sample_to_sample(p: float) -> None:
    for n in range(60):
        k = np.arange(n + 1)
        now, hit, miss = np.exp(evidence(k, n, p)), np.exp(evidence(k + 1, n + 1, p)), np.exp(evidence(k, n + 1, p))
        np.testing.assert_allclose(p * hit + (1 - p) * miss, now, rtol=1e-10)
        for below in (0, 0.5 * p, 0.99 * p):
            assert (below * hit + (1 - below) * miss < now).all()


@pytest.mark.parametrize("p", [0.3, 0.5, norm.cdf(1)])
def test_evidence_looked_at_after_every_sample_keeps_its_level(p: float) -> None:
    alpha, law, crossed = 0.05, np.ones(1), 0.0
    for n in range(1, 501):
        law = p * np.append(0, law) + (1 - p) * np.append(law, 0)
        stopped = evidence(np.arange(n + 1), n, p) >= -math.log(alpha)
        crossed += law[stopped].sum()
        law[stopped] = 0
    assert 0.5 * alpha < crossed <= alpha


# ---- a bound that always holds ---------------------------------------------------------------------------------------

# Computed apart for the reference: p, n, lower bound at alpha = 0.001 of k = round(p n).
ANYTIME = [
    (0.99, 100, 0.89209), (0.99, 1000, 0.97125), (0.99, 10_000, 0.98512), (0.99, 100_000, 0.98851),
    (0.9, 100, 0.73629), (0.9, 1000, 0.85448), (0.9, 10_000, 0.88589), (0.9, 100_000, 0.89542),
    (0.6, 100, 0.39103), (0.6, 1000, 0.53025), (0.6, 10_000, 0.57695), (0.6, 100_000, 0.59237),
]  # fmt: skip


@pytest.mark.parametrize(("p", "n", "lower"), ANYTIME)
def test_anytime_lower_of_the_table(p: float, n: int, lower: float) -> None:
    assert anytime_lower(round(p * n), n, 0.001) == pytest.approx(lower, abs=5.1e-6)


def test_anytime_lower_is_the_least_probability_not_refuted(rng: np.random.Generator) -> None:
    n = np.floor(10 ** rng.uniform(0, 5, 300))
    k = np.floor(3 + rng.random(300) * n).clip(1, n)
    alpha = 10 ** np.where(k < 3, rng.uniform(-3, -0.5, 300), rng.uniform(-12, -0.5, 300))
    lower = anytime_lower(k, n, alpha)
    threshold = -np.log(alpha)
    assert ((lower > 0) & (lower < k / n)).all()
    for share in (1 - 1e-7, 0.99, 0.5, 0.01):  # all below are refuted, those just above are not
        assert (evidence(k, n, lower * share) >= threshold).all()
    assert (evidence(k, n, lower * (1 + 1e-6)) < threshold).all()


@pytest.mark.parametrize("alpha", [0.5, 0.001, 1e-9])
@pytest.mark.parametrize(("k", "n"), [(4, 7), (30, 30), (600, 1000), (98_000, 100_000)])
def test_anytime_lower_is_refuted_at_200_bits_and_tight(k: int, n: int, alpha: float) -> None:
    threshold = -mp.log(mp.mpf(alpha))
    found = exact_evidence(k, n, float(anytime_lower(k, n, alpha)))
    assert threshold <= found < threshold * (1 + mp.mpf(10) ** -8)


@pytest.mark.parametrize("alpha", [0.9, 0.05, 0.001, 1e-100])
@pytest.mark.parametrize("n", [1, 2, 30, 1000])
def test_anytime_lower_grows_with_k_and_is_below_clopper_pearson(n: int, alpha: float) -> None:
    k = np.arange(n + 1)
    lower = anytime_lower(k, n, alpha)
    assert lower[0] == 0
    assert (np.diff(lower) >= 0).all()
    assert (lower[1:] < k[1:] / n).all()
    assert (lower <= clopper_pearson_lower(k, n, alpha) + 1e-9).all()


@pytest.mark.parametrize("n", [1, 10, 1000, 100_000])
def test_anytime_lower_at_the_ends(n: int) -> None:
    for alpha in (0.5, 0.001, 1e-12):
        assert anytime_lower(0, n, alpha) == 0
        assert 0 <= anytime_lower(n, n, alpha) < 1


def test_anytime_lower_broadcasts() -> None:
    lower = anytime_lower(np.arange(11)[:, None], 10, [0.1, 0.01])
    assert lower.shape == (11, 2)
    assert lower[7, 1] == anytime_lower(7, 10, 0.01)
    assert np.ndim(anytime_lower(7, 10, 0.01)) == 0


# ---- the test of a radius: geometry ----------------------------------------------------------------------------------


def exact_quantile(p: float) -> mp.mpf:
    return mp.sqrt(2) * mp.erfinv(2 * mp.mpf(p) - 1)


@pytest.mark.parametrize("z", [0.05, 0.3, 1.0, 2.0])
def test_corners_have_at_least_the_radius(z: float) -> None:
    test = radius_test(z, (500, 1000), 0.001, 0.001, "multiclass", 9)
    assert (np.diff(test.p) < 0).all()
    assert (np.diff(test.q) < 0).all()
    for p, q in zip(test.p, test.q, strict=True):
        gap = exact_quantile(p) - exact_quantile(q)
        assert 0 <= gap - 2 * mp.mpf(z) < 1e-12
    assert test.p[0] + test.q[0] == pytest.approx(1, abs=1e-13)
    # Down to where not even a rival without votes would be shown to be below q.
    assert (1 - test.q[-1]) ** 1000 > 1e-4
    assert (1 - test.q[-2]) ** 1000 < 1e-4


@pytest.mark.parametrize("z", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("looks", [(10, 20, 30, 45, 60), geometric_looks(16, 1000, 2**0.5)])
def test_boundaries_are_monotone_along_the_corners(z: float, looks: tuple[int, ...]) -> None:
    """The class needs fewer votes, the farther its rivals are behind."""
    test = radius_test(z, looks, 0.05, 0.05, "multiclass", 3)
    for boundary in (test.certified_own, test.certified_rival, test.failed_own, test.failed_rival):
        assert boundary.shape == (len(looks), test.p.size)
        assert (np.diff(boundary, axis=1) <= 0).all()
    assert (test.failed_own < test.certified_own).all()
    assert (test.certified_rival[:, 0] == looks).all()  # no proof needed where the class alone decides


@pytest.mark.parametrize("z", [0.05, 0.5, 1.0])
def test_boundaries_are_the_exact_ones_of_the_corners(z: float) -> None:
    """0.9 alpha for the class, 0.1 alpha for all rivals, beta / 10 for each of ten classes."""
    looks, alpha, beta = geometric_looks(16, 1000, 2**0.5), 0.05, 0.08
    test = radius_test(z, looks, alpha, beta, "multiclass", 9)
    own = [sequential_boundaries(p, looks, 0.9 * alpha, beta / 10) for p in test.p]
    rival = [sequential_boundaries(q, looks, beta / 10, 0.1 * alpha) for q in test.q]
    for i in range(test.p.size):  # an answer of a corner must hold at those that are harder to show
        np.testing.assert_array_equal(test.certified_own[:, i], np.max([each.efficacy for each in own[i:]], 0))
        np.testing.assert_array_equal(test.failed_own[:, i], np.min([each.futility for each in own[: i + 1]], 0))
        np.testing.assert_array_equal(test.failed_rival[:, i], np.max([each.efficacy for each in rival[i:]], 0))
        if i > 0:
            shown = np.min([each.futility for each in rival[: i + 1]], 0)
            np.testing.assert_array_equal(test.certified_rival[:, i], shown)


@pytest.mark.parametrize("bound", ["cohen", "multiclass"])
@pytest.mark.parametrize("grid", [(0.0, 0.5, 1.0), (0.31, 0.33, 0.35, 0.37, 0.39, 0.41)])
def test_boundaries_of_a_grid_are_monotone_along_all_its_corners(grid: tuple[float, ...], bound: str) -> None:
    """And never nearer than those of each radius alone."""
    looks = geometric_looks(16, 300, 2**0.5)
    tests = radius_tests(grid, looks, 0.05, 0.08, bound, 3, 1e-6)
    along = {"certified_own": "p", "failed_own": "p", "certified_rival": "q", "failed_rival": "q"}
    for name, axis in along.items():
        first = 1 if name == "certified_rival" else 0  # where nothing of the rival is to be shown
        order = np.argsort(np.concatenate([getattr(test, axis)[first:] for test in tests]), kind="stable")
        boundary = np.concatenate([getattr(test, name)[:, first:] for test in tests], 1)
        assert (np.diff(boundary[:, order], axis=1) >= 0).all()
    for z, test in zip(grid, tests, strict=True):
        alone = radius_test(z, looks, 0.05, 0.08, bound, 3, 1e-6)
        np.testing.assert_array_equal((test.p, test.q), (alone.p, alone.q))
        assert (test.certified_own >= alone.certified_own).all()
        assert (test.certified_rival <= alone.certified_rival).all()
        assert (test.failed_own <= alone.failed_own).all()
        assert (test.failed_rival >= alone.failed_rival).all()


def test_boundaries_alone_need_not_be_monotone() -> None:
    """So that it takes something to make them so: what a look could not spend goes to the next."""
    looks = geometric_looks(16, 300, 2**0.5)
    alone = np.stack([radius_test(z, looks, 0.05, 0.08, "cohen", 3).certified_own[:, 0] for z in np.arange(0, 2, 0.01)])
    assert (np.diff(alone, axis=0) < 0).any()


@pytest.mark.parametrize(("z", "looks"), [(1.4, (50, 100)), (3.76, (50_000, 100_000)), (0.2, (15,)), (1.0, (1,))])
def test_multiclass_may_have_one_corner(z: float, looks: tuple[int, ...]) -> None:
    """No rival can be shown to be below q: what is left is the corner where the class alone decides."""
    test = radius_test(z, looks, 0.001, 0.001, "multiclass", 9)
    assert test.p.shape == (1,)
    np.testing.assert_array_equal(test.certified_own[:, 0], sequential_boundaries(norm.cdf(z), looks, 0.0009).efficacy)
    np.testing.assert_array_equal(test.certified_rival[:, 0], looks)


def test_a_radius_of_a_million_sigma_is_never_certified() -> None:
    for bound in ("cohen", "multiclass"):
        assert radius_test(1e6, (10, 20), 0.05, 0.05, bound, 3).corner(1, 20, 0) == -1


@pytest.mark.parametrize("z", [0.1, 1.0, 2.5])
def test_cohens_test_has_one_corner_and_exact_boundaries(z: float) -> None:
    test = radius_test(z, MANY, 0.001, 0.01, "cohen", 9)
    made = sequential_boundaries(norm.cdf(z), MANY, 0.001, 0.01)
    assert test.p.shape == test.q.shape == (1,)
    np.testing.assert_array_equal(test.looks, MANY)
    np.testing.assert_array_equal(test.certified_own[:, 0], made.efficacy)
    np.testing.assert_array_equal(test.failed_own[:, 0], made.futility)
    # The rival's votes decide nothing.
    np.testing.assert_array_equal(test.certified_rival[:, 0], MANY)
    np.testing.assert_array_equal(test.failed_rival[:, 0], 0)


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_a_deviation_moves_the_corners_that_are_tested(bound: str) -> None:
    """Certificates must be shown of p + deviation and q - deviation, denials of p - deviation and q + deviation."""
    looks, deviation = geometric_looks(16, 1000, 2**0.5), 0.01
    test = radius_test(0.5, looks, 0.05, 0.05, bound, 1, deviation)
    beta = 0.05 / (2 if bound == "multiclass" else 1)
    own = sequential_boundaries(test.p[-1] + deviation, looks, own_level(bound), beta)
    denied = sequential_boundaries(test.p[0] - deviation, looks, own_level(bound), beta)
    np.testing.assert_array_equal(test.certified_own[:, -1], own.efficacy)
    np.testing.assert_array_equal(test.failed_own[:, 0], denied.futility)
    if bound == "multiclass":
        rival = sequential_boundaries(test.q[1] - deviation, looks, beta, 0.005)
        np.testing.assert_array_equal(test.certified_rival[:, 1], rival.futility)
        rival = sequential_boundaries(test.q[-1] + deviation, looks, beta, 0.005)
        np.testing.assert_array_equal(test.failed_rival[:, -1], rival.efficacy)


def own_level(bound: str) -> float:
    return 0.045 if bound == "multiclass" else 0.05


def test_cohens_test_does_not_depend_on_the_number_of_rivals() -> None:
    few, many = (radius_test(1.0, (50, 100), 0.05, 0.05, "cohen", rivals) for rivals in (1, 999))
    np.testing.assert_array_equal(few.failed_own, many.failed_own)


def test_more_rivals_make_it_harder_to_deny_but_not_to_certify() -> None:
    few, many = (radius_test(0.5, (100, 200), 0.05, 0.05, "multiclass", rivals) for rivals in (1, 99))
    np.testing.assert_array_equal(few.certified_own, many.certified_own)
    np.testing.assert_array_equal(few.certified_rival, many.certified_rival)
    assert (few.failed_own >= many.failed_own).all()
    assert (few.failed_rival <= many.failed_rival).all()
    assert (few.failed_rival < many.failed_rival).any()


def test_corner_is_the_first_that_votes_certify() -> None:
    test = radius_test(0.5, (10, 20, 30, 45, 60), 0.05, 0.1, "multiclass", 3)
    own, rival = np.meshgrid(np.arange(61), np.arange(61), indexing="ij")
    for look in range(5):
        corner, failed = test.corner(look, own, rival), test.failed(look, own, rival)
        for a, b in [(60, 0), (49, 11), (40, 2), (34, 0), (30, 30), (25, 14), (0, 0), (0, 60)]:
            holds = [
                i for i in range(test.p.size) if a >= test.certified_own[look, i] and b <= test.certified_rival[look, i]
            ]
            assert corner[a, b] == test.corner(look, a, b) == (holds[0] if holds else -1)
            shown = (a <= test.failed_own[look]) & (b >= test.failed_rival[look])
            assert failed[a, b] == test.failed(look, a, b) == shown.any()
        certified = corner >= 0
        assert not (certified & failed).any()
        # A vote more for the class or less for its rival takes nothing back.
        assert (certified[1:] >= certified[:-1]).all()
        assert (certified[:, 1:] <= certified[:, :-1]).all()
        assert (failed[1:] <= failed[:-1]).all()
        assert (failed[:, 1:] >= failed[:, :-1]).all()


def test_spread_rivals_certify_a_radius_that_cohen_cannot() -> None:
    """At 0.6 against ten times 0.04 the radius is 1.002 sigma; Cohen's, of 0.6 against 0.4, is 0.253 sigma."""
    own, rival, last = 60_000, 4000, len(MANY) - 1
    multiclass, cohen = (radius_test(0.95, MANY, 0.001, 0.001, bound, 10) for bound in ("multiclass", "cohen"))
    assert multiclass.corner(last, own, rival) > 0
    assert not multiclass.failed(last, own, rival)
    assert cohen.corner(last, own, rival) == -1
    assert cohen.failed(last, own, rival)
    # Not at a radius that it lacks; and one rival with all the rest is denied by both.
    assert radius_test(1.05, MANY, 0.001, 0.001, "multiclass", 10).corner(last, own, rival) == -1
    assert radius_test(1.05, MANY, 0.001, 0.001, "multiclass", 10).failed(last, own, rival)
    assert multiclass.corner(last, own, 40_000) == -1
    assert multiclass.failed(last, own, 40_000)


# ---- the test of a radius: error rates, from all paths ---------------------------------------------------------------

FIVE, ALPHA, BETA = (12, 24, 36, 48, 60), 0.05, 0.08


@cache
def verdicts(test_arguments: tuple[Any, ...], answer: str) -> list[Mask]:
    """By look, [own, rival]: whether these votes give the answer."""
    test: RadiusTest = radius_test(*test_arguments)
    own, rival = np.arange(test.looks[-1] + 1)[:, None], np.arange(test.looks[-1] + 1)
    if answer == "certified":
        return [test.corner(look, own, rival) >= 0 for look in range(test.looks.size)]
    return [test.failed(look, own, rival) for look in range(test.looks.size)]


def risk(law: list[float], rivals: int, z: float, bound: str, answer: str) -> float:
    """The probability of the answer at any look, exactly, with the votes of the first `rivals` other classes seen."""
    return crossed_by(law, rivals, verdicts((z, FIVE, ALPHA, BETA, bound, len(law) - 1), answer))


def crossed_by(law: list[float], rivals: int, decided: list[Mask]) -> float:
    """The probability of votes that give an answer at any look.

    Steps sample by sample through the law of all counts but the last class's.
    """
    axes = len(law) - 1
    mass, crossed = np.zeros((FIVE[-1] + 1,) * axes), 0.0
    mass[(0,) * axes] = 1
    counts = np.indices(mass.shape)
    for n in range(1, FIVE[-1] + 1):
        mass = law[-1] * mass + sum(law[i] * np.roll(mass, 1, i) for i in range(axes))
        if n in FIVE:
            votes = [*counts, np.maximum(n - counts.sum(0), 0)]
            stopped = decided[FIVE.index(n)][votes[0], np.max(votes[1 : 1 + rivals], 0)]
            crossed += float(mass[stopped].sum())
            mass = np.where(stopped, 0, mass)
    return crossed


def spread(z: float, q: float, others: int) -> list[float] | None:
    """A law of radius z sigma: the class, a rival with q and others that share the rest; None where they exceed q."""
    p = float(norm.cdf(norm.ppf(q) + 2 * z))
    rest = 1 - p - q
    return [p, q, *[rest / others] * others] if 0 <= rest <= others * q else None


def worst(z: float, radius: float, others: int, bound: str, answer: str, grid: int) -> float:
    """The largest risk at a true radius, over the probability of the strongest rival."""
    laws = [spread(radius, q, others) for q in np.linspace(0.01, 0.5, grid)]
    if others == 1:
        laws.append([float(norm.cdf(radius)), float(norm.sf(radius)), 0.0])
    return max(risk(law, len(law) - 1, z, bound, answer) for law in laws if law is not None)


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
@pytest.mark.parametrize("z", [0.1, 0.3, 0.6])
def test_wrong_certificates_are_as_rare_as_stated(z: float, bound: str) -> None:
    at_boundary = worst(z, z, 1, bound, "certified", 60)
    assert 0.3 * ALPHA < at_boundary <= ALPHA
    for radius in (0.9 * z, 0.5 * z, 0.0):
        assert worst(z, radius, 1, bound, "certified", 40) <= at_boundary


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
@pytest.mark.parametrize("z", [0.1, 0.3, 0.6])
def test_wrong_denials_are_as_rare_as_stated(z: float, bound: str) -> None:
    """With Cohen's bound the radius is that of the class alone."""
    if bound == "cohen":
        laws = [[float(norm.cdf(radius)), float(norm.sf(radius)), 0.0] for radius in (z, 1.2 * z, 3 * z)]
        risks = [risk(law, 2, z, bound, "failed") for law in laws]
    else:
        risks = [worst(z, radius, 1, bound, "failed", 60) for radius in (z, 1.2 * z, 3 * z)]
    assert 0.2 * BETA < risks[0] <= BETA
    assert risks[0] > risks[1] > risks[2]


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_wrong_answers_on_a_grid_are_as_rare_as_stated(bound: str) -> None:
    """At a radius of the grid: votes that certify that one or any larger, or deny it or any smaller."""
    grid = (0.0, 0.1, 0.3, 0.33, 0.6)
    tests = radius_tests(grid, FIVE, ALPHA, BETA, bound, 2, 0.0)
    own, rival = np.arange(FIVE[-1] + 1)[:, None], np.arange(FIVE[-1] + 1)
    looks = range(len(FIVE))
    certified = [[test.corner(look, own, rival) >= 0 for look in looks] for test in tests]
    denied = [[test.failed(look, own, rival) for look in looks] for test in tests]
    for i, z in enumerate(grid):
        laws = [[float(norm.cdf(z)), float(norm.sf(z)), 0.0]]
        if bound == "multiclass":
            laws += [law for q in np.linspace(0.01, 0.5, 15) if (law := spread(z, q, 1)) is not None]
        assert max(crossed_by(law, 2, list(np.any(certified[i:], 0))) for law in laws) <= ALPHA
        assert max(crossed_by(law, 2, list(np.any(denied[: i + 1], 0))) for law in laws) <= BETA


@pytest.mark.parametrize("z", [0.1, 0.4])
def test_errors_with_three_rivals_are_as_rare_as_stated(z: float) -> None:
    """The rest of the mass on two others, up to a tie of all three."""
    assert worst(z, z, 2, "multiclass", "certified", 12) <= ALPHA
    assert 0.1 * BETA < worst(z, z, 2, "multiclass", "failed", 12) <= BETA


@pytest.mark.parametrize("z", [0.1, 0.3, 0.6])
def test_errors_with_many_small_rivals_are_as_rare_as_stated(z: float) -> None:
    """The limit of a rest that is spread so thin that only one rival's votes matter: all corners are reached."""
    laws = [[float(norm.cdf(norm.ppf(q) + 2 * z)), q] for q in np.linspace(0.01, float(norm.sf(z)), 60)]
    for answer, level in (("certified", ALPHA), ("failed", BETA)):
        risks = [risk([p, q, max(1 - p - q, 0.0)], 1, z, "multiclass", answer) for p, q in laws]
        assert 0.2 * level < max(risks) <= level


def test_true_answers_come() -> None:
    assert risk([0.9, 0.05, 0.05], 2, 0.3, "multiclass", "certified") > 0.99
    assert risk([0.9, 0.05, 0.05], 2, 0.3, "cohen", "certified") > 0.99
    assert risk([0.4, 0.5, 0.1], 2, 0.3, "multiclass", "failed") > 0.6
    assert risk([0.4, 0.5, 0.1], 2, 0.3, "cohen", "failed") > 0.9


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (sequential_boundaries, (0, [10]), "p0 is 0; it must lie between 0 and 1"),
        (sequential_boundaries, (1.0, [10]), "p0 is 1.0; it must lie between 0 and 1"),
        (sequential_boundaries, (-0.5, [10]), "p0 is -0.5; it must lie between 0 and 1"),
        (sequential_boundaries, (math.nan, [10]), "p0 is nan; it must lie between 0 and 1"),
        (sequential_boundaries, (0.5, []), "looks have shape (0,); they must be [J], with J at least 1"),
        (sequential_boundaries, (0.5, [[1, 2], [3, 4]]), "looks have shape (2, 2); they must be [J]"),
        (sequential_boundaries, (0.5, [10, 10]), "looks is 10; it must be more than the one before it"),
        (sequential_boundaries, (0.5, [10, 20, 15]), "looks is 15; it must be more than the one before it"),
        (sequential_boundaries, (0.5, [10, 20.5]), "looks is 20.5; it must be a whole number of at least 1"),
        (sequential_boundaries, (0.5, [0, 10]), "looks is 0; it must be a whole number of at least 1"),
        (sequential_boundaries, (0.5, [10, math.nan]), "looks is nan; it must be a whole number of at least 1"),
        (sequential_boundaries, (0.5, [10], 0), "alpha is 0; it must be at least 1e-100 and below 1"),
        (sequential_boundaries, (0.5, [10], 1.0), "alpha is 1; it must be at least 1e-100 and below 1"),
        (evidence, (11, 10, 0.5), "k is 11; it must be a whole number in 0..n"),
        (evidence, ([3, -1], 10, 0.5), "k is -1; it must be a whole number in 0..n"),
        (evidence, (0.5, 10, 0.5), "k is 0.5; it must be a whole number in 0..n"),
        (evidence, (0, -1, 0.5), "n is -1; it must be a whole number of at least 0"),
        (evidence, (1, 10, 0), "p is 0; it must be between 0 and 1"),
        (evidence, (1, 10, [0.5, 1]), "p is 1; it must be between 0 and 1"),
        (evidence, (1, 10, 1.5), "p is 1.5; it must be in [0, 1]"),
        (anytime_lower, (0, 0, 0.1), "n is 0; it must be a whole number of at least 1"),
        (anytime_lower, (11, 10, 0.1), "k is 11; it must be a whole number in 0..n"),
        (anytime_lower, (1, 10, 0), "alpha is 0; it must be at least 1e-100 and below 1"),
        (radius_test, (-0.1, (10,), 0.1, 0.1, "cohen", 9), "radius / sigma is -0.1; it must be at least 0 and finite"),
        (radius_test, (math.inf, (10,), 0.1, 0.1, "cohen", 9), "radius / sigma is inf; it must be at least 0"),
        (radius_test, (1.0, (), 0.1, 0.1, "cohen", 9), "looks have shape (0,)"),
        (radius_test, (1.0, (10, 5), 0.1, 0.1, "cohen", 9), "looks is 5; it must be more than the one before it"),
        (radius_test, (1.0, (10,), 2.0, 0.1, "cohen", 9), "alpha is 2; it must be at least 1e-100 and below 1"),
        (radius_test, (1.0, (10,), 0.1, 0.1, "exact", 9), "bound is 'exact'; it must be one of multiclass"),
        (sequential_boundaries, (0.5, [10], 0.1, 2.0), "beta is 2; it must be at least 1e-100 and below 1"),
        (radius_test, (1.0, (10,), 0.1, 2.0, "cohen", 9), "beta is 2; it must be at least 1e-100 and below 1"),
        (sequential_boundaries, (0.5, [10, math.inf]), "looks is inf; it must be a whole number of at least 1"),
        (sequential_boundaries, (0.5, 10), "looks have shape (); they must be [J], with J at least 1"),
        (evidence, (1, math.inf, 0.5), "n is inf; it must be a whole number of at least 0"),
    ],
)
def test_bad_arguments_are_named(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        function(*arguments)


# ---- edges -----------------------------------------------------------------------------------------------------------


def test_a_radius_of_a_billion_sigma_is_never_certified() -> None:
    for bound in ("cohen", "multiclass"):
        assert radius_test(1e9, (10, 20), 0.05, 0.05, bound, 3).corner(1, 20, 0) == -1


@pytest.mark.parametrize(
    ("k", "n", "p"), [(0, 1000, 0.9), (100, 1000, 0.99), (1000, 100_000, 0.9), (30_000, 100_000, 0.6)]
)
def test_evidence_is_finite_where_the_mass_underflows(k: int, n: int, p: float) -> None:
    assert float(abs(evidence(k, n, p) - exact_evidence(k, n, p))) < 1e-9


def test_boundaries_are_no_views_of_a_cache() -> None:
    first = sequential_boundaries(0.5, [11, 21], 0.05).efficacy
    right = first.copy()
    with suppress(ValueError):  # read-only is as good as a copy
        first[:] = 0
    np.testing.assert_array_equal(sequential_boundaries(0.5, [11, 21], 0.05).efficacy, right)

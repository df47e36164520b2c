"""Bounds, radii and tests against SciPy, 200-bit arithmetic and published values."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothfast.statistics import (
    binomial_test,
    certified_radius,
    class_bounds,
    clopper_pearson_lower,
    clopper_pearson_upper,
    converted_radius,
    gaussian_probability_lower,
    gaussian_probability_upper,
    gaussian_quantile_lower,
    gaussian_quantile_upper,
    laplace_radius,
    own_and_rival,
    samples_to_certify,
    samples_to_predict,
    share_bounds,
    uniform_radius,
)

mp.mp.prec = 200
levels = st.floats(1e-12, 0.5)
probabilities = st.floats(0, 1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def exact_tail(k: int, n: int, p: mp.mpf) -> mp.mpf:
    """P(X >= k) for X ~ Binomial(n, p): the first term, times a series of ratios."""
    term = mp.binomial(n, k) * p**k * (1 - p) ** (n - k)
    total = term
    for j in range(k, n):
        term *= p / (1 - p) * (n - j) / (j + 1)
        total += term
        if term < total * mp.mpf(2) ** -150:
            break
    return total


def exact_quantile(p: float) -> mp.mpf:
    return mp.sqrt(2) * mp.erfinv(2 * mp.mpf(p) - 1)


def exact_radius(p_lower: float, p_upper: float, sigma: float) -> mp.mpf:
    return mp.mpf(sigma) / 2 * (exact_quantile(p_lower) - exact_quantile(p_upper))


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, int]:
    """k and n, with the ends 0 and n as likely as they are dangerous."""
    n = draw(st.integers(1, 10**6))
    return draw(st.sampled_from([0, 1, n - 1, n]) | st.integers(0, n)), n


# Clopper-Pearson


@pytest.mark.parametrize("n", [1, 2, 37, 1000, 100_000, 1_000_000])
def test_clopper_pearson_holds_and_is_tight_at_200_bits(n: int, rng: np.random.Generator) -> None:
    k = np.concatenate([[0, 1, n - 1, n, n // 2], rng.integers(0, n + 1, 6)])
    alpha = np.concatenate([[0.001, 0.5, 0.01, 0.001, 0.999], 10 ** rng.uniform(-12, -0.5, 6)])
    lower, upper = clopper_pearson_lower(k, n, alpha), clopper_pearson_upper(k, n, alpha)
    for k_, alpha_, lower_, upper_ in zip(k.tolist(), alpha, lower, upper, strict=True):
        if k_ > 0:
            tail = exact_tail(k_, n, mp.mpf(lower_))
            assert alpha_ * (1 - 1e-7) < tail <= alpha_
        if k_ < n:
            tail = exact_tail(n - k_, n, 1 - mp.mpf(upper_))
            assert alpha_ * (1 - 1e-7) < tail <= alpha_


def test_clopper_pearson_holds_at_tiny_alpha(rng: np.random.Generator) -> None:
    n = np.floor(10 ** rng.uniform(0, 6, 50)).astype(int)
    k = rng.integers(1, n + 1)
    alpha = 10 ** rng.uniform(-100, -12, 50)
    lower = clopper_pearson_lower(k, n, alpha)
    for k_, n_, alpha_, lower_ in zip(k.tolist(), n.tolist(), alpha, lower, strict=True):
        assert 0 < lower_ < k_ / n_
        assert exact_tail(k_, n_, mp.mpf(lower_)) <= alpha_


def test_clopper_pearson_is_never_nan(rng: np.random.Generator) -> None:
    n = np.floor(10 ** rng.uniform(0, 7, 5000)).astype(int)
    k = rng.integers(0, n + 1)
    alpha = 10 ** rng.uniform(-100, 0, 5000)
    lower, upper = clopper_pearson_lower(k, n, alpha), clopper_pearson_upper(k, n, alpha)
    assert ((lower >= 0) & (lower < 1) & (upper > 0) & (upper <= 1)).all()


@pytest.mark.parametrize("guess", [math.nan, 0.9, 0.7, 0.52])
def test_clopper_pearson_does_not_trust_the_quantile(
    guess: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = clopper_pearson_lower(600, 1000, 0.001)  # 0.551
    monkeypatch.setattr("smoothfast.statistics.bounds.betaincinv", lambda a, b, q: np.full(q.shape, guess))
    lower = clopper_pearson_lower(600, 1000, 0.001)
    assert exact_tail(600, 1000, mp.mpf(lower)) <= 0.001
    assert 0.2 < lower <= right


def test_clopper_pearson_agrees_with_scipy(rng: np.random.Generator) -> None:
    n = np.floor(10 ** rng.uniform(0, 6, 500)).astype(int)
    k = rng.integers(0, n + 1)
    alpha = 10 ** rng.uniform(-6, -0.5, 500)
    with np.errstate(invalid="ignore"):
        lower = np.where(k == 0, 0, scipy.stats.beta.ppf(alpha, k, n - k + 1))
        upper = np.where(k == n, 1, scipy.stats.beta.isf(alpha, k + 1, n - k))
    np.testing.assert_allclose(clopper_pearson_lower(k, n, alpha), lower, rtol=1e-7)
    np.testing.assert_allclose(clopper_pearson_upper(k, n, alpha), upper, rtol=1e-7)


@pytest.mark.parametrize("n", [1, 10, 100_000])
def test_clopper_pearson_at_the_ends(n: int) -> None:
    assert clopper_pearson_lower(0, n, 0.001) == 0
    assert clopper_pearson_upper(n, n, 0.001) == 1
    assert clopper_pearson_lower(n, n, 0.001) == pytest.approx(0.001 ** (1 / n), rel=1e-8)
    assert clopper_pearson_upper(0, n, 0.001) == pytest.approx(1 - 0.001 ** (1 / n), rel=1e-8)


@settings(deadline=None)
@given(shares(), levels)
def test_clopper_pearson_encloses_the_share(k_of_n: tuple[int, int], alpha: float) -> None:
    k, n = k_of_n
    assert clopper_pearson_lower(k, n, alpha) <= k / n <= clopper_pearson_upper(k, n, alpha)


@settings(deadline=None)
@given(shares(), levels)
def test_clopper_pearson_grows_with_k_and_alpha(k_of_n: tuple[int, int], alpha: float) -> None:
    k, n = k_of_n
    ks = np.array([max(k - 1, 0), k, min(k + 1, n)])
    for bound in (clopper_pearson_lower, clopper_pearson_upper):
        assert (np.diff(bound(ks, n, alpha)) >= 0).all()
    assert clopper_pearson_lower(k, n, alpha / 2) <= clopper_pearson_lower(k, n, alpha)


def test_clopper_pearson_broadcasts() -> None:
    k, alpha = np.arange(11)[:, None], np.array([0.1, 0.01])
    bounds = clopper_pearson_lower(k, 10, alpha)
    assert bounds.shape == (11, 2)
    assert bounds[7, 1] == clopper_pearson_lower(7, 10, 0.01)
    assert clopper_pearson_lower(np.zeros(0, int), 10, 0.1).shape == (0,)


def test_narrow_types_are_computed_in_float64() -> None:
    k, n, alpha = np.int8(120), np.int8(127), np.float32(0.01)
    assert clopper_pearson_lower(k, n, alpha) == clopper_pearson_lower(120, 127, float(alpha))
    assert clopper_pearson_upper(k, n, alpha) == clopper_pearson_upper(120, 127, float(alpha))
    assert binomial_test(n, n) == 1
    assert certified_radius(alpha, 0, alpha) == certified_radius(float(alpha), 0, float(alpha))


# Randomized Clopper-Pearson


def randomized_tail(k: int, n: int, p: mp.mpf, u: float) -> mp.mpf:
    """P(X > k) + u P(X = k) for X ~ Binomial(n, p)."""
    at_k = mp.binomial(n, k) * p**k * (1 - p) ** (n - k)
    return exact_tail(k, n, p) - (1 - mp.mpf(u)) * at_k


def test_randomized_bound_of_u_1_is_the_plain_one(rng: np.random.Generator) -> None:
    n = np.floor(10 ** rng.uniform(0, 6, 300)).astype(int)
    k = rng.integers(0, n + 1)
    alpha = 10 ** rng.uniform(-12, -0.1, 300)
    np.testing.assert_array_equal(clopper_pearson_lower(k, n, alpha, 1.0), clopper_pearson_lower(k, n, alpha))
    # Also beside others: an array that is 1 in places takes another way.
    u = rng.choice([1.0, 0.3], 300)
    mixed = clopper_pearson_lower(k, n, alpha, u)
    np.testing.assert_allclose(mixed[u == 1], clopper_pearson_lower(k, n, alpha)[u == 1], rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 37, 1000, 100_000])
def test_randomized_bound_holds_and_is_tight_at_200_bits(n: int, rng: np.random.Generator) -> None:
    k = np.concatenate([[1, n, n, n - 1, n // 2], rng.integers(0, n + 1, 10)]).clip(0, n)
    alpha = np.concatenate([[0.001, 0.5, 0.01, 0.001, 0.9], 10 ** rng.uniform(-12, -0.5, 10)])
    u = np.concatenate([[0.5, 0.7, 0.999, 1e-6, 0.95], rng.random(10)])
    lower = clopper_pearson_lower(k, n, alpha, u)
    for k_, alpha_, u_, lower_ in zip(k.tolist(), alpha, u, lower, strict=True):
        if (k_ == 0 and u_ >= alpha_) or lower_ == 0:
            assert lower_ == 0 == k_
        elif k_ < n or u_ > alpha_:  # else every probability below 1 is refuted
            assert alpha_ * (1 - 1e-7) < randomized_tail(k_, n, mp.mpf(lower_), u_) <= alpha_


@settings(deadline=None)
@given(shares(), levels, st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_randomized_bound_grows_as_u_falls(k_of_n: tuple[int, int], alpha: float, u: float, v: float) -> None:
    """From the bound of k votes to at most that of k + 1."""
    k, n = k_of_n
    lower = [clopper_pearson_lower(k, n, alpha, each) for each in (1.0, max(u, v), min(u, v))]
    # Each is proven on its own, to within a billionth of its tail.
    assert lower[0] <= lower[1] * (1 + 1e-8)
    assert lower[1] <= lower[2] * (1 + 1e-8)
    assert lower[2] < 1
    if k < n:
        assert lower[2] <= clopper_pearson_lower(k + 1, n, alpha) * (1 + 1e-8)


@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (5, 0.03), (5, 0.6), (12, 0.25), (12, 0.97)])
def test_randomized_bound_errs_exactly_at_its_level(n: int, p: float, alpha: float) -> None:
    """Over all counts and the midpoints of 2000 intervals of u; the plain bound errs less often."""
    k = np.arange(n + 1)
    u = (np.arange(2000) + 0.5) / 2000
    law = scipy.stats.binom.pmf(k, n, p)
    above = clopper_pearson_lower(k[:, None], n, alpha, u) > p
    assert law @ above.mean(1) == pytest.approx(alpha, abs=3e-4)
    assert law @ (clopper_pearson_lower(k, n, alpha) > p) < alpha - 0.001


@pytest.mark.parametrize("n", [1, 2, 10, 100_000])
@pytest.mark.parametrize("u", [1e-300, 1e-12, 1e-3, 0.5])
def test_randomized_bound_at_the_ends(n: int, u: float) -> None:
    for alpha in (0.001, 0.05, 1e-100):
        lower = clopper_pearson_lower([0, n], n, alpha, u)
        assert ((lower >= 0) & (lower < 1)).all()
        assert lower[0] == 0 or u < alpha
        assert lower[1] >= clopper_pearson_lower(n, n, alpha)
        assert np.isfinite(certified_radius(lower, np.nextafter(1 - lower, 1), 1)).all()


# p, n, randomized bound at alpha = 0.001 and u = 0.5 of k = round(p n), computed apart to within 1e-5.
RANDOMIZED = [
    (0.99, 100, 0.91749), (0.99, 1000, 0.97662), (0.99, 10_000, 0.98659), (0.99, 100_000, 0.98899),
    (0.9, 100, 0.78048), (0.9, 1000, 0.86798), (0.9, 10_000, 0.89046), (0.9, 100_000, 0.89704),
    (0.6, 100, 0.44519), (0.6, 1000, 0.55156), (0.6, 10_000, 0.58480), (0.6, 100_000, 0.59521),
]  # fmt: skip


@pytest.mark.parametrize(("p", "n", "lower"), RANDOMIZED)
def test_randomized_bound_of_the_table(p: float, n: int, lower: float) -> None:
    assert clopper_pearson_lower(round(p * n), n, 0.001, 0.5) == pytest.approx(lower, abs=1e-5)


def test_randomized_bound_broadcasts() -> None:
    u = np.array([0.2, 1.0])
    lower = clopper_pearson_lower(np.arange(11)[:, None], 10, 0.05, u)
    assert lower.shape == (11, 2)
    assert lower[7, 0] == pytest.approx(clopper_pearson_lower(7, 10, 0.05, 0.2), rel=1e-9)
    assert np.ndim(clopper_pearson_lower(7, 10, 0.05, 0.2)) == 0


# Quantiles and radii


def test_gaussian_quantiles_enclose_the_exact_one(rng: np.random.Generator) -> None:
    corner = math.exp(-2)  # where ndtri errs most
    p = np.concatenate(
        [
            rng.random(300),
            10 ** rng.uniform(-30, 0, 200),
            1 - 10 ** rng.uniform(-15, 0, 200),
            rng.uniform(corner, corner + 0.003, 500),
            1 - rng.uniform(corner, corner + 0.003, 500),
        ]
    )
    lower, upper = gaussian_quantile_lower(p), gaussian_quantile_upper(p)
    for p_, lower_, upper_ in zip(p, lower, upper, strict=True):
        assert mp.mpf(lower_) <= exact_quantile(p_) <= mp.mpf(upper_)
    np.testing.assert_allclose(lower, upper, rtol=5e-15)


@pytest.mark.parametrize(("p", "quantile"), [(0, -math.inf), (0.5, 0), (1, math.inf)])
def test_gaussian_quantiles_are_exact_at_0_and_half_and_1(p: float, quantile: float) -> None:
    assert gaussian_quantile_lower(p) == gaussian_quantile_upper(p) == quantile


def test_certified_radius_is_rounded_down_and_tight(rng: np.random.Generator) -> None:
    p_lower, p_upper = rng.uniform(0.5, 1, 300), rng.uniform(0, 0.5, 300)
    sigma = rng.uniform(0.01, 2, 300)
    radii = certified_radius(p_lower, p_upper, sigma)
    for radius, *arguments in zip(radii, p_lower, p_upper, sigma, strict=True):
        exact = exact_radius(*arguments)
        assert exact * (1 - 1e-14) <= mp.mpf(radius) <= exact


def test_certified_radius_of_complements_is_cohens(rng: np.random.Generator) -> None:
    p_lower = 1 - 10 ** rng.uniform(-5, -0.5, 1000)
    cohen = 0.25 * scipy.stats.norm.ppf(p_lower)
    np.testing.assert_allclose(certified_radius(p_lower, 1 - p_lower, 0.25), cohen, rtol=4e-15)


@settings(deadline=None)
@given(probabilities, probabilities, st.floats(1e-6, 1e6))
def test_certified_radius_is_a_radius(p_lower: float, p_upper: float, sigma: float) -> None:
    radius = certified_radius(p_lower, p_upper, sigma)
    assert radius >= 0  # false for NaN
    assert radius == 0 or p_lower > p_upper


def test_certified_radius_at_its_limits() -> None:
    radii = certified_radius([1, 1, 1, 0, 0.5], [0, 0.5, 1, 0, 0.5], 0.5)
    np.testing.assert_array_equal(radii, [math.inf, math.inf, 0, 0, 0])
    assert certified_radius(0.9, 0.1, [[0.25], [0.5]]).shape == (2, 1)


@pytest.mark.parametrize(
    ("n", "alpha", "radius"),
    [(100_000, 0.001, 3.8115), (100_000, 0.01, 3.9105), (10_000, 0.001, 3.1986)],
)
def test_largest_radius_of_published_settings(n: int, alpha: float, radius: float) -> None:
    p_lower = clopper_pearson_lower(n, n, alpha)
    assert certified_radius(p_lower, 1 - p_lower, 1) == pytest.approx(radius, abs=5e-5)


@pytest.mark.parametrize(
    ("share", "radii"),
    [
        (1.0, [3.8115, 3.0002, 2.2900, 1.2648]),
        (0.9, [3.8077, 2.9993, 2.2896, 1.2647]),
        (0.5, [3.7878, 2.9947, 2.2877, 1.2638]),
    ],
)
def test_radius_at_a_share_of_alpha(share: float, radii: list[float]) -> None:
    k = [100_000, 99_900, 99_000, 90_000]
    p_lower = clopper_pearson_lower(k, 100_000, share * 0.001)
    np.testing.assert_allclose(certified_radius(p_lower, 1 - p_lower, 1), radii, atol=5.1e-5)


# Probabilities


def exact_probability(z: mp.mpf) -> mp.mpf:
    return mp.erfc(-z / mp.sqrt(2)) / 2


def test_gaussian_probabilities_enclose_the_exact_one(rng: np.random.Generator) -> None:
    z = np.concatenate([[-12, -1, 0, 1, 9], rng.uniform(-12, 9, 500), rng.normal(0, 1, 200), rng.normal(0, 1e-9, 20)])
    lower, upper = gaussian_probability_lower(z), gaussian_probability_upper(z)
    for z_, lower_, upper_ in zip(z, lower, upper, strict=True):
        assert mp.mpf(lower_) <= exact_probability(mp.mpf(z_)) <= mp.mpf(upper_)
    assert ((lower > 0) & (upper <= 1)).all()
    np.testing.assert_allclose(lower, upper, rtol=1e-12)


def test_gaussian_probabilities_enclose_that_of_a_rounded_ratio(rng: np.random.Generator) -> None:
    radius, sigma = rng.uniform(-12, 9, 700), rng.uniform(0.1, 1, 700)
    radius *= sigma
    z = radius / sigma
    lower, upper = gaussian_probability_lower(z), gaussian_probability_upper(z)
    for radius_, sigma_, lower_, upper_ in zip(radius, sigma, lower, upper, strict=True):
        assert mp.mpf(lower_) <= exact_probability(mp.mpf(radius_) / mp.mpf(sigma_)) <= mp.mpf(upper_)


def test_gaussian_probabilities_grow_and_reach_their_limits() -> None:
    for bound in (gaussian_probability_lower, gaussian_probability_upper):
        assert (np.diff(bound(np.linspace(-12, 6, 1000))) > 0).all()
    assert gaussian_probability_upper(40) == 1
    assert gaussian_probability_lower(-40) == 0
    assert 1 - 2e-12 < gaussian_probability_lower(30) < 1


# Radii of other noise and norms


def test_uniform_radius_is_rounded_down_and_tight(rng: np.random.Generator) -> None:
    p_lower, p_upper = rng.uniform(0.3, 1, 300), rng.uniform(0, 0.3, 300)
    half_width = 10 ** rng.uniform(-3, 3, 300)
    radii = uniform_radius(p_lower, p_upper, half_width)
    for radius, p, q, width in zip(radii, p_lower, p_upper, half_width, strict=True):
        exact = mp.mpf(width) * (mp.mpf(p) - mp.mpf(q))
        assert exact * (1 - 2e-15) <= mp.mpf(radius) <= exact


def test_uniform_radius_of_complements_is_that_of_the_class(rng: np.random.Generator) -> None:
    p = rng.uniform(0.5, 1, 1000)
    np.testing.assert_allclose(uniform_radius(p, 1 - p, 0.4), 2 * 0.4 * (p - 0.5), rtol=1e-13, atol=1e-16)


def test_uniform_radius_at_its_limits() -> None:
    np.testing.assert_array_equal(uniform_radius([0.5, 0.2, 0, 1], [0.5, 0.3, 1, 1], 2), 0)
    assert uniform_radius(1, 0, 2) == pytest.approx(2)  # never more than half of the law's width
    assert uniform_radius(0.9, 0.1, [[0.25], [0.5]]).shape == (2, 1)


def test_laplace_radius_is_rounded_down_and_tight(rng: np.random.Generator) -> None:
    p_lower = np.concatenate([rng.uniform(0.5, 1, 300), 1 - 10 ** rng.uniform(-15, -1, 200)])
    p_lower = np.concatenate([p_lower, 0.5 + 10 ** rng.uniform(-15, -1, 200)])
    scale = 10 ** rng.uniform(-3, 3, 700)
    radii = laplace_radius(p_lower, scale)
    for radius, p, b in zip(radii, p_lower, scale, strict=True):
        exact = -mp.mpf(b) * mp.log(2 * (1 - mp.mpf(p)))
        assert exact * (1 - 3e-15) <= mp.mpf(radius) <= exact


def test_laplace_radius_at_its_limits() -> None:
    np.testing.assert_array_equal(laplace_radius([0, 0.1, 0.3, 0.4999, 0.5], 1.0), 0)
    assert laplace_radius(np.nextafter(0.5, 1), 1.0) > 0
    assert laplace_radius(1, 1.0) == math.inf
    assert laplace_radius(0.9, [[0.25], [0.5]]).shape == (2, 1)


@pytest.mark.parametrize(("norm", "to"), [(1, 1), (2, 1), (2, 2), (math.inf, 2), (math.inf, math.inf), (3, 1.5)])
def test_converted_radius_is_the_same_in_a_smaller_norm(norm: float, to: float) -> None:
    np.testing.assert_array_equal(converted_radius([0, 0.7, math.inf], norm, to, 3072), [0, 0.7, math.inf])


@pytest.mark.parametrize("dimension", [1, 2, 3072, 150_528, 10**9])
@pytest.mark.parametrize(("norm", "to"), [(1, 2), (2, math.inf), (1, math.inf), (1.5, 3), (2, 2.0000001), (3, 7)])
def test_converted_radius_is_rounded_down_and_tight(norm: float, to: float, dimension: int) -> None:
    exponent = 1 / mp.mpf(norm) - (0 if math.isinf(to) else 1 / mp.mpf(to))
    for radius in (1.0, 0.3, 1e-9, 12345.678):
        exact = mp.mpf(radius) / mp.power(dimension, exponent)
        converted = mp.mpf(converted_radius(radius, norm, to, dimension))
        assert exact * (1 - 3e-14) <= converted <= exact


def test_converted_radius_of_known_cases() -> None:
    assert converted_radius(0.5, 2, math.inf, 3072) == pytest.approx(0.5 / math.sqrt(3072), rel=1e-14)
    assert converted_radius(0.5, 1, 2, 3072) == pytest.approx(0.5 / math.sqrt(3072), rel=1e-14)
    assert converted_radius(0.5, 1, math.inf, 3072) == pytest.approx(0.5 / 3072, rel=1e-14)
    assert converted_radius(0, 1, 2, 3072) == 0
    assert converted_radius(math.inf, 2, math.inf, 3072) == math.inf
    assert converted_radius(np.ones((2, 3)), 1, 2, 4).shape == (2, 3)


@pytest.mark.parametrize(("norm", "to"), [(1, 2), (2, math.inf), (1, math.inf), (2, 1), (math.inf, 1)])
def test_converted_ball_lies_within_the_ball(norm: float, to: float, rng: np.random.Generator) -> None:
    """The diagonal and the axes are where the balls touch."""
    points = np.concatenate([np.ones((1, 12)), np.eye(12), rng.normal(size=(50, 12))])
    points *= converted_radius(1.0, norm, to, 12) / np.linalg.norm(points, to, axis=1)[:, None]
    reach = np.linalg.norm(points, norm, axis=1)
    assert reach.max() == pytest.approx(1, rel=1e-13)


# Bounds of a class and its rival

# Shares of the two classes; radius / sigma at n = 1e5, alpha = 0.001: Cohen's, and the multi-class
# bound with alpha split evenly.
RADII = [
    (0.99, 0.005, 2.2900, 2.4066),
    (0.80, 0.10, 0.8277, 1.0453),
    (0.60, 0.30, 0.2409, 0.3754),
    (0.60, 0.10, 0.2409, 0.7520),
    (0.55, 0.05, 0.1134, 0.8677),
    (0.45, 0.10, 0.0, 0.5625),
]


@pytest.mark.parametrize(("p_a", "p_b", "cohen", "multiclass"), RADII)
def test_class_bounds_give_the_radii(
    p_a: float,
    p_b: float,
    cohen: float,
    multiclass: float,
) -> None:
    n, alpha = 100_000, 0.001
    top, rival = round(p_a * n), round(p_b * n)
    rest = n - top - rival
    counts = [rival, top] + [rest // 10] * 9 + [rest - 9 * (rest // 10)]

    radius = certified_radius(*class_bounds(counts, 1, alpha, "cohen"), 1)
    assert radius == pytest.approx(cohen, abs=5e-5)

    even = clopper_pearson_lower(top, n, alpha / 2), clopper_pearson_upper(rival, n, alpha / 2)
    assert certified_radius(*even, 1) == pytest.approx(multiclass, abs=5e-5)
    radius = certified_radius(*class_bounds(counts, 1, alpha, "multiclass"), 1)
    assert multiclass - 0.0023 < radius < multiclass + 0.01


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_class_bounds_are_vectorised(bound: str, rng: np.random.Generator) -> None:
    counts = rng.multinomial(1000, [0.7, 0.2, 0.05, 0.05], 20)
    labels = rng.integers(0, 4, 20)
    p_lower, p_upper = class_bounds(counts, labels, 0.01, bound)
    for i in range(20):
        assert (p_lower[i], p_upper[i]) == class_bounds(counts[i], labels[i], 0.01, bound)
    np.testing.assert_array_equal(
        class_bounds(counts, 2, 0.01, bound), class_bounds(counts, np.full(20, 2), 0.01, bound)
    )


def test_class_bounds_of_cohen_are_complements() -> None:
    p_lower, p_upper = class_bounds([[900, 60, 40], [0, 1000, 0]], 0, 0.001, "cohen")
    np.testing.assert_array_equal(p_lower, clopper_pearson_lower([900, 0], 1000, 0.001))
    assert (p_lower + p_upper >= 1).all()
    np.testing.assert_allclose(p_lower + p_upper, 1, atol=3e-16)


def test_class_bounds_of_multiclass_are_the_two_clopper_pearson_bounds() -> None:
    p_lower, p_upper = class_bounds([600, 300, 100], 0, 0.001, "multiclass")
    assert p_lower == clopper_pearson_lower(600, 1000, 0.0009)
    assert p_upper == pytest.approx(clopper_pearson_upper(300, 1000, 0.0001), rel=1e-12)
    # Where the class leaves less than the rival's bound, the complement is the better bound.
    p_lower, p_upper = class_bounds([1000, 0, 0], 0, 0.001, "multiclass")
    assert p_upper == pytest.approx(1 - p_lower, rel=1e-12)


@settings(deadline=None)
@given(st.integers(0, 100_000), st.floats(0, 1))
def test_multiclass_gives_up_little_and_gains_where_rivals_are_spread(own: int, share: float) -> None:
    """Its share of alpha costs at most 0.004 sigma at n = 100,000, whatever the votes; a small rival repays it."""
    rival = round(share * (100_000 - own))
    multiclass, cohen = (
        certified_radius(*share_bounds(own, rival, 100_000, 0.001, bound), 1) for bound in ("multiclass", "cohen")
    )
    assert multiclass >= cohen - 0.004
    if rival < 0.8 * (100_000 - own) and own > rival + 2_000 and own < 99_000:
        assert multiclass > cohen


def test_class_bounds_of_an_abstention_certify_nothing() -> None:
    for bound in ("multiclass", "cohen"):
        p_lower, p_upper = class_bounds([60, 30, 10], -1, 0.001, bound)
        assert p_lower == 0 < p_upper


def test_own_and_rival() -> None:
    own, rival = own_and_rival([[5, 3, 2], [1, 9, 9], [0, 0, 4]], [0, 1, 0])
    np.testing.assert_array_equal(own, [5, 9, 0])
    np.testing.assert_array_equal(rival, [3, 9, 4])
    assert own_and_rival([5, 3, 2], 2) == (2, 5)
    assert own_and_rival([5, 3, 2], -1) == own_and_rival([5, 3, 2], 3) == (0, 5)
    assert own_and_rival([7], 0) == (7, 0)
    own, rival = own_and_rival(np.arange(24).reshape(2, 3, 4), 3)
    np.testing.assert_array_equal(own, [[3, 7, 11], [15, 19, 23]])
    np.testing.assert_array_equal(rival, own - 1)


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_share_bounds_are_class_bounds(bound: str, rng: np.random.Generator) -> None:
    counts = rng.multinomial(1000, [0.7, 0.2, 0.05, 0.05], 20)
    labels, u = rng.integers(0, 4, 20), rng.random(20)
    for u_ in (1.0, u):
        bounds = share_bounds(*own_and_rival(counts, labels), 1000, 0.01, bound, u_)
        np.testing.assert_array_equal(bounds, class_bounds(counts, labels, 0.01, bound, u_))


def test_share_bounds_of_cohen_ignore_the_rival() -> None:
    p_lower, p_upper = share_bounds(700, [0, 300], 1000, 0.01, "cohen")
    assert p_lower == clopper_pearson_lower(700, 1000, 0.01)
    assert np.ndim(p_upper) == 0


def test_share_bounds_grow_with_the_rival() -> None:
    p_lower, p_upper = share_bounds(500, np.arange(501), 1000, 0.01, "multiclass")
    assert p_lower == clopper_pearson_lower(500, 1000, 0.009)
    assert (np.diff(p_upper) >= 0).all()
    assert p_upper[-1] == np.nextafter(1 - p_lower, 1)  # what the class leaves


@pytest.mark.parametrize("deviation", [1e-9, 2.5e-7, 0.3])
def test_a_deviation_moves_bounds_out_by_as_much(deviation: float) -> None:
    own, rival = np.array([0, 1, 600, 900, 1000]), np.array([1000, 999, 100, 100, 0])
    plain = share_bounds(own, rival, 1000, 0.01, "multiclass")
    low, high = share_bounds(own, rival, 1000, 0.01, "multiclass", deviation=deviation)
    for k, m, before, after in zip(own, rival, plain[0], low, strict=True):
        assert Fraction(after) <= max(Fraction(before) - Fraction(deviation), 0)
        upper = clopper_pearson_upper(m, 1000, 0.001)
        assert Fraction(high[own == k].item()) >= min(Fraction(upper.item()) + Fraction(deviation), 1 - Fraction(after))
    np.testing.assert_allclose(low, np.maximum(plain[0] - deviation, 0), rtol=0, atol=1e-15)
    assert ((low >= 0) & (high <= 1) & (high >= plain[1])).all()


def test_u_moves_the_lower_bound_alone() -> None:
    plain, random = (class_bounds([600, 100, 300], 0, 0.001, "multiclass", u) for u in (1.0, 0.25))
    assert random[0] == clopper_pearson_lower(600, 1000, 0.0009, 0.25) > plain[0]
    assert random[1] == plain[1] == clopper_pearson_upper(300, 1000, 0.001 - 0.0009)
    plain, random = (class_bounds([600, 100, 300], 0, 0.001, "cohen", u) for u in (1.0, 0.25))
    assert random[0] == clopper_pearson_lower(600, 1000, 0.001, 0.25) > plain[0]
    assert random[1] == np.nextafter(1 - random[0], 1)


# Tests and sample sizes


def test_binomial_test_agrees_with_scipy(rng: np.random.Generator) -> None:
    n1 = np.concatenate([[0, 1, 10, 0, 9, 500, 100_000], rng.integers(0, 300, 40)])
    n2 = np.concatenate([[0, 1, 10, 9, 0, 400, 99_000], rng.integers(0, 300, 40)])
    p_values = binomial_test(n1, n2)
    for a, b, p_value in zip(n1.tolist(), n2.tolist(), p_values, strict=True):
        expected = scipy.stats.binomtest(a, a + b).pvalue if a + b else 1.0
        assert p_value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [0, 1, 7, 50_000])
def test_binomial_test_is_1_at_ties(n: int) -> None:
    assert binomial_test(n, n) == 1


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_binomial_test_is_symmetric(n1: int, n2: int) -> None:
    assert 0 <= binomial_test(n1, n2) == binomial_test(n2, n1) <= 1


def test_samples_to_decide_at_the_usual_level() -> None:
    assert samples_to_predict(0.001) == 11
    assert samples_to_certify(0.001, "cohen") == 10
    assert samples_to_certify(0.001, "multiclass") == 11


@settings(deadline=None)
@given(st.floats(1e-100, 0.99))
def test_samples_to_decide_are_the_least(alpha: float) -> None:
    n = samples_to_predict(alpha)
    assert 2 * 0.5**n <= alpha < 2 * 0.5 ** (n - 1)
    n = samples_to_certify(alpha, "cohen")
    assert 0.5**n < alpha <= 0.5 ** (n - 1)


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_unanimous_votes_certify_from_the_least_sample_size_on(bound: str) -> None:
    n = samples_to_certify(0.001, bound)
    for votes, certifies in ((n - 1, False), (n, True)):
        p_lower, p_upper = class_bounds([votes, 0], 0, 0.001, bound)
        assert (p_lower > p_upper) == certifies


# Errors


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (clopper_pearson_lower, ([3, 11], 10, 0.1), "k is 11; it must be a whole number in 0..n"),
        (clopper_pearson_upper, (11, 10, 0.1), "k is 11; it must be a whole number in 0..n"),
        (clopper_pearson_lower, (-1, 10, 0.1), "k is -1; it must be"),
        (clopper_pearson_lower, (1.5, 10, 0.1), "k is 1.5; it must be"),
        (clopper_pearson_lower, (math.nan, 10, 0.1), "k is nan; it must be"),
        (clopper_pearson_lower, (0, 0, 0.1), "n is 0; it must be a whole number of at least 1"),
        (clopper_pearson_lower, (1, 10, 1e-101), "alpha is 1e-101; it must be at least 1e-100"),
        (clopper_pearson_lower, (1, 10, 0), "alpha is 0; it must be at least 1e-100 and below 1"),
        (
            clopper_pearson_upper,
            (1, 10, [0.5, 1.0]),
            "alpha is 1; it must be at least 1e-100 and below 1",
        ),
        (clopper_pearson_lower, (1, 10, 0.1, 0), "u is 0; it must be above 0 and at most 1"),
        (clopper_pearson_lower, (1, 10, 0.1, [0.5, 1.5]), "u is 1.5; it must be above 0 and at most 1"),
        (clopper_pearson_lower, (1, 10, 0.1, math.nan), "u is nan; it must be above 0 and at most 1"),
        (class_bounds, ([9, 1], 0, 0.1, "cohen", -0.1), "u is -0.1; it must be above 0 and at most 1"),
        (share_bounds, (11, 0, 10, 0.1, "cohen"), "k is 11; it must be a whole number in 0..n"),
        (share_bounds, (9, 1, 10, 0.1, "exact"), "bound is 'exact'; it must be one of multiclass"),
        (uniform_radius, (1.1, 0.1, 1), "p_lower is 1.1; it must be in [0, 1]"),
        (uniform_radius, (0.9, math.nan, 1), "p_upper is nan; it must be in [0, 1]"),
        (uniform_radius, (0.9, 0.1, [1, 0]), "half_width is 0; it must be positive and finite"),
        (laplace_radius, (-0.1, 1), "p_lower is -0.1; it must be in [0, 1]"),
        (laplace_radius, (0.9, -1), "scale is -1; it must be positive and finite"),
        (converted_radius, (-1, 2, 1, 4), "radius is -1; it must be at least 0"),
        (converted_radius, (math.nan, 2, 1, 4), "radius is nan; it must be at least 0"),
        (converted_radius, (1, 0.5, 1, 4), "norm is 0.5; it must be at least 1"),
        (converted_radius, (1, 2, math.nan, 4), "to is nan; it must be at least 1"),
        (converted_radius, (1, 2, 1, 0), "dimension is 0; it must be at least 1"),
        (gaussian_quantile_lower, (1.1,), "p is 1.1; it must be in [0, 1]"),
        (certified_radius, (math.nan, 0.1, 1), "p_lower is nan; it must be in [0, 1]"),
        (certified_radius, (0.9, -0.1, 1), "p_upper is -0.1; it must be in [0, 1]"),
        (certified_radius, (0.9, 0.1, [0.5, 0]), "sigma is 0; it must be positive and finite"),
        (certified_radius, (0.9, 0.1, math.inf), "sigma is inf; it must be positive and finite"),
        (class_bounds, ([9, 1], 0, 1.05, "multiclass"), "alpha is 1.05; it must be at least"),
        (class_bounds, ([9, 1], 0, 0.1, "exact"), "bound is 'exact'; it must be one of multiclass"),
        (class_bounds, ([0, 0], 0, 0.1, "cohen"), "n is 0; it must be"),
        (binomial_test, (-1, 5), "n1 is -1; it must be a whole number of at least 0"),
        (binomial_test, (1, 0.5), "n2 is 0.5; it must be a whole number of at least 0"),
        (samples_to_certify, (0, "cohen"), "alpha is 0; it must be at least 1e-100 and below 1"),
        (samples_to_predict, (math.nan,), "alpha is nan; it must be at least 1e-100 and below 1"),
    ],
)
def test_bad_arguments_are_named(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        function(*arguments)

"""Procedures on votes drawn from known probabilities: rules, edge cases and error rates."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothfast.noise import Stream
from smoothfast.procedures import ABSTAIN, Decision, Draw, FixedCertify, FixedPredict, Procedure
from smoothfast.statistics import binomial_test, certified_radius, class_bounds, clopper_pearson_lower

BOUNDS = ["multiclass", "cohen"]


def run(procedure: Procedure, *stages: list[int]) -> Decision:
    """The decision on votes [K + 1] given stage by stage; each stage must be drawn."""
    answer: Draw | Decision = procedure.begin()
    for votes in stages:
        assert isinstance(answer, Draw)
        answer = procedure.update(np.array(votes))
    assert isinstance(answer, Decision)
    return answer


def simulate(
    procedure: Procedure,
    probabilities: list[float],
    rng: np.random.Generator,
) -> Decision:
    """The decision on votes of a stand-in classifier; the last probability is that of no class."""
    answer: Draw | Decision = procedure.begin()
    while isinstance(answer, Draw):
        answer = procedure.update(rng.multinomial(answer.count, probabilities))
    return answer


def most_errors(repetitions: int, rate: float) -> int:
    """What errors of at most this rate exceed once in 10,000 times."""
    return int(scipy.stats.binom.isf(1e-4, repetitions, rate))


# FixedPredict


def test_predict_draws_once_and_decides() -> None:
    procedure = FixedPredict(100, 0.001)
    assert procedure.begin() == Draw(Stream.PREDICT, 0, 100)
    decision = run(procedure, [20, 75, 3, 2])
    assert (decision.label, decision.invalid, decision.samples) == (1, 2, 100)
    assert decision.counts.tolist() == [20, 75, 3]
    assert decision.p_value == binomial_test(75, 20)
    assert (decision.radius, decision.p_lower, decision.p_upper) == (0, 0, 1)


@pytest.mark.parametrize(
    ("votes", "label"),
    [
        ([0, 11, 0, 0], 1),
        ([0, 10, 1, 0], ABSTAIN),
        ([5, 5, 1, 0], ABSTAIN),  # a tie
        ([0, 10, 0, 1], ABSTAIN),  # an invalid row counts like a vote for a rival
        ([0, 0, 0, 11], ABSTAIN),
        ([1, 0, 0, 10], ABSTAIN),
    ],
)
def test_predict_at_its_smallest_n(votes: list[int], label: int) -> None:
    assert run(FixedPredict(11, 0.001), votes).label == label


def test_predict_never_answers_with_invalid_rows() -> None:
    decision = run(FixedPredict(1000, 0.001), [10, 0, 990])
    assert (decision.label, decision.p_value, decision.invalid) == (ABSTAIN, 1, 990)


def test_predict_decides_at_equality_and_breaks_ties_to_the_lowest_index() -> None:
    alpha = float(binomial_test(15, 1))
    assert run(FixedPredict(16, alpha), [1, 15, 0]).label == 1
    assert run(FixedPredict(16, math.nextafter(alpha, 0)), [1, 15, 0]).label == ABSTAIN
    # Equal runners-up do not matter; that the counts are mixed does not either.
    assert run(FixedPredict(40, 0.001), [5, 5, 25, 5, 0]).label == 2


@pytest.mark.parametrize(
    "probabilities",
    [[0.5, 0.5, 0], [0.45, 0.1, 0.45], [0.34, 0.33, 0.33, 0], [0.1] * 10 + [0]],
    ids=["two", "invalid", "three", "ten"],
)
def test_predict_errs_at_most_at_its_level(probabilities: list[float]) -> None:
    # At a tie of the most probable outcomes, any answer counts as an error; else any but the mode.
    rng, alpha = np.random.default_rng(1), 0.05
    mode = 0 if probabilities[0] > max(probabilities[1:]) else ABSTAIN
    labels = [simulate(FixedPredict(200, alpha), probabilities, rng).label for _ in range(4000)]
    assert sum(label not in (mode, ABSTAIN) for label in labels) <= most_errors(4000, alpha)


# FixedCertify


@pytest.mark.parametrize("bound", BOUNDS)
def test_certify_selects_then_estimates(bound: str) -> None:
    procedure = FixedCertify(100, 1000, 0.001, 0.5, bound)
    assert procedure.begin() == Draw(Stream.SELECT, 0, 100)
    assert procedure.update(np.array([30, 60, 5, 5])) == Draw(Stream.ESTIMATE, 0, 1000)
    decision = procedure.update(np.array([200, 750, 40, 10]))
    assert isinstance(decision, Decision)
    assert (decision.label, decision.invalid, decision.samples) == (1, 10, 1100)
    assert decision.counts.tolist() == [200, 750, 40]
    bounds = class_bounds([200, 750, 40, 10], 1, 0.001, bound)
    np.testing.assert_array_equal([decision.p_lower, decision.p_upper], bounds)
    assert decision.radius == certified_radius(*bounds, 0.5) > 0
    assert decision.p_value == 1


def test_certify_with_cohens_bound_gives_cohens_radius() -> None:
    decision = run(FixedCertify(100, 100_000, 0.001, 0.25, "cohen"), [100, 0, 0], [99_000, 1000, 0])
    p_lower = scipy.stats.beta.ppf(0.001, 99_000, 1001)
    assert decision.radius == pytest.approx(0.25 * scipy.stats.norm.ppf(p_lower), rel=1e-8)


def test_certify_a_given_label_selects_nothing() -> None:
    procedure = FixedCertify(100, 1000, 0.001, 0.5, "cohen", label=2)
    assert procedure.begin() == Draw(Stream.ESTIMATE, 0, 1000)
    decision = run(procedure, [100, 0, 900, 0])
    assert (decision.label, decision.samples) == (2, 1000)
    assert run(FixedCertify(1, 1000, 0.001, 0.5, "cohen", label=0), [100, 900, 0]).label == ABSTAIN


def test_certify_abstains_below_one_half_with_cohens_bound_only() -> None:
    votes = [100, 0, 0, 0], [460, 100, 440, 0]
    cohen = run(FixedCertify(100, 1000, 0.001, 1, "cohen"), *votes)
    assert (cohen.label, cohen.radius) == (ABSTAIN, 0)
    assert cohen.p_lower == clopper_pearson_lower(460, 1000, 0.001)
    votes = [100, 0, 0, 0], [460, 100, 240, 200]
    assert run(FixedCertify(100, 1000, 0.001, 1, "multiclass"), *votes).radius > 0


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("selection", "estimation", "label"),
    [
        ([50, 50, 0], [1000, 0, 0], 0),  # ties to the lowest index
        ([50, 50, 0], [0, 1000, 0], ABSTAIN),  # the selected class gets no vote
        ([100, 0, 0], [500, 500, 0], ABSTAIN),
        ([1, 0, 99], [1000, 0, 0], 0),  # invalid rows are not selected
        ([100, 0, 0], [500, 0, 500], ABSTAIN),  # and are rivals
        ([100, 0, 0], [0, 0, 1000], ABSTAIN),
    ],
)
def test_certify_edge_cases(
    bound: str,
    selection: list[int],
    estimation: list[int],
    label: int,
) -> None:
    decision = run(FixedCertify(100, 1000, 0.001, 0.5, bound), selection, estimation)
    assert decision.label == label
    assert (decision.radius > 0) == (label != ABSTAIN)


def test_certify_abstains_at_once_if_no_selection_sample_is_valid() -> None:
    decision = run(FixedCertify(100, 1000, 0.001, 0.5, "multiclass"), [0, 0, 100])
    assert (decision.label, decision.radius, decision.samples) == (ABSTAIN, 0, 100)
    assert (decision.counts.tolist(), decision.invalid) == ([0, 0], 100)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**5), min_size=2, max_size=6), st.sampled_from(BOUNDS))
def test_certify_is_consistent(votes: list[int], bound: str) -> None:
    n = max(sum(votes), 11)
    votes[-1] += n - sum(votes)
    decision = run(FixedCertify(1, n, 0.001, 0.5, bound, label=0), votes)
    assert decision.label in (0, ABSTAIN)
    assert 0 <= decision.p_lower <= votes[0] / n
    assert decision.p_upper <= 1
    assert decision.radius == 0 or decision.label == 0
    assert math.isfinite(decision.radius)


@pytest.mark.parametrize("bound", BOUNDS)
def test_certify_decides_from_its_smallest_n_on(bound: str) -> None:
    n = {"multiclass": 11, "cohen": 10}[bound]
    assert run(FixedCertify(1, n, 0.001, 0.5, bound), [0, 1, 0], [0, n, 0]).label == 1
    with pytest.raises(ValueError, match=f"n is {n - 1}; .* at least {n};"):
        FixedCertify(1, n - 1, 0.001, 0.5, bound)


@pytest.mark.parametrize(
    ("bound", "probabilities"),
    [
        ("cohen", [0.5, 0.5, 0]),
        ("cohen", [0.5, 0.2, 0.3]),
        ("multiclass", [0.5, 0.5, 0]),
        ("multiclass", [0.4, 0.4, 0.2, 0]),
        ("multiclass", [0.4, 0.2, 0.4]),
    ],
)
def test_certify_a_class_without_lead_at_most_at_its_level(
    bound: str,
    probabilities: list[float],
) -> None:
    rng, alpha = np.random.default_rng(2), 0.05
    procedures = (FixedCertify(1, 300, alpha, 1, bound, label=0) for _ in range(4000))
    labels = [simulate(procedure, probabilities, rng).label for procedure in procedures]
    errors = sum(label != ABSTAIN for label in labels)
    assert errors <= most_errors(4000, alpha)


@pytest.mark.parametrize("bound", BOUNDS)
def test_certify_overstates_the_radius_at_most_at_its_level(bound: str) -> None:
    rng, alpha, sigma = np.random.default_rng(3), 0.05, 0.5
    probabilities = [0.7, 0.3, 0] if bound == "cohen" else [0.6, 0.2, 0.15, 0.05]
    top, rival = probabilities[:2]
    radius = sigma / 2 * (scipy.stats.norm.ppf(top) - scipy.stats.norm.ppf(rival))
    errors = 0
    for _ in range(4000):
        decision = simulate(FixedCertify(20, 300, alpha, sigma, bound), probabilities, rng)
        wrong_class = decision.label not in (0, ABSTAIN)
        errors += wrong_class or decision.radius > radius
    assert errors <= most_errors(4000, alpha)
    if bound == "cohen":  # one exact bound spends its level, but for the steps of the counts
        assert errors >= alpha / 2 * 4000


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n0": 0}, "n0 is 0; it must be a whole number of at least 1"),
        ({"n": 10}, "n is 10; it must be a whole number of at least 11; fewer always abstain"),
        ({"n": 100.0}, "n is 100.0; it must be a whole number"),
        ({"alpha": 0}, "alpha is 0; it must be at least 1e-100 and below 1"),
        ({"sigma": 0}, "sigma is 0; it must be positive and finite"),
        ({"sigma": math.nan}, "sigma is nan; it must be positive and finite"),
        ({"sigma": math.inf}, "sigma is inf; it must be positive and finite"),
        ({"bound": "exact"}, "bound is 'exact'; it must be one of multiclass, cohen"),
        ({"label": -1}, "label is -1; it must be at least 0"),
    ],
)
def test_certify_names_bad_arguments(change: dict[str, Any], message: str) -> None:
    arguments = {"n0": 100, "n": 1000, "alpha": 0.001, "sigma": 0.5, "bound": "multiclass"}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        FixedCertify(**{**arguments, **change})


@pytest.mark.parametrize(
    ("n", "alpha", "message"),
    [
        (10, 0.001, "n is 10; it must be a whole number of at least 11; fewer always abstain"),
        (100, 1, "alpha is 1; it must be at least 1e-100 and below 1"),
    ],
)
def test_predict_names_bad_arguments(n: int, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        FixedPredict(n, alpha)


def test_votes_must_be_complete_and_know_the_label() -> None:
    with pytest.raises(ValueError, match="votes sum to 99; they must sum to 100"):
        FixedPredict(100, 0.001).update(np.array([99, 0, 0]))
    with pytest.raises(ValueError, match="votes sum to 101; they must sum to 100"):
        FixedCertify(100, 1000, 0.001, 0.5, "cohen").update(np.array([101, 0, 0]))
    with pytest.raises(ValueError, match="label is 2; it must be below 2"):
        FixedCertify(1, 100, 0.001, 0.5, "cohen", label=2).update(np.array([0, 0, 100]))

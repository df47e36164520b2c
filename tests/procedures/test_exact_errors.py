"""Error rates of the procedures computed exactly, over every path that votes can take: no simulation, no luck.

Votes are a Markov chain, one sample after the other. Its states are counts: of the class that is judged, of rivals that
share one probability, sorted since nothing tells them apart, and of one more. Every look of a procedure is judged on
all states at once by the procedure's own method, and what it decides leaves the chain. The law is tried on a grid of
the worst ones: ties and boundaries of radii.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from smoothfast.procedures import (
    ABSTAIN,
    FixedCertify,
    FixedPredict,
    GridCertify,
    SequentialCertify,
    SequentialPredict,
    ToleranceCertify,
)

ALPHAS, SIGMA = (0.05, 0.001), 0.5
State = tuple[int, ...]  # counts: the class judged, the rivals in falling order
Judge = Callable[[int, NDArray[np.int64]], NDArray[np.bool_]]


def grown(states: dict[State, float], own: float, rivals: NDArray[np.float64]) -> dict[State, float]:
    """The probabilities of states after one sample more; `rivals` are the probabilities of the rivals, equal ones."""
    after: defaultdict[State, float] = defaultdict(float)
    each, count = float(rivals[0]), len(rivals)
    for state, mass in states.items():
        after[(state[0] + 1, *state[1:])] += mass * own
        place = 1
        while place <= count:  # equal counts are one run: its first grows, and all stay sorted
            end = place
            while end < count and state[end + 1] == state[place]:
                end += 1
            after[(*state[:place], state[place] + 1, *state[place + 1 :])] += mass * each * (end - place + 1)
            place = end + 1
    return after


def risk(law: list[float], looks: Iterator[int] | tuple[int, ...], wrong: Judge, stops: Judge) -> float:
    """The probability that a run is wrong at any look that it comes to.

    Args:
        law: of the class judged and of its rivals, which are alike.
        wrong: of a look and votes [M, K + 1], which are wrong.
        stops: which end the run.
    """
    states: dict[State, float] = {(0,) * len(law): 1.0}
    total, size = 0.0, 0
    for look, until in enumerate(looks):
        for _ in range(until - size):
            states = grown(states, law[0], np.array(law[1:]))
        size = until
        votes = np.array([(*state, 0) for state in states])
        bad, done = wrong(look, votes), stops(look, votes) | wrong(look, votes)
        masses = np.array(list(states.values()))
        total += float(masses[bad].sum())
        states = {state: mass for state, mass, out in zip(states, masses, done, strict=True) if not out}
    return total


def ties(classes: int, most: float) -> list[list[float]]:
    """Laws in which the class judged has no more than any rival."""
    if classes == 2:
        return [[p, 1 - p] for p in (0.5, 0.45, 0.3)]
    return [[p, *[(1 - p) / (classes - 1)] * (classes - 1)] for p in (1 / classes, most)]


def at_radius(z: float, classes: int) -> list[float]:
    """The law of equal rivals at which the radius is z sigma: Phi^-1(p) - Phi^-1((1 - p) / (K - 1)) = 2 z."""
    low, high = 1 / classes, 1.0
    for _ in range(200):
        p = (low + high) / 2
        gap = norm.ppf(p) - norm.ppf((1 - p) / (classes - 1))
        low, high = (p, high) if gap < 2 * z else (low, p)
    return [low, *[(1 - low) / (classes - 1)] * (classes - 1)]


SIZES = {2: 150, 3: 60, 10: 24}  # classes and samples: up to 100,000 states each


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("method", [FixedPredict, SequentialPredict])
@pytest.mark.parametrize("classes", SIZES)
def test_predict(method: type[FixedPredict], classes: int, alpha: float) -> None:
    """At a tie every answer is taken for wrong."""
    procedure = method(SIZES[classes], alpha)
    level = alpha * (1 + 1e-9)

    def answers(look: int, votes: NDArray[np.int64]) -> NDArray[np.bool_]:
        return procedure.judge(votes)[0] != ABSTAIN

    tied = [1 / classes] * classes
    found = risk(tied, procedure.looks, answers, answers)
    assert 0 < found <= level or (found == 0 and classes == 10)
    for law in ties(classes, 0.9 / classes)[1:]:  # class 0 is behind
        assert risk(law, procedure.looks, lambda look, votes: procedure.judge(votes)[0] == 0, answers) <= level


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("bound", ["cohen", "multiclass"])
@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("z", [0.0, 0.3, 1.0])
def test_certify_of_a_radius(z: float, classes: int, bound: str, alpha: float) -> None:
    """Of one look, and of the plan of `ToleranceCertify`, of which the largest radius of any look counts."""
    law = at_radius(z, classes)
    true = z * SIGMA if bound == "multiclass" else max(SIGMA * float(norm.ppf(law[0])), 0.0)
    n = SIZES[classes]
    fixed, tolerant = (
        FixedCertify(1, n, alpha, SIGMA, bound, label=0),
        ToleranceCertify(1, n, alpha, SIGMA, bound, 0.1, label=0),
    )
    tolerant.look_at_multiples(n // 3)
    for procedure in (fixed, tolerant):

        def overstated(look: int, votes: NDArray[np.int64], judged: FixedCertify = procedure) -> NDArray[np.bool_]:
            return judged.judge(look, votes, 0).radius > true

        assert risk(law, procedure.looks, overstated, overstated) <= alpha


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("bound", ["cohen", "multiclass"])
@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("z", [0.1, 0.5])
def test_certify_at_a_radius(z: float, classes: int, bound: str, alpha: float) -> None:
    """Just below the radius "certified" is wrong; just above, "not certified", where the bound sees the radius."""
    n = SIZES[classes]
    try:
        procedure = SequentialCertify(1, n, alpha, SIGMA, bound, z * SIGMA, label=0)
    except ValueError as error:
        pytest.skip(str(error))  # so few samples show no such radius at this alpha
    law = at_radius(z, classes)
    if bound == "cohen":
        top = float(norm.cdf(z))
        law = [top, *[(1 - top) / (classes - 1)] * (classes - 1)]

    def certified(look: int, votes: NDArray[np.int64]) -> NDArray[np.bool_]:
        return procedure.judge(look, votes, 0)[0] >= 0

    def denied(look: int, votes: NDArray[np.int64]) -> NDArray[np.bool_]:
        held, denied = procedure.judge(look, votes, 0)
        return (denied == 0) & (held < 0)

    wrongly = risk(law, procedure.looks, certified, denied)
    assert wrongly <= alpha
    assert risk(law, procedure.looks, denied, certified) <= alpha
    if classes == 2 and bound == "cohen":
        assert wrongly > 0.5 * alpha  # an exact boundary spends its level


WIDE, NARROW = (0.0, 0.1, 0.5), (0.2, 0.24, 0.28, 0.32)


@pytest.mark.parametrize("bound", ["cohen", "multiclass"])
@pytest.mark.parametrize(
    ("grid", "classes", "alpha"),
    [(WIDE, 2, 0.05), (WIDE, 2, 0.001), (WIDE, 10, 0.05), (NARROW, 3, 0.05)],
)
def test_certify_on_a_grid(grid: tuple[float, ...], classes: int, alpha: float, bound: str) -> None:
    """Where the radius is one of the grid, no look whatever may certify that one or a larger one, nor deny it or a
    smaller one."""
    radii = [z * SIGMA for z in grid]
    procedure = GridCertify(1, SIZES[classes], alpha, SIGMA, bound, radii, beta=0.07, label=0)
    for i, z in enumerate(grid):
        law = at_radius(z, classes)
        if bound == "cohen":
            law = [float(norm.cdf(z)), *[float(norm.sf(z)) / (classes - 1)] * (classes - 1)]

        def claimed(look: int, votes: NDArray[np.int64], least: int = i) -> NDArray[np.bool_]:
            return procedure.judge(look, votes, 0)[0] >= least

        def denied(look: int, votes: NDArray[np.int64], most: int = i) -> NDArray[np.bool_]:
            return procedure.judge(look, votes, 0)[1] <= most

        wrongly = risk(law, procedure.looks, claimed, claimed)
        assert wrongly <= alpha
        assert risk(law, procedure.looks, denied, denied) <= 0.07
        if classes == 2 and bound == "cohen":
            assert wrongly > 0.5 * alpha  # of which a union over the grid would leave a third or a fourth


def test_the_chain_is_the_multinomial_law() -> None:
    states: dict[State, float] = {(0, 0, 0): 1.0}
    for _ in range(6):
        states = grown(states, 0.5, np.array([0.25, 0.25]))
    assert sum(states.values()) == pytest.approx(1, abs=1e-12)
    assert states[2, 3, 1] == pytest.approx(60 * 0.5**2 * 0.25**4 * 2)  # in either order
    assert states[2, 2, 2] == pytest.approx(90 * 0.5**2 * 0.25**4)


def test_twice_the_level_is_found_out() -> None:
    """The test has teeth: at the boundary a test at level 2 alpha errs more often than alpha."""
    procedure = SequentialCertify(1, 300, 0.1, SIGMA, "cohen", 0.1 * SIGMA, label=0)
    law = [float(norm.cdf(0.1)), float(norm.sf(0.1))]

    def certified(look: int, votes: NDArray[np.int64]) -> NDArray[np.bool_]:
        return procedure.judge(look, votes, 0)[0] >= 0

    assert risk(law, procedure.looks, certified, certified) > 0.05

"""Error levels of the procedures: errors counted on votes of known probabilities, where they are likeliest.

Many runs go at once through the method by which a procedure judges a look; some go through the procedure itself too,
which must decide the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..procedures import (
    ABSTAIN,
    CERTIFIED,
    NOT_CERTIFIED,
    UNDECIDED,
    Decision,
    FixedCertify,
    FixedPredict,
    GridCertify,
    Procedure,
    SequentialCertify,
    SequentialPredict,
    ToleranceCertify,
)
from ..statistics import own_and_rival
from .effort import Effort
from .records import LEVEL, Check, Finding, judged, none_differ

SUBJECT = "Error levels"
N, N0, SIGMA = 2000, 100, 0.5
FIRST_LOOK = 300  # of the tolerance, whose plan comes from samples of its own
GRID = (0.0, 0.5, 1.0, 1.5)  # radii / sigma
REPLAYED = 60  # runs that go through the procedure itself
Votes = NDArray[np.int64]
Law = list[float]  # probabilities of the classes, and in the end of no class


class Counted(NamedTuple):
    """Errors of a procedure that are counted.

    Attributes:
        name: as it stands in records.
        make: the procedure at a level.
        law: probabilities of the votes.
        wrong: which runs err, by the procedure, the law and what draws votes.
        exact: whether twice the level doubles the errors, so that the count finds that mistake.
    """

    name: str
    make: Callable[[float], Any]
    law: Law
    wrong: Callable[[Any, Law, int, np.random.Generator], NDArray[np.bool_]]
    exact: bool = False


def checks(effort: Effort) -> Iterator[Check]:
    """Makes the checks of this subject."""
    for counted in everything():
        yield Check(SUBJECT, counted.name, partial(errors, effort, counted))
    if effort.mistakes:
        for counted in everything():
            if counted.exact:
                yield Check(SUBJECT, f"twice the level is found out: {counted.name}", partial(mistake, effort, counted))
    yield Check(SUBJECT, "runs are judged together as one by one", partial(one_by_one, effort))


def everything() -> list[Counted]:
    """Procedures whose errors are counted, by each bound, at laws where they err most."""
    return [*_predictions(), *_radii("cohen"), *_radii("multiclass"), *_tests_of_radii()]


def _predictions() -> Iterator[Counted]:
    for make in (FixedPredict, SequentialPredict):
        for told, law in (("two tied", [0.5, 0.5, 0]), ("three near each other", [0.335, 0.333, 0.332, 0])):
            exact = make is FixedPredict and told == "two tied"
            yield Counted(f"{make.__name__}, {told}", partial(make, N), law, wrong_answers, exact)


def _radii(bound: str) -> Iterator[Counted]:
    for told, law in (("two classes", [0.7, 0.3, 0]), ("three near each other", [0.36, 0.34, 0.3, 0])):
        wrong, exact = partial(overstated, bound), bound == "cohen" and told == "two classes"
        yield Counted(f"FixedCertify, {bound}, {told}", partial(_fixed, bound), law, wrong, exact)
        yield Counted(f"ToleranceCertify, {bound}, {told}", partial(_tolerance, bound), law, wrong)


def _tests_of_radii() -> Iterator[Counted]:
    """The tests of a radius that is the one asked for, so that every answer is an error."""
    for bound, z, told, law in (
        ("cohen", 1.0, "one rival", at_radius(1.0, None, 1)),
        ("multiclass", 1.0, "one rival", at_radius(1.0, None, 1)),
        ("multiclass", 0.5, "nine rivals", at_radius(0.5, 0.07, 9)),
    ):
        for outcome in (CERTIFIED, NOT_CERTIFIED):
            name = f"SequentialCertify, {bound}, {told}: {outcome}"
            exact = told == "one rival" and (bound == "cohen" or outcome == CERTIFIED)
            yield Counted(name, partial(_sequential, bound, z), law, partial(answered, outcome), exact)
    law, wrong = at_radius(GRID[1], None, 1), partial(claimed, 1)
    yield Counted("GridCertify, cohen, the second radius or a larger one", _grid, law, wrong)


def _fixed(bound: str, alpha: float) -> FixedCertify:
    return FixedCertify(N0, N, alpha, SIGMA, bound)


def _tolerance(bound: str, alpha: float) -> ToleranceCertify:
    made = ToleranceCertify(N0, N, alpha, SIGMA, bound, 0.05)
    made.look_at_multiples(FIRST_LOOK)
    return made


def _sequential(bound: str, z: float, alpha: float) -> SequentialCertify:
    return SequentialCertify(N0, N, alpha, SIGMA, bound, z * SIGMA, label=0)


def _grid(alpha: float) -> GridCertify:
    return GridCertify(N0, N, alpha, SIGMA, "cohen", [z * SIGMA for z in GRID], label=0)


def at_radius(z: float, rival: float | None, rivals: int) -> Law:
    """A law by which class 0 has a radius of z sigma against so many rivals of this probability, or against one that
    has all the rest; others share what is left."""
    from scipy.stats import norm

    if rival is None:
        return [float(norm.cdf(z)), float(norm.sf(z)), 0.0]
    top = float(norm.cdf(norm.ppf(rival) + 2 * z))
    return [top, *[rival] * rivals, *[(1 - top - rivals * rival) / 5] * 5]


def errors(effort: Effort, counted: Counted) -> Finding:
    """Counts the errors of a procedure, and holds them against its level."""
    count, most = _count(effort, counted, effort.alpha)
    told = f"{count:,} errors in {effort.runs:,} runs, {effort.alpha * effort.runs:,.0f} allowed in the mean"
    return judged(count <= most, told, f"{most:,}")._replace(chances=1)


def mistake(effort: Effort, counted: Counted) -> Finding:
    """Counts the errors of a procedure at twice its level, which have to be too many."""
    count, most = _count(effort, counted, 2 * effort.alpha)
    return judged(count > most, f"{count:,} errors in {effort.runs:,} runs", f"more than {most:,}")


def _count(effort: Effort, counted: Counted, alpha: float) -> tuple[int, int]:
    """The errors of a procedure of level alpha, and what those of the effort's level exceed once in 1 / LEVEL times."""
    from scipy.stats import binom

    rng = np.random.default_rng([effort.seed, *counted.name.encode()])
    count, left = 0, effort.runs
    while left:
        runs = min(left, 100_000)
        count, left = count + int(counted.wrong(counted.make(alpha), counted.law, runs, rng).sum()), left - runs
    return count, int(binom.isf(LEVEL, effort.runs, effort.alpha))


# ---- many runs at once -----------------------------------------------------------------------------------------------


def looks(procedure: Any, law: Law, runs: int, rng: np.random.Generator) -> Iterator[Votes]:
    """Votes [runs, K + 1] up to each look of a procedure."""
    votes = np.zeros((runs, len(law)), np.int64)
    for size in np.diff(procedure.looks, prepend=0):
        votes = votes + rng.multinomial(size, law, runs)
        yield votes


def labels_of(procedure: Any, votes: Iterator[Votes]) -> Votes:
    """The answers of PREDICT, each at the first look that decides."""
    labels: Votes = np.array(ABSTAIN)
    for seen in votes:
        labels = np.where(labels == ABSTAIN, procedure.judge(seen)[0], labels)
    return labels


def outcomes_of(procedure: SequentialCertify, votes: Iterator[Votes]) -> NDArray[np.str_]:
    """The outcomes of a test of a radius, each at the first look that decides."""
    found: NDArray[np.str_] = np.array(UNDECIDED)
    for look, seen in enumerate(votes):
        held, denied = procedure.judge(look, seen, 0)
        here = np.where(held >= 0, CERTIFIED, np.where(denied == 0, NOT_CERTIFIED, UNDECIDED))
        found = np.where(found == UNDECIDED, here, found)
    return found


def wrong_answers(procedure: Any, law: Law, runs: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Runs of PREDICT whose answer is not the most probable class, or one of several."""
    labels = labels_of(procedure, looks(procedure, law, runs, rng))
    mode = 0 if law[0] > max(law[1:]) else ABSTAIN
    return (labels != mode) & (labels != ABSTAIN)


def answered(
    outcome: str, procedure: SequentialCertify, law: Law, runs: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Runs of a test of a radius that have this outcome."""
    return outcomes_of(procedure, looks(procedure, law, runs, rng)) == outcome


def claimed(least: int, procedure: GridCertify, law: Law, runs: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Runs in which votes certify a radius of a grid from this place on, at a look that is made or not."""
    found = np.zeros(runs, bool)
    for look, seen in enumerate(looks(procedure, law, runs, rng)):
        found |= procedure.judge(look, seen, 0)[0] >= least
    return found


def overstated(bound: str, procedure: FixedCertify, law: Law, runs: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Runs whose largest radius, of all looks whether they are made or not, is larger than the true one."""
    from scipy.stats import norm

    labels = rng.multinomial(N0, law, runs)[:, :-1].argmax(1)
    radii = np.zeros(runs)
    for look, seen in enumerate(looks(procedure, law, runs, rng)):
        own, rival = own_and_rival(seen, labels)
        # Runs with equal votes are judged once.
        _, first, run = np.unique(own * (N + 1) + rival, return_index=True, return_inverse=True)
        radii = np.maximum(radii, procedure.judge(look, seen[first], labels[first]).radius[run])
    rivals = [
        1 - p if bound == "cohen" else max(q for i, q in enumerate(law) if i != c) for c, p in enumerate(law[:-1])
    ]
    true = [SIGMA / 2 * float(norm.ppf(p) - norm.ppf(q)) for p, q in zip(law, rivals, strict=False)]
    return radii > np.maximum(true, 0)[labels]


# ---- one by one ------------------------------------------------------------------------------------------------------


def one_by_one(effort: Effort) -> Finding:
    """Compares decisions of the procedures, handed their votes look by look, with those of many runs at once."""
    rng = np.random.default_rng(effort.seed)
    wrong = total = 0
    cases: tuple[tuple[Callable[[], Any], Law, Callable[..., Any], str], ...] = (
        (partial(SequentialPredict, N, 0.05), [0.4, 0.34, 0.2, 0.06], labels_of, "label"),
        (partial(_sequential, "cohen", 0.2, 0.05), [0.55, 0.3, 0.1, 0.05], outcomes_of, "outcome"),
        (partial(_sequential, "multiclass", 0.2, 0.05), [0.55, 0.3, 0.1, 0.05], outcomes_of, "outcome"),
    )
    for make, law, judge, answer in cases:
        votes = np.array(list(looks(make(), law, REPLAYED, rng)))
        together = judge(make(), iter(votes)).tolist()
        alone = [getattr(decided(make(), votes[:, run]), answer) for run in range(REPLAYED)]
        wrong, total = wrong + sum(a != b for a, b in zip(together, alone, strict=True)), total + REPLAYED
    return none_differ(wrong, total, "runs")


def decided(procedure: Procedure, votes: Votes) -> Decision:
    """The decision of a procedure that is handed votes [looks, K + 1] one look after another."""
    procedure.begin()
    for increment in np.diff(votes, axis=0, prepend=0):
        answer = procedure.update(increment)
        if isinstance(answer, Decision):
            return answer
    raise AssertionError("a procedure asks for more votes than its last look has")

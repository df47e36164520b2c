"""Error rates and samples counted, on votes of known probabilities, through the rules that the procedures use.

Many runs of one procedure go at once through its method that judges a look; a test shows that this decides run by run
as the procedure itself does. Errors are counted in 200,000 runs a row; a rate above its level must be so rare that it
would show once in a million rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, norm
from smoothfast.benchmarks import samples as benchmark

from smoothfast.procedures import (
    ABSTAIN,
    Decision,
    FixedCertify,
    FixedPredict,
    GridCertify,
    Procedure,
    SequentialCertify,
    SequentialPredict,
    ToleranceCertify,
)
from smoothfast.statistics import own_and_rival

RUNS, ALPHA, SIGMA = 200_000, 0.001, 0.5
BOUNDS = ("cohen", "multiclass")
Votes = NDArray[np.int64]


def most_errors(rate: float, runs: int = RUNS) -> int:
    """What errors of at most this rate exceed once in a million times."""
    return int(binom.isf(1e-6, runs, rate))


def looks(procedure: Any, probabilities: list[float], runs: int, rng: np.random.Generator) -> Iterator[Votes]:
    """Votes [runs, K + 1] up to each look, the last probability being that of no class."""
    votes = np.zeros((runs, len(probabilities)), np.int64)
    for size in np.diff(procedure.looks, prepend=0):
        votes = votes + rng.multinomial(size, probabilities, runs)
        yield votes


def selected(n0: int, probabilities: list[float], rng: np.random.Generator) -> NDArray[np.int64]:
    """The class of each run, from n0 samples of its own."""
    return rng.multinomial(n0, probabilities, RUNS)[:, :-1].argmax(1)


def distinct(*columns: Votes) -> tuple[Votes, Votes]:
    """Runs that stand for all others with equal columns, which are judged once, and of each run which of them does."""
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        present = np.bincount(column) > 0
        key = key * present.sum() + (present.cumsum() - 1)[column]
    last = np.empty(int(key.max()) + 1, np.int64)
    last[key] = np.arange(len(key))
    chosen = np.flatnonzero(last[key] == np.arange(len(key)))
    last[key[chosen]] = np.arange(len(chosen))
    return chosen, last[key]


def predicted(procedure: SequentialPredict, votes: Iterator[Votes], runs: int) -> tuple[Votes, Votes]:
    """The labels [runs] at the first look that decides, and the samples until then [runs]."""
    labels, samples = np.full(runs, ABSTAIN), np.zeros(runs, np.int64)
    for size, seen in zip(procedure.looks, votes, strict=True):
        second, first = np.moveaxis(np.partition(seen, -2, -1)[:, -2:], -1, 0)
        chosen, run = distinct(first, second, seen.argmax(1))
        samples = np.where(labels == ABSTAIN, size, samples)
        labels = np.where(labels == ABSTAIN, procedure.judge(seen[chosen])[0][run], labels)
    return labels, samples


def certified(procedure: SequentialCertify, votes: Iterator[Votes], labels: Any, runs: int) -> tuple[Votes, Votes]:
    """1 certified, -1 not certified, 0 undecided [runs], and the samples until then [runs]."""
    (answer,) = certified_by_each([procedure], votes, labels, runs)
    return answer


def certified_by_each(
    procedures: Sequence[SequentialCertify], votes: Iterator[Votes], labels: Any, runs: int
) -> list[tuple[Votes, Votes]]:
    """The same by procedures with the same looks, on the same votes."""
    answers = [(np.zeros(runs, np.int64), np.zeros(runs, np.int64)) for _ in procedures]
    labels = np.broadcast_to(labels, runs)
    for look, seen in enumerate(votes):
        chosen, run = distinct(*own_and_rival(seen, labels))
        for i, (procedure, (outcome, samples)) in enumerate(zip(procedures, answers, strict=True)):
            held, denied = procedure.judge(look, seen[chosen], labels[chosen])
            samples = np.where(outcome == 0, procedure.looks[look], samples)
            found = np.where(held >= 0, 1, np.where(denied == 0, -1, 0))
            answers[i] = np.where(outcome == 0, found[run], outcome), samples
    return answers


def largest_radius(procedure: Any, votes: Iterator[Votes], labels: Any) -> NDArray[np.float64]:
    """The largest radius of all looks, stopped or not: no stopping rule can claim more; [runs]."""
    radii = np.zeros(RUNS)
    for look, seen in enumerate(votes):
        chosen, run = distinct(*own_and_rival(seen, labels))
        radii = np.maximum(radii, procedure.judge(look, seen[chosen], labels[chosen]).radius[run])
    return radii


def on_a_grid(procedure: GridCertify, votes: Iterator[Votes], runs: int) -> tuple[Votes, Votes]:
    """The number of the radius certified [runs], -1 for none, and the samples until it stops [runs]."""
    answer, least, samples = np.full(runs, -1), np.full(runs, 10**6), np.zeros(runs, np.int64)
    for look, seen in enumerate(votes):
        going = (answer + 1 < least) | (look == 0)
        held, denied = procedure.judge(look, seen, 0)
        answer = np.where(going, np.maximum(answer, held), answer)
        least = np.where(going, np.minimum(least, denied), least)
        samples = np.where(going, procedure.looks[look], samples)
    return answer, samples


def tolerant(bound: str, first: int) -> ToleranceCertify:
    """With the looks of one plan; plans come from samples of their own."""
    made = ToleranceCertify(100, 2000, ALPHA, SIGMA, bound, 0.05)
    made.look_at_multiples(first)
    return made


def true_radius(probabilities: list[float], label: int, bound: str) -> float:
    top = probabilities[label]
    rival = 1 - top if bound == "cohen" else max(p for i, p in enumerate(probabilities) if i != label)
    return max(SIGMA / 2 * float(norm.ppf(top) - norm.ppf(rival)), 0.0)


def at_radius(z: float, rival: float, rivals: int) -> list[float]:
    """A law at the boundary: class 0 has radius z sigma against `rivals` classes with this probability; as few others
    as can be share the rest, since the levels are divided by the number of classes."""
    top = float(norm.cdf(norm.ppf(rival) + 2 * z))
    rest = 1 - top - rivals * rival
    parts = int(rest / rival) + 1
    return [top, *[rival] * rivals, *[rest / parts] * parts]


# ---- the rules are those of the procedures ---------------------------------------------------------------------------


def replayed(procedure: Procedure, increments: NDArray[np.int64]) -> Decision:
    answer = procedure.begin()
    for votes in increments:
        answer = procedure.update(votes)
        if isinstance(answer, Decision):
            return answer
    raise AssertionError(f"asks for {answer} after its last look")


LAW = [0.55, 0.3, 0.1, 0.05]


def test_predictions_are_those_of_the_procedure() -> None:
    runs, law = 500, [0.4, 0.34, 0.2, 0.06]
    fixed = np.array(list(looks(SequentialPredict(2000, 0.05), law, runs, np.random.default_rng(1))))
    labels, samples = predicted(SequentialPredict(2000, 0.05), iter(fixed), runs)
    increments = np.diff(fixed, axis=0, prepend=0)
    for i in range(runs):
        decision = replayed(SequentialPredict(2000, 0.05), increments[:, i])
        assert (decision.label, decision.samples) == (labels[i], samples[i])
    assert {ABSTAIN, 0} <= set(labels)


@pytest.mark.parametrize("bound", BOUNDS)
def test_certificates_are_those_of_the_procedure(bound: str) -> None:
    def make() -> SequentialCertify:
        return SequentialCertify(1, 3000, 0.05, SIGMA, bound, 0.1, label=0)

    runs = 500
    fixed = np.array(list(looks(make(), LAW, runs, np.random.default_rng(2))))
    outcome, samples = certified(make(), iter(fixed), 0, runs)
    increments = np.diff(fixed, axis=0, prepend=0)
    words = {1: "certified", 0: "undecided", -1: "not certified"}
    for i in range(runs):
        decision = replayed(make(), increments[:, i])
        assert (decision.outcome, decision.samples) == (words[outcome[i]], samples[i])
    assert len(set(outcome)) >= 2


@pytest.mark.parametrize("bound", BOUNDS)
def test_answers_on_a_grid_are_those_of_the_procedure(bound: str) -> None:
    radii = (0.0, 0.06, 0.16)

    def make() -> GridCertify:
        return GridCertify(1, 3000, 0.05, SIGMA, bound, radii, label=0)

    runs = 60
    fixed = np.array(list(looks(make(), LAW, runs, np.random.default_rng(15))))
    held, samples = on_a_grid(make(), iter(fixed), runs)
    increments = np.diff(fixed, axis=0, prepend=0)
    for i in range(runs):
        decision = replayed(make(), increments[:, i])
        assert (decision.radius, decision.samples) == (radii[held[i]] if held[i] >= 0 else 0, samples[i])
        assert (decision.label == 0) == (held[i] >= 0) == (decision.outcome == "certified")
        assert (decision.p_lower > decision.p_upper) == (held[i] >= 0)
    assert len(set(held)) >= 2


# ---- PREDICT ---------------------------------------------------------------------------------------------------------

TIES = {
    "two tied": [0.5, 0.5, 0],
    "two tied, one behind": [0.4, 0.4, 0.2, 0],
    "three tied": [1 / 3, 1 / 3, 1 / 3, 0],
    "ten tied": [0.1] * 10 + [0],
    "tied with the invalid": [0.45, 0.1, 0.45],
    "three near each other": [0.335, 0.333, 0.332, 0],
    "a close second": [0.505, 0.495, 0],
}


@pytest.mark.parametrize("method", [SequentialPredict, FixedPredict])
@pytest.mark.parametrize("law", TIES.values(), ids=TIES)
def test_predict_errs_at_most_at_its_level(method: Any, law: list[float]) -> None:
    procedure = method(2000, ALPHA)
    labels, _ = predicted(procedure, looks(procedure, law, RUNS, np.random.default_rng(3)), RUNS)
    mode = 0 if law[0] > max(law[1:]) else ABSTAIN
    assert ((labels != mode) & (labels != ABSTAIN)).sum() <= most_errors(ALPHA)


# ---- CERTIFY at a radius ---------------------------------------------------------------------------------------------

BOUNDARIES = {
    "p0 of radius 0.3 sigma": (0.3, [norm.cdf(0.3), norm.sf(0.3), 0]),
    "p0 of radius sigma": (1.0, [norm.cdf(1), norm.sf(1), 0]),
    "p0 of radius 2 sigma": (2.0, [norm.cdf(2), norm.sf(2), 0]),
    "the invalid as rival": (1.0, [norm.cdf(1), 0, norm.sf(1)]),
    "one rival": (1.0, at_radius(1.0, 0.1, 1)),
    "three rivals near each other": (1.0, at_radius(1.0, 0.06, 3)),
    "nine rivals tied": (0.5, at_radius(0.5, 0.07, 9)),
}


@pytest.mark.parametrize(("z", "law"), BOUNDARIES.values(), ids=BOUNDARIES)
def test_certify_at_a_radius_errs_at_most_at_its_levels(z: float, law: list[float]) -> None:
    """At the boundary the radius is the one asked for: "certified" (not above) and "not certified" both are errors. By
    both bounds on the same votes, the drawing of which takes the time."""
    procedures = [SequentialCertify(1, 2000, ALPHA, SIGMA, bound, z * SIGMA, label=0) for bound in BOUNDS]
    votes = looks(procedures[0], law, RUNS, np.random.default_rng(4))
    binary = max(law[1:]) > 1 - law[0] - 1e-9
    for bound, (outcome, _) in zip(BOUNDS, certified_by_each(procedures, votes, 0, RUNS), strict=True):
        assert (outcome == 1).sum() <= most_errors(ALPHA)
        if bound == "multiclass" or binary:
            assert (outcome == -1).sum() <= most_errors(ALPHA)
        if bound == "cohen" and binary:
            assert (outcome == 1).sum() >= 0.8 * ALPHA * RUNS  # an exact boundary spends its level


def test_certify_at_a_radius_errs_at_most_at_its_level_up_to_100_000_samples() -> None:
    procedure = SequentialCertify(1, 100_000, ALPHA, SIGMA, "cohen", SIGMA, label=0)
    law = [norm.cdf(1), norm.sf(1), 0]
    outcome, _ = certified(procedure, looks(procedure, law, RUNS, np.random.default_rng(5)), 0, RUNS)
    for answer in (1, -1):
        assert 0.8 * ALPHA * RUNS <= (outcome == answer).sum() <= most_errors(ALPHA)


def test_certify_at_a_radius_with_selection() -> None:
    """Three classes near each other: whichever is selected, it has not the radius."""
    law, rng = [0.34, 0.33, 0.33, 0], np.random.default_rng(6)
    procedure = SequentialCertify(100, 2000, ALPHA, SIGMA, "multiclass", 0.05 * SIGMA)
    labels = selected(100, law, rng)
    outcome, _ = certified(procedure, looks(procedure, law, RUNS, rng), labels, RUNS)
    assert (outcome == 1).sum() <= most_errors(ALPHA)


GRID = (0.0, 0.5, 1.5)  # times sigma


@pytest.mark.parametrize(
    ("i", "law"),
    [(0, [0.5, 0.5, 0]), (1, at_radius(0.5, 0.2, 2)), (2, [norm.cdf(1.5), 0, norm.sf(1.5)])],
    ids=["two tied", "two rivals at the second", "the invalid at the last"],
)  # fmt: skip
def test_certify_on_a_grid_errs_at_most_at_its_levels(i: int, law: list[float]) -> None:
    """At a radius of the grid: to certify that one or a larger one, or to deny it or a smaller one, at any look."""
    procedures = [
        GridCertify(1, 1000, ALPHA, SIGMA, bound, [z * SIGMA for z in GRID], beta=2 * ALPHA, label=0)
        for bound in BOUNDS
    ]
    binary = max(law[1:]) > 1 - law[0] - 1e-9
    claimed, denied = np.zeros((2, 2, RUNS), bool)
    for look, seen in enumerate(looks(procedures[0], law, RUNS, np.random.default_rng(16))):
        chosen, run = distinct(*own_and_rival(seen, 0))
        for k, procedure in enumerate(procedures):
            held, least = procedure.judge(look, seen[chosen], 0)
            claimed[k] |= (held >= i)[run]
            denied[k] |= (least <= i)[run]
    assert claimed.sum(1).max() <= most_errors(ALPHA)
    for k, bound in enumerate(BOUNDS):
        if bound == "multiclass" or binary:
            assert denied[k].sum() <= most_errors(2 * ALPHA)
        if bound == "cohen" and binary:
            assert claimed[k].sum() >= 0.8 * ALPHA * RUNS  # a union over three radii would leave a third


# ---- CERTIFY of a radius ---------------------------------------------------------------------------------------------

LAWS = {
    "two classes": [0.7, 0.3, 0],
    "two classes, near one": [0.99, 0.01, 0],
    "tied": [0.5, 0.5, 0],
    "three near each other": [0.36, 0.34, 0.3, 0],
    "many rivals": [0.5, *[0.05] * 10, 0],
    "many rivals, one larger": [0.4, 0.3, 0.1, 0.1, 0.1, 0],
}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize(
    "procedure",
    [lambda bound: FixedCertify(100, 1000, ALPHA, SIGMA, bound),
     lambda bound: tolerant(bound, 300)],
    ids=["fixed", "tolerance"],
)  # fmt: skip
def test_radii_are_overstated_at_most_at_their_level(procedure: Any, law: list[float], bound: str) -> None:
    rng, made = np.random.default_rng(7), procedure(bound)
    labels = selected(100, law, rng)
    radii = largest_radius(made, looks(made, law, RUNS, rng), labels)
    true = np.array([true_radius(law, label, bound) for label in range(len(law) - 1)])
    assert (radii > true[labels]).sum() <= most_errors(ALPHA)


# ---- the test has teeth ----------------------------------------------------------------------------------------------


def test_selection_samples_used_again_are_found_out() -> None:
    """The mistake of a published tool for input-specific sample sizes: the n0 samples that select the class and decide
    on n are also counted as evidence for it."""
    law, rng = [0.5, 0.5, 0], np.random.default_rng(8)
    made = FixedCertify(100, 200, ALPHA, SIGMA, "cohen")
    first = rng.multinomial(100, law, RUNS)
    labels = first[:, :-1].argmax(1)
    fresh = rng.multinomial(200, law, RUNS)
    again = first + rng.multinomial(100, law, RUNS)
    assert (made.judge(0, fresh, labels).radius > 0).sum() <= most_errors(ALPHA)
    assert (made.judge(0, again, labels).radius > 0).sum() > most_errors(ALPHA)


def test_looking_at_every_sample_is_found_out() -> None:
    """A fixed boundary that is looked at again and again."""
    law, rng = [0.5, 0.5, 0], np.random.default_rng(9)
    peeking = SequentialPredict(2000, ALPHA)
    peeking.judge = FixedPredict(2000, ALPHA).judge
    labels, _ = predicted(peeking, looks(peeking, law, RUNS, rng), RUNS)
    assert (labels != ABSTAIN).sum() > most_errors(ALPHA)


def test_a_denial_without_a_union_over_rivals_is_found_out() -> None:
    """The largest of nine counts, held against the boundary of a single rival."""
    law, rng = at_radius(0.5, 0.07, 9), np.random.default_rng(10)
    procedure = SequentialCertify(1, 2000, ALPHA, SIGMA, "multiclass", 0.5 * SIGMA, label=0)
    (careless,) = procedure.tests(1)
    runs = 50_000  # of which 764 are in error, the limit being 87
    denied = np.zeros(runs, bool)
    for look, seen in enumerate(looks(procedure, law, runs, rng)):
        denied |= seen[:, 1:].max(1) >= careless.failed_rival[look, careless.q <= 0.07][0]
    assert denied.sum() > most_errors(ALPHA, runs)


def test_levels_of_looks_add_up() -> None:
    for first, looks in ((64, (64, 128, 2000)), (1000, (1000, 2000))):
        made = tolerant("multiclass", first)
        assert made.looks == looks
        assert len(made.levels) == len(looks)
        assert sum(made.levels) == pytest.approx(ALPHA, rel=1e-12)


# ---- samples ---------------------------------------------------------------------------------------------------------

# Mean samples at alpha = beta = 0.001, n = 100,000, of an exact test at looks growing by sqrt(2) from 64; 120 runs
# each. By radius / sigma, then by the probability of the class.
EXACT = {
    1.0: {0.5: 64, 0.75: 333, 0.82: 5380, 0.835: 60500, 0.85: 33600, 0.87: 2782, 0.92: 323, 0.97: 109, 0.999: 67},
    2.0: {0.9: 126, 0.97: 7955, 0.985: 5439, 0.99: 1924, 0.999: 477},
}
# The same for the test of Hung and Fithian at looks growing by sqrt(2) from 16; 200 runs each. By number of classes,
# then by the two largest probabilities.
HUNG_FITHIAN = {
    10: {(0.98, 0.01): 18, (0.8, 0.1): 38, (0.6, 0.3): 213, (0.5, 0.4): 1872, (0.45, 0.4): 7065, (0.36, 0.34): 38200},
    1000: {(0.98, 0.01): 18, (0.8, 0.1): 37, (0.6, 0.3): 220, (0.5, 0.4): 2000, (0.45, 0.4): 7421, (0.36, 0.34): 36000},
}


def assert_at_most(samples: NDArray[np.int64], published: float, runs: int) -> None:
    """Within 5 % of a published mean, and the error that it has itself."""
    assert samples.mean() <= 1.05 * published + 2 * samples.std() / np.sqrt(runs)


@pytest.mark.parametrize(("z", "p"), [(z, p) for z, row in EXACT.items() for p in row])
def test_samples_to_certify_at_a_radius(z: float, p: float) -> None:
    procedure = SequentialCertify(1, 100_000, ALPHA, SIGMA, "cohen", z * SIGMA, label=0)
    votes = looks(procedure, [p, 1 - p, 0], 2000, np.random.default_rng(11))
    outcome, samples = certified(procedure, votes, 0, 2000)
    assert_at_most(samples, EXACT[z][p], 120)
    assert (outcome == (-1 if p > norm.cdf(z) else 1)).mean() <= 0.005


def test_samples_to_certify_where_what_is_left_is_spread() -> None:
    """The class alone has not the radius (p0 = 0.841), against each of ten rivals it has: the corners show it."""
    procedure = SequentialCertify(1, 100_000, ALPHA, SIGMA, "multiclass", SIGMA, label=0)
    votes = looks(procedure, [0.75, *[0.025] * 10, 0], 2000, np.random.default_rng(12))
    outcome, samples = certified(procedure, votes, 0, 2000)
    assert (outcome == 1).mean() >= 0.998
    assert samples.mean() < 1500


@pytest.mark.parametrize(("classes", "largest"), [(k, pair) for k, row in HUNG_FITHIAN.items() for pair in row])
def test_samples_to_predict(classes: int, largest: tuple[float, float]) -> None:
    runs = 2000 if classes == 10 else 200  # the draws of a thousand classes take the time
    procedure = SequentialPredict(100_000, ALPHA)
    law = [*largest, *[(1 - sum(largest)) / (classes - 2)] * (classes - 2), 0]
    labels, samples = predicted(procedure, looks(procedure, law, runs, np.random.default_rng(13)), runs)
    assert_at_most(samples, HUNG_FITHIAN[classes][largest], 200)
    assert ((labels != 0) & (labels != ABSTAIN)).mean() <= 0.005


def test_the_benchmark_counts_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "REPETITIONS", 2)
    benchmark.main(tmp_path / "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert {row["setting"].partition(",")[0] for row in rows} == {"certify", "predict", "tolerance"}
    monkeypatch.setattr(benchmark, "REPETITIONS", 300)
    row, _ = benchmark.measured(
        "certify", "", "", lambda: SequentialCertify(1, 100_000, ALPHA, 1, "cohen", 1, label=0), [0.9, 0.1, 0]
    )
    procedure = SequentialCertify(1, 100_000, ALPHA, 1, "cohen", 1, label=0)
    _, samples = certified(procedure, looks(procedure, [0.9, 0.1, 0], 3000, np.random.default_rng(14)), 0, 3000)
    assert abs(row.value - samples.mean()) < 4 * row.error

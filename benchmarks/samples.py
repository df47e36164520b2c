"""Samples until a decision, on votes of known probabilities in place of a network.

No timing: means over repetitions, each through the procedure itself, at alpha = beta = 0.001 and n = 100,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from scipy.stats import norm

from smoothfast.procedures import (
    UNDECIDED,
    Decision,
    Draw,
    FixedPredict,
    Procedure,
    SequentialCertify,
    SequentialPredict,
    ToleranceCertify,
)

from . import harness
from .baselines import FourLooks

N, ALPHA, REPETITIONS = 100_000, 0.001, 2_000

# radius / sigma, and true probabilities of the class; those of statistics' tables.
CERTIFY = {1.0: (0.5, 0.75, 0.82, 0.835, 0.85, 0.87, 0.92, 0.97, 0.999), 2.0: (0.9, 0.97, 0.985, 0.99, 0.999)}
PREDICT = ((0.98, 0.01), (0.8, 0.1), (0.6, 0.3), (0.5, 0.4), (0.45, 0.40), (0.36, 0.34))
TOLERANCE = (0.999, 0.99, 0.95, 0.9, 0.8, 0.6)


def main(out: Path | None) -> list[harness.Row]:
    """Runs each procedure on votes of each law."""
    return harness.report(chain(certify(), predict(), tolerance()), out)


def certify() -> Iterator[list[harness.Row]]:
    """Rows on the question whether the radius is at least r: with a single rival, and with what is left spread over
    ten."""
    for z, probabilities in CERTIFY.items():
        for p in probabilities:
            for rivals in (1, 10):
                contenders: dict[str, Callable[[], Procedure]] = {
                    "sequential, Cohen's bound": partial(SequentialCertify, 1, N, ALPHA, 1.0, "cohen", z, label=0),
                    "sequential, multi-class bound": partial(
                        SequentialCertify, 1, N, ALPHA, 1.0, "multiclass", z, label=0
                    ),
                    "four looks (Voracek 2024)": partial(FourLooks, float(norm.cdf(z)), ALPHA),
                }
                law = [p, *[(1 - p) / rivals] * rivals, 0.0]
                for name, make in contenders.items():
                    yield measured("certify", f"radius {z} sigma, p = {p}, {rivals} rivals", name, make, law)


def predict() -> Iterator[list[harness.Row]]:
    """Rows on the question for the most probable class; the law has the two largest probabilities, the rest spread
    evenly."""
    for classes in (10, 1000):
        for first, second in PREDICT:
            law = [first, second, *[(1 - first - second) / (classes - 2)] * (classes - 2), 0.0]
            setting = f"p = {first}, {second}, {classes} classes"
            yield measured("predict", setting, "sequential", partial(SequentialPredict, N, ALPHA), law)
            yield measured("predict", setting, "fixed n = 1,000", partial(FixedPredict, 1000, ALPHA), law)


def tolerance() -> Iterator[list[harness.Row]]:
    """Rows on the question for a radius at most 0.05 sigma below that of n samples."""
    for p in TOLERANCE:
        law = [p, 1 - p, 0.0]
        for bound in ("cohen", "multiclass"):
            make = partial(ToleranceCertify, 1, N, ALPHA, 1.0, bound, 0.05, label=0)
            yield measured("tolerance", f"p = {p}", f"tolerance 0.05, {bound}", make, law)


def measured(kind: str, setting: str, name: str, make: Callable[[], Procedure], law: list[float]) -> list[harness.Row]:
    """Mean samples, and how often it came to an answer, of the procedure that `make` makes, on votes of a law."""
    rng = np.random.default_rng(0)
    decisions = [decide(make(), law, rng) for _ in range(REPETITIONS)]
    samples = {name: [decision.samples for decision in decisions]}
    answered = {name: [decision.outcome != UNDECIDED for decision in decisions]}
    setting = f"{kind}, {setting}"
    return harness.means("samples", setting, samples, "samples") + harness.means(
        "samples", setting, answered, "share answered"
    )


def decide(procedure: Procedure, law: list[float], rng: np.random.Generator) -> Decision:
    """The decision of a procedure on votes of a law [K + 1], the last entry being that of no class."""
    answer: Draw | Decision = procedure.begin()
    while not isinstance(answer, Decision):
        answer = procedure.update(rng.multinomial(answer.count, law))
    return answer

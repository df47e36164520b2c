"""How many votes to draw for one image, and what they decide.

A procedure is handed the votes of one draw after another and answers with the next draw or with
its decision. It knows no devices, batches or models, so an engine can drive one procedure per image
and pack the draws of many images into full batches.

Source: PREDICT and CERTIFY of Cohen et al. 2019, arXiv 1902.02918.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .noise import Stream
from .statistics import (
    binomial_test,
    certified_radius,
    class_bounds,
    samples_to_certify,
    samples_to_predict,
)

ABSTAIN = -1

Votes = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """A request for the samples first .. first + count - 1 of a stream."""

    stream: Stream
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Decision:
    """What the votes of one image decide.

    Where a procedure bounds or tests nothing, the fields keep the values that hold of any image:
    radius 0, bounds 0 and 1, p-value 1.

    Attributes:
        label: the class, or ABSTAIN.
        counts: [K] votes by class in the draw that decided.
        invalid: rows of that draw that voted for no class.
        samples: all samples drawn, those that selected a class included.
        radius: certified L2 radius, in the unit of sigma; 0 when abstaining.
        p_lower: lower bound of the probability of the class under test, also when abstaining.
        p_upper: upper bound of the probability of each other class.
        p_value: of the two largest counts being equally probable.
    """

    label: int
    counts: Votes
    invalid: int
    samples: int
    radius: float = 0.0
    p_lower: float = 0.0
    p_upper: float = 1.0
    p_value: float = 1.0


class Procedure(Protocol):
    """One image's procedure; `begin` once, then `update` until it returns a Decision."""

    def begin(self) -> Draw:
        """The first draw."""

    def update(self, votes: Votes) -> Draw | Decision:
        """Takes the votes of the last draw.

        Args:
            votes: [K + 1] counts of the K classes, then of the invalid rows (non-finite logits). An
                invalid row is never dropped: it stands for one more outcome, which may be a rival
                of the classes but never the answer.
        """


class Count:
    """The votes of the samples first .. first + n - 1 of a stream, and their winner; no test.

    Args:
        n: samples, at least 1.
        first: the first of them.
        stream: what they are drawn for.
    """

    def __init__(self, n: int, first: int = 0, stream: Stream = Stream.PREDICT) -> None:
        _require_samples("samples", n, 1)
        self._draw = Draw(stream, first, n)

    def begin(self) -> Draw:
        return self._draw

    def update(self, votes: Votes) -> Decision:
        _require_complete(votes, self._draw)
        counts = votes[:-1].copy()
        label = int(counts.argmax()) if counts.any() else ABSTAIN
        return Decision(label, counts, int(votes[-1]), self._draw.count)


class FixedPredict:
    """PREDICT (Cohen et al. 2019): the most probable class, wrong with probability at most alpha.

    Abstains where the two largest counts do not differ significantly.

    Args:
        n: samples, at least `samples_to_predict(alpha)`.
        alpha: error level, 0 < alpha < 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, n: int, alpha: float) -> None:
        _require_samples("n", n, samples_to_predict(alpha), f"; fewer always abstain at {alpha=}")
        self._draw = Draw(Stream.PREDICT, 0, n)
        self._alpha = alpha

    def begin(self) -> Draw:
        return self._draw

    def update(self, votes: Votes) -> Decision:
        _require_complete(votes, self._draw)
        counts, invalid = votes[:-1].copy(), int(votes[-1])
        top, second = np.argsort(-votes, kind="stable")[:2]  # stable: ties to the lowest index
        if top == len(counts):
            return Decision(ABSTAIN, counts, invalid, self._draw.count)
        p_value = float(binomial_test(votes[top], votes[second]))
        label = int(top) if p_value <= self._alpha else ABSTAIN
        return Decision(label, counts, invalid, self._draw.count, p_value=p_value)


class FixedCertify:
    """CERTIFY (Cohen et al. 2019): a class and its radius, overstated with probability <= alpha.

    n0 samples select the class, n other samples bound its probability. Abstains where the class is
    not shown to beat its rivals, p_lower <= p_upper; for Cohen's bound this is p_lower <= 1/2.

    Args:
        n0: samples that select the class, at least 1; unused if `label` is given.
        n: samples that estimate, at least `samples_to_certify(alpha, bound)`.
        alpha: error level, 0 < alpha < 1.
        sigma: standard deviation of the noise, positive and finite; the radius has its unit.
        bound: "multiclass" or "cohen", see `statistics.class_bounds`.
        label: the class to certify, where it is known beforehand; nothing is drawn to select it.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        n0: int,
        n: int,
        alpha: float,
        sigma: float,
        bound: str,
        label: int | None = None,
    ) -> None:
        least = samples_to_certify(alpha, bound)
        _require_samples("n", n, least, f"; fewer always abstain at {alpha=}, {bound=}")
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma is {sigma}; it must be positive and finite")
        if label is None:
            _require_samples("n0", n0, 1)
        elif label < 0:
            raise ValueError(f"label is {label}; it must be at least 0")
        self._alpha, self._sigma, self._bound = alpha, sigma, bound
        self._estimate = Draw(Stream.ESTIMATE, 0, n)
        self._draw = self._estimate if label is not None else Draw(Stream.SELECT, 0, n0)
        self._label = label
        self._samples = 0

    def begin(self) -> Draw:
        return self._draw

    def update(self, votes: Votes) -> Draw | Decision:
        _require_complete(votes, self._draw)
        counts, invalid = votes[:-1].copy(), int(votes[-1])
        self._samples += self._draw.count
        if self._label is None:
            if not counts.any():
                return Decision(ABSTAIN, counts, invalid, self._samples)
            self._label = int(counts.argmax())
            self._draw = self._estimate
            return self._draw
        if self._label >= len(counts):
            raise ValueError(f"label is {self._label}; it must be below {len(counts)}, the classes")
        p_lower, p_upper = map(float, class_bounds(votes, self._label, self._alpha, self._bound))
        return Decision(
            label=self._label if p_lower > p_upper else ABSTAIN,
            counts=counts,
            invalid=invalid,
            samples=self._samples,
            radius=float(certified_radius(p_lower, p_upper, self._sigma)),
            p_lower=p_lower,
            p_upper=p_upper,
        )


def _require_samples(name: str, value: int, least: int, reason: str = "") -> None:
    if not isinstance(value, Integral) or value < least:
        wanted = f"a whole number of at least {least}{reason}"
        raise ValueError(f"{name} is {value}; it must be {wanted}")


def _require_complete(votes: Votes, draw: Draw) -> None:
    """A lost row would be a vote that the bounds do not see."""
    total = votes.sum()
    if total != draw.count:
        raise ValueError(f"votes sum to {total}; they must sum to {draw.count}, the samples drawn")

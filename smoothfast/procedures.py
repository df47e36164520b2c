"""How many votes to draw for one image, and what they decide.

A procedure is handed the votes of one draw after another and answers with the next draw or with its decision. It knows
no devices, batches or models, so an engine can drive one procedure per image and pack the draws of many images into
full batches. Votes are looked at when a number of samples is reached that was fixed beforehand, and at no other time.

Sources: PREDICT and CERTIFY of Cohen et al. 2019, arXiv 1902.02918; `statistics` for the tests.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .noise import Stream
from .specs import choice
from .statistics import (
    RadiusTest,
    binomial_test,
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    geometric_looks,
    own_and_rival,
    radius_test,
    samples_to_certify,
    samples_to_predict,
    share_bounds,
)

Floats = NDArray[np.float64]
Votes = NDArray[np.int64]

ABSTAIN = -1

PREDICT_METHODS = ("fixed", "sequential")
CERTIFY_METHODS = ("fixed", "sequential", "tolerance")

CERTIFIED, NOT_CERTIFIED, UNDECIDED, PREDICTED = "certified", "not certified", "undecided", "predicted"

# Looks: the first, and the growth from one to the next. The exact test of CERTIFY pays next to nothing for a look, so
# its looks are close: mean samples are 6 % below those of growth by sqrt(2) from 16, and 10 % below those from 64.
# PREDICT pays for each with its share of alpha.
CERTIFY_LOOKS = 16, 2**0.25
PREDICT_LOOKS = 16, 2**0.5

# The tolerance method plans its looks with so many samples of their own: m, 2 m and n, with these shares of alpha. Half
# of alpha at n costs most where all votes agree: 0.024 sigma of radius at n = 100,000, 0.034 at 1,025.
PILOT = 512
_SHARES = 0.4, 0.1, 0.5
_PLANS = 64, 2**0.25  # the sizes m that are considered
_WORTH = 0.7  # of n: a first look later than this saves too little to pay for

# Level of the forecasts of the tolerance. They bear on the samples drawn and on nothing that is claimed.
_FORECAST = 1e-3


@dataclass(frozen=True)
class Draw:
    """A request for the samples first .. first + count - 1 of a stream."""

    stream: Stream
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Decision:
    """What the votes of one image decide.

    Where a procedure bounds or tests nothing, the fields keep the values that hold of any image: radius 0, bounds 0 and
    1, p-value 1.

    Attributes:
        label: the class, or ABSTAIN.
        counts: [K] votes by class of the last look. With a tolerance the bounds may come from an earlier one.
        invalid: rows of these samples that voted for no class.
        samples: all samples drawn, those that selected a class included.
        outcome: "predicted", "certified", "not certified" (the radius, by the bound in use, is shown to be less than
            asked for), or "undecided".
        radius: certified L2 radius, in the unit of sigma; 0 when abstaining.
        p_lower: lower bound of the probability of the class under test, also when abstaining.
        p_upper: upper bound of the probability of each other class.
        p_value: of the two largest counts being equally probable; over several looks the smallest, times their number.
        tested: the class under test, also when abstaining; ABSTAIN where there was none.
    """

    label: int
    counts: Votes
    invalid: int
    samples: int
    outcome: str
    radius: float = 0.0
    p_lower: float = 0.0
    p_upper: float = 1.0
    p_value: float = 1.0
    tested: int = ABSTAIN


class Procedure(Protocol):
    """One image's procedure; `begin` once, then `update` until it returns a Decision."""

    @property
    def most(self) -> int:
        """Samples that it draws at most."""

    def begin(self) -> Draw:
        """The first draw."""

    def update(self, votes: Votes) -> Draw | Decision:
        """Takes the votes of the last draw.

        Args:
            votes: [K + 1] counts of the K classes, then of the invalid rows (non-finite logits). An invalid row is
                never dropped: it stands for one more outcome, which may be a rival of the classes but never the answer.
        """


def predict_procedure(method: str, n: int, alpha: float) -> Procedure:
    """The procedure of PREDICT of a method, "fixed" or "sequential".

    Raises:
        ValueError: an argument is out of its range.
    """
    choice("method", method, PREDICT_METHODS)
    return (FixedPredict if method == "fixed" else SequentialPredict)(n, alpha)


def certify_procedure(
    method: str,
    n0: int,
    n: int,
    alpha: float,
    sigma: float,
    bound: str,
    radius: float | None = None,
    tolerance: float | None = None,
    label: int | None = None,
    u: float = 1.0,
    deviation: float = 0.0,
) -> Procedure:
    """The procedure of CERTIFY of a method: "fixed", "sequential" (takes `radius`) or "tolerance" (takes `tolerance`).

    Raises:
        ValueError: an argument is out of its range, is missing, or is of another method.
    """
    choice("method", method, CERTIFY_METHODS)
    for name, value, needing in (("radius", radius, "sequential"), ("tolerance", tolerance, "tolerance")):
        if (value is None) == (method == needing):
            wanted = "needs one" if method == needing else f"takes none; {needing!r} does"
            raise ValueError(f"{name} is {value}; method {method!r} {wanted}")
    if radius is not None:
        if u != 1:
            raise ValueError("randomize is True; method 'sequential' has no randomized bounds, the others have")
        return SequentialCertify(n0, n, alpha, sigma, bound, radius, label, deviation)
    if tolerance is not None:
        return ToleranceCertify(n0, n, alpha, sigma, bound, tolerance, label, u, deviation)
    return FixedCertify(n0, n, alpha, sigma, bound, label, u, deviation)


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

    @property
    def most(self) -> int:
        return self._draw.count

    def begin(self) -> Draw:
        return self._draw

    def update(self, votes: Votes) -> Decision:
        _require_complete(votes, self._draw)
        counts = votes[:-1].copy()
        label = int(counts.argmax()) if counts.any() else ABSTAIN
        return Decision(label, counts, int(votes[-1]), self._draw.count, PREDICTED if counts.any() else UNDECIDED)


class Total(Count):
    """The same by any voting rule, whose counts need not add up to the samples; and no winner, who may be tied."""

    def update(self, votes: Votes) -> Decision:
        return Decision(ABSTAIN, votes[:-1].copy(), int(votes[-1]), self._draw.count, UNDECIDED)


class _Predict:
    """The test of Hung and Fithian, winner against runner-up, at each look at level alpha / looks.

    It needs no union over classes: at one look the level holds for every law of the votes, ties included.
    """

    def __init__(self, looks: Sequence[int], alpha: float) -> None:
        least = samples_to_predict(alpha / len(looks))
        several = f" and {len(looks)} looks" if len(looks) > 1 else ""
        _require_samples("n", looks[-1], least, f"; fewer always abstain at {alpha=}{several}")
        self.looks, self._alpha = looks, alpha
        self._seen = _Seen(Stream.PREDICT, looks)
        self._p_value = 1.0

    @property
    def most(self) -> int:
        return self.looks[-1]

    def begin(self) -> Draw:
        return self._seen.draw

    def update(self, votes: Votes) -> Draw | Decision:
        look, votes = self._seen.add(votes)
        label, p_value = self.judge(votes)
        self._p_value = min(self._p_value, float(p_value))
        if label == ABSTAIN and look + 1 < len(self.looks):
            return self._seen.draw
        outcome = UNDECIDED if label == ABSTAIN else PREDICTED
        counts, invalid = votes[:-1], int(votes[-1])
        return Decision(int(label), counts, invalid, self.looks[look], outcome, p_value=self._p_value)

    def judge(self, votes: Votes) -> tuple[Votes, Floats]:
        """Labels [...] and p-values [...], times the number of looks, of votes [..., K + 1] at one look."""
        winner = votes.argmax(-1)  # ties to the lowest index
        second, first = np.moveaxis(np.partition(votes, -2, -1)[..., -2:], -1, 0)
        p_values = np.minimum(binomial_test(first, second) * len(self.looks), 1.0)
        p_values = np.where(winner < votes.shape[-1] - 1, p_values, 1.0)  # the invalid are never the answer
        return np.where(p_values <= self._alpha, winner, ABSTAIN), p_values


class FixedPredict(_Predict):
    """PREDICT (Cohen et al. 2019): the most probable class, wrong with probability at most alpha, or an abstention.

    Args:
        n: samples, at least `samples_to_predict(alpha)`.
        alpha: error level, 0 < alpha < 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, n: int, alpha: float) -> None:
        _require_samples("n", n, 1)
        super().__init__((n,), alpha)


class SequentialPredict(_Predict):
    """PREDICT that stops as soon as the votes decide, at looks that grow by sqrt(2) from 16 on.

    Arguments and errors as for `FixedPredict`, with n as the most samples.
    """

    def __init__(self, n: int, alpha: float) -> None:
        _require_samples("n", n, 1)
        super().__init__(geometric_looks(PREDICT_LOOKS[0], n, PREDICT_LOOKS[1]), alpha)


class _Certify(ABC):
    """Judges a class at one look after another. Samples of their own select the class, unless it is given."""

    def __init__(self, planning: int, looks: Sequence[int], sigma: float, label: int | None) -> None:
        if not 0 < sigma < np.inf:
            raise ValueError(f"sigma is {sigma}; it must be positive and finite")
        if label is not None and label < 0:
            raise ValueError(f"label is {label}; it must be at least 0")
        self._sigma, self._label, self._planning = sigma, label, planning
        self._planned = planning == 0
        self._look_at(looks)

    def _look_at(self, looks: Sequence[int]) -> None:
        self.looks, self._seen = looks, _Seen(Stream.ESTIMATE, looks)

    @property
    def most(self) -> int:
        return self._planning + self.looks[-1]

    def begin(self) -> Draw:
        return self._seen.draw if self._planned else Draw(Stream.SELECT, 0, self._planning)

    def update(self, votes: Votes) -> Draw | Decision:
        if not self._planned:
            return self._plan(votes)
        look, votes = self._seen.add(votes)
        return self._decide(look, votes, self._known(votes)) or self._seen.draw

    def _plan(self, votes: Votes) -> Draw | Decision:
        """Takes the votes of the samples that select the class."""
        _require_complete(votes, self.begin())
        counts, self._planned = votes[:-1].copy(), True
        if self._label is None:
            if not counts.any():
                return Decision(ABSTAIN, counts, int(votes[-1]), self._planning, UNDECIDED)
            self._label = int(counts.argmax())
        return self._seen.draw

    def _known(self, votes: Votes) -> int:
        assert self._label is not None
        if self._label >= len(votes) - 1:
            raise ValueError(f"label is {self._label}; it must be below {len(votes) - 1}, the classes")
        return self._label

    @abstractmethod
    def _decide(self, look: int, votes: Votes, label: int) -> Decision | None:
        """The decision at a look, None to go on; `votes` [K + 1] are those of all looks so far."""

    def _decision(self, look: int, votes: Votes, label: int, outcome: str, **bounds: float) -> Decision:
        answer, samples = label if outcome == CERTIFIED else ABSTAIN, self._planning + self.looks[look]
        return Decision(answer, votes[:-1], int(votes[-1]), samples, outcome, tested=label, **bounds)


class FixedCertify(_Certify):
    """CERTIFY (Cohen et al. 2019): a class and its radius, overstated with probability <= alpha.

    n0 samples select the class, n other samples bound its probability. Abstains where the class is not shown to beat
    its rivals, p_lower <= p_upper; for Cohen's bound this is p_lower <= 1/2.

    Args:
        n0: samples that select the class, at least 1; unused if `label` is given.
        n: samples that estimate, at least `samples_to_certify(alpha, bound)`.
        alpha: error level, 0 < alpha < 1.
        sigma: standard deviation of the noise, positive and finite; the radius has its unit.
        bound: "multiclass" or "cohen", see `statistics.class_bounds`.
        label: the class to certify, where it is known beforehand; nothing is drawn to select it.
        u: for randomized bounds, see `statistics.clopper_pearson_lower`.
        deviation: of the noise from the law that radii speak of, see `noise.Law.deviation`.

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
        u: float = 1.0,
        deviation: float = 0.0,
    ) -> None:
        _require_estimate(n, alpha, bound)
        super().__init__(_selection(n0, label) + self._pilot(n), (n,), sigma, label)
        self._n, self._alpha, self._bound, self._u, self._deviation = n, alpha, bound, u, deviation
        self.levels: Sequence[float] = (alpha,)

    def _pilot(self, n: int) -> int:
        """Samples that plan the looks."""
        return 0

    def _decide(self, look: int, votes: Votes, label: int) -> Decision | None:
        return self._conclude(look, votes, label, self.judge(look, votes, label))

    def _conclude(self, look: int, votes: Votes, label: int, found: _Bounds) -> Decision:
        outcome = CERTIFIED if found.p_lower > found.p_upper else UNDECIDED
        values = {name: float(value) for name, value in found._asdict().items()}
        return self._decision(look, votes, label, outcome, **values)

    def judge(self, look: int, votes: Votes, label: ArrayLike) -> _Bounds:
        """Radius and bounds [...] of votes [..., K + 1] at a look, at its level."""
        return self._bounds(*own_and_rival(votes, label), self.looks[look], self.levels[look])

    def _bounds(self, own: ArrayLike, rival: ArrayLike, n: ArrayLike, alpha: float) -> _Bounds:
        bounds = share_bounds(own, rival, n, alpha, self._bound, self._u, self._deviation)
        return _Bounds(certified_radius(*bounds, self._sigma), *bounds)


class ToleranceCertify(FixedCertify):
    """CERTIFY that stops when more samples would not gain much: aims at a radius within a tolerance of the one at n.

    512 samples, beside the n0 that select the class, forecast the number m that is enough (where n is at most 1,024
    there are none, and one look). It looks after m, 2 m and n other samples, and returns the largest radius: by the
    union over the looks it is overstated with probability at most alpha. It stops where the radius that a fixed n would
    give, with counts to come as favourable as level 0.001 allows, is within the tolerance of the radius in hand. So it
    falls short of its aim about once in a thousand images; and where all n samples are drawn, by up to 0.024 sigma at
    n = 100,000 and 0.034 at 1,025. That bears on how large the radius is, never on its validity.

    Args:
        tolerance: in units of sigma, positive. The others are those of `FixedCertify`, with n as the most.

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
        tolerance: float,
        label: int | None = None,
        u: float = 1.0,
        deviation: float = 0.0,
    ) -> None:
        if not 0 < tolerance < np.inf:
            raise ValueError(f"tolerance is {tolerance}; it must be positive and finite, in units of sigma")
        super().__init__(n0, n, alpha, sigma, bound, label, u, deviation)
        self._slack = tolerance * sigma
        self._best = _Bounds(0.0, 0.0, 1.0)

    def _pilot(self, n: int) -> int:
        return PILOT if n > 2 * PILOT else 0  # else there are too few samples to save any

    def _plan(self, votes: Votes) -> Draw | Decision:
        answer = super()._plan(votes)
        if isinstance(answer, Decision) or not self._pilot(self._n):
            return answer
        shares = np.array(own_and_rival(votes, self._known(votes))) / votes.sum()
        sizes = np.array([m for m in geometric_looks(_PLANS[0], self._n, _PLANS[1]) if m < _WORTH * self._n])
        own, rival = np.floor(np.multiply.outer(shares, sizes))
        radii = self._bounds(own, rival, sizes, _SHARES[0] * self._alpha).radius
        enough = self.forecast(own, rival, sizes) <= radii + self._slack
        if enough.any():
            self.look_at_multiples(int(sizes[enough.argmax()]))
        return self._seen.draw

    def look_at_multiples(self, m: int) -> None:
        """Looks after m, 2 m and n samples; without 2 m where that is not well below n."""
        middle = 2 * m < _WORTH * self._n
        self.levels = [share * self._alpha for share in (_SHARES if middle else (sum(_SHARES[:2]), _SHARES[2]))]
        self._look_at((m, 2 * m, self._n) if middle else (m, self._n))

    def _decide(self, look: int, votes: Votes, label: int) -> Decision | None:
        found = self.judge(look, votes, label)
        if self._best.radius == 0 or found.radius > self._best.radius:
            self._best = found
        more = self.forecast(*own_and_rival(votes, label), self.looks[look]) > self._best.radius + self._slack
        return None if more and look + 1 < len(self.looks) else self._conclude(look, votes, label, self._best)

    def forecast(self, own: ArrayLike, rival: ArrayLike, size: ArrayLike) -> Floats:
        """Radius [...] that a fixed n would give if the samples to come are as favourable as the first `size` allow."""
        own_share = clopper_pearson_upper(own, size, _FORECAST)
        rival_share = np.minimum(clopper_pearson_lower(rival, size, _FORECAST), 1 - own_share)
        left = self._n - np.asarray(size)
        return self._bounds(
            own + np.ceil(left * own_share), rival + np.floor(left * rival_share), self._n, self._alpha
        ).radius


class SequentialCertify(_Certify):
    """Is the radius at least r? Certified with probability <= alpha where it is not, denied so where it is.

    An exact group-sequential test at looks growing by 2^(1/4), see `statistics.radius_test`. With the multi-class bound
    it judges the class against its largest rival, with Cohen's the class alone. The radius of a certificate is r.

    Args:
        radius: r, in the unit of sigma, positive, and less than n unanimous votes certify. The others are those of
            `FixedCertify`, with n as the most.

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
        radius: float,
        label: int | None = None,
        deviation: float = 0.0,
    ) -> None:
        _require_estimate(n, alpha, bound)
        looks = geometric_looks(CERTIFY_LOOKS[0], n, CERTIFY_LOOKS[1])
        super().__init__(_selection(n0, label), looks, sigma, label)
        largest = float(certified_radius(*share_bounds(n, 0, n, alpha, bound, 1.0, deviation), sigma))
        if not 0 < radius < largest:
            below = math.floor(largest * 1e4) / 1e4
            raise ValueError(
                f"radius is {radius}; it must be positive and below {below}, what n={n} unanimous votes certify at "
                f"{sigma=}, {alpha=}, {bound=}"
            )
        self._alpha, self._bound, self._radius, self._deviation = alpha, bound, radius, deviation

    def _decide(self, look: int, votes: Votes, label: int) -> Decision | None:
        corner, failed = self.judge(look, votes, label)
        if corner >= 0:
            test = self.test(len(votes) - 1)
            p_lower, p_upper = float(test.p[corner]), float(test.q[corner])
            return self._decision(look, votes, label, CERTIFIED, radius=self._radius, p_lower=p_lower, p_upper=p_upper)
        if failed:
            return self._decision(look, votes, label, NOT_CERTIFIED)
        return None if look + 1 < len(self.looks) else self._decision(look, votes, label, UNDECIDED)

    def judge(self, look: int, votes: Votes, label: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Of votes [..., K + 1] at a look: the corner that they certify or -1, and whether they deny the radius."""
        test = self.test(votes.shape[-1] - 1)
        own, rival = own_and_rival(votes, label)
        return test.corner(look, own, rival), test.failed(look, own, rival)

    def test(self, rivals: int) -> RadiusTest:
        """The boundaries, computed when first needed: an invalid row is an outcome that may be a rival too."""
        z = self._radius / self._sigma
        return radius_test(z, tuple(self.looks), self._alpha, self._alpha, self._bound, rivals, self._deviation)


class _Bounds(NamedTuple):
    radius: Any
    p_lower: Any
    p_upper: Any


class _Seen:
    """The votes of all looks so far, and the draw that leads to the next."""

    def __init__(self, stream: Stream, looks: Sequence[int]) -> None:
        self._looks, self._look, self._votes = looks, 0, np.zeros(1, np.int64)
        self.draw = Draw(stream, 0, looks[0])

    def add(self, votes: Votes) -> tuple[int, Votes]:
        """The look that these votes complete, and the votes up to it; `draw` is then the next one, if there is any."""
        _require_complete(votes, self.draw)
        look, self._look, self._votes = self._look, self._look + 1, self._votes + votes
        if self._look < len(self._looks):
            self.draw = Draw(self.draw.stream, self._looks[look], self._looks[look + 1] - self._looks[look])
        return look, self._votes


def _require_samples(name: str, value: int, least: int, reason: str = "") -> None:
    if not isinstance(value, Integral) or value < least:
        wanted = f"a whole number of at least {least}{reason}"
        raise ValueError(f"{name} is {value}; it must be {wanted}")


def _require_estimate(n: int, alpha: float, bound: str) -> None:
    _require_samples("n", n, samples_to_certify(alpha, bound), f"; fewer always abstain at {alpha=}, {bound=}")


def _selection(n0: int, label: int | None) -> int:
    """Samples that select the class."""
    if label is not None:
        return 0
    _require_samples("n0", n0, 1)
    return n0


def _require_complete(votes: Votes, draw: Draw) -> None:
    """A lost row would be a vote that the bounds do not see."""
    total = votes.sum()
    if total != draw.count:
        raise ValueError(f"votes sum to {total}; they must sum to {draw.count}, the samples drawn")

"""CERTIFY: a class and a radius, after a fixed number of samples or as soon as they allow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..statistics import (
    MOST_SAMPLES,
    RadiusTest,
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    geometric_looks,
    own_and_rival,
    radius_tests,
    samples_to_certify,
    share_bounds,
)
from ..statistics.checks import require_level
from ..streams import Stream
from .votes import (
    ABSTAIN,
    CERTIFIED,
    NOT_CERTIFIED,
    UNDECIDED,
    Decision,
    Draw,
    Floats,
    Seen,
    Votes,
    require_complete,
    require_samples,
)

# Looks: the first, and the growth from one to the next. The exact test of CERTIFY pays next to nothing for a look, so
# its looks are close: mean samples are 6 % below those of growth by sqrt(2) from 16, and 10 % below those from 64.
# PREDICT pays for each with its share of alpha.
CERTIFY_LOOKS = 16, 2**0.25

FUTILITY = 0.05  # level at which a grid denies radii


# The tolerance method plans its looks with so many samples of their own: m, 2 m and n, with these shares of alpha. Half
# of alpha at n costs most where all votes agree: 0.024 sigma of radius at n = 100,000, 0.034 at 1,025.
PILOT = 512
_SHARES = 0.4, 0.1, 0.5
_PLANS = 64, 2**0.25  # the sizes m that are considered
_WORTH = 0.7  # of n: a first look later than this saves too little to pay for


# Level of the forecasts of the tolerance. They bear on the samples drawn and on nothing that is claimed.
_FORECAST = 1e-3


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
        self.looks, self._seen = looks, Seen(Stream.ESTIMATE, looks)

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
        require_complete(votes, self.begin())
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
        *,
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
        *,
        label: int | None = None,
        u: float = 1.0,
        deviation: float = 0.0,
    ) -> None:
        if not 0 < tolerance < np.inf:
            raise ValueError(f"tolerance is {tolerance}; it must be positive and finite, in units of sigma")
        super().__init__(n0, n, alpha, sigma, bound, label=label, u=u, deviation=deviation)
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


class GridCertify(_Certify):
    """CERTIFY on a grid: the largest of some radii that is certified, larger than the true one with probability <=
    alpha.

    Exact group-sequential tests at looks growing by 2^(1/4), one for each radius, on the same votes; their levels hold
    together, see `statistics.radius_tests`. With the multi-class bound they judge the class against its largest rival,
    with Cohen's the class alone. It stops where a radius is certified and the next one denied. A denial is wrong with
    probability <= beta: that costs radii, and claims none.

    Args:
        radii: in the unit of sigma, at least 0, increasing, and all certified by n unanimous votes. Radius 0 says that
            the class is the prediction of the smoothed classifier.
        beta: level at which radii are denied, 0 < beta < 1. The others are those of `FixedCertify`, with n as the most.

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
        radii: Sequence[float],
        *,
        beta: float = FUTILITY,
        label: int | None = None,
        deviation: float = 0.0,
    ) -> None:
        _require_estimate(n, alpha, bound)
        if n > MOST_SAMPLES:
            raise ValueError(
                f"n is {n}; it must be at most {MOST_SAMPLES:,} by method sequential or grid (docs/soundness.md)"
            )
        require_level(beta, "beta")
        looks = geometric_looks(CERTIFY_LOOKS[0], n, CERTIFY_LOOKS[1])
        super().__init__(_selection(n0, label), looks, sigma, label)
        largest = float(certified_radius(*share_bounds(n, 0, n, alpha, bound, 1.0, deviation), sigma))
        told = f"{math.floor(largest * 1e4) / 1e4}, what {n=} unanimous votes certify at {sigma=}, {alpha=}, {bound=}"
        self._require_radii(radii, largest, told)
        self._radii, self._deviation = tuple(map(float, radii)), deviation
        self._alpha, self._beta, self._bound = alpha, beta, bound
        self._held, self._denied = -1, len(self._radii)
        self._shown = 0.0, 1.0

    def _require_radii(self, radii: Sequence[float], below: float, told: str) -> None:
        rising = all(before < after for before, after in pairwise(radii))
        if not (len(radii) and radii[0] >= 0 and rising and radii[-1] < below):
            raise ValueError(f"radii is {radii}; they must be at least 0, increasing and below {told}")

    def _decide(self, look: int, votes: Votes, label: int) -> Decision | None:
        held, denied = self.judge(look, votes, label)
        if held > self._held:
            self._held, test = int(held), self.tests(len(votes) - 1)[held]
            corner = test.corner(look, *own_and_rival(votes, label))
            self._shown = float(test.p[corner]), float(test.q[corner])
        self._denied = min(self._denied, int(denied))
        if self._held + 1 < self._denied and look + 1 < len(self.looks):
            return None
        if self._held >= 0:
            p_lower, p_upper = self._shown
            radius = self._radii[self._held]
            return self._decision(look, votes, label, CERTIFIED, radius=radius, p_lower=p_lower, p_upper=p_upper)
        return self._decision(look, votes, label, UNDECIDED if self._denied else NOT_CERTIFIED)

    def judge(self, look: int, votes: Votes, label: ArrayLike) -> tuple[Votes, Votes]:
        """The places of the largest radius that votes [..., K + 1] at a look certify, or -1, and of the smallest that
        they deny, or the number of radii."""
        tests = self.tests(votes.shape[-1] - 1)
        own, rival = own_and_rival(votes, label)
        held = np.max([np.where(test.corner(look, own, rival) >= 0, i, -1) for i, test in enumerate(tests)], 0)
        denied = np.min([np.where(test.failed(look, own, rival), i, len(tests)) for i, test in enumerate(tests)], 0)
        return held, denied

    def tests(self, rivals: int) -> tuple[RadiusTest, ...]:
        """The boundaries, computed when first needed: an invalid row is an outcome that may be a rival too."""
        z = tuple(radius / self._sigma for radius in self._radii)
        return radius_tests(z, tuple(self.looks), self._alpha, self._beta, self._bound, rivals, self._deviation)


class SequentialCertify(GridCertify):
    """A test whether the radius is at least r: certified with probability <= alpha where it is not, denied so where it
    is. A grid of one radius.

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
        *,
        label: int | None = None,
        deviation: float = 0.0,
    ) -> None:
        super().__init__(n0, n, alpha, sigma, bound, (radius,), beta=alpha, label=label, deviation=deviation)

    def _require_radii(self, radii: Sequence[float], below: float, told: str) -> None:
        if not 0 < radii[0] < below:
            raise ValueError(f"radius is {radii[0]}; it must be positive and below {told}")


class _Bounds(NamedTuple):
    radius: Any
    p_lower: Any
    p_upper: Any


def _require_estimate(n: int, alpha: float, bound: str) -> None:
    require_samples("n", n, samples_to_certify(alpha, bound), f"; fewer always abstain at {alpha=}, {bound=}")


def _selection(n0: int, label: int | None) -> int:
    """Number of samples that select the class."""
    if label is not None:
        return 0
    require_samples("n0", n0, 1)
    return n0

"""Draws, decisions, and what asks for the one and makes the other; procedures that only count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..streams import Stream

Floats = NDArray[np.float64]
Votes = NDArray[np.int64]
ABSTAIN = -1
CERTIFIED, NOT_CERTIFIED, UNDECIDED, PREDICTED = "certified", "not certified", "undecided", "predicted"


@dataclass(frozen=True)
class Draw:
    """A request for the samples first .. first + count - 1 of a stream."""

    stream: Stream
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Decision:
    """The decision that the votes of one image lead to.

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
    """A procedure for one image: `begin` once, then `update` until it returns a Decision."""

    @property
    def most(self) -> int:
        """Number of samples that it draws at most."""

    def begin(self) -> Draw:
        """The first draw."""

    def update(self, votes: Votes) -> Draw | Decision:
        """Takes the votes of the last draw.

        Args:
            votes: [K + 1] counts of the K classes, then of the invalid rows (non-finite logits). An invalid row is
                never dropped: it stands for one more outcome, which may be a rival of the classes but never the answer.
        """


class Count:
    """The votes of the samples first .. first + n - 1 of a stream, and their winner; no test.

    Args:
        n: samples, at least 1.
        first: the first of them.
        stream: what they are drawn for.
    """

    def __init__(self, n: int, first: int = 0, stream: Stream = Stream.PREDICT) -> None:
        require_samples("samples", n, 1)
        self._draw = Draw(stream, first, n)

    @property
    def most(self) -> int:
        """Number of samples that it draws."""
        return self._draw.count

    def begin(self) -> Draw:
        """The one draw."""
        return self._draw

    def update(self, votes: Votes) -> Decision:
        """Takes the votes of the draw; the decision for their winner."""
        require_complete(votes, self._draw)
        counts = votes[:-1].copy()
        label = int(counts.argmax()) if counts.any() else ABSTAIN
        return Decision(label, counts, int(votes[-1]), self._draw.count, PREDICTED if counts.any() else UNDECIDED)


class Total(Count):
    """Counts of the samples by any voting rule, which need not add up to the samples; and no winner, who may be
    tied."""

    def update(self, votes: Votes) -> Decision:
        """Takes the counts of the draw; a decision for no class."""
        return Decision(ABSTAIN, votes[:-1].copy(), int(votes[-1]), self._draw.count, UNDECIDED)


class Seen:
    """The votes of all looks so far, and the draw that leads to the next."""

    def __init__(self, stream: Stream, looks: Sequence[int]) -> None:
        self._looks, self._look, self._votes = looks, 0, np.zeros(1, np.int64)
        self.draw = Draw(stream, 0, looks[0])

    def add(self, votes: Votes) -> tuple[int, Votes]:
        """The look that these votes complete, and the votes up to it; `draw` is then the next one, if there is any."""
        require_complete(votes, self.draw)
        look, self._look, self._votes = self._look, self._look + 1, self._votes + votes
        if self._look < len(self._looks):
            self.draw = Draw(self.draw.stream, self._looks[look], self._looks[look + 1] - self._looks[look])
        return look, self._votes


def require_samples(name: str, value: int, least: int, reason: str = "") -> None:
    """Raises ValueError unless a number of samples is whole and at least `least`; `reason` says why so many."""
    if not isinstance(value, Integral) or value < least:
        wanted = f"a whole number of at least {least}{reason}"
        raise ValueError(f"{name} is {value}; it must be {wanted}")


def require_complete(votes: Votes, draw: Draw) -> None:
    """Raises ValueError unless there is a vote for every sample drawn: a lost row would be a vote that the bounds do
    not see."""
    total = votes.sum()
    if total != draw.count:
        raise ValueError(f"votes sum to {total}; they must sum to {draw.count}, the samples drawn")

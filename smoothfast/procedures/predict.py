"""PREDICT: the most probable class, or an abstention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..statistics import binomial_test, geometric_looks, samples_to_predict
from ..streams import Stream
from .votes import ABSTAIN, PREDICTED, UNDECIDED, Decision, Draw, Floats, Seen, Votes, require_samples

PREDICT_LOOKS = 16, 2**0.5


class _Predict:
    """The test of Hung and Fithian, winner against runner-up, at each look at level alpha / looks.

    It needs no union over classes: at one look the level holds for every law of the votes, ties included.
    """

    def __init__(self, looks: Sequence[int], alpha: float) -> None:
        least = samples_to_predict(alpha / len(looks))
        several = f" and {len(looks)} looks" if len(looks) > 1 else ""
        require_samples("n", looks[-1], least, f"; fewer always abstain at {alpha=}{several}")
        self.looks, self._alpha = looks, alpha
        self._seen = Seen(Stream.PREDICT, looks)
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
        require_samples("n", n, 1)
        super().__init__((n,), alpha)


class SequentialPredict(_Predict):
    """PREDICT that stops as soon as the votes decide, at looks that grow by sqrt(2) from 16 on.

    Arguments and errors as for `FixedPredict`, with n as the most samples.
    """

    def __init__(self, n: int, alpha: float) -> None:
        require_samples("n", n, 1)
        super().__init__(geometric_looks(PREDICT_LOOKS[0], n, PREDICT_LOOKS[1]), alpha)

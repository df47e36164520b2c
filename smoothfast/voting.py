"""Voting rules: what a noisy copy of an image gives each class.

The smoothed classifier of Nemcovsky et al. 2019 (arXiv 1911.07198, eq. 8) is g(x) = argmax_c sum_i V_c(p_i), where p_i
are the probabilities of copy i and V is the voting rule (eq. 9-13). By any rule a copy gives each class a whole number
of units, so that sums do not depend on the order of copies, on batches, threads or devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .names import VOTINGS

LARGEST = 2**32
"""Units that a copy gives a class at most, 2^31 - 1 copies together less than 2^63."""


@dataclass(frozen=True, eq=False)
class Voting:
    """A voting rule, as `ops.tally` takes it.

    Attributes:
        name: "prediction": a copy gives its most probable class 1. "weighted": the class of rank k in the order of its
            logits, largest first, `weights[k - 1]` units. "soft": each class its probability. "logit": each class its
            logit, those beyond -4096 .. 4096 as these ends.
        unit: what an integer of the tally is a multiple of, a power of 2.
        weights: int64 [R], R <= K; of "weighted" alone. Later ranks get nothing.
    """

    name: str
    unit: float
    weights: Tensor | None = None

    @property
    def differentiable(self) -> bool:
        """Whether the share of a class has a gradient."""
        return self.name in ("soft", "logit")

    def to(self, device: torch.device | str) -> Voting:
        """The rule with its weights on a device."""
        return self if self.weights is None else replace(self, weights=self.weights.to(device))


PREDICTION = Voting("prediction", 1.0)
SOFT = Voting("soft", 2.0**-32)
LOGIT = Voting("logit", 2.0**-20)


def weighted(weights: Sequence[float]) -> Voting:
    """The rule that gives a class a weight by its rank, 0 where there are more classes than weights.

    Weights are rounded to 2^-32 of the power of 2 that is next to the first one, from above; what that makes 0 is left
    out. Equal logits rank in the order of their classes.

    Raises:
        ValueError: a weight is negative, not finite or larger than the one before it, or the first one is 0.
    """
    values = [float(weight) for weight in weights]
    falling = all(a >= b for a, b in pairwise(values))  # False for NaN
    if not (values and falling and values[-1] >= 0 and 0 < values[0] < math.inf):
        raise ValueError(
            f"voting has the weights {values}; they must be finite, at least 0 and none larger than the one before it, "
            "the first one positive"
        )
    mantissa, exponent = math.frexp(values[0])
    unit = math.ldexp(1.0, exponent - (mantissa == 0.5)) / LARGEST
    units = [round(value / unit) for value in values]
    return Voting("weighted", unit, torch.tensor([count for count in units if count]))


def voting_rule(spec: str | Sequence[float], num_classes: int | None) -> Voting:
    """The voting rule that users name, or give as weights by rank.

    "weighted" are the weights 2^-(k-1) of rank k, over all classes as in the code of Nemcovsky et al. (eq. 11 does not
    fix them); from rank 34 on less than half a unit.

    Args:
        spec: one of `names.VOTINGS`, or numbers, one per rank, the most probable class first.
        num_classes: K; None while it is not known.

    Raises:
        ValueError: no such rule, more weights than classes, or weights that `weighted` refuses.
    """
    if not isinstance(spec, str):
        if num_classes is not None and len(spec) > num_classes:
            raise ValueError(f"voting has {len(spec)} weights; there are {num_classes} classes")
        return weighted(spec)
    if spec == "weighted":
        return weighted([2.0**-rank for rank in range(min(num_classes or 64, 64))])
    named = {voting.name: voting for voting in (PREDICTION, SOFT, LOGIT)}
    if spec not in named:
        raise ValueError(f"voting is {spec!r}; it must be one of {', '.join(VOTINGS)}, or weights by rank")
    return named[spec]


def log_scores(voting: Voting, counts: Tensor, samples: int) -> Tensor:
    """Finite log-scores float64 [N, K] of counts int64 [N, K], in their order.

    Of votes, with c the counts in units of the first weight and n what all classes get of all samples, these are
    log((c + 1/2) / (n + K/2)); by "soft" the logarithm of the mean probability, at least half a unit over all samples;
    by "logit" the log-softmax of the mean logits.
    """
    if voting.name == "soft":
        return (counts.double().clamp(min=0.5) * (voting.unit / samples)).log()
    if voting.name == "logit":
        return (counts.double() * (voting.unit / samples)).log_softmax(1)
    weights = torch.ones(1) if voting.weights is None else voting.weights.double() / voting.weights[0]
    first = 1 if voting.weights is None else int(voting.weights[0])
    return ((counts.double() / first + 0.5) / (samples * float(weights.sum()) + counts.shape[1] / 2)).log()

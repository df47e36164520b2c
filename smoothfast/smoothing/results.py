"""Results of PREDICT and CERTIFY, filled from the decisions of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine import Engine
from ..environment import environment
from ..modules import warn
from ..procedures import ABSTAIN, Decision
from ..text import counted


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The result of PREDICT.

    Attributes:
        labels: int64 [N], ABSTAIN (-1) where the votes do not decide.
        counts: int64 [N, K] votes by class.
        p_values: float64 [N] of the test of the two largest counts.
        samples: int64 [N] noisy copies drawn.
    """

    labels: Tensor
    counts: Tensor
    p_values: Tensor
    samples: Tensor

    def __repr__(self) -> str:
        """Says of how many images it is, and how many of them are predicted."""
        made = int((self.labels != ABSTAIN).sum())
        return f"<Prediction of {counted(len(self.labels), 'image')}: {made:,} predicted, {_drawn(self.samples)}>"


@dataclass(frozen=True, eq=False, repr=False)
class Certificate:
    """The result of CERTIFY: around image i, up to `radii[i]` in L2, the smoothed classifier returns `labels[i]`.

    Attributes:
        labels: int64 [N], ABSTAIN (-1) where nothing is certified.
        radii: float64 [N] in [0, 1] pixel units, rounded down; 0 when abstaining. Each is wrong with probability at
            most alpha.
        p_lower, p_upper: float64 [N], bounds of the probability of the label and of every other class.
        counts: int64 [N, K] votes of the estimation samples.
        invalid: int64 [N] of them without a class (logits that are not finite); they count as a rival.
        samples: int64 [N] noisy copies drawn, selection included.
        decisions: [N] "certified", "undecided" (nothing shown with the samples allowed), or, by methods "sequential"
            and "grid", "not certified" (the radius, by `bound`, is shown to be less than any asked for).
        alpha, sigma, seed: what the certificate holds for.
        sound: whether it holds in the arithmetic actually used: lattice noise on uint8 images, a base classifier whose
            logits of a noisy image were the same bits in other places and among other images of a pass, every rounding
            directed. It speaks of the classifier on uint8 images (docs/soundness.md).
        meta: all that is needed to replay it (`replay`): arguments, seed, how the base classifier ran, the SHA-256 of
            its weights, versions and processor.
    """

    labels: Tensor
    radii: Tensor
    p_lower: Tensor
    p_upper: Tensor
    counts: Tensor
    invalid: Tensor
    samples: Tensor
    decisions: list[str]
    alpha: float
    sigma: float
    seed: int
    sound: bool
    meta: dict[str, Any]

    def __repr__(self) -> str:
        """Says of how many images it is, how many are certified, within which radii, and whether it is sound."""
        held = self.radii[self.labels != ABSTAIN]
        share = f" ({len(held) / len(self.labels):.1%})" if len(self.labels) else ""
        radii = f", radii {held.min():.4g} .. {held.max():.4g}" if len(held) else ""
        return (
            f"<Certificate of {counted(len(self.labels), 'image')}: {len(held):,} certified{share}{radii}, "
            f"{_drawn(self.samples)}, sigma {self.sigma:g}, alpha {self.alpha:g}, {'' if self.sound else 'not '}sound>"
        )


def _drawn(samples: Tensor) -> str:
    return f"{int(samples.sum()):,} samples"


def prediction(decisions: Sequence[Decision], num_classes: int) -> Prediction:
    """A prediction for each of some decisions."""
    return Prediction(
        labels=stacked(decisions, "label"),
        counts=counts(decisions, num_classes),
        p_values=stacked(decisions, "p_value"),
        samples=stacked(decisions, "samples"),
    )


def certificate(decisions: Sequence[Decision], engine: Engine, alpha: float, meta: dict[str, Any]) -> Certificate:
    """A certificate for each of some decisions by the votes of an engine.

    Args:
        alpha: error level per image.
        meta: what else is needed to replay it, beside what the engine says of itself.
    """
    about = engine.function.about
    return Certificate(
        labels=stacked(decisions, "label"),
        radii=stacked(decisions, "radius"),
        p_lower=stacked(decisions, "p_lower"),
        p_upper=stacked(decisions, "p_upper"),
        counts=counts(decisions, engine.num_classes),
        invalid=stacked(decisions, "invalid"),
        samples=stacked(decisions, "samples"),
        decisions=[decision.outcome for decision in decisions],
        alpha=alpha,
        sigma=min(about["sigma"]),
        seed=about["seed"],
        sound=engine.sound,
        meta={**meta, **engine.meta, **about, "environment": environment()},
    )


def warned_of_silence(decisions: list[Decision]) -> list[Decision]:
    """Returns decisions, after a warning where no copy of an image had finite logits."""
    silent = sum(decision.invalid > 0 and not decision.counts.any() for decision in decisions)
    if silent:
        warn(f"no noisy copy of {silent:,} of {len(decisions):,} images has finite logits: these have no class")
    return decisions


def counts(decisions: Sequence[Decision], num_classes: int) -> Tensor:
    """The counts of each class, int64 [N, K]."""
    values = np.array([decision.counts for decision in decisions], np.int64)
    return torch.from_numpy(values.reshape(len(decisions), num_classes))


def stacked(decisions: Sequence[Decision], name: str) -> Tensor:
    """An attribute of all decisions: int64 [N] of whole numbers, float64 [N] of others."""
    dtype = np.int64 if name in ("label", "samples", "invalid") else np.float64
    return torch.from_numpy(np.array([getattr(decision, name) for decision in decisions], dtype))


def winners(votes: Tensor) -> Tensor:
    """The class with most of the votes [N, K], int64 [N]: the first of several, ABSTAIN where none has any."""
    return votes.argmax(1).masked_fill(votes.sum(1) == 0, ABSTAIN)

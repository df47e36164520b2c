"""The API of Cohen et al. 2019 (locuslab/smoothing), word for word, for code that is written against it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from ..checks import at_least
from ..engine.schedule import Job
from ..images import checked_images
from ..introductions import brief, introduction
from ..procedures.votes import ABSTAIN, Count, Votes
from ..streams import Stream
from .classifier import SmoothedClassifier


class Smooth:
    """A smoothed classifier as Cohen et al. define it: Gaussian noise on float images, Cohen's bound, their formulas.

    Unlike theirs it is seeded, runs on any device and leaves the base classifier's mode alone. Every call draws new
    samples, as theirs does; calls of several threads wait for each other. `SmoothedClassifier` gives larger radii
    (multi-class bound) that hold in floating point.

    Args:
        base_classifier: maps [B, C, H, W] in [0, 1] to [B, num_classes].
        num_classes: K.
        sigma: standard deviation of the noise, in [0, 1] pixel units.
        seed: of all noise.
    """

    ABSTAIN = ABSTAIN

    def __init__(self, base_classifier: nn.Module, num_classes: int, sigma: float, seed: int = 0) -> None:
        self.num_classes = num_classes
        self._smoothed = SmoothedClassifier(
            base_classifier, float(sigma), num_classes, noise="gaussian", precision="fp32", seed=seed
        )
        self._calls = 0  # the image id of a call, so that each draws samples of its own

    def __repr__(self) -> str:
        """The call that makes this classifier, but for the base classifier, of which there is the class alone."""
        told = {"num_classes": self.num_classes, "sigma": self.sigma, "seed": self._smoothed.seed}
        return introduction(self, brief(self.base_classifier), told)

    @property
    def base_classifier(self) -> nn.Module:
        """The base classifier."""
        return self._smoothed.base

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise."""
        return float(self._smoothed.sigma)

    def certify(self, x: Tensor, n0: int, n: int, alpha: float, batch_size: int) -> tuple[int, float]:
        """CERTIFY. With probability at least 1 - alpha the class returned is the smoothed classifier's everywhere
        within the radius returned.

        Args:
            x: float [C, H, W] in [0, 1].
            n0: samples that select the class.
            n: samples that estimate its probability.
            alpha: failure probability.
            batch_size: rows per forward pass.

        Returns:
            (class, radius), or (ABSTAIN, 0.0).
        """
        from scipy.stats import norm

        with self._smoothed.turns.taken():
            at_least(1, n0=n0, n=n)
            votes = self._votes(x, max(n0, n), alpha, batch_size)
            top = int(votes(n0, Stream.SELECT).argmax())
            estimation = votes(n, Stream.ESTIMATE)
        lower = lower_confidence_bound(int(estimation[top]), n, alpha)
        if lower < 0.5:
            return ABSTAIN, 0.0
        return top, float(self.sigma * norm.ppf(lower))

    def predict(self, x: Tensor, n: int, alpha: float, batch_size: int) -> int:
        """PREDICT: the most probable class, wrong with probability at most alpha, or ABSTAIN. Arguments as above."""
        from scipy.stats import binomtest

        with self._smoothed.turns.taken():
            at_least(1, n=n)
            counts = self._votes(x, n, alpha, batch_size)(n, Stream.PREDICT)
        votes = np.append(counts, n - counts.sum())  # rows without a class are a rival
        first, second = np.argsort(-votes, kind="stable")[:2]
        undecided = binomtest(int(votes[first]), int(votes[first] + votes[second]), 0.5).pvalue > alpha
        return ABSTAIN if undecided or first == self.num_classes else int(first)

    def _votes(self, x: Tensor, n: int, alpha: float, batch_size: int) -> Callable[[int, Stream], Votes]:
        """Draws votes for one call, of at most n samples of a stream: more rows in a pass would be none of theirs."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self._calls += 1
        self._smoothed.max_batch = min(batch_size, n)
        images = checked_images(x[None])
        engine = self._smoothed.engine(images, n)

        def votes(count: int, stream: Stream) -> Votes:
            (decision,) = engine.run([Job(images[0], self._calls, Count(count, stream=stream))])
            return decision.counts

        return votes


def lower_confidence_bound(successes: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower bound, 0 at no success."""
    from scipy.stats import beta  # brings 0.8 s of CPU time along, which others need not pay

    return float(beta.ppf(alpha, successes, n - successes + 1)) if successes else 0.0

"""Accuracy by noise, voting rule and number of samples, on clean and on attacked images: what `smoothfast sweep` does.

An attack is made once, and all settings are judged on its images. A sigma takes one set of forward passes: all rules
count the same samples, and fewer samples are the first of them. So settings differ by what they are, and not by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..engine import BaseFunction, Engine, Job
from ..layers import draws_noise
from ..ops.laws import float_law
from ..procedures import ABSTAIN, UNDECIDED, Decision, Draw, Procedure, Votes
from ..runners.choice import RunnerCache
from ..smoothing.classifier import SmoothedClassifier
from ..streams import Stream
from ..voting import voting_rule
from .attack import ATTACKS, at_once
from .sweep_log import CLEAN, Setting, SettingAccuracy, check_plan


class Ladder(Procedure):
    """The sums of the first 1, 2, 4, … samples of an image, one after the other: a procedure that decides nothing.

    Args:
        samples: rising numbers.
    """

    def __init__(self, samples: Sequence[int]) -> None:
        self._ends, self._sums = list(samples), list[Votes]()

    @property
    def most(self) -> int:
        return self._ends[-1]

    def begin(self) -> Draw:
        return Draw(Stream.PREDICT, 0, self._ends[0])

    def update(self, votes: Votes) -> Draw | Decision:
        self._sums.append(votes if not self._sums else self._sums[-1] + votes)
        done = len(self._sums)
        if done < len(self._ends):
            return Draw(Stream.PREDICT, self._ends[done - 1], self._ends[done] - self._ends[done - 1])
        return Decision(ABSTAIN, np.stack(self._sums), int(self._sums[-1][-1]), self.most, UNDECIDED)


@dataclass(frozen=True)
class Sweep:
    """A comparison of settings: every rule and number of samples at every sigma, on clean and on attacked images.

    Attributes:
        model: the classifier, of which base, normalisation, precision, runner, seed and rows per pass are used.
        sigmas: of the noise on images, 0 for none.
        votings: rules, see `voting.voting_rule`.
        samples: rising numbers.
        attack: name in `runs.attack.ATTACKS`, or None.
        options: of the attack, its own sigma among them.
        seeds: of the attack, which is made anew for each.
    """

    model: SmoothedClassifier
    sigmas: Sequence[float]
    votings: Sequence[str]
    samples: Sequence[int]
    attack: str | None
    options: dict[str, Any]
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        check_plan(self.sigmas, self.votings, self.samples)
        for voting in self.votings:
            voting_rule(voting, self.model.known_classes)

    @property
    def settings(self) -> list[Setting]:
        """All settings, in the order that they are judged in."""
        return [setting for block in self._blocks() for setting in block]

    def rows(
        self,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        done: Collection[Setting] = (),
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> Iterator[list[SettingAccuracy]]:
        """The rows that are not done, in the order of `settings`: those of each sigma on clean images, and on those of
        the attack by every seed. A sigma with a row missing takes all its passes again.

        Args:
            images: float32 [N, C, H, W] in [0, 1].
            labels: int64 [N].
            ids: int64 [N], the numbers that all noise is drawn under.
            done: settings whose rows need not be made again.
            progress: wraps the numbers of the blocks.
        """
        kept = set(done)
        blocks = [block for block in self._blocks() if not kept.issuperset(block)]
        crafted: dict[tuple[str, int], Tensor] = {}  # one at a time beside the clean ones
        for number in progress(range(len(blocks))):
            block = blocks[number]
            source = block[0].images, block[0].seed
            if source not in crafted:
                crafted = {source: images if source == (CLEAN, 0) else self.attacked(images, labels, ids, source[1])}
            right = self._right(crafted[source], labels, ids, block)
            yield [
                SettingAccuracy(*setting, correct, len(images))
                for setting, correct in zip(block, right.tolist(), strict=True)
                if setting not in kept
            ]

    def _blocks(self) -> list[list[Setting]]:
        """The settings that take one set of passes, by all rules and numbers of samples: a sigma on some images."""
        sources = [(CLEAN, 0), *((self.attack, seed) for seed in self.seeds if self.attack is not None)]
        return [
            [Setting(*source, sigma, *rest) for rest in product(self.votings, self._samples(sigma))]
            for source, sigma in product(sources, self.sigmas)
        ]

    def _samples(self, sigma: float) -> Sequence[int]:
        """Numbers of samples at a sigma. Without any noise one tells all."""
        return self.samples if sigma or draws_noise(self.model.base) else [1]

    def attacked(self, images: Tensor, labels: Tensor, ids: Tensor, seed: int) -> Tensor:
        """Makes adversarial images by the attack, with a seed."""
        assert self.attack is not None
        attack = ATTACKS[self.attack](
            self.model, seed=seed, max_batch=self.model.max_batch, runner=self.model.runner, **self.options
        )
        engine = attack.engine(images, len(images))
        attack.runner, attack.max_batch = engine.function.runner, engine.function.micro_batch
        size = at_once(engine, attack.samples)
        parts = zip(images.split(size), labels.split(size), ids.split(size), strict=True)
        return torch.cat([attack(*part).cpu() for part in parts])

    def _right(self, images: Tensor, labels: Tensor, ids: Tensor, block: Sequence[Setting]) -> NDArray[np.int64]:
        """Counts the images that each setting of a block classifies correctly."""
        sigma, samples = block[0].sigma, self._samples(block[0].sigma)
        engine = self._engine(images, sigma, len(images) * samples[-1])
        jobs = (Job(image, image_id, Ladder(samples)) for image, image_id in zip(images, ids.tolist(), strict=True))
        sums = np.stack([decision.counts for decision in engine.run(jobs)])
        counts = sums[..., :-1].reshape(len(images), len(samples), len(self.votings), engine.num_classes)
        voters = np.asarray(samples) - sums[..., -1]  # the others have logits that are not finite
        truth = labels.numpy()[:, None, None]
        right = (counts.argmax(3) == truth) & (voters > 0)[:, :, None]
        return right.sum(0).T.ravel()

    def _engine(self, images: Tensor, sigma: float, passes: int) -> Engine:
        def make(function: BaseFunction) -> Engine:
            return Engine(function, [voting_rule(voting, function.num_classes) for voting in self.votings])

        engines: RunnerCache[BaseFunction, Engine] = RunnerCache()
        return engines.first_accepted(self.model.functions(images, passes, float_law(sigma)), make)

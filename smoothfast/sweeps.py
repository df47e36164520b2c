"""Accuracy by noise, voting rule and number of samples, on clean and on attacked images: what `smoothfast sweep` does.

An attack is made once, and all settings are judged on its images. A sigma takes one set of forward passes: all rules
count the same samples, and fewer samples are the first of them. So settings differ by what they are, and not by luck.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .analysis import markdown
from .attack_runs import ATTACKS, at_once
from .engine import Engine, Job
from .layers import draws_noise
from .noise import Stream, float_law
from .procedures import ABSTAIN, UNDECIDED, Decision, Draw, Votes
from .runners import Kept
from .smoothing import SmoothedClassifier
from .specs import at_least, same_settings
from .voting import resolve

CLEAN = "clean"


@dataclass(frozen=True)
class Row:
    """The accuracy of one setting.

    Attributes:
        images: "clean", or the attack.
        seed: of the attack; 0 for clean images.
        sigma: of the noise on images, in [0, 1] pixel units; 0: none but what the base classifier has of its own.
        voting: rule.
        samples: noisy copies, or passes, an image.
        correct, count: numbers of images.
    """

    images: str
    seed: int
    sigma: float
    voting: str
    samples: int
    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


class Ladder:
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
    """What is to be compared.

    Attributes:
        model: the classifier, of which base, normalisation, precision, runner, seed and rows per pass are used.
        sigmas: of the noise on images, 0 for none.
        votings: rules, see `voting.resolve`.
        samples: rising numbers.
        attack: name in `attack_runs.ATTACKS`, or None.
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
        for voting in self.votings:
            resolve(voting, self.model.num_classes)
        if not self.samples or list(self.samples) != sorted(set(self.samples)):
            raise ValueError(f"samples is {list(self.samples)}; they must rise")
        at_least(1, samples=self.samples[0])
        for sigma in self.sigmas:
            float_law(sigma)  # checks it

    def rows(
        self,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        done: Sequence[Row] = (),
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> Iterator[list[Row]]:
        """The rows of each sigma on clean images, and on those of the attack by every seed.

        Args:
            images: float32 [N, C, H, W] in [0, 1].
            labels: int64 [N].
            ids: int64 [N], the numbers that all noise is drawn under.
            done: rows that need not be made again.
            progress: wraps the numbers of the blocks.
        """
        kept = {(row.images, row.seed, row.sigma) for row in done}
        sources = [(CLEAN, 0), *((self.attack, seed) for seed in self.seeds if self.attack is not None)]
        blocks = [(*source, sigma) for source in sources for sigma in self.sigmas if (*source, sigma) not in kept]
        crafted: dict[tuple[str, int], Tensor] = {(CLEAN, 0): images}
        for number in progress(range(len(blocks))):
            name, seed, sigma = blocks[number]
            if (name, seed) not in crafted:
                crafted = {(CLEAN, 0): images, (name, seed): self.attacked(images, labels, ids, seed)}
            judged = self._judged(crafted[name, seed], labels, ids, sigma)
            yield [replace(row, images=name, seed=seed) for row in judged]

    def attacked(self, images: Tensor, labels: Tensor, ids: Tensor, seed: int) -> Tensor:
        """Adversarial images by the attack, of a seed."""
        assert self.attack is not None
        attack = ATTACKS[self.attack][0](
            self.model, seed=seed, max_batch=self.model.max_batch, runner=self.model.runner, **self.options
        )
        passes = attack.passes(images, len(images))
        attack.runner, attack.max_batch = passes.runner, passes.micro_batch
        size = at_once(passes, attack.samples)
        parts = zip(images.split(size), labels.split(size), ids.split(size), strict=True)
        return torch.cat([attack(*part).cpu() for part in parts])

    def _judged(self, images: Tensor, labels: Tensor, ids: Tensor, sigma: float) -> list[Row]:
        """By all rules and numbers of samples. Without any noise one sample tells all."""
        samples = self.samples if sigma or draws_noise(self.model.base) else [1]
        engine = self._engine(images, sigma, len(images) * samples[-1])
        jobs = (Job(image, image_id, Ladder(samples)) for image, image_id in zip(images, ids.tolist(), strict=True))
        sums = np.stack([decision.counts for decision in engine.run(jobs)])
        counts = sums[..., :-1].reshape(len(images), len(samples), len(self.votings), self.model.num_classes)
        voters = np.asarray(samples) - sums[..., -1]  # the others have logits that are not finite
        truth = labels.numpy()[:, None, None]
        right = (counts.argmax(3) == truth) & (voters > 0)[:, :, None]
        return [
            Row("", 0, sigma, voting, number, int(right[:, at, rule].sum()), len(images))
            for rule, voting in enumerate(self.votings)
            for at, number in enumerate(samples)
        ]

    def _engine(self, images: Tensor, sigma: float, passes: int) -> Engine:
        model, (channels, height, width) = self.model, images.shape[1:]
        votings = [resolve(voting, model.num_classes) for voting in self.votings]

        def build(runner: str) -> Engine:
            return Engine(
                model.base, float_law(sigma), (channels, height, width), images.dtype, model.num_classes, model.seed,
                model.normalize, model.precision, model.micro_batch(images), runner, model.clip, votings,
            )  # fmt: skip

        return Kept[Engine]().first(model.candidates(images, passes), lambda runner: runner, build)


# ---- files and tables ------------------------------------------------------------------------------------------------


def begin(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """The rows that a file holds already; settings, which they all have in common, are kept beside it as JSON.

    Raises:
        ValueError: it was made with other settings, or is no file of this kind.
    """
    beside = path.with_name(f"{path.name}.json")
    if path.exists() and beside.exists():
        same_settings(path, json.loads(beside.read_text()), settings)
        return read(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already, without {beside.name}; give another --out")
    beside.write_text(json.dumps(settings, indent=1) + "\n")
    return []


def write(rows: Sequence[Row], path: Path) -> None:
    """Adds rows to a CSV file, which gets a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read(path: Path) -> list[Row]:
    """The rows of a CSV file.

    Raises:
        ValueError: it is no file of this kind.
    """
    kinds = {"images": str, "seed": int, "sigma": float, "voting": str, "samples": int, "correct": int, "count": int}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(kinds):
            raise ValueError(f"{path} has the columns {reader.fieldnames}; those of a sweep are {', '.join(kinds)}")
        return [Row(**{name: kind(line[name]) for name, kind in kinds.items()}) for line in reader]


def means(rows: Sequence[Row]) -> dict[tuple[str, float, str, int], tuple[float, float | None]]:
    """By images, sigma, voting and samples: the mean accuracy over the seeds of an attack, and their standard deviation
    where there are several."""
    groups: defaultdict[tuple[str, float, str, int], list[float]] = defaultdict(list)
    for row in rows:
        groups[row.images, row.sigma, row.voting, row.samples].append(row.accuracy)
    return {key: (mean(values), stdev(values) if len(values) > 1 else None) for key, values in groups.items()}


def table(rows: Sequence[Row]) -> str:
    """Accuracy in percent by images, sigma and voting (rows) and number of samples (columns), in markdown."""
    found = means(rows)
    samples = sorted({row.samples for row in rows})
    lines = dict.fromkeys((images, sigma, voting) for images, sigma, voting, _ in found)
    body = [
        [images, f"{sigma:g}", voting, *(_percent(found.get((images, sigma, voting, number))) for number in samples)]
        for images, sigma, voting in lines
    ]
    return markdown(["images", "sigma", "voting", *(str(number) for number in samples)], body)


def _percent(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return ""
    value, spread = found
    return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")

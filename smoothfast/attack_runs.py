"""A data set through an attack: what `smoothfast attack` does, with files of `attack_files`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .analysis import markdown
from .attack_files import Attacked
from .attacks import CW, DDN, EPGD, FGSM, PGD, Attack, MultiTargetedPGD, NAttack, SmoothAdvPGD, Square
from .data import Labelled
from .engine import Engine
from .evaluation import LEVEL, ORDERS, accuracy, base_votes, distances
from .passes import Passes
from .runs import checked_alike, environment
from .smoothing import SmoothedClassifier, checked_images, elected, pixels
from .specs import choice


def _square(model: nn.Module, steps: int = 5000, **own: Any) -> Square:
    """Its queries are what steps are elsewhere."""
    return Square(model, queries=steps, **own)


CLIMB: Mapping[str, Any] = {"eps": 8 / 255, "alpha": None, "steps": 7, "samples": 8, "norm": "linf", "restarts": 1}
AWAY: Mapping[str, Any] = {"targeted": "none"}
ATTACKS: dict[str, tuple[Callable[..., Attack], Mapping[str, Any]]] = {
    "fgsm": (FGSM, {**AWAY, "eps": 8 / 255, "norm": "linf", "loss": "ce"}),
    "pgd": (PGD, {**CLIMB, **AWAY, "samples": 1, "loss": "ce"}),
    "epgd": (EPGD, {**CLIMB, **AWAY, "loss": "ce"}),
    "smoothadv": (SmoothAdvPGD, {**CLIMB, **AWAY}),
    "multi-targeted": (MultiTargetedPGD, {**CLIMB, "samples": 1}),
    "ddn": (DDN, {**AWAY, "steps": 100, "samples": 1}),
    "cw": (CW, {**AWAY, "steps": 1000, "samples": 1}),
    "nattack": (NAttack, {**AWAY, "eps": 8 / 255, "steps": 500, "samples": 1}),
    "square": (_square, {**AWAY, "eps": 8 / 255, "steps": 5000, "samples": 1}),
    "pgd-legacy": (partial(PGD, legacy_accumulate=True), {**CLIMB, **AWAY, "samples": 1, "loss": "ce"}),
}
"""By name: what makes the attack, and the options it takes, with their values where they are not given."""

TARGETED: dict[str, Callable[[Attack], None]] = {
    "none": Attack.set_mode_default,
    "random": Attack.set_mode_targeted_random,
    "least-likely": Attack.set_mode_targeted_least_likely,
}
SOURCES = {"smoothed": None, "base": 0.0}  # what images are crafted on, by the sigma that the attack is told

FULL = 8  # micro-batches of each lane in a step: 4 take 3 % longer (ResNet-20, one thread), and a kill loses few images
MEMORY = 2**28  # bytes of float32 images handed over at once, at most; an attack keeps several tensors of that size


def options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an attack; those given that are None are as the attack has them.

    Raises:
        ValueError: there is no such attack, or it does not take one of those given.
    """
    choice("attack", name, ATTACKS)
    taken = ATTACKS[name][1]
    chosen = {option: value for option, value in given.items() if value is not None}
    for option, value in chosen.items():
        if option not in taken:
            others = ", ".join(other for other, (_, theirs) in ATTACKS.items() if option in theirs)
            raise ValueError(f"{option} is {value!r}; attack {name!r} takes none, as {others} do")
    return {**taken, **chosen}


def make(name: str, smoothed: SmoothedClassifier, source: str, options: Mapping[str, Any]) -> Attack:
    """An attack on a smoothed classifier, or on its base classifier without noise, with its seed, runner and rows per
    pass."""
    choice("source", source, SOURCES)
    own = {option: value for option, value in options.items() if option != "targeted"}
    targeted = options.get("targeted", "none")
    choice("targeted", targeted, TARGETED)
    attack = ATTACKS[name][0](
        smoothed, sigma=SOURCES[source], seed=smoothed.seed, max_batch=smoothed.max_batch, runner=smoothed.runner, **own
    )
    TARGETED[targeted](attack)
    return attack


def settle(
    attack: Attack, smoothed: SmoothedClassifier, image: Tensor, count: int, votes: int
) -> tuple[Passes, Engine]:
    """Fixes by what runners the attack and the votes on so many images like this one [1, C, H, W] are computed: chosen
    for all of the run, also where it comes in parts."""
    image = pixels(image)
    passes, engine = attack.passes(image, count), smoothed.engine(image, 2 * count * votes)
    attack.runner, smoothed.runner, attack.max_batch = passes.runner, engine.runner, passes.micro_batch
    return passes, engine


def at_once(passes: Passes, samples: int) -> int:
    """How many images to attack at once, with so many samples for each."""
    rows = FULL * len(passes.lanes) * passes.micro_batch
    return max(1, min(rows // samples, MEMORY // (4 * math.prod(passes.shape))))


def run(
    attack: Attack,
    smoothed: SmoothedClassifier,
    data: Labelled,
    indices: list[int],
    votes: int,
    size: int,
    progress: Callable[[Sequence[list[int]]], Iterable[list[int]]] = iter,
    done: Sequence[Attacked] = (),
    keep: Callable[[Attacked], None] = lambda part: None,
) -> Attacked:
    """Attacks the images `indices` of a data set, and has base and smoothed classifier judge them before and after.

    The index of an image is the id that all noise is drawn under, so nothing depends on which are attacked together.
    Clean images are judged as float images, by the same noise as the adversarial ones.

    Args:
        attack, smoothed: with runners that are settled.
        votes: fresh samples of the smoothed classifier for each image.
        size: images attacked at once.
        progress: wraps the batches for display.
        done: what became of the first images before.
        keep: takes what became of a batch, as soon as it is judged.
    """
    first = checked_images(data[indices[0]][0][None])[0]
    parts = list(done)
    left = indices[sum(map(len, parts)) :]
    for batch in progress([left[start : start + size] for start in range(0, len(left), size)]):
        images, labels = zip(*(data[index] for index in batch), strict=True)
        alike = [checked_alike(*pair, first.shape, first.dtype) for pair in zip(images, batch, strict=True)]
        clean = pixels(torch.stack(alike))
        adversarial = attack(clean, labels, batch).cpu()
        judged = {"clean": clean, "adversarial": adversarial}
        columns = (
            {"adversarial": adversarial, "labels": torch.tensor(labels), "indices": torch.tensor(batch)}
            | {f"base_{name}": base_votes(smoothed, of, smoothed.max_batch).cpu() for name, of in judged.items()}
            | {f"smoothed_{name}": smoothed.votes(of, votes, batch) for name, of in judged.items()}
            | {norm: distances(clean, adversarial, norm) for norm in ORDERS}
        )
        parts.append(Attacked(columns, votes, attack.gradients, attack.forwards, environment()))
        keep(parts[-1])
    return Attacked(
        {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns},
        votes,
        sum(part.gradients for part in parts),
        sum(part.forwards for part in parts),
        parts[0].environment,
    )


def tables(attacked: Attacked, name: str) -> str:
    """Accuracies, and what the attack took and how far it went, in markdown. An image is fooled where the smoothed
    classifier was right, and is no more."""
    columns = attacked.columns
    rows = [
        [row, *(str(accuracy(columns[f"{of}_{which}"], columns["labels"])) for which in ("clean", "adversarial"))]
        for of, row in {"base": "base, without noise", "smoothed": f"smoothed, {attacked.votes:,} votes"}.items()
    ]
    per_image = [f"{number / len(attacked):,.6g}" for number in (attacked.gradients, attacked.forwards)]
    moved = [f"{value:.4f}" for norm in ORDERS for value in (columns[norm].max(), columns[norm].mean())]
    was, became = (elected(columns[f"smoothed_{which}"]) == columns["labels"] for which in ("clean", "adversarial"))
    fooled = columns["l2"][was & ~became]
    moved.append(f"{fooled.mean():.4f}" if len(fooled) else "none")
    heads = [*(f"{of} {norm}" for norm in ORDERS for of in ("largest", "mean")), "mean l2 of images fooled"]
    judged = ["classifier", *(f"{which} accuracy ({LEVEL:.0%} interval)" for which in ("clean", "adversarial"))]
    took = ["attack", "gradients per image", "forward passes per image", *heads]
    return f"{markdown(judged, rows)}\n{markdown(took, [[name, *per_image, *moved]])}"

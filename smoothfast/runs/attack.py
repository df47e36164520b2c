"""A data set through an attack: what `smoothfast attack` does, with files of `attack_files`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import CW, DDN, EPGD, FGSM, PGD, Attack, MultiTargetedPGD, NAttack, SmoothAdvPGD, Square
from ..checks import choice
from ..data import Labelled
from ..engine import Engine, Gradients
from ..environment import environment
from ..evaluation import ORDERS, accuracy, base_votes, distances
from ..images import checked_alike, checked_images, pixels
from ..smoothing.classifier import SmoothedClassifier
from ..smoothing.results import winners
from ..statistics import LEVEL
from .attack_files import Attacked
from .tables import markdown


def _square(model: nn.Module, steps: int = 5000, **own: Any) -> Square:
    """Makes a Square, whose queries are what steps are elsewhere."""
    return Square(model, queries=steps, **own)


ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "epgd": EPGD,
    "smoothadv": SmoothAdvPGD,
    "multi-targeted": MultiTargetedPGD,
    "ddn": DDN,
    "cw": CW,
    "nattack": NAttack,
    "square": _square,
    "pgd-legacy": partial(PGD, legacy_accumulate=True),
}
"""The maker of each attack, by its name; `attack_options` has the options it takes."""


TARGETED: dict[str, Callable[[Attack], None]] = {
    "none": Attack.set_mode_default,
    "random": Attack.set_mode_targeted_random,
    "least-likely": Attack.set_mode_targeted_least_likely,
}


SOURCES = {"smoothed": None, "base": 0.0}  # what images are crafted on, by the sigma that the attack is told
FULL = 8  # micro-batches of each lane in a step: 4 take 3 % longer (ResNet-20, one thread), and a kill loses few images
MEMORY = 2**28  # bytes of float32 images handed over at once, at most; an attack keeps several tensors of that size


def make(name: str, smoothed: SmoothedClassifier, source: str, options: Mapping[str, Any]) -> Attack:
    """Makes an attack on a smoothed classifier, or on its base classifier without noise, with its seed, runner and rows
    per pass."""
    choice("source", source, SOURCES)
    own = {option: value for option, value in options.items() if option != "targeted"}
    targeted = options.get("targeted", "none")
    choice("targeted", targeted, TARGETED)
    attack = ATTACKS[name](
        smoothed, sigma=SOURCES[source], seed=smoothed.seed, max_batch=smoothed.max_batch, runner=smoothed.runner, **own
    )
    TARGETED[targeted](attack)
    return attack


def settle(
    attack: Attack, smoothed: SmoothedClassifier, image: Tensor, count: int, votes: int
) -> tuple[Gradients, Engine]:
    """Fixes by what runners the attack and the votes on so many images like this one [1, C, H, W] are computed: chosen
    for all of the run, also where it comes in parts."""
    image = pixels(image)
    attacking, judging = attack.engine(image, count), smoothed.engine(image, 2 * count * votes)
    attack.runner, attack.max_batch = attacking.function.runner, attacking.function.micro_batch
    smoothed.runner = judging.function.runner
    return attacking, judging


def at_once(engine: Gradients, samples: int) -> int:
    """Chooses how many images to attack at once, with so many samples for each."""
    rows = FULL * len(engine.lanes) * engine.function.micro_batch
    return max(1, min(rows // samples, MEMORY // (4 * math.prod(engine.function.shape))))


def run(
    attack: Attack,
    smoothed: SmoothedClassifier,
    data: Labelled,
    indices: list[int],
    votes: int,
    size: int,
    *,
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


def so_far(parts: Sequence[Attacked]) -> str:
    """Says how often the smoothed classifier was right in the batches that are judged, before and after; nothing where
    there are none."""
    if not parts:
        return ""
    labels = torch.cat([part.columns["labels"] for part in parts])
    before, after = (
        accuracy(torch.cat([part.columns[f"smoothed_{which}"] for part in parts]), labels).share
        for which in ("clean", "adversarial")
    )
    return f"accuracy {before:.3f}, attacked {after:.3f}"


def tables(attacked: Attacked, name: str, width: int | None = None) -> str:
    """Writes accuracies, and what the attack took and how far it went, in markdown of a width that `markdown`
    describes. An image is fooled where the smoothed classifier was right, and is no more."""
    columns = attacked.columns
    rows = [
        [row, *(str(accuracy(columns[f"{of}_{which}"], columns["labels"])) for which in ("clean", "adversarial"))]
        for of, row in {"base": "base, without noise", "smoothed": f"smoothed, {attacked.votes:,} votes"}.items()
    ]
    per_image = [f"{number / len(attacked):,.6g}" for number in (attacked.gradients, attacked.forwards)]
    moved = [f"{value:.4f}" for norm in ORDERS for value in (columns[norm].max(), columns[norm].mean())]
    fooled = _fooled(attacked)
    moved.append(f"{fooled.mean():.4f}" if len(fooled) else "none")
    heads = [*(f"{of} {norm}" for norm in ORDERS for of in ("largest", "mean")), "mean l2 of images fooled"]
    judged = ["classifier", *(f"{which} accuracy ({LEVEL:.0%} interval)" for which in ("clean", "adversarial"))]
    took = ["attack", "gradients per image", "forward passes per image", *heads]
    return f"{markdown(judged, rows, width)}\n{markdown(took, [[name, *per_image, *moved]], width)}"


def figures(attacked: Attacked) -> dict[str, Any]:
    """The figures that `tables` writes, for programs: exact, distances in [0, 1] pixel units."""
    columns = attacked.columns
    judged = {
        of: {
            which: asdict(found) | {"accuracy": found.share}
            for which in ("clean", "adversarial")
            for found in [accuracy(columns[f"{of}_{which}"], columns["labels"])]
        }
        for of in ("base", "smoothed")
    }
    fooled = _fooled(attacked)
    return {
        **judged,
        "level": LEVEL,
        "votes": attacked.votes,
        "images": len(attacked),
        "gradients": attacked.gradients,
        "forwards": attacked.forwards,
        "distances": {
            norm: {"largest": float(columns[norm].max()), "mean": float(columns[norm].mean())} for norm in ORDERS
        },
        "fooled": {"images": len(fooled), "mean_l2": float(fooled.mean()) if len(fooled) else None},
    }


def _fooled(attacked: Attacked) -> Tensor:
    """The distances (l2) by which the images were moved on which the smoothed classifier was right, and is no more."""
    columns = attacked.columns
    was, became = (winners(columns[f"smoothed_{which}"]) == columns["labels"] for which in ("clean", "adversarial"))
    return columns["l2"][was & ~became]

"""Strength of attacks for the gradients that they spend: PGD, EPGD and SmoothAdv on the embedded network.

The comparison of Nemcovsky et al. 2019 (appendix B), on a network of ours. PGD spends them all on steps. The others
take `SAMPLES` for each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from smoothfast.attacks import EPGD, PGD, Attack, SmoothAdvPGD
from smoothfast.smoothing import SmoothedClassifier
from smoothfast.smoothing.results import winners

from . import harness

EPS = {"linf": 8 / 255, "l2": 0.5}
SAMPLES, VOTES, IMAGES = 8, 100, 200
BUDGETS = (8, 16, 32, 64, 128, 256)
ATTACKED = "wrong after the attack"


def main(out: Path | None, images: int = IMAGES) -> list[harness.Row]:
    """Attacks `images` of the embedded images with 8 to 256 gradients each, Linf 8/255 and L2 0.5."""
    devices = harness.devices()
    return harness.report((rows(images, norm, BUDGETS, device) for device in devices for norm in EPS), out)


def rows(count: int, norm: str, budgets: tuple[int, ...], device: torch.device) -> list[harness.Row]:
    """The share of images that fresh votes get wrong, by attack and gradients spent on an image."""
    pixels, labels, ids = harness.embedded_images(count)
    smoothed = harness.embedded(device)
    wrong = {}
    for name, attack in contenders(smoothed, norm, budgets):
        votes = smoothed.votes(attack(pixels, labels, ids), VOTES, ids)
        wrong[name] = (winners(votes) != labels).double().numpy()
    setting = f"{harness.described(smoothed, pixels)}, {norm} {EPS[norm]:.4g}, {VOTES} votes, {count} images"
    return harness.means("strength", setting, wrong, ATTACKED, device)


def contenders(smoothed: SmoothedClassifier, norm: str, budgets: tuple[int, ...]) -> Iterator[tuple[str, Attack]]:
    """Attacks with steps of a quarter of eps; one object for each kind, whose network stays compiled."""
    for name, kind, samples in (("PGD", PGD, 1), ("EPGD", EPGD, SAMPLES), ("SmoothAdv", SmoothAdvPGD, SAMPLES)):
        attack = kind(smoothed, EPS[norm], norm=norm, samples=samples, runner=smoothed.runner)
        for budget in budgets:
            attack.steps = budget // samples
            yield f"{name}, {budget} gradients", attack

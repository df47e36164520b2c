"""500 certified images attacked inside their balls by somebody who knows everything but the seed.

A certificate is wrong with probability alpha at most, whatever the attack. The images, on the lattice of 8 bits and
within the radius, come from EPGD and DDN on the smoothed network, and from a search on the lattice along its gradient.
docs/trust.md says what was run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.classifiers import embedded
from scipy.stats import binom
from torch import Tensor

import smoothfast as sf
from smoothfast.models import CIFAR10_STATISTICS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
SIGMA, ALPHA, N = 0.25, 0.001, 10_000
BINS = 12  # of radii, for an attack takes one for all its images: at most 8 % of a radius is left unused


def smoothed(seed: int) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(embedded(), SIGMA, 10, normalize=CIFAR10_STATISTICS, seed=seed)


def inside(images: Tensor, towards: Tensor, radii: Tensor) -> Tensor:
    """uint8 images in the direction of others, as near to the sphere as the lattice lets them be, and never beyond it.

    The step is cut to the radius; a part of a level counts as a whole one from the least share on, found by bisection,
    at which the image is still inside.
    """
    limit = (255 * radii).view(-1, 1)
    start = images.double().flatten(1)
    step = (255 * towards.double()).flatten(1) - start
    step = step * (limit / step.norm(dim=1, keepdim=True).clamp(min=1e-12))
    share = torch.zeros_like(limit), torch.ones_like(limit)  # what is added: so much is inside, so much may not be
    moved = start
    for _ in range(40):
        middle = (share[0] + share[1]) / 2
        tried = (start + (step.abs() + middle).floor() * step.sign()).clamp(0, 255)
        fits = (tried - start).norm(dim=1, keepdim=True) <= limit * (1 - 1e-12)
        moved = torch.where(fits, tried, moved)
        share = torch.where(fits, middle, share[0]), torch.where(fits, share[1], middle)
    assert ((moved - start).norm(dim=1) <= limit[:, 0]).all()
    return moved.to(torch.uint8).view_as(images)


def attacked(images: Tensor, labels: Tensor, radii: Tensor) -> dict[str, Tensor]:
    """Images of each attack, by an adversary with noise of his own."""
    model = smoothed(seed=99)
    attacks: dict[str, Any] = {
        "EPGD": sf.attacks.EPGD(model, steps=20, samples=16, norm="l2"),
        "EPGD of the margin": sf.attacks.EPGD(model, steps=20, samples=16, loss="margin", norm="l2"),
        "one long step": sf.attacks.EPGD(model, steps=1, samples=256, random_start=False, norm="l2"),
        "DDN": sf.attacks.DDN(model, steps=40, samples=16, precision=model.precision),
    }
    found = {name: images.clone() for name in attacks}
    for part in radii.argsort().tensor_split(BINS):
        eps = float(radii[part].min())
        for name, attack in attacks.items():
            attack.eps = attack.init_norm = eps
            attack.alpha = eps if name == "one long step" else eps / 4
            found[name][part] = inside(images[part], attack(images[part], labels[part], part.tolist()), radii[part])
    return found


def test_no_certificate_is_broken_beyond_alpha(test_images: tuple[Tensor, Tensor]) -> None:
    pixels, _ = test_images
    images = (255 * pixels).round().to(torch.uint8)
    certificate = smoothed(seed=0).certify(images, n=N, alpha=ALPHA)
    assert certificate.sound
    held = (certificate.radii > 0).nonzero().flatten()
    chosen, labels, radii = images[held], certificate.labels[held], certificate.radii[held]
    broken = torch.zeros(len(held), dtype=torch.bool)
    for name, adversarial in attacked(chosen, labels, radii).items():
        # Other samples than those of the certificates and of the attacks judge g.
        found = smoothed(seed=7).predict(adversarial, n=N, alpha=1e-6, method="sequential")
        wrong = (found.labels >= 0) & (found.labels != labels)
        open_ = int((found.labels < 0).sum())
        used = (adversarial.double() - chosen.double()).flatten(1).norm(dim=1) / 255 / radii
        print(
            f"\n{name}: {int(wrong.sum())} of {len(held)} broken, {open_} undecided, {used.median():.3f} of the radius"
        )
        broken |= wrong
    assert int(broken.sum()) <= int(binom.isf(1e-6, len(held), ALPHA))


def test_the_attacks_break_what_is_not_certified(test_images: tuple[Tensor, Tensor]) -> None:
    """The test has teeth: at three times the radius the same attacks change many predictions."""
    images = (255 * test_images[0][:60]).round().to(torch.uint8)
    certificate = smoothed(seed=0).certify(images, n=N, alpha=ALPHA)
    held = (certificate.radii > 0).nonzero().flatten()
    adversarial = attacked(images[held], certificate.labels[held], 3 * certificate.radii[held])["EPGD"]
    found = smoothed(seed=7).predict(adversarial, n=N, method="sequential")
    assert int(((found.labels >= 0) & (found.labels != certificate.labels[held])).sum()) > len(held) / 4

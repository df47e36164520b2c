"""The strength of attacks on test images, beside torchattacks, and within certified balls. Figures: docs/attacks.md."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers.classifiers import embedded
from torch import Tensor, nn
from torch.nn.functional import one_hot

import smoothfast as sf
from smoothfast import models
from smoothfast.attacks import DDN, EPGD, PGD, Attack, NAttack, SmoothAdvPGD, Square
from smoothfast.evaluation import accuracy, base_votes
from smoothfast.smoothing.results import winners

pytestmark = pytest.mark.slow
SIGMA, VOTES = 0.25, 100
BUDGETS = {"linf": (8 / 255, 2 / 255), "l2": (0.5, 0.125)}  # eps, alpha


@pytest.fixture(scope="module")
def base() -> nn.Module:
    network = embedded()
    return network.eval()


@pytest.fixture(scope="module")
def smoothed(base: nn.Module) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(base, SIGMA, 10, normalize=models.CIFAR10_STATISTICS)


@pytest.fixture(scope="module")
def plain(base: nn.Module) -> nn.Module:
    """In [0, 1], without noise."""
    return nn.Sequential(models.Normalize(*models.CIFAR10_STATISTICS), base).eval()


class Noisy(nn.Module):
    """What a user of torchattacks writes to attack a smoothed classifier."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, images: Tensor) -> Tensor:
        return self.plain(images + SIGMA * torch.randn_like(images))


def report(name: str, correct: Tensor) -> None:
    """A row for docs/attacks.md, of images that are right (1) or not (0)."""
    print(f"| {name} | {accuracy(one_hot(correct, 2), torch.ones_like(correct), 0.99)} |", flush=True)


def no_weaker(ours: Tensor, theirs: Tensor) -> None:
    """Of images right after either attack (1) or not (0): ours may leave more of them right only by chance. Where the
    two differ, a weaker attack is as likely as a stronger one; 2.58 deviations are 99 %."""
    more, fewer = int((ours > theirs).sum()), int((ours < theirs).sum())
    assert more - fewer <= 2.58 * math.sqrt(max(more + fewer, 1))


@pytest.mark.parametrize("norm", BUDGETS)
def test_as_strong_as_torchattacks(
    smoothed: sf.SmoothedClassifier, plain: nn.Module, test_images: tuple[Tensor, Tensor], norm: str
) -> None:
    peers = pytest.importorskip("torchattacks", reason="torchattacks is not installed: pip install smoothfast[peers]")
    images, labels = test_images
    eps, alpha = BUDGETS[norm]

    def right(adversarial: Tensor, under_noise: bool = True) -> Tensor:
        votes = smoothed.votes(adversarial, VOTES) if under_noise else base_votes(smoothed, adversarial)
        return (winners(votes) == labels).long()

    theirs = peers.PGD if norm == "linf" else peers.PGDL2
    torch.manual_seed(0)
    pairs: list[tuple[str, Attack, Callable[[Tensor, Tensor], Tensor], bool]] = [
        ("PGD, 20 steps, base", PGD(plain, eps, alpha, 20, norm=norm), theirs(plain, eps, alpha, 20), False),
        (
            "PGD, 20 steps, smoothed",
            PGD(smoothed, eps, alpha, 20, norm=norm),
            theirs(Noisy(plain), eps, alpha, 20),
            True,
        ),
    ]
    if norm == "linf":
        eot = peers.EOTPGD(Noisy(plain), eps, alpha, 7, eot_iter=8)
        pairs.append(("EPGD, 7 steps of 8, smoothed", EPGD(smoothed, eps, alpha), eot, True))
    report(f"{norm}: clean, base", right(images, False))
    report(f"{norm}: clean, smoothed", right(images))
    for name, attack, peer, under_noise in pairs:
        found = [right(adversarial(images, labels), under_noise) for adversarial in (attack, peer)]
        for by, correct in zip(("smoothfast", "torchattacks"), found, strict=True):
            report(f"{norm}: {name}, {by}", correct)
        no_weaker(*found)


@pytest.mark.parametrize("norm", BUDGETS)
def test_restarts_losses_and_legacy_gradients(
    smoothed: sf.SmoothedClassifier, test_images: tuple[Tensor, Tensor], norm: str
) -> None:
    """On every second of these images, reported; what must hold is that every attack finds something, and that restarts
    do not weaken one."""
    images, labels = (part[::2] for part in test_images)
    eps, _ = BUDGETS[norm]
    clean = (winners(smoothed.votes(images, VOTES)) == labels).long()
    found = {}
    for name, attack in {
        "EPGD": EPGD(smoothed, eps, norm=norm),
        "EPGD, margin": EPGD(smoothed, eps, norm=norm, loss="margin"),
        "EPGD, DLR": EPGD(smoothed, eps, norm=norm, loss="dlr"),
        "EPGD, 3 restarts": EPGD(smoothed, eps, norm=norm, restarts=3),
        "EPGD, 4 steps": EPGD(smoothed, eps, steps=4, norm=norm),
        "EPGD, legacy": EPGD(smoothed, eps, norm=norm, legacy_accumulate=True),
        "EPGD, 28 steps": EPGD(smoothed, eps, steps=28, norm=norm),
        "EPGD, 28 steps, legacy": EPGD(smoothed, eps, steps=28, norm=norm, legacy_accumulate=True),
        "PGD": PGD(smoothed, eps, norm=norm),
        "PGD, legacy": PGD(smoothed, eps, norm=norm, legacy_accumulate=True),
        "SmoothAdv, fixed noise": SmoothAdvPGD(smoothed, eps, norm=norm),
        "SmoothAdv, fresh noise": SmoothAdvPGD(smoothed, eps, norm=norm, fresh_noise=True),
    }.items():
        found[name] = (winners(smoothed.votes(attack(images, labels), VOTES)) == labels).long()
        report(f"{norm}: {name}", found[name])
        assert found[name].sum() < clean.sum()
    no_weaker(found["EPGD, 3 restarts"], found["EPGD"])


@pytest.mark.parametrize("norm", BUDGETS)
def test_transfer(smoothed: sf.SmoothedClassifier, test_images: tuple[Tensor, Tensor], norm: str) -> None:
    """Crafted on the base classifier without noise, or under it; each judged by both."""
    images, labels = test_images
    eps, _ = BUDGETS[norm]
    right = {}
    for source, attack in {
        "base": PGD(smoothed, eps, steps=20, norm=norm, sigma=0.0),
        "smoothed": EPGD(smoothed, eps, norm=norm),
    }.items():
        adversarial = attack(images, labels)
        for target, votes in {
            "base": base_votes(smoothed, adversarial), "smoothed": smoothed.votes(adversarial, VOTES)
        }.items():  # fmt: skip
            right[source, target] = (winners(votes) == labels).long()
            report(f"{norm}: crafted on {source}, judged by {target}", right[source, target])
    for target in ("base", "smoothed"):
        other = "smoothed" if target == "base" else "base"
        no_weaker(right[target, target], right[other, target])


def test_without_gradients(smoothed: sf.SmoothedClassifier, test_images: tuple[Tensor, Tensor]) -> None:
    """NAttack and Square on every tenth of these images, with few queries; reported."""
    images, labels = (part[::10] for part in test_images)
    clean = (winners(smoothed.votes(images, VOTES)) == labels).long()
    report("linf: clean, smoothed, 50 images", clean)
    for name, attack in {
        "NAttack, 20 steps of 50, 4 samples": NAttack(smoothed, steps=20, population=50, samples=4),
        "Square, 500 queries, 4 samples": Square(smoothed, queries=500, samples=4),
    }.items():
        correct = (winners(smoothed.votes(attack(images, labels), VOTES)) == labels).long()
        report(f"linf: {name}, {attack.forwards / len(images):,.0f} forward passes an image", correct)
        assert correct.sum() <= clean.sum()


@pytest.fixture(scope="module")
def certificate(smoothed: sf.SmoothedClassifier, test_images: tuple[Tensor, Tensor]) -> sf.Certificate:
    """Of every second of these images, as float images: by the Gaussian noise that adversarial images are judged by."""
    return smoothed.certify(test_images[0][::2], n=2_000, alpha=0.001)


@pytest.mark.parametrize("name", ["PGD", "EPGD", "DDN"])
def test_nothing_changes_within_certified_balls(
    smoothed: sf.SmoothedClassifier, certificate: sf.Certificate, test_images: tuple[Tensor, Tensor], name: str
) -> None:
    """Attacked at 0.99 of each radius: PREDICT says the certified class, or abstains, but for errors of probability
    0.001 each of certificate and prediction."""
    images = test_images[0][::2]
    certified = torch.nonzero(certificate.radii > 0)[:, 0]
    found = []
    for index in certified.tolist():
        eps = 0.99 * float(certificate.radii[index])
        attack = {
            "PGD": lambda eps: PGD(smoothed, eps, steps=20, norm="l2"),
            "EPGD": lambda eps: EPGD(smoothed, eps, norm="l2"),
            "DDN": lambda eps: DDN(smoothed, steps=20, samples=8, max_norm=eps),
        }[name](eps)
        found.append(attack(images[index : index + 1], certificate.labels[index : index + 1], [index])[0])
    prediction = smoothed.predict(torch.stack(found), n=1_000, alpha=0.001, image_ids=certified)
    changed = (prediction.labels != certificate.labels[certified]) & (prediction.labels != sf.ABSTAIN)
    print(f"{name}: {len(certified)} certified images of {len(images)}, {int(changed.sum())} changed, ", end="")
    print(f"{int((prediction.labels == sf.ABSTAIN).sum())} abstain", flush=True)
    assert len(certified) >= 200
    assert changed.sum() <= 3  # of 240 with probability 0.002 each, more than 3 come with probability 0.002

"""Transfer: the source is attacked, as the attack would by itself, and the target is only asked for its classes."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from helpers.linear import Linear, greys, linear, pixels, predicted
from torch import Tensor, nn

import smoothfast as sf
from smoothfast.attacks import DDN, EPGD, PGD, Attack, Square, Transfer

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 16 / 255


def smoothed(model: nn.Module, seed: int = 0) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(model, sigma=0.25, num_classes=3, seed=seed, precision="fp32")


ATTACKS: dict[str, Any] = {
    "pgd": lambda: PGD(linear(3), EPS),
    "epgd, smoothed source": lambda: EPGD(smoothed(linear(3)), EPS, steps=3, samples=4),
    "ddn": lambda: DDN(linear(3), 10),
    "square": lambda: Square(linear(3), EPS, 20),
}
every = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)


@every
@pytest.mark.parametrize("target", [linear(3, 1), smoothed(linear(3, 1))], ids=["plain", "smoothed"])
def test_it_is_the_attack_on_the_source(make: Any, target: nn.Module) -> None:
    images = greys(4)
    labels = predicted(linear(3), pixels(images))
    attack, transfer = make(), Transfer(target, make())
    assert torch.equal(transfer(images, labels), attack(images, labels))
    assert (transfer.gradients, transfer.forwards) == (attack.gradients, attack.forwards)
    assert torch.equal(transfer(images, labels, image_ids=[4, 5, 6, 7]), attack(images, labels, [4, 5, 6, 7]))


def test_a_border_that_two_models_share_is_crossed_by_both() -> None:
    source, images = linear(3), greys(6)
    target = Linear(2 * source.weight, 2 * source.bias)
    labels = predicted(target, pixels(images))
    assert (predicted(target, Transfer(target, PGD(source, EPS))(images, labels)) != labels).all()


@every
def test_modes_are_those_of_the_attack(make: Any) -> None:
    images = greys(4)
    labels = predicted(linear(3), pixels(images))
    attack, transfer = make(), Transfer(linear(3, 1), make())
    outs = []
    for one in (attack, transfer):
        one.set_mode_targeted_by_label()
        outs.append(one(images, (labels + 1) % 3))
        one.set_mode_targeted_random()
        outs.append(one(images, labels))
        one.set_mode_default()
        outs.append(one(images, labels))
    assert all(map(torch.equal, outs[:3], outs[3:]))
    assert not torch.equal(outs[0], outs[2])


class Counted(Linear):
    """Counts the images that it classifies."""

    images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return super().forward(images)


def test_the_target_is_asked_for_its_classes_alone() -> None:
    base = Counted(linear(3).weight, linear(3).bias)
    target = smoothed(base).train()
    Transfer(target, PGD(linear(3, 1), EPS))(greys(8), [0] * 8)
    assert base.images == 2
    assert target.training
    assert base.training
    first = smoothed(linear(3))(greys(2))
    assert torch.equal(target.eval()(greys(2)), first)  # no sample was drawn


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
def test_copies(copied: Any) -> None:
    transfer = Transfer(linear(3, 1), PGD(linear(3), EPS))
    assert torch.equal(copied(transfer)(greys(2), [0, 1]), transfer(greys(2), [0, 1]))


def test_complaints() -> None:
    with pytest.raises(ValueError, match="attack is 'pgd'; it must be an attack on the source"):
        Transfer(linear(3), "pgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model has 2 classes; that of the attack has 3"):
        Transfer(linear(2), PGD(linear(3)))(greys(2), [0, 1])
    attack: Attack = PGD(linear(3))
    attack.set_normalization_used([0.5] * 3, [0.25] * 3)
    normalised = (pixels(greys(2)) - 0.5) / 0.25
    with pytest.raises(ValueError, match=re.escape("the model is a SmoothedClassifier, of [0, 1]")):
        Transfer(smoothed(linear(3)), attack)(normalised, [0, 1])
    assert Transfer(linear(3), attack)(normalised, [0, 1]).shape == normalised.shape
    with pytest.raises(AttributeError, match="colour"):
        _ = Transfer(linear(3), attack).colour

"""Linear classifiers of 3x4x4 images, of which the best attacks are known in closed form."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from smoothfast.attacks import Attack

SHAPE = (3, 4, 4)


class Linear(nn.Module):
    """In float64, so that no place in a micro-batch shows in the logits; float32 from outside."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.double())
        self.register_buffer("bias", bias.double())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1).double() @ self.weight.T + self.bias).float()

    def margins(self, images: Tensor, labels: Tensor) -> Tensor:
        """The logit of the label less the largest other one, float64 [N]."""
        logits = images.flatten(1).double() @ self.weight.T + self.bias
        own = logits.gather(1, labels[:, None])[:, 0]
        return own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)

    def slopes(self, labels: Tensor, order: float) -> Tensor:
        """Norms of the difference of the weights of a label and those of every other class, float64 [N, K]; of the
        class itself infinite."""
        norms = (self.weight[labels][:, None] - self.weight).norm(order, dim=2)
        return norms.scatter(1, labels[:, None], torch.inf)

    def distances(self, images: Tensor, labels: Tensor) -> Tensor:
        """L2 distance to the next border, where [0, 1] leaves room: float64 [N]; 0 on the other side of it."""
        logits = images.flatten(1).double() @ self.weight.T + self.bias
        gaps = logits.gather(1, labels[:, None]) - logits
        return (gaps / self.slopes(labels, 2)).scatter(1, labels[:, None], torch.inf).amin(1).clamp(min=0)


def linear(classes: int = 2, seed: int = 0) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    weight = 10 * torch.randn(classes, 48, generator=generator)
    return Linear(weight, -weight.sum(1) / 2)  # grey is on the border of all classes


def greys(count: int, spread: float = 0.1, seed: int = 0) -> Tensor:
    """uint8 images around grey, so that [0, 1] binds no small attack."""
    generator = torch.Generator().manual_seed(seed)
    return (127.5 + 255 * spread * (2 * torch.rand(count, *SHAPE, generator=generator) - 1)).round().byte()


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).argmax(1)


def squares(out: Tensor, images: Tensor) -> list[Fraction]:
    """Of the L2 distances, in exact arithmetic."""
    pairs = zip(out.flatten(1).tolist(), images.flatten(1).tolist(), strict=True)
    return [sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(*pair, strict=True)), Fraction(0)) for pair in pairs]


def pixels(images: Tensor) -> Tensor:
    return images.float() / 255


def check_pure(attack: Attack, images: Tensor, labels: Tensor) -> None:
    """A function of seed, image id and image: alone, in a batch, in any order, time and again."""
    given, state = images.clone(), torch.get_rng_state()
    out = attack(images, labels)
    assert torch.equal(images, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(attack(images, labels), out)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert torch.equal(attack(images[order], labels[order], image_ids=order), out[order])
    for i in range(len(images)):
        assert torch.equal(attack(images[i : i + 1], labels[i : i + 1], image_ids=[i]), out[i : i + 1])


def check_modes(attack: Any, images: Tensor, model: nn.Module, classes: int) -> None:
    """Every mode goes where it says, from images that are right, if the attack gets anywhere."""
    labels = predicted(model, pixels(images))
    attack.set_mode_targeted_by_label()
    targets = (labels + 1) % classes
    assert torch.equal(predicted(model, attack(images, targets)), targets)
    attack.set_mode_targeted_by_function(lambda images, labels: (labels + 2) % classes)
    assert torch.equal(predicted(model, attack(images, labels)), (labels + 2) % classes)
    attack.set_mode_targeted_least_likely()
    assert torch.equal(predicted(model, attack(images, labels)), model(pixels(images)).argmin(1))
    attack.set_mode_targeted_random()
    assert not torch.equal(predicted(model, attack(images, labels)), labels)
    attack.set_mode_default()
    assert (predicted(model, attack(images, labels)) != labels).all()

"""Transfer attacks: crafted on one model, evaluated on another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..engine import Adapter
from ..introductions import introduction
from ..modules import device_of
from ..smoothing.classifier import SmoothedClassifier
from .attack import Attack, introduced


class Transfer:
    """A transfer attack: adversarial images of another attack, on a model that this one has not seen.

    It is called as that attack is, and passes on all else: modes are set there, and gradients and forwards counted.

    Args:
        model: the target, a `SmoothedClassifier` or a module from images to logits; adversarial images are on its
            device. Its gradients are never taken.
        attack: the attack on the source, which is `attack.model`, plain or smoothed.

    Raises:
        ValueError: the two models do not have the same classes (when called), or not the same images: a
            `SmoothedClassifier` takes none that are normalised.
    """

    def __init__(self, model: nn.Module, attack: Attack) -> None:
        if not isinstance(attack, Attack):
            raise ValueError(f"attack is {attack!r}; it must be an attack on the source, such as EPGD(source)")
        self.model, self.attack = model, attack

    def __repr__(self) -> str:
        """The call that makes it, but for base classifiers, of which there are the classes alone."""
        return introduction(self, f"{introduced(self.model)}, {self.attack!r}", {})

    def __call__(
        self, images: Tensor, labels: Sequence[int] | Tensor, image_ids: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        shape, base = self.attack._pixels(images).shape[1:], self.model
        if isinstance(self.model, SmoothedClassifier):
            base = self.model.base
            if self.attack._takes_normalized:
                raise ValueError("attack returns normalised images; the model is a SmoothedClassifier, of [0, 1]")
        classes, others = (Adapter()(network, shape).num_classes for network in (base, self.attack.base))
        if classes != others:
            raise ValueError(f"model has {classes} classes; that of the attack has {others}")
        return self.attack(images, labels, image_ids).to(device_of(base))

    def __getattr__(self, name: str) -> Any:
        if name == "attack":  # of an object that is being copied
            raise AttributeError(name)
        return getattr(self.attack, name)

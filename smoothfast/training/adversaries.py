"""Attacks as recipes use them: on a model whose weights change at every step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import ops
from ..attacks import EPGD, PGD, SmoothAdvPGD
from ..attacks.attack import Options
from ..engine import Gradients
from ..normalization import Normalization
from ..ops.laws import gaussian_law
from ..ops.philox import stream_key
from ..streams import Stream
from .settings import Settings

NEAR = 0.001  # standard deviation of the starts of TRADES and MART, in [0, 1] pixel units


class Adversary:
    """An attack on a model in training. What it runs on is made at the first call, and sees the weights of the moment.

    Args:
        normalize: of the model, which takes normalised images.
    """

    def __init__(self, attack: PGD, normalize: Normalization | None) -> None:
        attack.normalize = normalize
        self.attack, self._full = attack, (attack.eps, attack.alpha)
        self._engine: Gradients | None = None

    def __call__(self, images: Tensor, labels: Tensor, ids: Tensor, repetition: int, share: float = 1.0) -> Tensor:
        """Adversarial images float32 [B, C, H, W] of images in [0, 1], in a ball of this share of eps."""
        if self._engine is None:
            self._engine = self.attack.engine(images, len(images))
        self.attack.repetition = repetition
        self.attack.eps, self.attack.alpha = (share * length for length in self._full)
        return self.attack.craft(self._engine, images, labels, ids)


def options(settings: Settings) -> Options:
    """Options that all of these attacks have in common. Weights change at every step, so there is nothing to compile;
    and a model that draws noise once in a forward pass draws for each sample anew, which costs nothing: passes are full
    of images."""
    return {
        "sigma": settings.sigma, "seed": settings.seed, "precision": settings.precision, "runner": "eager",
        "replicas_per_forward": 1,
    }  # fmt: skip


def pgd(model: nn.Module, settings: Settings) -> PGD:
    """PGD on single noisy copies, from anywhere in the box."""
    return PGD(model, settings.eps, settings.alpha, settings.steps, **options(settings))


def epgd(model: nn.Module, settings: Settings) -> PGD:
    """PGD on the mean loss of `samples` noisy copies."""
    return EPGD(model, settings.eps, settings.alpha, settings.steps, settings.samples, **options(settings))


def smoothadv(model: nn.Module, settings: Settings) -> PGD:
    """PGD in L2 from the image, on -log of the mean probability of `samples` noisy copies, the same at all steps."""
    alpha = 2 * settings.eps / settings.steps if settings.alpha is None else settings.alpha
    return SmoothAdvPGD(
        model, settings.eps, alpha, settings.steps, settings.samples, False, norm="l2", **options(settings)
    )


def smoothmix(model: nn.Module, settings: Settings) -> PGD:
    """SmoothAdv's, as far as steps of 2 sigma lead, by the copies that the recipe trains on."""
    alpha = 2 * settings.sigma if settings.alpha is None else settings.alpha
    reach, copies = settings.steps * alpha, settings.train_samples
    return SmoothAdvPGD(model, reach, alpha, settings.steps, copies, False, norm="l2", **options(settings))


class NearPGD(PGD):
    """PGD in Linf from next to the image, as in TRADES and MART."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings.eps, settings.alpha, settings.steps, **options(settings))

    def _start(self, images: Tensor, ids: Tensor, run: int) -> Tensor:
        rows, key = torch.arange(len(ids), device=ids.device), stream_key(self.seed, Stream.ATTACK_START, ids.device)
        law, one = gaussian_law(NEAR).to(images.device), images.new_ones(images.shape[1])
        drawn = torch.full_like(ids, self.origin + run)
        return ops.noisy_replicas(images, rows, ids, drawn, key, law, one, torch.zeros_like(one), clip=True)


class DivergentPGD(NearPGD):
    """PGD in Linf up the divergence from the prediction on the clean image, as in TRADES. At the image its gradient
    would be 0."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.loss = divergence

    def _runs(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor) -> Iterator[Tensor]:
        unasked = images.new_zeros(len(images), engine.num_classes)  # the loss of this pass, which nobody looks at
        first = self.steps * self.samples  # after those of the steps
        yield engine.outcomes(images, unasked, ids, first, 1).logits.softmax(1)


def divergence(logits: Tensor, *target: Tensor) -> Tensor:
    """KL divergence [B] of the prediction by logits [B, K] from a distribution, given as K tensors [B]: what attacks
    take as classes are columns."""
    wanted = torch.stack(target, 1)
    return (torch.xlogy(wanted, wanted) - wanted * logits.log_softmax(1)).sum(1)

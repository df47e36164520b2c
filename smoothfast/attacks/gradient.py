"""Attacks that go along gradients within a ball: one loop, of which each attack states its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .. import names, ops
from ..checks import at_least, choice, not_negative
from ..engine import Gradients
from ..images import by_image
from ..losses import FEWEST, LOSSES, difference, margin
from ..noise import gaussian
from ..ops.philox import uniforms
from ..streams import Stream
from .attack import Attack, Options


class PGDOptions(Options, total=False):
    """Options that attacks of this kind take by keyword, see `PGD`, and `Options`."""

    norm: str
    restarts: int
    loss: str
    legacy_accumulate: bool


class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) on the noisy base classifier:
    x <- clip(project(x + alpha sign(g))), with the gradient g of one noisy copy, drawn anew at every step.

    Args:
        model: see `Attack`.
        eps: radius of the ball, in [0, 1] pixel units. No result leaves it, nor the range of images, by one ulp.
        alpha: length of a step; a quarter of eps if not given.
        steps: how many (k).
        random_start: begin anywhere in the ball, all places being equally likely, instead of at the image.
        samples: noisy copies behind each gradient, which is the mean of theirs; that is `EPGD`.
        norm: "linf", or "l2", where a step is alpha g / |g|.
        restarts: attacks from other starts and with other noise, of which each image keeps the one with the largest
            loss, measured on the same samples for all, which no gradient has seen.
        loss: "ce" (cross-entropy), "margin" or "dlr" (see `losses`).
        legacy_accumulate: step along the sum of the gradients of all steps so far, as the published code of Nemcovsky
            et al. 2019 does, which never clears the gradient of the image: another attack (docs/attacks.md).
        options: see `Options`.
    """

    fresh_noise = True  # at every step

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float | None = None,
        steps: int = 7,
        random_start: bool = True,
        *,
        samples: int = 1,
        norm: str = "linf",
        restarts: int = 1,
        loss: str = "ce",
        legacy_accumulate: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, samples=samples, **options)
        choice("norm", norm, names.NORMS)
        choice("loss", loss, LOSSES)
        self.eps, self.alpha = eps, eps / 4 if alpha is None else alpha
        not_negative(eps=eps, alpha=self.alpha)
        if norm == "linf":
            self._require_within_range(eps=eps, alpha=self.alpha)
        at_least(1, steps=steps, restarts=restarts)
        self.steps, self.random_start, self.norm, self.restarts = steps, random_start, norm, restarts
        self.loss, self.fewest = LOSSES[loss], FEWEST.get(loss, 2)
        self.legacy_accumulate = legacy_accumulate
        self.passes_per_image = steps * restarts

    def _told(self) -> dict[str, Any]:
        told = super()._told() | {"loss": next((name for name, loss in LOSSES.items() if loss is self.loss), "ce")}
        return told | {"alpha": None if self.alpha == self.eps / 4 else self.alpha}

    def _attack(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor) -> Tensor:
        if engine.num_classes < self.fewest:
            raise ValueError(f"loss is 'dlr', which needs {self.fewest} classes; the model has {engine.num_classes}")
        runs = list(self._runs(engine, images, classes, ids))
        best, highest = images, classes.new_full((len(images),), -torch.inf, dtype=torch.float32)
        for run, pursued in enumerate(runs):
            found = self._climb(engine, images, pursued, ids, run)
            if len(runs) == 1:
                return found
            reached = self._reached(engine, found, classes, ids, len(runs) * self.steps * self.samples)
            better = reached > highest
            best, highest = torch.where(by_image(better, found), found, best), torch.where(better, reached, highest)
        return best

    def _runs(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor) -> Iterator[Tensor]:
        """Targets of the loss in each of the climbs, of which the best one counts."""
        for _ in range(self.restarts):
            yield classes

    def _reached(self, engine: Gradients, found: Tensor, classes: Tensor, ids: Tensor, first: int) -> Tensor:
        return self.sign * engine.outcomes(found, classes, ids, first, self.samples).losses

    def _climb(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor, run: int) -> Tensor:
        adversarial = self._start(images, ids, run)
        gradients = torch.zeros_like(images)
        for step in range(self.steps):
            drawn = run * self.steps + (step if self.fresh_noise else 0)
            new = self.sign * self._gradients(engine, adversarial, classes, ids, drawn * self.samples)
            gradients = gradients + new if self.legacy_accumulate else new
            self._step(adversarial, images, gradients, self.alpha)
        return adversarial

    def _gradients(self, engine: Gradients, adversarial: Tensor, classes: Tensor, ids: Tensor, first: int) -> Tensor:
        return engine.outcomes(adversarial, classes, ids, first, self.samples, self.needs[0]).gradients

    def _step(self, adversarial: Tensor, images: Tensor, gradients: Tensor, alpha: float) -> None:
        ops.attack_step(adversarial, images, gradients, self.norm, alpha, self.eps, *self.range)

    def _start(self, images: Tensor, ids: Tensor, run: int) -> Tensor:
        """The points that a run starts from: a function of seed, image id, repetition and run."""
        adversarial = images.clone()
        if self.random_start:
            adversarial += self.eps * STARTS[self.norm](images, ids, self.seed, self.origin + run)
            self._step(adversarial, images, torch.zeros_like(images), 0.0)  # projects
        return adversarial


def _in_box(images: Tensor, ids: Tensor, seed: int, run: int) -> Tensor:
    elements = images[0].numel()
    return uniforms(elements, seed, ids, torch.full_like(ids, run), Stream.ATTACK_START).view_as(images)


def _in_ball(images: Tensor, ids: Tensor, seed: int, run: int) -> Tensor:
    """Uniform points of the L2 ball: the first d coordinates of a uniform point on the sphere in d + 2 dimensions are
    uniform in the ball (Voelker et al. 2017)."""
    elements = images[0].numel()
    drawn = [gaussian((elements + 2,), 1.0, seed, image_id, [run], Stream.ATTACK_START) for image_id in ids.tolist()]
    points = torch.cat(drawn).to(images.device)
    return (points / points.norm(dim=1, keepdim=True))[:, :elements].reshape(images.shape)


STARTS = {"linf": _in_box, "l2": _in_ball}


class FGSM(PGD):
    """Fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572): one step of length eps from the image. In
    l2, one along the gradient. Arguments as of `PGD`."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        *,
        norm: str = "linf",
        loss: str = "ce",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, eps, eps, 1, False, norm=norm, loss=loss, **options)

    def _told(self) -> dict[str, Any]:
        own = ("steps", "alpha", "random_start")  # which are no choice
        return {name: value for name, value in super()._told().items() if name not in own}


class EPGD(PGD):
    """PGD on the expected loss (Nemcovsky et al. 2019, section 3.2): the gradient of the mean, over `samples` noisy
    copies, of the loss of each, so the softmax is within the mean. k steps of M samples cost what k M steps of PGD do.

    Arguments as of `PGD`.
    """

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float | None = None, steps: int = 7, samples: int = 8,
        random_start: bool = True, **options: Unpack[PGDOptions],
    ) -> None:  # fmt: skip
        super().__init__(model, eps, alpha, steps, random_start, samples=samples, **options)


class SmoothAdvPGD(EPGD):
    """PGD on the smoothed classifier's own loss (Salman et al. 2019, arXiv 1906.04584): the gradient of -log of the
    mean probability over `samples` noisy copies, so the softmax is averaged before the logarithm is taken.

    Published for L2: norm="l2", steps=10, alpha=2 * eps / steps, random_start=False.

    Args:
        fresh_noise: draw new noise at every step, instead of the same for all steps, as published.
        gradient_free: by forward passes alone: noise weighted by the probabilities that it leads to (their section
            4.1).

    The others as of `EPGD`.
    """

    average = "probabilities"

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float | None = None, steps: int = 7, samples: int = 8,
        random_start: bool = True, *, fresh_noise: bool = False, gradient_free: bool = False,
        **options: Unpack[PGDOptions],
    ) -> None:  # fmt: skip
        super().__init__(model, eps, alpha, steps, samples, random_start, **options)
        if options.get("loss", "ce") != "ce":
            raise ValueError(f"loss is {options['loss']!r}; the average of probabilities is that of 'ce'")
        if gradient_free and 0.0 in self.law.sigma:
            raise ValueError("gradient_free is True, which needs noise to weigh; give sigma, or a SmoothedClassifier")
        self.fresh_noise = fresh_noise
        self.needs = ("estimate",) if gradient_free else ("backward",)

    def _told(self) -> dict[str, Any]:
        return super()._told() | {"gradient_free": "estimate" in self.needs}


class MultiTargetedPGD(EPGD):
    """PGD towards each of the other classes in turn, up the difference of its logit to that of the label (Gowal et al.
    2019, arXiv 1910.09338); each image keeps the result with the largest margin of the mean logits.

    Args:
        targets: how many classes to try, those with the largest mean logits; None: all.

    The others as of `EPGD`, but for the loss.
    """

    columns = 2

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float | None = None, steps: int = 7, samples: int = 1,
        random_start: bool = True, *, targets: int | None = None, **options: Unpack[PGDOptions],
    ) -> None:  # fmt: skip
        super().__init__(model, eps, alpha, steps, samples, random_start, **options)
        if "loss" in options:
            raise ValueError(f"loss is {options['loss']!r}; multi-targeted attacks have their own")
        at_least(1, targets=targets)
        self.loss, self.targets = difference, targets
        self.passes_per_image *= targets or 9

    def _runs(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor) -> Iterator[Tensor]:
        if self.sign < 0:
            raise ValueError("the mode is targeted; a multi-targeted attack has targets of its own: set_mode_default()")
        own = torch.stack([classes, classes], 1)
        logits = engine.outcomes(images, own, ids, 0, self.samples).logits.scatter(1, classes[:, None], -torch.inf)
        order = logits.argsort(stable=True, dim=1, descending=True)[:, :-1]
        for target in order[:, : self.targets].unbind(1):
            for _ in range(self.restarts):
                yield torch.stack([classes, target], 1)

    def _reached(self, engine: Gradients, found: Tensor, classes: Tensor, ids: Tensor, first: int) -> Tensor:
        own = torch.stack([classes, classes], 1)
        return margin(engine.outcomes(found, own, ids, first, self.samples).logits, classes)

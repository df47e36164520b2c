"""Attacks without a ball: the smallest perturbation, in L2, that makes an image adversarial.

An image is adversarial where most of its samples are: the class with the most votes (the lowest on ties) is not the
label, or is the target. All steps of an attack look at the same samples, as in Salman et al. 2019, so that what is made
small is a function of the image; samples that the attack has not seen may decide otherwise, and the more so the fewer
it has. An image that is adversarial as it is comes back unchanged, and so does one for which nothing was found.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .. import ops
from ..checks import at_least, not_negative, positive
from ..engine import Gradients
from ..engine.gradients import Outcome
from ..images import by_image
from ..losses import capped_margin, margin
from ..ops.reference import norms
from ..smoothing.results import winners
from . import tanh_space
from .attack import Attack, Options

LAST_LENGTH = 0.01  # of the steps of DDN, of which the first one has length 1
PROGRESS = 0.9999  # of the objective of Carlini and Wagner, in a tenth of the steps


class _Nearest:
    """The nearest adversarial point of each image seen so far; the image itself where there is none.

    Attributes:
        points: float32 [N, C, H, W].
        distances: float64 [N], infinite where there is none.
    """

    def __init__(self, images: Tensor) -> None:
        self.images, self.points = images, images.clone()
        self.distances = images.new_full((len(images),), torch.inf, dtype=torch.float64)

    def open(self) -> Tensor:
        """Indices int64 of the images that are not adversarial as they are."""
        return (self.distances > 0).nonzero()[:, 0]

    def offer(self, at: Tensor, points: Tensor, adversarial: Tensor) -> Tensor:
        """Takes what is adversarial and nearer, of points [B, C, H, W] of the images `at` [B]; distances [B]."""
        distances = norms((points.double() - self.images[at]).flatten(1))[:, 0]
        nearer = adversarial & (distances < self.distances[at])
        self.points[at[nearer]], self.distances[at[nearer]] = points[nearer], distances[nearer]
        return distances


class _MinimumNorm(Attack):
    """An attack for the smallest perturbation, in fp32 if not said otherwise: what is just across the border of a model
    in bf16 is often not across it in fp32. ResNet-20 (the embedded one) in fp32 was right about 23 of 30 images, about
    none after DDN in fp32, and about 15 after DDN in bf16."""

    def __init__(self, model: nn.Module, samples: int, options: Options) -> None:
        options.setdefault("precision", "fp32")
        super().__init__(model, samples=samples, **options)

    def _fooled(self, outcome: Outcome, classes: Tensor) -> Tensor:
        """Whether images are adversarial, bool [N]."""
        return (winners(outcome.votes) == classes) == (self.sign < 0)


class DDN(_MinimumNorm):
    """Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600): steps along the gradient of unit norm, of a
    length that falls from 1 to 0.01 by half a cosine, and a norm of the perturbation that is set apart from them: it
    shrinks where the image is adversarial, and grows where it is not.

    The gradient is that of SmoothAdv (Salman et al. 2019, arXiv 1906.04584): of -log of the mean probability over
    `samples` noisy copies. An image whose gradient is 0 has no direction to go to and stays as it is.

    Args:
        model: see `Attack`.
        steps: gradients; the points at which they are taken, of which the image is the first, are the ones that may be
            returned.
        gamma: the norm is multiplied by 1 - gamma or 1 + gamma at every step.
        init_norm: what it is before the first one, in [0, 1] pixel units.
        samples: noisy copies behind each gradient and each vote.
        levels: perturbed images are rounded to the nearest of so many equidistant values, 256 being those of 8 bits;
            None: not at all.
        max_norm: a perturbation that is longer is cut to this length, as by SmoothAdv, in [0, 1] pixel units; the image
            may then be neither adversarial nor on the grid. None: none is cut.
        options: see `Options`; but precision is "fp32" if not given.
    """

    average = "probabilities"

    def __init__(
        self,
        model: nn.Module,
        steps: int = 100,
        gamma: float = 0.05,
        init_norm: float = 1.0,
        samples: int = 1,
        *,
        levels: int | None = 256,
        max_norm: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, samples, options)
        at_least(1, steps=steps)
        at_least(2, levels=levels)
        positive(init_norm=init_norm)
        not_negative(max_norm=max_norm)
        if not 0 < gamma < 1:
            raise ValueError(f"gamma is {gamma}; it must lie between 0 and 1")
        self.steps, self.gamma, self.init_norm, self.levels, self.max_norm = steps, gamma, init_norm, levels, max_norm
        if levels is not None and self.bounds is None:
            raise ValueError(f"levels is {levels} and bounds is None; without a range there are no levels: levels=None")
        self.passes_per_image = steps

    def _attack(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor) -> Tensor:
        nearest, points = _Nearest(images), images.clone()
        radii = images.new_full((len(images), 1), self.init_norm, dtype=torch.float64)
        for step in range(self.steps):
            at = nearest.open()
            if not len(at):
                break
            outcome = engine.outcomes(points[at], classes[at], ids[at], 0, self.samples, "backward")
            fooled = self._fooled(outcome, classes[at])
            nearest.offer(at, points[at], fooled)
            radii[at] *= torch.where(fooled, 1 - self.gamma, 1 + self.gamma)[:, None]
            length = LAST_LENGTH + (1 - LAST_LENGTH) * (1 + math.cos(math.pi * step / self.steps)) / 2
            points[at] = self._moved(points[at], images[at], self.sign * outcome.gradients, length, radii[at])
        if self.max_norm is not None:
            ops.attack_step(nearest.points, images, torch.zeros_like(images), "l2", 0.0, self.max_norm, *self.range)
        return nearest.points

    def _moved(self, points: Tensor, images: Tensor, gradients: Tensor, length: float, radii: Tensor) -> Tensor:
        """Points after one step, then put onto the sphere of radius `radii` [N, 1] around the image, into the range and
        onto the grid."""
        moves = (points.double() - images).flatten(1) + _rescaled(gradients.double().flatten(1), length)
        moved = (images + _rescaled(moves, radii).view(images.shape)).clamp(*self.range)
        if self.levels is not None:
            low, high = self.range
            steps = (self.levels - 1) / (high - low)
            moved = low + ((moved - low) * steps).round() / steps
        return moved.float()


def _rescaled(vectors: Tensor, wanted: Tensor | float) -> Tensor:
    """Vectors float64 [N, E] of the norms wanted; 0 where the vector is 0 or not finite."""
    lengths = norms(vectors)
    return torch.where((lengths > 0) & lengths.isfinite(), vectors / lengths * wanted, 0)


class CW(_MinimumNorm):
    """Carlini and Wagner 2017 (arXiv 1608.04644), in L2: the minimum of |x' - x|^2 + c max(kappa - margin, 0), by Adam
    in tanh space; c is sought for each image, so that the perturbation becomes as small as it can be.

    The margin is the largest other logit less that of the label (towards a target: that of the target less the largest
    other one), its term is averaged over `samples` noisy copies, and every point on the way may be returned. The
    defaults are those of Carlini's code; fast_adversarial has up to 10,000 steps; torchattacks' CW is c=1,
    search_steps=1, steps=50.

    Args:
        model: see `Attack`.
        c: the first weight of the margin. It is multiplied by 10 until an image becomes adversarial, and halves the
            interval in which it has to be from then on.
        kappa: how confident the model has to be: if positive, an image counts as adversarial where the margin of the
            mean logits is at least kappa, too.
        steps: gradients, at most, for each c.
        lr: of Adam.
        samples: noisy copies behind each gradient and each vote.
        search_steps: how many c are tried.
        abort_early: leave a c as soon as a tenth of the steps has made the objective less than 0.01 % smaller.
        options: see `Options`; but precision is "fp32" if not given.
    """

    columns = 2

    def __init__(
        self,
        model: nn.Module,
        c: float = 1e-3,
        kappa: float = 0.0,
        steps: int = 1000,
        lr: float = 0.01,
        samples: int = 1,
        *,
        search_steps: int = 9,
        abort_early: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, samples, options)
        tanh_space.require_range(self.bounds)
        positive(c=c, lr=lr)
        not_negative(kappa=kappa)
        at_least(1, steps=steps, search_steps=search_steps)
        self.c, self.kappa, self.steps, self.lr, self.search_steps = c, kappa, steps, lr, search_steps
        self.abort_early, self.loss = abort_early, capped_margin(kappa)
        self.passes_per_image = steps * search_steps

    def _fooled(self, outcome: Outcome, classes: Tensor) -> Tensor:
        fooled = super()._fooled(outcome, classes)
        return fooled & (self.sign * margin(outcome.logits, classes) >= self.kappa) if self.kappa else fooled

    def _attack(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor) -> Tensor:
        nearest = _Nearest(images)
        weights = images.new_full((len(images),), self.c, dtype=torch.float64)
        low, high = torch.zeros_like(weights), torch.full_like(weights, torch.inf)
        for _ in range(self.search_steps):
            if not len(nearest.open()):
                break
            found = self._search(engine, nearest, weights, classes, ids)
            low, high = torch.where(found, low, weights), torch.where(found, weights, high)
            weights = torch.where(high.isfinite(), (low + high) / 2, 10 * weights)
        return nearest.points

    def _search(self, engine: Gradients, nearest: _Nearest, weights: Tensor, classes: Tensor, ids: Tensor) -> Tensor:
        """Whether images became adversarial in a search with one c for each, bool [N]."""
        images = nearest.images
        found, before = torch.zeros_like(ids, dtype=torch.bool), torch.full_like(weights, torch.inf)
        variables = [tanh_space.from_pixels(image, self.range) for image in images]
        optimizer = torch.optim.Adam(variables, self.lr)
        at = nearest.open()
        points = images[at]  # tanh and its inverse would miss them by 5e-7
        for step in range(self.steps):
            outcome = engine.outcomes(points, self._directed(classes[at]), ids[at], 0, self.samples, "backward")
            fooled = self._fooled(outcome, classes[at])
            distances = nearest.offer(at, points, fooled)
            found[at] |= fooled
            going = nearest.distances[at] > 0
            if self.abort_early and step % max(1, self.steps // 10) == 0:
                objective = distances**2 + weights[at] * (self.kappa - self.sign * outcome.losses)
                going &= objective < PROGRESS * before[at]
                before[at] = objective
            factors = self.sign * by_image(weights[at].float(), images)
            slopes = 2 * (points - images[at]) - factors * outcome.gradients
            at, slopes = at[going], slopes[going]
            if not len(at):
                break
            points = self._stepped(optimizer, [variables[i] for i in at.tolist()], slopes)
        return found

    def _stepped(self, optimizer: torch.optim.Adam, variables: list[Tensor], slopes: Tensor) -> Tensor:
        """The points of some variables after a step down the slopes at their points; it leaves alone all others."""
        optimizer.zero_grad()
        for variable, slope in zip(variables, slopes, strict=True):
            variable.grad = slope * tanh_space.derivative(variable, self.range)
        optimizer.step()
        return torch.stack([tanh_space.to_pixels(variable, self.range) for variable in variables])

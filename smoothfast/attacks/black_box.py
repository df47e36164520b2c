"""Attacks without gradients: in the Linf ball, by forward passes alone.

An image is left alone as soon as all of its samples are adversarial: classified as another class than the label, or as
the target. (As soon as most of them are would be too soon: among many looks at few samples, one finds that by luck.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .. import ops
from ..checks import at_least, not_negative, positive
from ..engine import Gradients
from ..engine.gradients import Outcome
from ..images import by_image
from ..losses import capped_margin, margin
from ..ops.laws import Law, gaussian_law
from ..ops.philox import stream_key, uniforms
from ..streams import Stream
from . import tanh_space
from .attack import Attack, Options

EVERY = 10  # steps of NAttack between two looks at the mean
START = gaussian_law(1e-3)  # of the mean, in tanh space
CHUNK = 2**22  # elements of the members of a population that are held at a time: 16 MiB

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Numbers of queries, of 10,000, after which the share of the image that Square changes at once is halved
(Andriushchenko et al. 2020, section 5)."""


class _BlackBox(Attack):
    """An attack by forward passes alone, in fp32 if not said otherwise: a search ends at the border of the model, which
    is elsewhere in bf16. Square ended with 13 of 23 images adversarial to ResNet-20 (the embedded one) in bf16, and 11
    of these were so in fp32."""

    needs = ("forward",)

    def __init__(self, model: nn.Module, eps: float, samples: int, options: Options) -> None:
        options.setdefault("precision", "fp32")
        super().__init__(model, samples=samples, **options)
        not_negative(eps=eps)
        self._require_within_range(eps=eps)
        self.eps = eps

    def _project(self, points: Tensor, images: Tensor) -> Tensor:
        ops.attack_step(points, images, torch.zeros_like(points), "linf", 0.0, self.eps, *self.range)
        return points

    def _unanimous(self, votes: Tensor, classes: Tensor) -> Tensor:
        """Whether all samples of an image are adversarial, bool [N]."""
        own = votes.gather(1, classes[:, None])[:, 0]
        return own == (0 if self.sign > 0 else self.samples)


class NAttack(_BlackBox):
    """NAttack (Li et al. 2019, arXiv 1905.00441): an evolution strategy for the mean of a Gaussian in tanh space, whose
    members are brought into the ball.

    A member is worth its own margin as far as 0, in the mean over `samples` noisy copies, which are the same for all
    members of a step; worth is counted from the mean of the population, in units of its deviation. Where all members
    are worth the same, the mean stays. (The published code takes the largest other class of the first member for all of
    them, and leaves the case of equal members open.)

    Args:
        model: see `Attack`.
        eps: radius of the ball, in [0, 1] pixel units. No result leaves it, nor the range of images, by one ulp.
        steps: of the mean, at most. Every tenth time it is looked whether the mean is adversarial.
        population: members at each step.
        samples: noisy copies of a member.
        search_sigma: standard deviation of the members in tanh space; the noise of the model is `sigma`.
        lr: the mean moves by lr / search_sigma times the mean product of worth and noise (of unit variance).
        options: see `Options`; but precision is "fp32" if not given.
    """

    columns = 2
    loss = staticmethod(capped_margin(0.0))

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        steps: int = 500,
        population: int = 300,
        samples: int = 1,
        *,
        search_sigma: float = 0.1,
        lr: float = 0.02,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, eps, samples, options)
        tanh_space.require_range(self.bounds)
        at_least(1, steps=steps, population=population)
        positive(search_sigma=search_sigma, lr=lr)
        self.steps, self.population, self.lr = steps, population, lr
        self.search_law = gaussian_law(search_sigma)
        self.passes_per_image = steps * population

    def _told(self) -> dict[str, Any]:
        return super()._told() | {"search_sigma": self.search_law.sigma[0]}

    def _attack(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor) -> Tensor:
        """Adversarial images, one by one: the members of one fill micro-batches."""
        each = zip(images.split(1), classes.split(1), ids.split(1), strict=True)
        return torch.cat([self._search(_Evolution(self, engine, *one), one[1]) for one in each])

    def _points_at_once(self, images: int) -> int:
        return self.population

    def _search(self, evolution: _Evolution, label: Tensor) -> Tensor:
        for step in range(self.steps):
            if step % EVERY == 0 and self._unanimous(evolution.votes(step), label):
                break
            evolution.move(step)
        return evolution.points(evolution.mean)


class _Evolution:
    """The mean for one image, in tanh space, and its population at each step."""

    def __init__(self, attack: NAttack, engine: Gradients, image: Tensor, label: Tensor, image_id: Tensor) -> None:
        self.attack, self.engine, self.image = attack, engine, image
        self.directed, self.image_id = attack._directed(label), image_id
        self.key = stream_key(attack.seed, Stream.ATTACK_START, image.device)
        self.one = image.new_ones(image.shape[1])
        self.mean = tanh_space.from_pixels(image, attack.range) + self.noise(START, torch.zeros_like(image_id))

    def noise(self, law: Law, members: Tensor) -> Tensor:
        """Noise float32 [B, C, H, W] of members [B], whose numbers take the place of sample ids."""
        members = self.attack.origin + members
        slots, ids = torch.zeros_like(members), self.image_id.repeat(len(members))
        zeros, law = torch.zeros_like(self.image), law.to(self.image.device)
        return ops.noisy_replicas(zeros, slots, ids, members, self.key, law, self.one, torch.zeros_like(self.one))

    def points(self, numbers: Tensor) -> Tensor:
        """Points in the ball, of numbers [B, C, H, W] in tanh space."""
        return self.attack._project(tanh_space.to_pixels(numbers, self.attack.range), self.image.expand_as(numbers))

    def outcome(self, numbers: Tensor, first: int) -> Outcome:
        """The outcome of samples from `first` on, at the points of numbers [B, C, H, W]."""
        directed, ids = self.directed.repeat(len(numbers), 1), self.image_id.repeat(len(numbers))
        return self.engine.outcomes(self.points(numbers), directed, ids, first, self.attack.samples)

    def votes(self, step: int) -> Tensor:
        """Votes int64 [1, K] of the mean, on samples that no population sees."""
        return self.outcome(self.mean, (self.attack.steps + step) * self.attack.samples).votes

    def worth(self, members: Tensor, step: int) -> Tensor:
        """Worth float64 [B] of members: the more adversarial, the larger."""
        numbers = self.mean + self.noise(self.attack.search_law, members)
        return self.attack.sign * self.outcome(numbers, step * self.attack.samples).losses.double()

    def move(self, step: int) -> None:
        """Moves the mean towards the members that are worth more."""
        attack, size = self.attack, max(1, CHUNK // self.image.numel())
        members = 1 + step * attack.population + torch.arange(attack.population, device=self.image.device)
        worth = torch.cat([self.worth(some, step) for some in members.split(size)])
        if worth.min() == worth.max():
            return  # all deviations are 0
        scores = ((worth - worth.mean()) / worth.std(correction=0)).float()
        factor = attack.lr / (attack.population * attack.search_law.sigma[0] ** 2)
        for some, score in zip(members.split(size), scores.split(size), strict=True):
            products = self.noise(attack.search_law, some) * by_image(score, self.image)
            self.mean += ops.replica_sum(products, torch.zeros_like(some), factor * self.one, 1)


class Square(_BlackBox):
    """Square (Andriushchenko et al. 2020, arXiv 1912.00049), in Linf: random search for a larger margin. First vertical
    stripes, then squares that become smaller, each at -eps or eps in every channel, are taken where the margin becomes
    larger.

    What is so far and what is proposed are compared on the same `samples` noisy copies, drawn anew for every query, so
    a query takes twice as many forward passes; a margin kept from lucky copies would let nothing pass any more. Squares
    may be anywhere in the image, its last row and column included.

    Args:
        model: see `Attack`.
        eps: radius of the ball, in [0, 1] pixel units. No result leaves it, nor the range of images, by one ulp.
        queries: what is proposed, at most, the stripes included.
        p_init: share of the image that the first squares cover.
        samples: noisy copies for each comparison.
        options: see `Options`; but precision is "fp32" if not given.
    """

    loss = staticmethod(margin)

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        queries: int = 5000,
        p_init: float = 0.8,
        samples: int = 1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, eps, samples, options)
        at_least(1, queries=queries)
        if not 0 < p_init <= 1:
            raise ValueError(f"p_init is {p_init}; it must be positive and at most 1")
        self.queries, self.p_init = queries, p_init
        self.passes_per_image = 2 * queries

    def _attack(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor) -> Tensor:
        if images.dim() != 4:
            raise ValueError(f"images have shape {tuple(images.shape)}; Square changes squares of [N, C, H, W]")
        points, at = images.clone(), torch.arange(len(images), device=images.device)
        for query in range(self.queries):
            proposed = self._proposed(query, points[at], images[at], ids[at])
            both = torch.cat([points[at], proposed]), classes[at].repeat(2), ids[at].repeat(2)
            outcome = engine.outcomes(*both, query * self.samples, self.samples)
            before, after = (self.sign * outcome.losses).chunk(2)
            better = after > before
            points[at[better]] = proposed[better]
            before, after = outcome.votes.chunk(2)
            at = at[~self._unanimous(torch.where(better[:, None], after, before), classes[at])]
            if not len(at):
                break
        return points

    def _points_at_once(self, images: int) -> int:
        return 2 * images

    def _proposed(self, query: int, points: Tensor, images: Tensor, ids: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        count = channels * width if query == 0 else 2 + channels
        drawn = uniforms(count, self.seed, ids, torch.full_like(ids, self.origin + query), Stream.ATTACK_START)
        if query == 0:
            signs = drawn.sign().view(-1, channels, 1, width)
            return self._project(images + self.eps * signs, images)
        side, signs = self._side(query, height, width), drawn[:, 2:].sign().view(-1, channels, 1, 1)
        rows, columns = _span(drawn[:, 0], side, height), _span(drawn[:, 1], side, width)
        square = rows.view(-1, 1, height, 1) & columns.view(-1, 1, 1, width)
        return self._project(torch.where(square, images + self.eps * signs, points), images)

    def _side(self, query: int, height: int, width: int) -> int:
        share = self.p_init / 2 ** sum(10_000 * query > end * self.queries for end in HALVINGS)
        return min(max(1, round(math.sqrt(share * height * width))), height, width)


def _span(place: Tensor, side: int, size: int) -> Tensor:
    """Whether positions 0 .. size - 1 are among `side` in a row, which begin anywhere they fit, by numbers [N] in (-1,
    1): bool [N, size]."""
    first = ((place.double() + 1) / 2 * (size - side + 1)).long()[:, None]
    along = torch.arange(size, device=place.device)
    return (first <= along) & (along < first + side)

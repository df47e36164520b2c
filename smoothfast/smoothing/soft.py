"""The smoothed classifier by mean probabilities, for gradient attacks of other packages: votes have no gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..checks import at_least
from ..engine import Average, BaseFunction
from ..images import Bounds, finite_images
from ..introductions import introduction
from ..ops.laws import Law, float_law
from ..streams import Stream
from ..untraced import untraced
from ..voting import Voting


class Smoothed(Protocol):
    """A smoothed classifier, as far as its soft twin asks."""

    sigma: Tensor
    voting: Voting
    max_batch: int | None
    bounds: Bounds | None
    training: bool

    def function(self, images: Tensor, law: Law | None = None, gradient: bool = False) -> BaseFunction:
        """The base classifier under noise, for images of this shape and dtype."""


@untraced("forward")
class SoftClassifier(nn.Module):
    """Images to log-scores of the mean over their noisy copies, which autograd can go through.

    Votes have no gradient. Mean probabilities, the soft smoothing of Nemcovsky et al. 2019, have one, and their
    cross-entropy is the loss of SmoothAdv (Salman et al. 2019, arXiv 1906.04584, eq. 6). They are what is averaged,
    unless the classifier's own voting is "logit": then it is the logits.

    Every call draws samples that were not drawn before, of the stream ATTACK. So calls are independent, as expectation
    over transformation takes them to be, whatever an attack does to the generator of torch; and none of the samples is
    one by which the smoothed classifier predicts. The base classifier runs in eval mode and is left in the mode it was
    in. Its parameters get no gradients. Memory does not depend on `samples`, see `Average`.

    Args:
        smoothed: the classifier; its base, sigma, normalize, clip, precision and seed are used as they are at a call.
        samples: noisy copies per image and call.
        max_batch: rows per pass; that of the classifier if not given. 1 gives each sample of an image a pass of its
            own, for base classifiers that draw noise in ways unknown here, once in a pass.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, smoothed: Smoothed, samples: int = 8, max_batch: int | None = None) -> None:
        super().__init__()
        at_least(1, samples=samples, max_batch=max_batch)
        self.smoothed, self.samples, self.max_batch = smoothed, samples, max_batch
        self.training = smoothed.training
        self.reset()

    def __repr__(self) -> str:
        """The call that makes this classifier of the other one."""
        return introduction(self, repr(self.smoothed), {"samples": self.samples, "max_batch": self.max_batch})

    def reset(self) -> None:
        """The next call starts again from the first sample."""
        self._next_sample = 0

    def forward(self, images: Tensor) -> Tensor:
        """Log-scores float32 [N, K] of images float (0..1) or uint8 (0..255) [N, C, ...]; their exponentials sum to 1.

        Differentiable with respect to float images.
        """
        images = finite_images(images, self.smoothed.bounds)
        images = images / 255 if images.dtype == torch.uint8 else images
        first, self._next_sample = self._next_sample, self._next_sample + self.samples
        function = self.smoothed.function(images, float_law(self.smoothed.sigma.tolist()), images.requires_grad)
        if self.max_batch is not None:
            function = replace(function, micro_batch=self.max_batch)
        mean = "logit" if self.smoothed.voting.name == "logit" else "soft"
        return Average(function, Stream.ATTACK, mean, frozen=True).scores(images, first, self.samples)


def without_gradient(images: Tensor, scores: Tensor, voting: str) -> Tensor:
    """Scores as they are, whose gradient by the images is an error that names the voting rule."""
    out: Tensor = _WithoutGradient.apply(images, scores, voting)
    return out


class _WithoutGradient(torch.autograd.Function):
    """Scores, which depend on images in a way that has no gradient.

    Were they cut off from the images, an attack would stop at an error of torch that says nothing of votes, or climb
    along whatever else is in its loss. Predictions for images that require a gradient are the same as for others.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, scores: Tensor, voting: str) -> Tensor:
        ctx.voting = voting
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        raise ValueError(
            f"voting is {ctx.voting!r}, and votes have no gradient: give a gradient attack of another package "
            "model.differentiable() in place of the model, or take one of smoothfast.attacks, which need no such thing"
        )

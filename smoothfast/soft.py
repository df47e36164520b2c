"""Means over noisy copies that autograd can go through: of soft and logit voting, and for attacks of other packages."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import ops
from .engine import DTYPES, default_micro_batch, resolve_precision
from .noise import Law, Stream, float_law, stream_key
from .noisy_network import NoisyNetwork
from .runners import evaluating, in_precision
from .smoothing import SmoothedClassifier, finite_images
from .specs import at_least

Means = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]
MEANS: dict[str, Means] = {
    "soft": (
        lambda logits: logits.log_softmax(-1).logsumexp(0),
        lambda totals, samples: totals.logsumexp(0) - math.log(samples),
    ),
    "logit": (lambda logits: logits.sum(0), lambda totals, samples: (totals.sum(0) / samples).log_softmax(-1)),
}
"""By voting rule: what a pass makes of logits [samples, N, K], and what becomes of the totals [passes, N, K]."""


@dataclass(frozen=True)
class Average:
    """The log-scores of a smoothed classifier by a mean, as a function of images that autograd can go through.

    A pass of the base classifier takes as many samples of all images given as fit into `max_batch` rows, and one at the
    least; one, where the base has noise of its own. Where that makes several passes, only their totals are kept, and
    the backward pass computes each anew: memory does not depend on the number of samples.

    Args:
        smoothed: the classifier; its base, normalize, clip, precision and seed are used. Gradients pass the clamp of
            `clip` unchanged (Athalye et al. 2018, arXiv 1802.00420).
        net: its base classifier.
        run_base: `net.run` or `net.run_frozen`, with or without gradients of the parameters.
        law: of the noise.
        stream: of the samples; the image ids are 0 .. N-1.
        mean: "soft" or "logit".
        max_batch: rows per pass; that of the classifier if None.
    """

    smoothed: SmoothedClassifier
    net: NoisyNetwork
    run_base: Callable[[Tensor, Tensor, Tensor], Tensor]
    law: Law
    stream: Stream
    mean: str
    max_batch: int | None = None

    def scores(self, images: Tensor, first: int, samples: int) -> Tensor:
        """float32 [N, K] of the samples first .. first + samples - 1 of images uint8 or float32 [N, C, H, W]."""
        size = min(samples, self._most(images))
        total = self._total if size == samples else partial(checkpoint, self._total, use_reentrant=False)
        starts = range(0, samples, size)
        totals = [total(images, first + start, min(size, samples - start)) for start in starts]
        return MEANS[self.mean][1](torch.stack(totals), samples)

    def _most(self, images: Tensor) -> int:
        """Samples of each image in a pass."""
        if self.net.noisy:
            return 1
        channels, height, width = images.shape[1:]
        usual = default_micro_batch((channels, height, width), images.device)
        rows = self.max_batch or self.smoothed.max_batch or usual
        return max(1, rows // max(1, len(images)))

    def _total(self, images: Tensor, first: int, count: int) -> Tensor:
        """[N, K] of the samples first .. first + count - 1."""
        device, dtype = images.device, DTYPES[resolve_precision(self.smoothed.precision, images.device)]
        replicas = self._replicas(images, first, count, dtype)
        numbers = self._key(device), torch.tensor([first], device=device)
        with evaluating(self.net.network):  # here, where the backward pass comes by too
            logits = in_precision(self.run_base, dtype, device)(replicas, *numbers)
        return MEANS[self.mean][0](logits.float().unflatten(0, (count, len(images))))

    def _replicas(self, images: Tensor, first: int, count: int, dtype: torch.dtype) -> Tensor:
        """Sample after sample of all images, [count N, C, H, W]."""
        device = images.device
        slots = torch.arange(len(images), device=device).repeat(count)
        numbers = torch.arange(first, first + count, device=device).repeat_interleave(len(images))
        scale, shift = ops.affine(self.smoothed.normalize, images.shape[1], images.dtype)
        draw = partial(
            ops.noisy_replicas, slots=slots, image_ids=slots, sample_ids=numbers, key=self._key(device),
            law=self.law.to(device), scale=scale.to(device), shift=shift.to(device), dtype=dtype,
            memory_format=torch.channels_last,
        )  # fmt: skip
        replicas = draw(images)
        if self.smoothed.clip:
            replicas = draw(images.detach(), clip=True) + (replicas - replicas.detach())
        return replicas

    def _key(self, device: torch.device) -> Tensor:
        return stream_key(self.smoothed.seed, self.stream, device)


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

    def __init__(self, smoothed: SmoothedClassifier, samples: int = 8, max_batch: int | None = None) -> None:
        super().__init__()
        at_least(1, samples=samples, max_batch=max_batch)
        self.smoothed, self.samples, self.max_batch = smoothed, samples, max_batch
        self.training = smoothed.training
        self.reset()

    def reset(self) -> None:
        """The next call starts again from the first sample."""
        self._next_sample = 0

    def forward(self, images: Tensor) -> Tensor:
        """Log-scores float32 [N, K] of images float (0..1) or uint8 (0..255) [N, C, H, W]; their exponentials sum to 1.

        Differentiable with respect to float images.
        """
        images = finite_images(images)
        images = images / 255 if images.dtype == torch.uint8 else images
        first, self._next_sample = self._next_sample, self._next_sample + self.samples
        net, law = NoisyNetwork(self.smoothed.base), float_law(self.smoothed.sigma.tolist())
        mean = "logit" if self.smoothed.voting.name == "logit" else "soft"
        average = Average(self.smoothed, net, net.run_frozen, law, Stream.ATTACK, mean, self.max_batch)
        return average.scores(images, first, self.samples)

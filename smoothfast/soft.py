"""A smoothed classifier by mean probabilities instead of votes: what attacks of other packages can differentiate."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from . import ops
from .engine import DTYPES, default_micro_batch, resolve_precision
from .noise import Stream, gaussian_law, stream_key
from .runners import evaluating, in_precision
from .smoothing import SmoothedClassifier, finite_images
from .specs import at_least


class SoftClassifier(nn.Module):
    """Images to the logarithm of the mean probability over their noisy copies, which autograd can go through.

    Votes have no gradient. Mean probabilities, the soft smoothing of Nemcovsky et al. 2019, have one, and their
    cross-entropy is the loss of SmoothAdv (Salman et al. 2019, arXiv 1906.04584, eq. 6).

    Every call draws samples that were not drawn before, of the stream ATTACK. So calls are independent, as expectation
    over transformation takes them to be, whatever an attack does to the generator of torch; and none of the samples is
    one by which the smoothed classifier predicts. The base classifier runs in eval mode and is left in the mode it was
    in. Its parameters get no gradients.

    A pass of the base classifier takes as many samples of all images given as fit into `max_batch` rows, and one at the
    least. Where that makes several passes, only their sums are kept, and the backward pass computes each anew: memory
    does not depend on `samples`.

    Args:
        smoothed: the classifier; its base, sigma, normalize, clip, precision and seed are used as they are at a call.
            Gradients pass the clamp of `clip` unchanged (Athalye et al. 2018, arXiv 1802.00420).
        samples: noisy copies per image and call.
        max_batch: rows per pass; that of the classifier if not given. 1 gives each sample of an image a pass of its
            own, for base classifiers that draw noise of their own once in a pass.

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
        size = min(self.samples, self._most(images))
        total = self._total if size == self.samples else partial(checkpoint, self._total, use_reentrant=False)
        first, self._next_sample = self._next_sample, self._next_sample + self.samples
        starts = range(0, self.samples, size)
        totals = [total(images, first + start, min(size, self.samples - start)) for start in starts]
        return torch.stack(totals).logsumexp(0) - math.log(self.samples)

    def _most(self, images: Tensor) -> int:
        """Samples of each image in a pass."""
        channels, height, width = images.shape[1:]
        usual = default_micro_batch((channels, height, width), images.device)
        rows = self.max_batch or self.smoothed.max_batch or usual
        return max(1, rows // max(1, len(images)))

    def _total(self, images: Tensor, first: int, count: int) -> Tensor:
        """The logarithm of the probabilities [N, K] summed over the samples first .. first + count - 1."""
        logits = self._logits(self._replicas(images, first, count)).float()
        return logits.log_softmax(1).unflatten(0, (count, len(images))).logsumexp(0)

    def _replicas(self, images: Tensor, first: int, count: int) -> Tensor:
        """Sample after sample of all images, [count N, C, H, W]."""
        device, law = images.device, gaussian_law(self.smoothed.sigma.tolist())
        slots = torch.arange(len(images), device=device).repeat(count)
        numbers = torch.arange(first, first + count, device=device).repeat_interleave(len(images))
        key = stream_key(self.smoothed.seed, Stream.ATTACK, device)
        scale, shift = ops.affine(self.smoothed.normalize, images.shape[1], torch.float32)
        draw = partial(
            ops.noisy_replicas, slots=slots, image_ids=slots, sample_ids=numbers, key=key, law=law.to(device),
            scale=scale.to(device), shift=shift.to(device), dtype=self._dtype(device),
            memory_format=torch.channels_last,
        )  # fmt: skip
        replicas = draw(images)
        if self.smoothed.clip:
            replicas = draw(images.detach(), clip=True) + (replicas - replicas.detach())
        return replicas

    def _logits(self, replicas: Tensor) -> Tensor:
        base, device = self.smoothed.base, replicas.device
        frozen = {name: parameter.detach() for name, parameter in base.named_parameters()}
        with evaluating(base):  # here, where the backward pass comes by too
            return in_precision(partial(functional_call, base, frozen), self._dtype(device), device)(replicas)

    def _dtype(self, device: torch.device) -> torch.dtype:
        return DTYPES[resolve_precision(self.smoothed.precision, device)]

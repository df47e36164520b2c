"""Means over noisy copies that autograd can go through: of soft and logit voting, and for attacks of other packages."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..modules import evaluating
from ..ops.philox import stream_key
from ..runners.precision import in_precision
from ..streams import Stream
from .function import BaseFunction
from .noisy_network import NoisyNetwork

Means = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]
MEANS: dict[str, Means] = {
    "soft": (
        lambda logits: logits.log_softmax(-1).logsumexp(0),
        lambda totals, samples: totals.logsumexp(0) - math.log(samples),
    ),
    "logit": (lambda logits: logits.sum(0), lambda totals, samples: (totals.sum(0) / samples).log_softmax(-1)),
}
"""The halves of a mean, by voting rule: of logits [samples, N, K] in a pass, of totals [passes, N, K] in the end."""


@dataclass(frozen=True)
class Average:
    """The log-scores of a smoothed classifier by a mean, as a function of images that autograd can go through.

    A pass of the base classifier takes as many samples of all images given as fit into a micro-batch, and one at the
    least; one, where the base has noise of its own. Where that makes several passes, only their totals are kept, and
    the backward pass computes each anew: memory does not depend on the number of samples.

    Args:
        function: what runs; its runner is not used. Gradients pass the clamp of `clip` unchanged (Athalye et al. 2018,
            arXiv 1802.00420).
        stream: of the samples; the image ids are 0 .. N-1.
        mean: "soft" or "logit".
        frozen: whether the parameters of the base classifier get no gradients.
    """

    function: BaseFunction
    stream: Stream
    mean: str
    frozen: bool = False

    def scores(self, images: Tensor, first: int, samples: int) -> Tensor:
        """Log-scores float32 [N, K] of the samples first .. first + samples - 1 of images [N, C, H, W]."""
        images, net = images.to(self.function.device), NoisyNetwork(self.function.base)
        most = 1 if net.noisy else max(1, self.function.micro_batch // max(1, len(images)))
        size = min(samples, most)
        total = partial(self._total, net)
        if size < samples:
            total = partial(checkpoint, total, use_reentrant=False)
        starts = range(0, samples, size)
        totals = [total(images, first + start, min(size, samples - start)) for start in starts]
        return MEANS[self.mean][1](torch.stack(totals), samples)

    def _total(self, net: NoisyNetwork, images: Tensor, first: int, count: int) -> Tensor:
        """The share [N, K] of the samples first .. first + count - 1 in the mean."""
        key = stream_key(self.function.seed, self.stream, images.device)
        replicas = self._replicas(images, key, first, count)
        run_base = in_precision(net.run_frozen if self.frozen else net.run, self.function.dtype, images.device)
        with evaluating(net.network):  # here, where the backward pass comes by too
            logits = run_base(replicas, key, torch.tensor([first], device=images.device))
        return MEANS[self.mean][0](logits.float().unflatten(0, (count, len(images))))

    def _replicas(self, images: Tensor, key: Tensor, first: int, count: int) -> Tensor:
        """Sample after sample of all images, [count N, C, H, W]."""
        slots = torch.arange(len(images), device=images.device).repeat(count)
        samples = torch.arange(first, first + count, device=images.device).repeat_interleave(len(images))
        rows = slots, slots, samples
        if not self.function.clip:
            return self.function.replicas(images, rows, key)
        passing = replace(self.function, clip=False).replicas(images, rows, key)
        return self.function.replicas(images.detach(), rows, key) + (passing - passing.detach())

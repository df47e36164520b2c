"""The loop from noisy images to losses and mean gradients by image: all that an attack may ask of a classifier.

    images ─ noise ─▶ replicas ─ gradient network ─▶ logits, gradients ─ sums ─▶ votes, loss and mean gradient by image

The replicas of many images share micro-batches of one size, noise is regenerated and never stored, and only sums by
image outlive a micro-batch: memory is that of the images and of a micro-batch for each core, whatever the number of
samples. Sums are taken over blocks of samples (`blocks`), one by one, and then over the blocks in their order: so an
image gets the same bits whatever is attacked beside it and on however many cores; and in micro-batches of other sizes,
as far as the kernels of the base classifier do not depend on that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..checks import choice
from ..images import by_channel, by_image
from ..losses import Differentiated, Loss, cross_entropy
from ..modules import evaluating
from ..ops.philox import stream_key
from ..runners import Runner
from ..runners.declined import declined
from ..runners.precision import strict_arithmetic
from ..streams import Stream
from .blocks import BLOCK, packed
from .buffers import sent
from .function import BaseFunction
from .lanes import DEPTH, Lane, make_lanes
from .noisy_network import NoisyNetwork

# Of gradients to those of autograd in float32. Rectifiers near 0 that bfloat16 switches leave 0.95 of random networks.
LEAST_COSINE = {"fp32": 0.999, "bf16": 0.85, "fp16": 0.95}
AVERAGES: dict[str, Callable[[Tensor], Tensor]] = {"loss": torch.zeros_like, "probabilities": torch.neg}
"""The means over the samples of an image, by the logarithms of the weights that its gradients get.

"loss": the mean of the losses, whose gradient is the mean of the gradients (EPGD; Nemcovsky et al. 2019, eq. 25).
"probabilities": -log of the mean probability of the class, whose gradient is the mean of the gradients of -log p
weighted by p (SmoothAdv; Salman et al. 2019, arXiv 1906.04584, eq. 6; Nemcovsky et al., eq. 24).
"""


@dataclass
class Sums:
    """Sums over the samples of images [N], or of blocks of samples. Weights are in units of exp(top).

    Attributes:
        top: float32 [N], the largest logarithm of a weight.
        scalars: float32 [N, 2 + K]: sums of the weights, of the losses and of the logits.
        votes: int64 [N, K], by class.
        gradients: float32 [N, C, ...], the weighted sums.
    """

    top: Tensor
    scalars: Tensor
    votes: Tensor
    gradients: Tensor | None

    def take(self, at: Tensor) -> Sums:
        """The sums of some of the images or blocks."""
        gradients = None if self.gradients is None else self.gradients[at]
        return Sums(self.top[at], self.scalars[at], self.votes[at], gradients)

    def add(self, index: Tensor, block: Sums) -> None:
        """Adds blocks [B] to the images `index` [B], which are all different."""
        top = torch.maximum(self.top[index], block.top)
        before, now = (self.top[index] - top).exp(), (block.top - top).exp()
        self.top[index] = top
        scalars, more = self.scalars[index], block.scalars
        scalars[:, 0] = scalars[:, 0] * before + more[:, 0] * now
        scalars[:, 1:] += more[:, 1:]
        self.scalars[index] = scalars
        self.votes[index] += block.votes
        if self.gradients is not None and block.gradients is not None:
            ours, theirs = self.gradients[index], block.gradients
            self.gradients[index] = ours * by_image(before, ours) + theirs * by_image(now, theirs)


@dataclass(frozen=True)
class Outcome:
    """The outcome of the samples of images [N].

    Attributes:
        losses: float32 [N], averaged over the samples as `AVERAGES` says.
        logits: float32 [N, K], the mean.
        votes: int64 [N, K], by class; a sample with logits that are not finite has none.
        gradients: float32 [N, C, ...] of the losses with respect to the images; empty where none were asked for.
    """

    losses: Tensor
    logits: Tensor
    votes: Tensor
    gradients: Tensor


class Request(NamedTuple):
    """A request about images [N]; see `Gradients.outcomes`."""

    images: Tensor
    classes: Tensor
    image_ids: Tensor
    first: int


class Gradients:
    """The loop that feeds one fixed function with the samples that attacks ask for, and sums losses and gradients.

    Args:
        function: what runs, on float images in [0, 1]. Gradients pass the clamp of `clip` unchanged (Athalye et al.
            2018, arXiv 1802.00420).
        loss: of a row, see `losses`.
        average: "loss" or "probabilities" (cross-entropy only), see `AVERAGES`.
        replicas_per_forward: how many samples of an image may be in a micro-batch; None: any number. For base
            classifiers that draw noise in ways unknown here, once in a forward pass: 1 makes the draws of the samples
            of an image independent. Images beside each other share them. Those of `layers` need no such thing.

    Attributes:
        num_classes: K of the base classifier.
        origin: the sample number in the stream ATTACK that requests count theirs from; whoever asks sets it.
        forwards, backwards: samples that went through the base classifier so far.

    Raises:
        ValueError: an argument is out of its range.
    """

    origin = 0

    def __init__(
        self,
        function: BaseFunction,
        loss: Loss = cross_entropy,
        average: str = "loss",
        replicas_per_forward: int | None = None,
    ) -> None:
        choice("average", average, AVERAGES)
        self.function, self.loss, self.replicas_per_forward = function, loss, replicas_per_forward
        self.average, self.log_weights = average, AVERAGES[average]
        self.net = NoisyNetwork(function.base)
        self._one = torch.ones(function.shape[0], device=function.device)
        self._key = stream_key(function.seed, Stream.ATTACK, function.device)
        self.num_classes = function.num_classes
        self.lanes = make_lanes(function.device, Lane)
        self._runners: dict[bool, list[Runner]] = {}
        self.forwards = self.backwards = 0

    def refresh(self) -> None:
        """Makes an eager base classifier that was asked before anew when it is next asked: nobody can see whether its
        code or attributes changed."""
        if self.function.runner == "eager" and self._runners:
            self.net = NoisyNetwork(self.function.base)
            self._runners.clear()

    def outcomes(
        self, images: Tensor, classes: Tensor, image_ids: Tensor, first: int, samples: int, how: str = "forward"
    ) -> Outcome:
        """The outcome of `samples` noisy copies of each image, from number `origin` + `first` on in the stream ATTACK.

        Args:
            images: float32 [N, C, ...].
            classes: int64 [N] or [N, k], what the loss takes.
            image_ids: int64 [N], the numbers the noise is drawn under.
            how: "forward": no gradients. "backward": by differentiation. "estimate": by forward passes alone, for
                average "probabilities": the gradient of the mean of p(x + noise) is that of p noise / sigma^2 (Stein
                1981), here with the same weights p (Salman et al. 2019, section 4.1).
        """
        request = Request(images, classes if classes.dim() == 2 else classes[:, None], image_ids, self.origin + first)
        self.prepare(how, request.classes.shape[1])
        sums = Sums(
            images.new_full((len(images),), -torch.inf),
            images.new_zeros(len(images), 2 + self.num_classes),
            classes.new_zeros(len(images), self.num_classes),
            None if how == "forward" else torch.zeros_like(images),
        )
        self.net.refresh()
        with evaluating(self.net.network):
            for places, block in self._computed(how, request, samples):
                for at, index in places:
                    sums.add(index, block.take(at))
        self.forwards += len(images) * samples
        self.backwards += len(images) * samples * (how == "backward")
        return self._outcome(sums, samples)

    def _outcome(self, sums: Sums, samples: int) -> Outcome:
        weights, losses, logits = sums.scalars[:, 0], sums.scalars[:, 1] / samples, sums.scalars[:, 2:] / samples
        if self.average == "probabilities":
            losses = math.log(samples) - sums.top - weights.log()
        found = sums.gradients
        gradients = losses.new_empty(0) if found is None else found / by_image(weights, found)
        return Outcome(losses, logits, sums.votes, gradients)

    def _computed(self, how: str, request: Request, samples: int) -> Iterator[tuple[list[Tensor], Sums]]:
        """The sums of all micro-batches, in order, and where they belong; a bounded number of them are under way."""
        lanes = list(zip(self.lanes, self._runners[how == "backward"], strict=True))
        pending: deque[tuple[list[Tensor], Future[Sums]]] = deque()
        device = self.function.device
        batches = packed(
            len(request.images), samples, self.function.micro_batch, self.replicas_per_forward, self.net.noisy
        )
        try:
            for batch, (lane, run) in zip(batches, cycle(lanes), strict=False):
                if len(pending) == DEPTH * len(lanes):
                    places, future = pending.popleft()
                    yield places, future.result()
                table, places = sent(batch.table, device), [sent(place, device) for place in batch.places]
                pending.append((places, lane.call(self._compute, how, run, request, table, batch.count)))
            while pending:
                places, future = pending.popleft()
                yield places, future.result()
        finally:
            wait([future for _, future in pending])

    @torch.no_grad()
    def _compute(self, how: str, run: Runner, request: Request, table: Tensor, count: int) -> Sums:
        """One micro-batch: the sums of its blocks."""
        slots, blocks, samples = table
        rows = slots.clamp(min=0)
        numbers = (slots, request.image_ids[rows], request.first + samples.clamp(min=0))
        replicas = self.function.replicas(request.images, numbers, self._key)
        classes = request.classes[rows]
        noise = self.net.draw(self._key, numbers[2][:1])
        with strict_arithmetic(self.function.device):
            logits, gradients = STEPS[how](self, run, (replicas, classes, *noise), request.images, numbers)
        logits = logits.float()
        self._require_classes(logits)
        losses = self.loss(logits, *classes.unbind(1))
        top, weights = _relative(self.log_weights(losses), blocks, count)
        votes = torch.zeros(count, self.num_classes, dtype=torch.int64, device=slots.device)
        ops.tally(logits, blocks, votes, votes.new_zeros(count))
        scalars = torch.cat([weights[:, None], losses[:, None], logits], 1)[:, :, None, None]
        summed = ops.replica_sum(scalars, blocks, self._one.new_ones(scalars.shape[1]), count)[:, :, 0, 0]
        if gradients is None:
            return Sums(top, summed, votes, None)
        weighted = gradients.float() * by_image(weights, gradients)
        scale = self._one if how == "estimate" else self.function.constants[1]
        return Sums(top, summed, votes, ops.replica_sum(weighted, blocks, scale, count))

    def _require_classes(self, logits: Tensor) -> None:
        if logits.shape[1] != self.num_classes:
            found = logits.shape[1]
            raise ValueError(f"the base classifier returns logits of {found} classes, before {self.num_classes}")

    # ---- how the rows of a micro-batch get their gradients: (logits, gradients or None) ----------------------------

    def _forward(self, run: Runner, inputs: tuple[Tensor, ...], *_: object) -> tuple[Tensor, None]:
        replicas, _classes, *noise = inputs
        return run(replicas, *noise), None

    def _backward(self, run: Runner, inputs: tuple[Tensor, ...], *_: object) -> tuple[Tensor, Tensor]:
        return run(*inputs)

    def _estimate(
        self, run: Runner, inputs: tuple[Tensor, ...], images: Tensor, numbers: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        drawn = ops.noisy_replicas(
            torch.zeros_like(images), *numbers, self._key, self.function.constants[0], self._one, 0 * self._one
        )
        variance = by_channel(self.function.law.sigma, images).square()
        return self._forward(run, inputs)[0], -drawn / variance

    # ---- runners ---------------------------------------------------------------------------------------------------

    def prepare(self, how: str, columns: int) -> None:
        """Makes what such passes need where it is not there: the base classifier, or its gradient with so many columns
        of classes, as each lane runs it.

        Raises:
            DeclinedError: the runner cannot take it.
        """
        choice("how", how, STEPS)
        backward = how == "backward"
        if backward not in self._runners:
            with evaluating(self.net.network):
                self._runners[backward] = self.lanes[0].result(self._make, columns if backward else 0)

    def _make(self, columns: int) -> list[Runner]:
        function, network = self.function, self.net.network
        replicas, *noise = examples = function.examples(self.net)
        if columns:
            from ..runners.gradient import traced  # brings a second of torch along

            classes = torch.zeros(function.micro_batch, columns, dtype=torch.int64, device=function.device)
            network, examples = Differentiated(network, self.loss), (replicas, classes, *noise)
            if function.runner not in ("eager", "fused"):
                network = traced(network, function.runner, function.dtype, examples)
        made = function.runners(network, examples, len(self.lanes))
        if columns and function.runner != "eager":
            self._check(made[0], *examples)
        return made

    def _check(self, run: Runner, replicas: Tensor, classes: Tensor, *own: Tensor) -> None:
        """Compares gradients of noise by a compiler with those of autograd in float32: compilers have bugs (see
        `runners.gradient`), and a wrong gradient is a defence."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(replicas.shape, generator=generator).to(replicas.device)
        classes = classes + torch.arange(classes.shape[1], device=classes.device)
        found = run(noise.to(replicas.dtype).contiguous(memory_format=self.function.adapted.layout), classes, *own)[1][
            :BLOCK
        ]
        wanted = Differentiated(self.net.network, self.loss)(noise[:BLOCK], classes[:BLOCK], *own)[1]
        cosine = torch.cosine_similarity(found.float().flatten(1), wanted.flatten(1)).median()
        if cosine < LEAST_COSINE[self.function.precision]:
            reason = ValueError(f"cosine of its gradients to those of autograd is {cosine:.3f}")
            raise declined(self.function.runner, reason)


STEPS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "forward": Gradients._forward,
    "backward": Gradients._backward,
    "estimate": Gradients._estimate,
}


def _relative(log_weights: Tensor, blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logarithm of each block [count], and the weights of the rows [B] in units of it."""
    top, at = log_weights.new_full((count,), -torch.inf), blocks.clamp(min=0)
    top.scatter_reduce_(0, at, log_weights.masked_fill(blocks < 0, -torch.inf), "amax")
    return top, (log_weights - top[at]).exp()

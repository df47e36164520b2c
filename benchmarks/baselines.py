"""Contenders of the benchmarks and references of the tests: what people run today, re-written cleanly."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smoothfast.layers import CNI, PNI
from smoothfast.noise import Stream
from smoothfast.procedures import CERTIFIED, NOT_CERTIFIED, UNDECIDED, Decision, Draw
from smoothfast.statistics import clopper_pearson_lower, clopper_pearson_upper


def torch_replicas(
    image: Tensor, count: int, sigma: float, mean: Tensor, std: Tensor, dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:  # fmt: skip
    """Noisy, normalised copies of one float image [1, C, H, W] in plain PyTorch: repeat, randn, mul, add, normalise
    (mean and std are [C, 1, 1]), cast."""
    replicas = image.repeat(count, 1, 1, 1)
    replicas = replicas + torch.randn_like(replicas) * sigma
    replicas = (replicas - mean) / std
    return replicas.to(dtype).to(memory_format=memory_format)


def torch_votes(logits: Tensor) -> Tensor:
    """Votes by class, counted on the device of the logits [R, K]."""
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1])


def published_votes(logits: Tensor) -> NDArray[np.int64]:
    """Votes by class, counted on the host, one by one, as in Cohen's loop."""
    votes = np.zeros(logits.shape[1], dtype=np.int64)
    for vote in logits.argmax(1).cpu().numpy():
        votes[vote] += 1
    return votes


def ranked_sum(logits: Tensor) -> Tensor:
    """Sums by class of 2^-(k-1) for rank k, float32 [K], after a full sort as in the code of Nemcovsky et al."""
    weights = 0.5 ** torch.arange(logits.shape[1], device=logits.device)
    ranked = logits.argsort(dim=1, descending=True)
    return torch.zeros_like(weights).scatter_add_(0, ranked.flatten(), weights.repeat(len(logits)))


def row_sum(rows: Tensor, slots: Tensor) -> Tensor:
    """Sums of rows [R, K] by slot, of which there is one: float32 [K]."""
    return rows.new_zeros(1, rows.shape[1]).index_add_(0, slots, rows)[0]


def index_add_sum(gradients: Tensor, slots: Tensor, scale: Tensor, images: int) -> Tensor:
    """Sums of the rows of every image by `index_add_`, in float32; scale is [C, 1, 1]."""
    sums = gradients.new_zeros((images, *gradients.shape[1:]), dtype=torch.float32)
    return sums.index_add_(0, slots, gradients.float()) * scale


def view_sum(gradients: Tensor, scale: Tensor, images: int) -> Tensor:
    """Sums of the rows of every image, where all images have as many, which lie side by side."""
    return gradients.unflatten(0, (images, -1)).sum(1, dtype=torch.float32) * scale


def linf_chain(
    adversarial: Tensor, images: Tensor, gradients: Tensor, alpha: float, eps: float, low: float, high: float
) -> Tensor:
    """A step of projected gradient descent as libraries of attacks write it: sign, add, clamp twice."""
    adversarial = adversarial + alpha * gradients.sign()
    shift = torch.clamp(adversarial - images, min=-eps, max=eps)
    return torch.clamp(images + shift, low, high)


def l2_chain(
    adversarial: Tensor, images: Tensor, gradients: Tensor, alpha: float, eps: float, low: float, high: float
) -> Tensor:
    """A step of projected gradient descent in L2 as libraries of attacks write it: normalise, add, scale back to the
    ball, clamp. The small number keeps 0 / 0 away."""
    norms = gradients.flatten(1).norm(dim=1) + 1e-10
    adversarial = adversarial + alpha * (gradients / norms.view(-1, 1, 1, 1))
    shift = adversarial - images
    factor = (eps / shift.flatten(1).norm(dim=1)).clamp(max=1)
    return torch.clamp(images + shift * factor.view(-1, 1, 1, 1), low, high)


@torch.no_grad()
def cni_weights(weight: Tensor, diagonal: Tensor, factors: Tensor) -> Tensor:
    """The noisy weights of one layer for one pass as the code of CNI (Zheltonozhskii et al. 2020) makes them, with the
    scales computed each time: std, mul, abs, sqrt, randn, mul, a matrix product, adds.

    Args:
        weight: the means.
        diagonal: variances in units of their standard deviation, of the shape of the weights.
        factors: [*weight.shape, rank].
    """
    scales = torch.sqrt((weight.std() * diagonal).abs() + 1e-8)
    shared = factors @ torch.randn(factors.shape[-1], device=weight.device)
    return weight + scales * torch.randn_like(weight) + shared


@torch.no_grad()
def pni_weights(weight: Tensor, alpha: Tensor) -> Tensor:
    """The noisy weights of one layer for one pass as the code of PNI (He et al. 2019) makes them."""
    return weight + alpha * torch.randn_like(weight) * weight.std()


def draws_as_published(network: nn.Module) -> nn.Module:
    """A network with noise in its weights, whose layers draw it as published, each by itself; in place."""
    for part in network.modules():
        if isinstance(part, CNI):
            factors = part.factors.detach().T.contiguous().view(*part.weight.shape, -1)
            vars(part)["drawn_weight"] = partial(cni_weights, part.weight.detach(), part.diagonal.detach(), factors)
        elif isinstance(part, PNI):
            vars(part)["drawn_weight"] = partial(pni_weights, part.weight.detach(), part.alpha.detach())
    return network


@torch.no_grad()
def cohen_counts(base: nn.Module, image: Tensor, n: int, sigma: float, batch: int, num_classes: int) -> np.ndarray:
    """The sampling loop of Cohen et al. 2019: noise by randn_like, argmax, votes to the host and counted one by one.

    Args:
        base: maps [B, C, H, W] in [0, 1] to logits; normalises inside, as theirs does.
        image: float [C, H, W].
    """
    counts = np.zeros(num_classes, dtype=int)
    while n > 0:
        this = min(batch, n)
        n -= this
        replicas = image.repeat((this, 1, 1, 1))
        noise = torch.randn_like(replicas) * sigma
        for vote in base(replicas + noise).argmax(1).cpu().numpy():
            counts[vote] += 1
    return counts


@torch.no_grad()
def siam_votes(base: nn.Module, images: Tensor, m: int, sigma: float | Tensor, num_classes: int) -> Tensor:
    """Monte-Carlo prediction as in the code of Nemcovsky et al. 2019 (SIAM): m passes over a batch, each with one noisy
    copy of every image, whose votes are scattered into histograms on the device.

    Args:
        base: maps [B, C, H, W] to logits.
        images: float [B, C, H, W], normalised before the noise, as theirs are.
        sigma: in units of these; one number, or [C, 1, 1].

    Returns:
        int64 [B, num_classes].
    """
    votes = torch.zeros(len(images), num_classes, dtype=torch.int64, device=images.device)
    one = votes.new_ones(len(images), 1)
    for _ in range(m):
        winners = base(images + torch.randn_like(images) * sigma).argmax(1, keepdim=True)
        votes.scatter_add_(1, winners, one)
    return votes


def siam_epgd(
    base: nn.Module, images: Tensor, labels: Tensor, *, eps: Tensor, alpha: Tensor, sigma: Tensor,
    limits: tuple[Tensor, Tensor], steps: int, samples: int,
) -> Tensor:  # fmt: skip
    """EPGD as in the code of Nemcovsky et al. 2019 (SIAM): a backward pass for each sample of a step, one by one.

    Its gradients add up over the steps, and those of weights that require some are computed as well.

    Args:
        images: float [B, C, H, W], normalised.
        eps, alpha, sigma, limits: radius, step, noise and the range of pixels, in units of these, [C, 1, 1].
    """
    adversarial = images + eps * (2 * torch.rand_like(images) - 1)
    gradients = torch.zeros_like(images)
    adversarial.requires_grad_().grad = gradients
    for _ in range(steps):
        for _ in range(samples):
            noisy = adversarial + sigma * torch.randn_like(adversarial)
            (nn.functional.cross_entropy(base(noisy), labels) / samples).backward()
        with torch.no_grad():
            adversarial += alpha * gradients.sign()
            adversarial.copy_(adversarial.clamp(images - eps, images + eps).clamp(*limits))
    return adversarial.detach()


class FourLooks:
    """The four looks of Voracek 2024, "Treatment of statistical estimation problems in randomized smoothing": is the
    probability of class 0 above p0? Clopper-Pearson bounds on either side, each at level alpha / 4."""

    LOOKS = (100, 1_000, 10_000, 100_000)
    most = LOOKS[-1]

    def __init__(self, p0: float, alpha: float) -> None:
        self._p0, self._alpha, self._look, self._votes = p0, alpha, 0, np.zeros(1, np.int64)

    def begin(self) -> Draw:
        """The first draw."""
        return Draw(Stream.ESTIMATE, 0, self.LOOKS[0])

    def update(self, votes: NDArray[np.int64]) -> Draw | Decision:
        """Takes the votes of a look; the decision, or the draw that leads to the next look."""
        self._votes = self._votes + votes
        n, k, level = self.LOOKS[self._look], self._votes[0], self._alpha / len(self.LOOKS)
        certified = clopper_pearson_lower(k, n, level) > self._p0
        refuted = clopper_pearson_upper(k, n, level) < self._p0
        self._look += 1
        if certified or refuted or self._look == len(self.LOOKS):
            outcome = CERTIFIED if certified else NOT_CERTIFIED if refuted else UNDECIDED
            return Decision(0 if certified else -1, self._votes[:-1], int(self._votes[-1]), n, outcome)
        return Draw(Stream.ESTIMATE, n, self.LOOKS[self._look] - n)

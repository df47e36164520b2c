"""Losses of attacks: logits [B, K] and classes int64 [B] to one number per row [B], which an untargeted attack on the
class makes larger and an attack towards it makes smaller. Each is a function of its row alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[..., Tensor]


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """-log softmax, as log(1 + the odds of the other classes).

    Its derivative by the logit of the class is then minus the sum of the others, and not p - 1: in bfloat16, which has
    8 bits, that is 0 from p = 0.998 on, and what remains of the gradient has another direction (cosine to float32 0.84
    in the mean over 64 noisy images and -0.33 at worst, ResNet-20 by OpenVINO; 0.998 and 0.994 as it is here).
    torch's softplus would give a row other bits at another place of a micro-batch.
    """
    odds = _others(logits, classes).logsumexp(1) - _own(logits, classes)  # their logarithm
    return torch.maximum(odds, torch.zeros_like(odds)) + odds.abs().neg().exp().log1p()


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """The largest other logit less that of the class: positive where the row is classified as something else."""
    return _others(logits, classes).amax(1) - _own(logits, classes)


def dlr(logits: Tensor, classes: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, arXiv 2003.01690): the margin, in units of the distance from the
    largest to the third largest logit. Needs 3 classes."""
    largest = logits.topk(3, 1).values
    return margin(logits, classes) / (largest[:, 0] - largest[:, 2] + 1e-12)


def difference(logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """The logit of a target less that of the class, for multi-targeted attacks (Gowal et al. 2019, arXiv
    1910.09338)."""
    return _own(logits, targets) - _own(logits, classes)


def capped_margin(limit: float) -> Loss:
    """The margin as far as a limit, from where on the gradient is 0: of Carlini and Wagner's attack, where the limit is
    the confidence (kappa) asked for, and of NAttack, where it is 0.

    Beside classes it takes directions, int64 [B]: 1 where an attack makes it larger, as far as `limit`, and -1 where an
    attack makes it smaller, as far as -`limit`.
    """

    def capped(logits: Tensor, classes: Tensor, directions: Tensor | int = 1) -> Tensor:
        return directions * (directions * margin(logits, classes)).clamp(max=limit)

    return capped


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
FEWEST = {"dlr": 3}  # classes, where 2 are too few


def _is_own(logits: Tensor, classes: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=logits.device) == classes[:, None]


def _own(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.masked_fill(~_is_own(logits, classes), 0).sum(1)


def _others(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits without that of the class, which is put below every other one."""
    return logits.masked_fill(_is_own(logits, classes), -1e30)


class Differentiated(nn.Module):
    """The gradient of a loss of a base classifier, as a network: replicas [B, C, H, W], classes int64 [B, k] and what
    the base takes beside replicas to logits float32 [B, K] and gradients with respect to the replicas. No parameter
    gets a gradient."""

    def __init__(self, base: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.base, self.loss = base, loss

    def forward(self, replicas: Tensor, classes: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [B, K], and gradients of the loss with respect to the replicas."""
        replicas = replicas.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.base(replicas, *noise).float()
            total = self.loss(logits, *classes.unbind(1)).sum()
            (gradients,) = torch.autograd.grad(total, replicas)
        return logits.detach(), gradients

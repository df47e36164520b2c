"""Parameters and batch norms of a network: which of them learn, and which decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..layers import noise_parameters


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of a model for an optimizer: those that decay, which are matrices and kernels, and those that do
    not, which are biases, what batch norms learn, and strengths of noise."""
    noise = {id(p) for p in noise_parameters(model)}
    learned = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in learned if p.dim() > 1 and id(p) not in noise]
    plain = [p for p in learned if p.dim() <= 1 or id(p) in noise]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def load_momentum(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Loads the momentum out of the state of an optimizer of the same parameters; settings are as they are.

    Raises:
        ValueError: it is of others. What else the state may hold makes torch raise anything.
    """
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, held in optimizer.state.items():
        momentum = held.get("momentum_buffer")
        fits = momentum is None or (momentum.shape == parameter.shape and momentum.layout == torch.strided)
        if not fits or held.keys() - {"momentum_buffer"}:
            raise ValueError("the state of the optimizer is of another network")


def learn_noise_alone(model: nn.Module) -> None:
    """Leaves gradients to the strengths of noise.

    Raises:
        ValueError: there are none.
    """
    strengths = noise_parameters(model)
    if not strengths:
        raise ValueError("learn is 'noise'; the model has no noise in it (as resnet20+cni has)")
    model.requires_grad_(False)
    for strength in strengths:
        strength.requires_grad_()


def keep_running_statistics(network: nn.Module) -> None:
    """Puts batch norms in eval mode, and leaves the rest of a network in train mode."""
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()

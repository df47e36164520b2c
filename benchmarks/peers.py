"""Other packages, run as their users run them. One that is not installed is said to be, and left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn


@cache
def missing(name: str, *modules: str) -> bool:
    """Whether a peer cannot run here, which is then printed, once."""
    lacking = [module for module in modules if find_spec(module) is None]
    if lacking:
        print(f"{name} is left out: {', '.join(lacking)} not installed (pip install smoothfast[peers])", flush=True)
    return bool(lacking)


def art_certify(
    base: nn.Module, image: Tensor, n0: int, n: int, sigma: float, batch: int, num_classes: int
) -> Callable[[], tuple[Any, Any]] | None:
    """`certify` of the Adversarial Robustness Toolbox: class and radius of one image from n0 and n samples, from NumPy
    to NumPy. None where it is not installed; its `certify` imports statsmodels, which it does not require.

    Args:
        base: maps [B, C, H, W] in [0, 1] to logits; normalises inside.
        image: float [C, H, W] in [0, 1].
        batch: rows per forward pass. All noisy copies are made before the first.
    """
    if missing("adversarial-robustness-toolbox", "art", "statsmodels"):
        return None
    smoothing = import_module("art.estimators.certification.randomized_smoothing")
    smoothed = smoothing.PyTorchRandomizedSmoothing(
        model=base, loss=nn.CrossEntropyLoss(), input_shape=tuple(image.shape), nb_classes=num_classes,
        clip_values=(0.0, 1.0), device_type="cpu" if image.device.type == "cpu" else "gpu", sample_size=n0,
        scale=sigma, alpha=0.001,
    )  # fmt: skip
    pixels = image[None].cpu().numpy()
    return lambda: smoothed.certify(pixels, n=n, batch_size=batch)


class NoisyModel(nn.Module):
    """A base classifier on noisy images: what users of torchattacks write to attack a smoothed one."""

    def __init__(self, base: nn.Module, sigma: float) -> None:
        super().__init__()
        self.base, self.sigma = base, sigma

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the images with fresh noise."""
        return self.base(images + self.sigma * torch.randn_like(images))


def torchattacks_attack(
    name: str, base: nn.Module, images: Tensor, labels: Tensor, sigma: float, **options: Any
) -> Callable[[], Tensor] | None:
    """An attack of torchattacks on a base classifier under noise. None where it is not installed.

    Args:
        name: of its class, such as "PGD" or "EOTPGD".
        base: maps [B, C, H, W] in [0, 1] to logits; normalises inside.
        options: of the class.
    """
    if missing("torchattacks", "torchattacks"):
        return None
    attack = getattr(import_module("torchattacks"), name)(NoisyModel(base, sigma).eval(), **options)
    return lambda: attack(images, labels)

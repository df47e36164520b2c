"""`attack_step` against the chain of PyTorch operations that libraries of attacks run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import baselines, harness

LIMITS = {"linf": (2 / 255, 8 / 255, 0.0, 1.0), "l2": (0.1, 0.5, 0.0, 1.0)}  # alpha, eps, low, high
CHAINS = {"linf": baselines.linf_chain, "l2": baselines.l2_chain}


def main(out: Path | None) -> list[harness.Row]:
    """128 images of 32x32 pixels and 16 of 224x224, both norms."""
    forms = product(harness.devices(), ((32, 128), (224, 16)), LIMITS)
    return harness.report((rows(size, images, norm, device) for device, (size, images), norm in forms), out)


def rows(size: int, images: int, norm: str, device: torch.device) -> list[harness.Row]:
    """Rows in nanoseconds an element."""
    setting = f"{norm}, {images} images {size}x{size}"
    named = contenders(size, images, norm, device)
    per = images * 3 * size * size * 1e-9
    return harness.compare(
        "attack_step", setting, named, per, "ns/element", 51, device=device, calls=harness.calls_on(device)
    )


def contenders(size: int, images: int, norm: str, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Contenders that return the attack after a step; those of the package go on from there."""
    clean, start = torch.rand(2, images, 3, size, size, device=device)
    start = clean + (start - 0.5) / 100
    gradients = torch.randn_like(clean)

    def stepping(step: Callable[..., None]) -> Callable[[], Tensor]:
        adversarial = start.clone()

        def call() -> Tensor:
            step(adversarial, clean, gradients, norm, *LIMITS[norm])
            return adversarial

        return call

    ours = harness.implementations("attack_step", device)
    return {
        **{f"attack_step{by}": stepping(step) for by, step in ours.items()},
        "torch chain": lambda: CHAINS[norm](start, clean, gradients, *LIMITS[norm]),
    }

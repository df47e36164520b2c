"""Fused networks in bfloat16 on a CUDA device. `make test ARGS="-m gpu"`."""

from __future__ import annotations

import pytest
import torch
from helpers.classifiers import embedded
from helpers.resnets import images, settled
from test_cuda_fused_bf16 import ARITHMETICS, check_logits, taken_apart

from smoothfast import SmoothedClassifier, data, models, ops

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = "cuda"


@pytest.mark.parametrize(("depth", "shortcut"), [(8, "B"), (20, "A")])
def test_logits(depth: int, shortcut: str) -> None:
    """More rows than a device takes at a time; one sample at a time or two, the bits are the same."""
    base = settled(models.ResNet(depth, 10, shortcut))
    found, replicas = taken_apart(base), images(5).bfloat16()
    packed = found.packed(ARITHMETICS[0], gradients=False).to(DEVICE)
    one, two = (
        ops.fused_logits(replicas.repeat(400, 1, 1, 1).to(DEVICE), packed, found.shape, arithmetic).cpu()
        for arithmetic in ARITHMETICS
    )
    check_logits(one[:5], base, found, replicas)
    assert torch.equal(one, one[:5].repeat(400, 1))
    assert torch.equal(one, two)


def test_runner() -> None:
    """Where it is asked for; votes of float32 but for a few that are close."""
    base, pixels = embedded(), data.demo().images[:8]
    statistics = models.CIFAR10_STATISTICS
    votes = [
        SmoothedClassifier(base.to(place), sigma=0.25, num_classes=10, normalize=statistics, **how).votes(
            pixels.to(place), samples=200
        )
        for place, how in (
            (DEVICE, {"runner": "fused", "precision": "bf16"}),
            ("cpu", {"runner": "eager", "precision": "fp32"}),
        )
    ]
    assert int((votes[0].cpu() - votes[1]).abs().sum()) < 0.02 * 2 * 8 * 200

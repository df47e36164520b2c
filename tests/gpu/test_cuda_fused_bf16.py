"""Fused networks in bfloat16 on CUDA, compiled by nvcc and executed on the CPU: their logits beside those of the same
arithmetic with sums in float64, and the votes of these logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import device
import pytest
import torch
from cases import SCHEDULES
from fused_device import FusedDevice
from helpers.classifiers import embedded
from helpers.resnets import images, settled
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import data, models, ops
from smoothfast.noise import Stream, lattice_law, stream_key
from smoothfast.runners.expressions import Convolution, Linear
from smoothfast.runners.resnets import CifarResNet

pytestmark = [
    pytest.mark.usefixtures("one_thread", "extension"),
    pytest.mark.skipif(device.nvcc() is None, reason="nvcc is not installed"),
]
PRODUCTS = 20096  # of a sample of ResNet-20, 16 x 8 x 16 each
CONFLICTS = 2560  # wavefronts more than without: of loads at a stride of 2
ARITHMETICS = ("bf16_mma", "bf16_mma_pairs")


def of_bfloat16(x: Tensor) -> Tensor:
    return x.float().bfloat16().double()


def convolved(layer: Convolution, x: Tensor, bias: bool = True) -> Tensor:
    """The exact sums of a layer, of weights in bfloat16."""
    weights = of_bfloat16((layer.weight.double() * layer.gain.view(-1, 1, 1, 1)).float())
    added = layer.bias.float().double() if bias else None
    return F.conv2d(x, weights, added, layer.stride, layer.size // 2)


@torch.no_grad()
def defined(network: CifarResNet, replicas: Tensor) -> Tensor:
    """The logits of a network whose maps and weights are bfloat16; a sum is rounded once."""
    layers = iter(network.convolutions)
    blocks = network.shape[3]
    x = of_bfloat16(convolved(next(layers), replicas.double()).relu())
    for block in range(3 * blocks):
        shortcut = convolved(next(layers), x, bias=False) if block in (blocks, 2 * blocks) else x
        h = of_bfloat16(convolved(next(layers), x).relu())
        x = of_bfloat16((convolved(next(layers), h) + shortcut).relu())
    return F.linear(x.mean((2, 3)), network.linear.weight.double(), network.linear.bias.double())


def folded(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> Convolution:
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.double() - norm.running_mean.double() * gain
    outputs, size, stride = layer.out_channels, layer.kernel_size[0], layer.stride[0]
    return Convolution(None, layer.weight.detach(), outputs, size, stride, gain.detach(), bias.detach())


def folded_shortcut(shortcut: nn.Module, outputs: int) -> Convolution:
    """A shortcut as a 1x1 convolution; channels that are copied have zeros on both sides."""
    if isinstance(shortcut, nn.Sequential):
        return folded(shortcut[0], shortcut[1])
    copied = F.pad(torch.eye(outputs // 2), (0, 0, outputs // 4, outputs // 4)).view(outputs, outputs // 2, 1, 1)
    ones = torch.ones(outputs).double()
    return Convolution(None, copied, outputs, 1, 2, ones, 0 * ones)


def taken_apart(base: models.ResNet) -> CifarResNet:
    """A ResNet as the recogniser finds it, which takes seconds to start."""
    layers = [folded(base.conv1, base.bn1)]
    for block in (*base.stage1, *base.stage2, *base.stage3):
        first, second = folded(block.conv1, block.bn1), folded(block.conv2, block.bn2)
        if not isinstance(block.shortcut, nn.Identity):
            layers.append(folded_shortcut(block.shortcut, second.outputs))
            second = replace(second, bias=second.bias + layers[-1].bias)
        layers += [first, second]
    return CifarResNet(layers, Linear(None, base.fc.weight.detach(), base.fc.bias.detach()))


@torch.no_grad()
def check_logits(found: Tensor, base: nn.Module, network: CifarResNet, replicas: Tensor) -> None:
    """The rounding of a sum to bfloat16 may fall to the other side, which is a fraction of all that rounding does."""
    exact, single = defined(network, replicas), base(replicas.float()).double()
    assert (found - exact).norm() < 0.5 * (exact - single).norm()


@pytest.mark.parametrize(
    ("arithmetic", "depth", "classes", "shortcut", "options"),
    [("bf16_mma", 14, 100, "B", SCHEDULES[1]), ("bf16_mma_pairs", 8, 3, "A", {"truncated": True})],
)
def test_logits(arithmetic: str, depth: int, classes: int, shortcut: str, options: dict[str, Any]) -> None:
    """Depths, classes and shortcuts by one binary; warps in any order, tensor cores that cut sums. NaN stays NaN."""
    base = settled(models.ResNet(depth, classes, shortcut))
    found, replicas = taken_apart(base), images(3).bfloat16()
    replicas[2, 1, 5, 31] = torch.nan
    on = FusedDevice(schedule=options)
    logits = on.fused_logits(replicas, found.packed(arithmetic, gradients=False), found.shape, arithmetic)
    check_logits(logits[:2], base, found, replicas[:2])
    assert logits[2].isnan().all()


def wide(depth: int, classes: int, shortcut: str) -> models.ResNet:
    """A ResNet of twice the width."""
    base, pairs = models.ResNet(depth, classes, shortcut), ((32, 32, 1), (32, 64, 2), (64, 128, 2))
    base.conv1, base.bn1, base.fc = nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.Linear(128, classes)
    base.stage1, base.stage2, base.stage3 = (
        models.ResNet._stage(inputs, outputs, (depth - 2) // 6, stride, shortcut) for inputs, outputs, stride in pairs
    )
    return base


def test_logits_of_twice_the_width() -> None:
    base = settled(wide(14, 10, "A"))
    found, replicas = taken_apart(base), images(1).bfloat16()
    on = FusedDevice(schedule={"traffic": True})
    logits = on.fused_logits(replicas, found.packed("bf16_mma", gradients=False), found.shape, "bf16_mma")
    check_logits(logits, base, found, replicas)
    (report,) = on.reports
    lost = report.traffic.wavefronts - report.traffic.without_conflicts
    assert report.sum_of(lost, "ldmatrix") == 4 * CONFLICTS


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_votes(arithmetic: str) -> None:
    """A trained ResNet-20 from images to votes. Products, and bank conflicts of strides of 2 alone, are counted."""
    base = embedded()
    found = taken_apart(base)
    pixels = data.demo().images[:2]
    slots, samples = torch.tensor([0, -1, 1]), torch.tensor([7, 0, 2**40 - 1])
    rows = pixels, slots, slots + 5, samples, stream_key(5, Stream.ESTIMATE)
    law = lattice_law([0.25])
    affine = ops.affine(models.CIFAR10_STATISTICS, 3, torch.uint8)
    noise = *rows, law.name, law.table, *affine, False
    counts, invalid = torch.zeros(2, 10, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    on = FusedDevice(schedule={"traffic": True})
    packed = found.packed(arithmetic, gradients=False)
    logits = on.fused_votes(*noise, packed, found.shape, arithmetic, counts, invalid, "prediction", None)
    replicas = torch.ops.smoothfast.noisy_replicas(*noise, torch.bfloat16, False)
    live = slots >= 0
    check_logits(logits[live], base, found, replicas[live])
    assert torch.equal(logits[~live], torch.zeros(1, 10))
    assert torch.equal(counts, F.one_hot(logits[live].argmax(1), 10))
    assert invalid.tolist() == [0, 0]
    (report,) = on.reports
    units = 2 if arithmetic.endswith("pairs") else 1
    assert report.sum_of(report.warps, "mma") == PRODUCTS * 2 * units
    lost = report.traffic.wavefronts - report.traffic.without_conflicts
    assert report.sum_of(lost, "ldmatrix") == CONFLICTS * 2 * units

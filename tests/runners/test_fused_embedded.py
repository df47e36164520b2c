"""The embedded, trained network by the fused kernels: how often classes differ from those of float32, equal bits over
many samples, and attacks as strong as with gradients in float32. docs/records.md has the last results."""

from __future__ import annotations

import pytest
import torch
from helpers.classifiers import embedded
from torch import Tensor
from torch.nn import functional as F

from smoothfast import SmoothedClassifier, data, models, ops
from smoothfast.attacks import EPGD, PGD
from smoothfast.attacks.attack import Attack
from smoothfast.evaluation import accuracy
from smoothfast.losses import Differentiated, cross_entropy
from smoothfast.noise import Stream, lattice_law, stream_key
from smoothfast.runners.fused import Fused, arithmetics, dtype_of
from smoothfast.runners.precision import in_precision
from smoothfast.runners.resnets import recognised

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not arithmetics(), reason="smoothfast._C is absent"),
]
CHUNK = 2  # images at a time


def copies(arithmetic: str) -> int:
    """Of each of the 200 embedded images: 100,000 in all. Where AMX is emulated, 2,000."""
    return 500 if arithmetic in arithmetics() else 10


def replicas(images: Tensor, first: int, samples: int, dtype: torch.dtype) -> Tensor:
    """Rows [images * samples, 3, 32, 32], channels_last; the first of the images is image `first`."""
    scale, shift = ops.affine(models.CIFAR10_STATISTICS, 3, torch.uint8)
    slots = torch.arange(len(images)).repeat_interleave(samples)
    return ops.noisy_replicas(
        images, slots, slots + first, torch.arange(samples).repeat(len(images)), stream_key(0, Stream.PREDICT),
        lattice_law(0.25), scale, shift, False, dtype, torch.channels_last,
    )  # fmt: skip


@torch.no_grad()
def test_classes_and_bits(arithmetic: str) -> None:
    base, images, samples = embedded(), data.demo().images, copies(arithmetic)
    run = Fused(recognised(base, (torch.zeros(2, 3, 32, 32),)), arithmetic, gradients=False)
    dtype = dtype_of(arithmetic)
    double, rounded = embedded().double(), in_precision(base, dtype, torch.device("cpu"))
    agree, by_torch, worse = 0, 0, 0
    for first in range(0, len(images), CHUNK):
        noisy = replicas(images[first : first + CHUNK], first, samples, dtype)
        ours, theirs, single = run(noisy), rounded(noisy.float()).float(), base(noisy.float())
        agree += int((ours.argmax(1) == single.argmax(1)).sum())
        by_torch += int((theirs.argmax(1) == single.argmax(1)).sum())
        order = torch.randperm(len(noisy), generator=torch.Generator().manual_seed(first))
        again = torch.cat([run(part) for part in noisy[order].split([7, 1, 9, len(noisy) - 17])])
        assert torch.equal(again, ours[order])
        if first % 50 == 0:
            exact = double(noisy.double())
            worse = max(worse, float((ours - exact).norm() / (theirs - exact).norm()))
    print(f"\n{arithmetic}: {len(images) * samples:,} copies, of whose classes as in float32", end=": ")
    print(f"fused {agree:,}, torch's {by_torch:,}; error against float64, of that of torch: {worse:.2f}")
    assert agree >= by_torch - 1e-3 * len(images) * samples
    assert worse <= (4 if dtype == torch.float32 else 2)


def test_gradients_over_noisy_images(arithmetic: str) -> None:
    base, labels, samples = embedded(), data.demo().labels, copies(arithmetic)
    run = Fused(recognised(base, (torch.zeros(2, 3, 32, 32),)), arithmetic, gradients=True)
    cosines: dict[str, list[Tensor]] = {"fused": [], "torch's bf16": []}
    for first in range(0, 200, 50 * samples // 500):
        noisy, classes = replicas(data.demo().images[first : first + 1], first, samples), labels[first].repeat(samples)
        wanted = Differentiated(base, cross_entropy)(noisy.float(), classes[:, None])[1].flatten(1)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = Differentiated(base, cross_entropy)(noisy.float(), classes[:, None])[1]
        for name, found in (("fused", run.gradients(noisy, classes[:, None])[1]), ("torch's bf16", theirs)):
            cosines[name].append(F.cosine_similarity(found.float().flatten(1), wanted))
    ours, torchs = (torch.cat(parts).mean().item() for parts in cosines.values())
    print(f"\n{arithmetic}: mean cosine of 2,000 gradients to those of float32: {ours:.4f}, torch's bf16 {torchs:.4f}")
    assert ours >= torchs


@pytest.mark.parametrize("attack", [PGD, EPGD])
def test_attacks_are_as_strong(attack: type[PGD], test_images: tuple[Tensor, Tensor]) -> None:
    images, labels = test_images
    model = SmoothedClassifier(embedded(), 0.25, 10, normalize=models.CIFAR10_STATISTICS)
    found = {}
    for runner, precision in (("fused", "bf16"), ("eager", "fp32")):
        made: Attack = attack(model, eps=8 / 255, steps=7, runner=runner, precision=precision)
        found[runner] = accuracy(model.votes(made(images, labels), 200), labels, level=0.99)
        print(f"\n{attack.__name__}, {len(images)} images, gradients {runner} {precision}: {found[runner]}")
    assert found["eager"].low <= found["fused"].share <= found["eager"].high

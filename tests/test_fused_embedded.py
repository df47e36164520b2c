"""The embedded, trained network by the fused kernels: how often classes differ from those of float32, equal bits over
many samples, and attacks as strong as with gradients in float32. docs/records.md has the last results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smoothfast import SmoothedClassifier, data, models, ops
from smoothfast.attacks import EPGD, PGD
from smoothfast.attacks.attack import Attack
from smoothfast.evaluation import accuracy
from smoothfast.fused import Fused, processors, recognised
from smoothfast.losses import Differentiated, cross_entropy
from smoothfast.noise import Stream, lattice_law, stream_key
from smoothfast.runners import in_precision
from smoothfast.weights import DEMO, read_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not processors(), reason="this processor lacks AVX512-BF16, or smoothfast._C is absent"),
]
SAMPLES, CHUNK = 500, 2  # of each of the 200 embedded images: 100,000; images at a time


def embedded() -> torch.nn.Module:
    base = models.resnet20().eval()
    read_weights(DEMO).load_into(base)
    return base


def replicas(images: Tensor, first: int) -> Tensor:
    """bf16 [images * SAMPLES, 3, 32, 32], channels_last; the first of the images is image `first`."""
    scale, shift = ops.affine(models.CIFAR10_STATISTICS, 3, torch.uint8)
    slots = torch.arange(len(images)).repeat_interleave(SAMPLES)
    return ops.noisy_replicas(
        images, slots, slots + first, torch.arange(SAMPLES).repeat(len(images)), stream_key(0, Stream.PREDICT),
        lattice_law(0.25), scale, shift, False, torch.bfloat16, torch.channels_last,
    )  # fmt: skip


@torch.no_grad()
def test_classes_and_bits_over_100_000_samples() -> None:
    base, images = embedded(), data.demo().images
    run = Fused(recognised(base, (torch.zeros(2, 3, 32, 32),)), processors()[0], gradients=False)
    double, rounded = embedded().double(), in_precision(base, torch.bfloat16, torch.device("cpu"))
    agree, by_torch, worse = 0, 0, 0
    for first in range(0, len(images), CHUNK):
        noisy = replicas(images[first : first + CHUNK], first)
        ours, theirs, single = run.logits(noisy), rounded(noisy.float()).float(), base(noisy.float())
        agree += int((ours.argmax(1) == single.argmax(1)).sum())
        by_torch += int((theirs.argmax(1) == single.argmax(1)).sum())
        order = torch.randperm(len(noisy), generator=torch.Generator().manual_seed(first))
        again = torch.cat([run.logits(part) for part in noisy[order].split([7, 64, 1, 128, len(noisy) - 200])])
        assert torch.equal(again, ours[order])
        if first % 50 == 0:
            exact = double(noisy.double())
            worse = max(worse, float((ours - exact).norm() / (theirs - exact).norm()))
    print(f"\nof {len(images) * SAMPLES:,} classes as in float32: fused {agree:,}, torch's bf16 {by_torch:,}")
    print(f"error against float64, of that of torch's bf16: {worse:.2f}")
    assert agree >= by_torch
    assert worse <= 2


def test_gradients_over_noisy_images() -> None:
    base, labels = embedded(), data.demo().labels
    run = Fused(recognised(base, (torch.zeros(2, 3, 32, 32),)), processors()[0], gradients=True)
    cosines: dict[str, list[Tensor]] = {"fused": [], "torch's bf16": []}
    for first in range(0, 200, 50):
        noisy, classes = replicas(data.demo().images[first : first + 1], first), labels[first].repeat(SAMPLES, 1)
        wanted = Differentiated(base, cross_entropy)(noisy.float(), classes.view(-1, 1))[1].flatten(1)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = Differentiated(base, cross_entropy)(noisy.float(), classes.view(-1, 1))[1]
        for name, found in (("fused", run.gradients(noisy, classes.view(-1, 1))[1]), ("torch's bf16", theirs)):
            cosines[name].append(F.cosine_similarity(found.float().flatten(1), wanted))
    ours, torchs = (torch.cat(parts).mean().item() for parts in cosines.values())
    print(f"\nmean cosine to gradients of float32, 2,000 replicas: fused {ours:.4f}, torch's bf16 {torchs:.4f}")
    assert ours >= torchs


@pytest.mark.parametrize("attack", [PGD, EPGD])
def test_attacks_are_as_strong(attack: type[PGD]) -> None:
    some = data.demo()
    model = SmoothedClassifier(embedded(), 0.25, 10, normalize=models.CIFAR10_STATISTICS)
    found = {}
    for runner, precision in (("fused", "bf16"), ("eager", "fp32")):
        made: Attack = attack(model, eps=8 / 255, steps=7, runner=runner, precision=precision)
        found[runner] = accuracy(model.votes(made(some.images, some.labels), 200), some.labels, level=0.99)
        print(f"\n{attack.__name__}, gradients {runner} {precision}: {found[runner]}")
    assert found["eager"].low <= found["fused"].share <= found["eager"].high

"""Trained networks by the fused kernels: how often classes differ from those of float32, equal bits over many samples,
the same certificates, and attacks as strong as with gradients in float32. docs/records.md has the last results."""

from __future__ import annotations

from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from helpers.classifiers import embedded
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import SmoothedClassifier, data, models, ops
from smoothfast.attacks import EPGD, PGD
from smoothfast.attacks.attack import Attack
from smoothfast.evaluation import Accuracy, accuracy
from smoothfast.losses import Differentiated, cross_entropy
from smoothfast.noise import Stream, lattice_law, stream_key
from smoothfast.runners import fused
from smoothfast.runners.fused import NAMES, Fused, arithmetics, dtype_of
from smoothfast.runners.precision import in_precision
from smoothfast.runners.resnets import recognised
from smoothfast.runs.logs import read_log
from smoothfast.runs.tables import certified_accuracy
from smoothfast.training import Settings, Trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not arithmetics(), reason="smoothfast._C is absent"),
]
CHUNK = 2  # images at a time
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


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
    agree, by_torch, worse = 0, 0, 0.0
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
        noisy = replicas(data.demo().images[first : first + 1], first, samples, dtype_of(arithmetic))
        classes = labels[first].repeat(samples)
        wanted = Differentiated(base, cross_entropy)(noisy.float(), classes[:, None])[1].flatten(1)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = Differentiated(base, cross_entropy)(noisy.float(), classes[:, None])[1]
        for name, found in (("fused", run.gradients(noisy, classes[:, None])[1]), ("torch's bf16", theirs)):
            cosines[name].append(F.cosine_similarity(found.float().flatten(1), wanted))
    ours, torchs = (torch.cat(parts).mean().item() for parts in cosines.values())
    print(f"\n{arithmetic}: mean cosine of 2,000 gradients to those of float32: {ours:.4f}, torch's bf16 {torchs:.4f}")
    assert ours >= torchs


@pytest.fixture(scope="module")
def deep(cifar10: data.Images, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A ResNet-56 after three epochs of the test images under noise."""
    torch.manual_seed(0)
    model = models.ResNet(56)
    settings = Settings(sigma=0.25, normalize=models.CIFAR10_STATISTICS, epochs=3, batch=128, precision="fp32")
    done = Trainer(model, cifar10, settings, tmp_path_factory.mktemp("deep") / "run").fit()
    print(f"\nResNet-56, in its third epoch right on {done['train_accuracy']:.3f}")
    return model.eval()


@torch.no_grad()
def test_a_deep_network_that_was_trained(deep: nn.Module, arithmetic: str) -> None:
    dtype = dtype_of(arithmetic)
    noisy = replicas(data.demo().images[:50], 0, 4, dtype)
    run = Fused(recognised(deep, (torch.zeros(2, 3, 32, 32),)), arithmetic, gradients=False)
    exact = deepcopy(deep).double()(noisy.double())
    theirs = in_precision(deep, dtype, torch.device("cpu"))(noisy.float()).float()
    worse = float((run(noisy) - exact).norm() / (theirs - exact).norm())
    print(f"\nResNet-56, {arithmetic}: error against float64, of that of torch: {worse:.2f}")
    # Of winograd_bf16 a packed network may ask for the mixed mode, and then for another runner: see fused._checked.
    assert worse <= (4 if dtype == torch.float32 else 2) or arithmetic == "winograd_bf16"


@pytest.fixture
def alone(arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An arithmetic that the runner has no alternative to."""
    if arithmetic not in arithmetics():
        pytest.skip(f"this processor lacks {arithmetic}")
    monkeypatch.setattr(fused, "preferred", lambda _: [arithmetic])
    return arithmetic


def test_certificates_as_in_float32(alone: str) -> None:
    model = SmoothedClassifier(
        embedded(),
        0.25,
        10,
        normalize=models.CIFAR10_STATISTICS,
        runner="fused",
        precision=NAMES[dtype_of(alone)],
        seed=0,
    )
    found, single = model.certify(data.demo().images, n=10_000), read_log(RESULTS / "demo-openvino-fp32.tsv")
    classes, radii = found.labels.numpy(), found.radii.numpy()
    other, furthest = int((classes != single.predict).sum()), abs(radii - single.radius).max()
    print(f"\n{alone}: certified for another class, or by one alone: {other}; radii differ by {furthest:.3f} at most")
    for radius in (0.0, 0.25, 0.5, 0.75):
        share = ((classes == single.label) & (radii >= radius)).mean()
        wanted = certified_accuracy(single, radius)
        print(f"certified at {radius}: {share:.3f}, float32 {wanted:.3f}")
        assert abs(share - wanted) <= 1.96 * (wanted * (1 - wanted) / 200) ** 0.5
    assert other <= 4


def left(attack: type[PGD], runner: str, precision: str, images: Tensor, labels: Tensor) -> Accuracy:
    """The share of images that an attack leaves, of 200 votes each, and its interval at 99 %."""
    model = SmoothedClassifier(embedded(), 0.25, 10, normalize=models.CIFAR10_STATISTICS)
    made: Attack = attack(model, eps=8 / 255, steps=7, runner=runner, precision=precision)
    return accuracy(model.votes(made(images, labels), 200), labels, level=0.99)


left_in_float32 = cache(partial(left, runner="eager", precision="fp32"))


@pytest.mark.parametrize("attack", [PGD, EPGD])
def test_attacks_are_as_strong(attack: type[PGD], alone: str, test_images: tuple[Tensor, Tensor]) -> None:
    images, labels = test_images
    found = left(attack, "fused", NAMES[dtype_of(alone)], images, labels)
    eager = left_in_float32(attack, images=images, labels=labels)
    print(f"\n{attack.__name__}, {len(images)} images, gradients by {alone} {found}, eager float32 {eager}")
    assert eager.low <= found.share <= eager.high

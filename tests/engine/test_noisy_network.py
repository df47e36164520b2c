"""Networks with noise in them as functions of images and of their noise, under the engine, attacks and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import ops
from smoothfast.attacks import EPGD, PGD, SmoothAdvPGD
from smoothfast.engine import BaseFunction, Gradients, NoisyNetwork
from smoothfast.engine.blocks import packed
from smoothfast.layers import inject_noise, noise_parameters, noisy_layers, without_noise
from smoothfast.losses import cross_entropy
from smoothfast.noise import Stream, gaussian_law, stream_key, within
from smoothfast.smoothing import SmoothedClassifier

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, CLASSES, SEED, SIGMA = (3, 6, 6), 4, 9, 0.2
IMAGES = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([3, 0, 2**40, 8, 5])


def engine(base: nn.Module, **options: Any) -> Gradients:
    law = gaussian_law(SIGMA)
    return Gradients(BaseFunction.resolved(base, law, SHAPE, seed=SEED, precision="fp32", **options))


class Net(nn.Module):
    """Small enough that thousands of passes take a second."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first = nn.Conv2d(3, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.second = nn.Conv2d(6, 6, 3, stride=2, groups=2)
            self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.first(x)))
        return 5 * self.head(F.silu(self.second(x)).mean((2, 3)))


@pytest.fixture(params=["pni", "cni"])
def base(request: pytest.FixtureRequest) -> nn.Module:
    return inject_noise(Net().eval(), request.param, rank=2)


def replicas(images: Tensor, ids: Tensor, sample: int, stream: Stream) -> Tensor:
    rows = torch.arange(len(images))
    return ops.noisy_replicas(
        images, rows, ids, torch.full_like(ids, sample), stream_key(SEED, stream), gaussian_law(SIGMA), torch.ones(3),
        torch.zeros(3),
    )  # fmt: skip


def logits(base: nn.Module, images: Tensor, ids: Tensor, sample: int, stream: Stream) -> Tensor:
    """Of one pass, with the noise of each layer drawn by the layer itself under the number of the sample."""
    for layer, part in enumerate(noisy_layers(base)):
        part.layer, part.given = layer, (stream_key(SEED, stream), torch.tensor([sample]))
    try:
        return base(replicas(images, ids, sample, stream))
    finally:
        for part in noisy_layers(base):
            part.given = None


@torch.no_grad()
def looped_votes(base: nn.Module, samples: int, images: Tensor = IMAGES, ids: Tensor = IDS) -> Tensor:
    """One pass at a time."""
    votes = torch.zeros(len(images), CLASSES, dtype=torch.int64)
    for sample in range(samples):
        votes += F.one_hot(logits(base, images, ids, sample, Stream.PREDICT).argmax(1), CLASSES)
    return votes


def smoothed(base: nn.Module, **options: Any) -> SmoothedClassifier:
    chosen = {"precision": "fp32", "runner": "eager", "max_batch": 8} | options  # 256 rows a pass hold 5 images, too
    return SmoothedClassifier(base, SIGMA, CLASSES, seed=SEED, **chosen)


def test_votes_are_those_of_one_pass_at_a_time(base: nn.Module) -> None:
    assert torch.equal(smoothed(base).votes(IMAGES, 200, IDS), looped_votes(base, 200))


@pytest.mark.parametrize("runner", ["openvino", "compiled"])
def test_votes_by_other_runners(runner: str) -> None:
    """Of a convolution with noise of one kind, and a convolution and a linear layer with that of the other."""
    base = Net().eval()
    inject_noise(nn.Sequential(base.first), "pni")
    inject_noise(nn.Sequential(base.second, base.head), "cni", linear="cni", rank=2)
    if runner == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    assert torch.equal(smoothed(base, runner=runner).votes(IMAGES, 60, IDS), looped_votes(base, 60))


def test_votes_do_not_depend_on_the_company_or_the_micro_batch(base: nn.Module) -> None:
    whole = smoothed(base).votes(IMAGES, 40, IDS)
    assert torch.equal(smoothed(base).votes(IMAGES[1:3], 40, IDS[1:3]), whole[1:3])
    assert torch.equal(smoothed(base, max_batch=2).votes(IMAGES.flip(0), 40, IDS.flip(0)).flip(0), whole)


def test_images_that_stop_early_and_those_that_follow_keep_their_votes(base: nn.Module) -> None:
    """Sequential procedures, in micro-batches of 2: samples of all numbers are under way at a time."""
    many = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(4))
    model = smoothed(base, max_batch=2)
    model.sigma.fill_(2.0)
    together = model.predict(many, 400, method="sequential")
    assert len(together.samples.unique()) > 1
    for place in (0, 5, 11):
        alone = model.predict(many[place : place + 1], 400, method="sequential", image_ids=[place])
        assert torch.equal(alone.counts[0], together.counts[place])


def test_selection_and_estimation_do_not_share_noise() -> None:
    keys = [within(stream_key(0, stream), Stream.WEIGHT) for stream in (Stream.SELECT, Stream.ESTIMATE)]
    network = NoisyNetwork(inject_noise(Net().eval()))
    first, second = (network.draw(key, torch.tensor([0]))[0] for key in keys)
    assert not torch.equal(first, second)


def test_a_certificate_uses_fresh_noise_and_is_sound_where_rows_are_alone(base: nn.Module) -> None:
    certificate = smoothed(base).certify((255 * IMAGES).byte(), n0=20, n=200)
    assert certificate.sound
    assert (certificate.counts.sum(1) == 200).all()


@pytest.mark.parametrize("samples", [1, 3])
def test_gradients_are_the_mean_of_one_pass_at_a_time(base: nn.Module, samples: int) -> None:
    classes = torch.tensor([0, 1, 2, 3, 1])
    passes = engine(base, micro_batch=3)
    found = passes.outcomes(IMAGES, classes, IDS, 7, samples, "backward")
    leaf = IMAGES.clone().requires_grad_()
    losses = [
        cross_entropy(logits(base, leaf, IDS, sample, Stream.ATTACK), classes) for sample in range(7, 7 + samples)
    ]
    (wanted,) = torch.autograd.grad(torch.stack(losses).mean(0).sum(), leaf)
    torch.testing.assert_close(found.gradients, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.losses, torch.stack(losses).mean(0).detach())


def test_passes_see_weights_and_noise_that_change(base: nn.Module) -> None:
    passes = engine(base)
    classes = torch.zeros(5, dtype=torch.int64)
    passes.outcomes(IMAGES, classes, IDS, 0, 1)
    with torch.no_grad():
        for parameter in noise_parameters(base):
            parameter.mul_(3)
    wanted = cross_entropy(logits(base, IMAGES, IDS, 0, Stream.ATTACK), classes)
    torch.testing.assert_close(passes.outcomes(IMAGES, classes, IDS, 0, 1).losses, wanted.detach())


@pytest.mark.parametrize("attack", [PGD, EPGD, SmoothAdvPGD])
def test_attacks_do_not_depend_on_the_company(base: nn.Module, attack: type[PGD]) -> None:
    made = attack(smoothed(base), steps=3, seed=2, runner="eager", max_batch=4)
    labels = [0, 1, 2, 3, 1]
    whole = made(IMAGES, labels, IDS)
    assert torch.equal(made(IMAGES[2:3], labels[2:3], IDS[2:3]), whole[2:3])


def test_rows_of_a_micro_batch_have_one_number() -> None:
    tables = [batch.table for batch in packed(5, 4, 3, None, alike=True)]
    assert all(len(table[2][table[0] >= 0].unique()) == 1 for table in tables)
    rows = torch.cat([table[:, table[0] >= 0] for table in tables], 1)
    assert sorted(zip(rows[0].tolist(), rows[2].tolist(), strict=True)) == [(i, s) for i in range(5) for s in range(4)]


def test_noise_on_activations_is_a_function_of_the_sample() -> None:
    base = inject_noise(Net().eval(), "pni", activations="input", shape=SHAPE)
    whole = smoothed(base).votes(IMAGES, 40, IDS)
    assert torch.equal(whole, looped_votes(base, 40))
    assert torch.equal(smoothed(base).votes(IMAGES[1:3], 40, IDS[1:3]), whole[1:3])


def test_votes_of_images_have_the_law_of_independent_passes() -> None:
    """Of one image, in a network whose own noise decides: shares of votes by seeds vary as those of independent
    samples do. Those of samples that shared their noise would vary up to 64 times as much."""
    base = inject_noise(Net().eval(), "cni")
    for parameter in noise_parameters(base):
        parameter.data *= 3
    shares = []
    for seed in range(40):
        model = SmoothedClassifier(base, 1e-3, CLASSES, seed=seed, precision="fp32", runner="eager", max_batch=1)
        votes = model.votes(IMAGES[:1], 64)
        shares.append(votes[0] / 64)
    drawn = torch.stack(shares).double()
    probability = drawn.mean(0)
    wanted = probability * (1 - probability) / 64
    top = int(probability.argmax())
    # 40 binomial shares: the variance of their variance is about 2 / 39.
    assert float(drawn[:, top].var() / wanted[top]) == pytest.approx(1, abs=5 * (2 / 39) ** 0.5)
    assert 0.2 < float(probability[top]) < 0.95


def test_switched_off_noise_is_no_noise(base: nn.Module) -> None:
    with without_noise(base):
        assert not NoisyNetwork(base).noisy
        assert NoisyNetwork(base).network is base


@pytest.mark.parametrize("voting", ["soft", "logit"])
def test_soft_voting_has_the_gradient_of_one_pass_at_a_time(base: nn.Module, voting: str) -> None:
    images, ids = IMAGES.clone().requires_grad_(), torch.arange(5)
    model = smoothed(base, samples=3, voting=voting)
    passes = torch.stack([logits(base, images, ids, sample, Stream.FORWARD) for sample in range(3)])
    mean = passes.softmax(2).mean(0).log() if voting == "soft" else passes.mean(0).log_softmax(1)
    scores = model(images)
    torch.testing.assert_close(scores, mean)
    wanted = [images, *base.parameters()]
    slopes = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((scores * slopes).sum(), wanted)
    for gradient, other in zip(found, torch.autograd.grad((mean * slopes).sum(), wanted), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)
    model.reset()
    with torch.no_grad():
        torch.testing.assert_close(model(images), mean, rtol=1e-4, atol=1e-4)


def test_what_other_packages_differentiate_draws_a_pass_for_each_sample(base: nn.Module) -> None:
    images, ids = IMAGES.clone().requires_grad_(), torch.arange(5)
    scores = smoothed(base).differentiable(samples=2)(images)
    passes = torch.stack([logits(base, images, ids, sample, Stream.ATTACK) for sample in range(2)])
    torch.testing.assert_close(scores, passes.softmax(2).mean(0).log())


def test_sigma_may_be_0_where_the_network_has_noise_of_its_own(base: nn.Module) -> None:
    for strength in noise_parameters(base):
        strength.data *= 10
    model = SmoothedClassifier(base, 0, CLASSES, seed=SEED, precision="fp32", runner="eager")
    for images in (IMAGES, (255 * IMAGES).byte()):
        votes = model.votes(images, 30, IDS)
        assert (votes.sum(1) == 30).all()
    assert (votes.amax(1) < 30).any()
    assert EPGD(model, steps=1, samples=2)(IMAGES, [0] * 5).shape == IMAGES.shape
    assert model.differentiable(2)(IMAGES).shape == (5, CLASSES)
    with pytest.raises(ValueError, match="sigma is 0; a radius takes noise on images"):
        model.certify(IMAGES)
    with pytest.raises(ValueError, match=r"sigma is 0\.0; it must be finite and at least 1e-06"):
        SmoothedClassifier(Net(), 0, CLASSES)

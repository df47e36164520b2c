"""Networks in integers as base classifiers: votes, certificates and attacks, whatever the runner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.integer import random_tensors
from torch import Tensor, nn

import smoothfast as sf
from smoothfast import SmoothedClassifier
from smoothfast.attacks import EPGD, PGD, NAttack
from smoothfast.evaluation import base_votes, loss
from smoothfast.integers import IntegerResNet
from smoothfast.integers.exact import network_of
from smoothfast.models import CIFAR10_STATISTICS, Normalize, ResNet
from smoothfast.noise import lattice
from smoothfast.quantization import quantize
from smoothfast.runners import DeclinedError
from smoothfast.runners.fused import preferred
from smoothfast.streams import Stream

CLASSES, SIGMA = 5, 0.25
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
RUNNERS = ["eager", pytest.param("fused", marks=pytest.mark.skipif(not preferred("int8"), reason="_C is absent"))]


def noisy(count: int) -> Tensor:
    """Levels of noisy images, by which last layers are centred: so that votes are for several classes."""
    return IMAGES[0] + lattice((3, 32, 32), SIGMA, 5, 0, range(count))


@pytest.fixture(scope="module")
def integers() -> IntegerResNet:
    network = network_of(random_tensors((16, 16, 16), 1, CLASSES, seed=0))
    network.linear_bias -= (network(noisy(32)) / network.unit).median(0).values.round().int()
    return network


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(Normalize(*CIFAR10_STATISTICS), ResNet(8, CLASSES)).eval()
    with torch.no_grad():
        network[1].fc.bias -= network(noisy(32) / 255).median(0).values
    return network[1]


def smoothed(base: Any, **options: Any) -> SmoothedClassifier:
    return SmoothedClassifier(base, SIGMA, CLASSES, **{"max_batch": 16, "runner": "eager"} | options)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_votes_are_those_of_the_definition(integers: IntegerResNet, runner: str, dtype: torch.dtype) -> None:
    images = IMAGES if dtype == torch.uint8 else IMAGES / 255
    model = smoothed(integers, runner=runner)
    found, engine = model.votes(images, 20), model.engine(images)
    assert ((found > 0) & (found < 20)).any()
    assert torch.equal(found, smoothed(integers).votes(images, 20))
    assert engine.meta["precision"] == "int8"
    assert "arithmetic" not in engine.meta
    assert engine.meta["row_function"] == "bit for bit"


def test_votes_are_of_levels(integers: IntegerResNet) -> None:
    """Noise of the lattice is added to pixels, and the network gets their sums, whatever is between."""
    noise = lattice((3, 32, 32), SIGMA, 0, 0, range(20), Stream.PREDICT)
    wanted = torch.bincount(integers(IMAGES[0] + noise).argmax(1), minlength=CLASSES)
    assert (wanted > 0).sum() > 1
    assert torch.equal(smoothed(integers).votes(IMAGES[:1], 20)[0], wanted)


@pytest.mark.parametrize("runner", RUNNERS)
def test_certificates_are_sound_and_name_no_processor(integers: IntegerResNet, runner: str) -> None:
    certificate = smoothed(integers, runner=runner).certify(IMAGES, n0=10, n=50)
    assert certificate.sound
    assert sf.replay(certificate, integers, IMAGES).same


def test_other_runners_decline(integers: IntegerResNet) -> None:
    for runner in ("compiled", "openvino"):
        with pytest.raises(DeclinedError, match="integers are for eager and fused"):
            smoothed(integers, runner=runner).votes(IMAGES, 2)


def test_the_normalisation_is_within(integers: IntegerResNet) -> None:
    with pytest.raises(ValueError, match="has its normalisation within"):
        smoothed(integers, normalize=CIFAR10_STATISTICS).votes(IMAGES, 2)


def test_gradients_are_refused_and_votes_attacked(integers: IntegerResNet) -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    for attack in (PGD(integers, 0.03), EPGD(smoothed(integers), 0.03)):
        with pytest.raises(ValueError, match="whose gradient is zero almost everywhere"):
            attack(IMAGES / 255, labels)
    assert NAttack(integers, 0.03, steps=1, samples=2)(IMAGES / 255, labels).shape == IMAGES.shape


def test_a_float_base_in_int8_is_quantised_at_once(trained: nn.Module) -> None:
    model = smoothed(trained, precision="int8", normalize=CIFAR10_STATISTICS)
    with pytest.warns(UserWarning, match="is quantised to integers"):
        found = model.votes(IMAGES, 20)
    assert ((found > 0) & (found < 20)).any()
    assert torch.equal(found, smoothed(quantize(trained, SIGMA, CIFAR10_STATISTICS)).votes(IMAGES, 20))
    assert model.engine(IMAGES).meta["precision"] == "int8"


def test_it_is_quantised_anew_where_its_weights_change() -> None:
    torch.manual_seed(1)
    base = ResNet(8, CLASSES).eval()
    model = smoothed(base, precision="int8")
    with pytest.warns(UserWarning, match="is quantised"):
        before = model.votes(IMAGES, 20)
    with torch.no_grad():
        base.fc.weight.copy_(base.fc.weight.flip(0))
    with pytest.warns(UserWarning, match="is quantised"):
        after = model.votes(IMAGES, 20)
    assert not torch.equal(before, after)


def test_it_is_quantised_anew_for_another_module_with_the_same_weights() -> None:
    base = ResNet(8, CLASSES).eval()
    plain, shifted = (nn.Sequential(Normalize([mean] * 3, [0.25] * 3), base).eval() for mean in (0.4, 0.4))
    model = smoothed(plain, precision="int8")
    with pytest.warns(UserWarning, match="is quantised"):
        model.votes(IMAGES, 4)
    model.base = shifted
    with pytest.warns(UserWarning, match="is quantised"):
        model.votes(IMAGES, 4)


def test_wrapped_integers_keep_their_guards(integers: IntegerResNet) -> None:
    """Whatever stands around: no gradient of zero, no rounding to 16 bits, no images of another size."""
    wrapped = nn.Sequential(integers).eval()
    with pytest.raises(ValueError, match="no gradient"):
        EPGD(smoothed(wrapped), 0.03)(IMAGES / 255, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="in float32"):
        wrapped(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16))
    for base in (wrapped, integers):
        with pytest.raises(ValueError, match=r"integers take \[B, 3, 32, 32\]"):
            smoothed(base).votes(IMAGES[:, :, :28, :28].contiguous(), 2)


def test_its_gradients_are_those_of_the_float_network(trained: nn.Module) -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    made = [
        EPGD(smoothed(trained, precision=precision), 0.03, steps=2, samples=2)(IMAGES / 255, labels)
        for precision in ("int8", "auto")
    ]
    assert torch.equal(*made)


def test_votes_without_noise(integers: IntegerResNet) -> None:
    assert base_votes(integers, IMAGES).argmax(1).tolist() == integers(IMAGES).argmax(1).tolist()


def test_the_loss_is_paired() -> None:
    before, after = torch.tensor([[8, 2], [5, 5], [0, 10]]), torch.tensor([[7, 3], [5, 5], [1, 9]])
    found = loss(before, after, [0, 0, 1])
    assert (found.images, found.copies) == (3, 10)
    assert found.points == pytest.approx(100 * (0.1 + 0 + 0.1) / 3)
    assert found.error == pytest.approx(100 * torch.tensor([0.1, 0.0, 0.1]).std() / 3**0.5)
    assert "a loss of 6.67 ± 3.33 points" in str(found)
    with pytest.raises(ValueError, match="must be"):
        loss(before, after[:2], [0, 0, 1])

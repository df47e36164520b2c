"""Quantisation: networks in integers that do what the trained ones did."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from smoothfast import data, models
from smoothfast.integers import IntegerResNet
from smoothfast.models import CIFAR10_STATISTICS, Normalize, ResNet
from smoothfast.quantization import quantize
from smoothfast.quantization.fitting import noisy, shared_scale
from smoothfast.quantization.pictures import pictures
from smoothfast.weights import DEMO, read_weights

SIGMA = 0.25


def settled(shortcut: str = "A", blocks: int = 1) -> ResNet:
    """A small network whose batch norms have seen images."""
    torch.manual_seed(0)
    network = ResNet(6 * blocks + 2, 5, shortcut)
    for _ in range(30):
        network(torch.randn(16, 3, 32, 32))
    return network.eval()


def error(network: nn.Module, integers: IntegerResNet, levels: Tensor) -> float:
    """The error of logits of noisy levels, in units of what they differ among images."""
    with torch.no_grad():
        wanted, found = network(levels / 255), integers(levels.short())
    return float((found - wanted).norm() / (wanted - wanted.mean(0)).norm())


@pytest.fixture(scope="module")
def demo() -> tuple[nn.Module, IntegerResNet]:
    network, weights = models.resnet20().eval(), read_weights(DEMO)
    weights.load_into(network)
    return network, quantize(network, SIGMA, weights.normalize)


def test_the_embedded_network(demo: tuple[nn.Module, IntegerResNet]) -> None:
    source = data.load("demo")
    levels = noisy(torch.stack([source[index][0] for index in range(0, 200, 10)]), SIGMA, seed=1)
    normalised = nn.Sequential(Normalize(*CIFAR10_STATISTICS), demo[0])
    assert error(normalised, demo[1], levels) < 0.06
    with torch.no_grad():
        agreeing = (normalised(levels / 255).argmax(1) == demo[1](levels.short()).argmax(1)).float().mean()
    assert agreeing >= 0.95


def test_maps_reach_as_far_as_the_noise_drives_them() -> None:
    less, more = (quantize(settled(), sigma, images=pictures()[:16]) for sigma in (0.01, 1.0))
    assert (more.image.scale < 0.8 * less.image.scale).all()


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_shortcuts_of_either_kind(shortcut: str) -> None:
    network = settled(shortcut)
    levels = noisy(pictures()[:8], SIGMA, seed=1)
    assert error(network, quantize(network, SIGMA), levels) < 0.15


def test_a_normalisation_within_the_network_is_that_given() -> None:
    network = settled()
    inside = quantize(nn.Sequential(Normalize(*CIFAR10_STATISTICS), network), SIGMA).state_dict()
    given = quantize(network, SIGMA, CIFAR10_STATISTICS).state_dict()
    for name, value in given.items():
        assert torch.allclose(inside[name].double(), value.double(), rtol=1e-5, atol=1), name


def test_the_same_images_give_the_same_network() -> None:
    images = pictures()[:16]
    first, second = (quantize(settled(), SIGMA, images=images, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = quantize(settled(), SIGMA, images=images, seed=4).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("what", ["dead channels", "a black map", "a shortcut of zeros", "a large bias"])
def test_extreme_layers(what: str) -> None:
    """They make no division by zero, and the file that they make is a network in integers."""
    network = settled("B")
    with torch.no_grad():
        if what == "dead channels":
            network.stage1[0].conv2.weight[::2] = 0
            network.conv1.weight[1::2] = 0
        elif what == "a black map":
            network.stage2[0].bn1.weight.zero_()
            network.stage2[0].bn1.bias.fill_(-1)
        elif what == "a shortcut of zeros":
            network.stage3[0].shortcut[0].weight.zero_()
        else:
            network.stage1[0].bn2.bias.fill_(1e6)
    integers = quantize(network, SIGMA)
    assert integers(noisy(pictures()[:2], SIGMA, 0)).isfinite().all()


def test_scales_of_a_shortcut_fit_those_of_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, 16, 3, 3, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(
        -4.0, 4, 0.5
    ).view(-1, 1, 1, 1)
    ways = torch.ones(16, 1, 1, 1, dtype=torch.float64)
    scale, way_scale, shift = shared_scale(weights, 0.02, ways, 0.05)
    assert torch.allclose(0.02 * scale * 2**shift, 0.05 * way_scale, rtol=1e-12)
    whole = ways.flatten() / way_scale
    exact = whole >= 1
    assert exact.sum() >= 12
    assert torch.allclose(whole[exact], whole[exact].round(), atol=1e-9)
    assert (whole.round() <= 127).all()
    assert (weights / scale.view(-1, 1, 1, 1)).abs().unflatten(1, (-1, 2)).sum(2).max() <= 127 + 1e-9


def test_pictures_are_the_same_everywhere_and_of_all_levels() -> None:
    found = pictures()
    assert torch.equal(found, pictures())
    assert (found.dtype, tuple(found.shape), int(found.min()), int(found.max())) == (
        torch.uint8,
        (128, 3, 32, 32),
        0,
        255,
    )


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        quantize(settled(), SIGMA, images=torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="must be uint8"):
        quantize(settled(), SIGMA, images=torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="only the mean over pixels may be reshaped"):
        quantize(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), SIGMA)


def test_the_network_is_left_as_it_was() -> None:
    network = settled().train()
    before = copy.deepcopy(network.state_dict())
    quantize(network, SIGMA)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())

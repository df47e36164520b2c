"""Noisy layers: their laws over many passes, their gradients, and networks into which noise is put and taken out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import layers, models
from smoothfast.layers import (
    ActivationNoise,
    Bank,
    CNIConv2d,
    CNILinear,
    PNIConv2d,
    PNILinear,
    WeightNoise,
    bank_of,
    inject_noise,
    noise_parameters,
    noisy_layers,
    remove_noise,
    without_noise,
)
from smoothfast.noise import Stream, stream_key, within

pytestmark = pytest.mark.usefixtures("one_thread")
DRAWS = 100_000
KEY = within(stream_key(11, Stream.PREDICT), Stream.WEIGHT)


def seeded(make: Any, *arguments: Any, **options: Any) -> Any:
    """A module with weights of its own, and strengths of noise that are all different."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = make(*arguments, **options)
        with torch.no_grad():
            for parameter in noise_parameters(module):
                parameter.mul_(torch.empty_like(parameter).uniform_(-2, 2))
    return module


MADE = {
    "PNIConv2d": lambda: seeded(PNIConv2d, 2, 3, 3),
    "PNIConv2d by channel": lambda: seeded(PNIConv2d, 2, 3, 3, granularity="channel"),
    "PNILinear by layer": lambda: seeded(PNILinear, 9, 6, granularity="layer"),
    "CNIConv2d": lambda: seeded(CNIConv2d, 4, 6, 3, groups=2, rank=3),
    "CNILinear": lambda: seeded(CNILinear, 13, 5),
    "CNILinear without rank": lambda: seeded(CNILinear, 13, 5, rank=0),
}


@pytest.fixture(params=MADE)
def layer(request: pytest.FixtureRequest) -> WeightNoise:
    return MADE[request.param]()


def covariance(layer: Any) -> Tensor:
    """By the formulas of the papers, float64 [n, n]."""
    weight = layer.weight.detach().double()
    spread = weight.std(unbiased=True)
    if hasattr(layer, "alpha"):
        return ((layer.alpha.detach().double() * spread) ** 2).expand_as(weight).flatten().diag()
    factors = layer.factors.detach().double().flatten(1)
    return ((spread * layer.diagonal.detach().double()).abs() + 1e-8).flatten().diag() + factors.T @ factors


def test_weights_have_the_mean_and_covariance_of_the_formulas(layer: WeightNoise) -> None:
    """Every entry within 6 standard errors: over at most 4,225 entries, that happens by chance once in 10^5 times."""
    count, wanted = layer.weight.numel(), covariance(layer)
    with torch.no_grad():
        bank = bank_of([layer])
        total, products = torch.zeros(count).double(), torch.zeros(count, count).double()
        for first in range(0, DRAWS, 10_000):
            (weights,) = bank.draw(torch.arange(first, first + 10_000), KEY)
            noise = (weights - layer.weight).flatten(1).double()
            total += noise.sum(0)
            products += noise.T @ noise
    variances = wanted.diagonal()
    assert ((total / DRAWS).abs() < 6 * (variances / DRAWS).sqrt()).all()
    error = ((torch.outer(variances, variances) + wanted**2) / DRAWS).sqrt()  # of Gaussian products
    assert ((products / DRAWS - wanted).abs() < 6 * error).all()


def test_gradients_are_those_of_finite_differences(layer: WeightNoise) -> None:
    """Of a random linear function of two draws; differences of the formulas in float64, of noise that stays."""
    parameters = {name: value for name, value in layer.named_parameters() if name != "bias"}
    slopes = torch.randn(2, *layer.weight.shape, generator=torch.Generator().manual_seed(0))
    (weights,) = bank_of([layer]).draw(torch.tensor([5, 9]), KEY)
    gradients = torch.autograd.grad((weights * slopes).sum(), list(parameters.values()))
    own, shared = fixed_noise(layer)

    def value(values: dict[str, Tensor]) -> float:
        weight = values["weight"]
        if "alpha" in values:  # whose standard deviation is no function of the weights (He et al. 2019, eq. 6)
            drawn = weight + values["alpha"] * layer.weight.detach().double().std() * own
        else:
            drawn = weight + ((weight.std() * values["diagonal"]).abs() + 1e-8).sqrt() * own
            drawn = drawn + (shared @ values["factors"]).view_as(own)
        return float((drawn * slopes).sum())

    exact = {name: parameter.detach().double() for name, parameter in parameters.items()}
    for name, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1)).double()
        step = 1e-6 * direction
        moved = value(exact | {name: exact[name] + step}) - value(exact | {name: exact[name] - step})
        assert float((gradient.double() * direction).sum()) == pytest.approx(moved / 2e-6, rel=1e-4, abs=1e-5)


def fixed_noise(layer: WeightNoise) -> tuple[Tensor, Tensor]:
    """The normals of passes 5 and 9: one for each weight, and those that all share."""
    zeros, rank = torch.zeros_like(layer.weight), len(layer.low_rank())
    picks = torch.eye(max(rank, 1), layer.weight.numel())
    passes = torch.tensor([5, 9])
    (own,) = Bank.made([zeros], [zeros + 1], [picks[:0]], 0).draw(passes, KEY)
    (shared,) = Bank.made([zeros], [zeros], [picks], 0).draw(passes, KEY)
    return own.double(), shared.flatten(1)[:, :rank].double()


def test_where_the_variance_is_zero_the_gradient_is_finite() -> None:
    layer = CNILinear(4, 3)
    with torch.no_grad():
        layer.diagonal.zero_()
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.diagonal.grad is not None
    assert layer.diagonal.grad.isfinite().all()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


def test_switched_off_a_layer_is_the_plain_one(layer: WeightNoise) -> None:
    x = torch.randn(2, layer.weight.shape[1], generator=torch.Generator().manual_seed(0))
    plain: Any = F.linear(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else None
    if isinstance(layer, nn.Conv2d):
        x = torch.randn(2, layer.in_channels, 7, 7, generator=torch.Generator().manual_seed(0))
        plain = F.conv2d(x, layer.weight, layer.bias, groups=layer.groups)
    with without_noise(layer):
        assert torch.equal(layer(x), plain)
    assert not torch.equal(layer(x), plain)


def test_a_batch_shares_a_draw_and_every_pass_has_its_own() -> None:
    layer = seeded(CNILinear, 6, 4, seed=5)
    x = torch.randn(1, 6).expand(3, 6)
    first, second = layer(x), layer(x)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first, second)
    layer.start(layer=0, seed=5)  # again from pass 0
    assert torch.equal(layer(x), first)
    layer.start(layer=1, seed=5)
    other = layer(x)
    layer.start(layer=0, seed=6)
    assert not torch.equal(other, first)
    assert not torch.equal(layer(x), first)


def test_the_generator_of_torch_is_not_touched() -> None:
    network = inject_noise(models.resnet20b(), "cni", activations="input", shape=(3, 32, 32))
    before = torch.get_rng_state()
    network(torch.zeros(1, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_of_a_cni_resnet20() -> None:
    """The convolutions have 270,256 weights, and 7 numbers for each; the last layer has noise like PNI."""
    network = inject_noise(models.resnet20b(), "cni")
    convolutions = [part for part in network.modules() if isinstance(part, CNIConv2d)]
    count = sum(parameter.numel() for part in convolutions for parameter in part.parameters(recurse=False))
    assert sum(part.weight.numel() for part in convolutions) == 270_256
    assert count == 7 * 270_256 == 1_891_792
    assert isinstance(network.fc, PNILinear)
    assert network.fc.alpha.shape == (10, 64)
    assert float(network.fc.alpha.detach()[0, 0]) == 0.25
    assert float(convolutions[0].diagonal.detach()[0, 0, 0, 0]) == 0.0625
    assert float(convolutions[0].factors.detach()[4, 0]) == pytest.approx(0.01)


@pytest.mark.parametrize("activations", [None, "input", "output"])
@pytest.mark.parametrize("kind", ["pni", "cni"])
def test_noise_goes_in_and_comes_out(kind: str, activations: str | None) -> None:
    network = models.resnet20b().eval()
    weights, x = copy.deepcopy(network.state_dict()), torch.randn(2, 3, 32, 32)
    plain = network(x)
    assert inject_noise(network, kind, activations=activations, shape=(3, 32, 32)) is network
    assert len(noisy_layers(network)) == 22 + 21 * (activations is not None)
    assert not torch.equal(network(x), plain)
    with without_noise(network):
        assert torch.equal(network(x), plain)
    noisy = network.state_dict()
    assert weights.keys() < noisy.keys()
    assert not any("passes" in name or "key" in name for name in noisy)
    again = inject_noise(models.resnet20b(), kind, activations=activations, shape=(3, 32, 32))
    again.load_state_dict(noisy)
    assert remove_noise(network) is network
    assert network.state_dict().keys() == weights.keys()
    assert torch.equal(network(x), plain)
    assert type(network.conv1) is nn.Conv2d
    assert not noisy_layers(network)


@pytest.mark.parametrize("kind", ["pni", "cni"])
def test_noise_of_activations_has_its_scale_image_by_image(kind: str) -> None:
    """The noise of one position over many passes, in two images of which one is 10 times the other."""
    noise = seeded(ActivationNoise, (2, 3, 3), kind, rank=2)
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    with torch.no_grad():
        drawn = torch.stack([noise(x) - x for _ in range(1000)]).double()
    spread = x.flatten(1).double().std(1).view(2, 1, 1, 1)
    if kind == "pni":
        wanted = (spread * noise.alpha.detach()) ** 2
    else:
        wanted = (spread * noise.diagonal.detach()).abs() + 1e-8 + (noise.factors.detach() ** 2).sum(0).view(2, 3, 3)
    assert (drawn.mean(0).abs() < 5 * (wanted / 1000).sqrt()).all()
    assert ((drawn**2).mean(0) / wanted - 1).abs().max() < 5 * math.sqrt(2 / 1000)
    alone = seeded(ActivationNoise, (2, 3, 3), kind, rank=2)
    assert torch.equal(alone(x[1:]), noise_again(noise, x)[1:])


def noise_again(noise: ActivationNoise, x: Tensor) -> Tensor:
    noise.start(layer=0, seed=0)
    return noise(x)


def test_exported_a_network_draws_on() -> None:
    network = inject_noise(models.resnet20b().eval(), "cni")
    for parameter in noise_parameters(network):
        parameter.data *= 0.1
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(network, (x,)).module()
    for part in noisy_layers(network):
        part.start(part.layer, 0)
    first, second = network(x), network(x)
    torch.testing.assert_close(exported(x), first)
    torch.testing.assert_close(exported(x), second)


def test_compiled_in_one_graph() -> None:
    layer = seeded(CNIConv2d, 3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    first, second = layer(x), layer(x)
    layer.start(0, 0)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), first)
    torch.testing.assert_close(compiled(x), second)


def test_a_network_may_be_channels_last() -> None:
    network = inject_noise(models.resnet20b().eval(), "cni", activations="input", shape=(3, 32, 32))
    for parameter in noise_parameters(network):
        parameter.data *= 0.1
    x = torch.randn(2, 3, 32, 32)
    first = network(x)
    for part in noisy_layers(network):
        part.start(part.layer, 0)
    torch.testing.assert_close(network.to(memory_format=torch.channels_last)(x), first, rtol=1e-3, atol=1e-3)


def test_only_plain_layers_get_noise() -> None:
    class Own(nn.Linear):
        pass

    network = nn.Sequential(Own(3, 3), nn.Linear(3, 2))
    inject_noise(network, "pni", granularity="layer")
    assert [type(part) for part in network] == [Own, PNILinear]
    assert len(noise_parameters(network)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "white"}, "kind is 'white'; it must be one of pni, cni"),
        ({"linear": "x"}, "linear is 'x'"),
        ({"rank": -1}, "rank is -1; it must be at least 0"),
        ({"rank": 65}, "rank is 65; it must be at most 64"),
        ({"kind": "pni", "granularity": "row"}, "granularity is 'row'; it must be one of element, channel, layer"),
        ({"activations": "both", "shape": (3, 32, 32)}, "activations is 'both'; it must be one of input, output"),
        ({"activations": "input"}, "shape is not given"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_complaints(options: dict[str, Any], message: str) -> None:
    network = models.resnet20b()
    with pytest.raises(ValueError, match=message):
        inject_noise(network, **options)
    assert not noisy_layers(network)


def test_noise_is_put_in_once_and_where_there_are_weights() -> None:
    network = inject_noise(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="noise in it already"):
        inject_noise(network)
    with pytest.raises(ValueError, match=r"model is ReLU, which has no nn\.Conv2d"):
        inject_noise(nn.ReLU())
    noise = ActivationNoise((2, 3, 3))
    with pytest.raises(ValueError, match="this noise was made for"):
        noise(torch.zeros(1, 2, 4, 4))


def test_a_model_spec_names_the_noise() -> None:
    assert isinstance(models.load("resnet20b+cni", 10).conv1, CNIConv2d)
    assert isinstance(models.load("torchvision:resnet18+pni", 10).conv1, PNIConv2d)
    with pytest.raises(ValueError, match="noise in the weights of model is 'x'; it must be one of pni, cni"):
        models.load("resnet20+x", 10)


def test_layers_of_a_network_are_drawn_as_each_alone() -> None:
    network = inject_noise(models.resnet20b(), "cni")
    parts = [part for part in noisy_layers(network) if isinstance(part, WeightNoise)]
    key = within(stream_key(0, Stream.FORWARD), Stream.WEIGHT)
    with torch.no_grad():
        together = bank_of(parts).draw(torch.tensor([0]), key)
        for part, weights in zip(parts, together, strict=True):
            assert torch.equal(part.drawn_weight(), weights[0])


def test_noise_is_scaled_by_its_standard_deviation(layer: WeightNoise) -> None:
    before = covariance(layer)
    assert layers.scale_noise(layer, 0.5) is layer
    torch.testing.assert_close(covariance(layer), before / 4, rtol=1e-4, atol=1e-8)
    with pytest.raises(ValueError, match="factor is -1; it must be at least 0"):
        layers.scale_noise(layer, -1)

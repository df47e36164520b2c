"""The networks against published parameter counts and the formulas of their papers, and the specs that name them."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import smoothfast as sf
from smoothfast import models
from smoothfast.own_networks import own_network

pytestmark = pytest.mark.usefixtures("one_thread")


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def multiply_adds(network: nn.Module) -> int:
    """Of one 32x32 image; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32, device="meta"))
    return counter.get_total_flops() // 2


def resnet_by_formula(depth: int, classes: int, shortcut: str) -> tuple[int, int]:
    """Parameters and multiply-adds, layer by layer; batch norm has two parameters a channel."""
    layers = (depth - 2) // 3  # 3x3 convolutions of a stage
    # (kernel, channels in, channels out, width of the output), and how often
    convolutions = [((9, 3, 16, 32), 1), ((9, 16, 16, 32), layers)]
    for channels, width in ((16, 16), (32, 8)):
        convolutions += [((9, channels, 2 * channels, width), 1), ((9, 2 * channels, 2 * channels, width), layers - 1)]
        convolutions += [((1, channels, 2 * channels, width), 1)] if shortcut == "B" else []
    count = sum((kernel * before + 2) * after * n for (kernel, before, after, _), n in convolutions)
    work = sum(kernel * before * after * width**2 * n for (kernel, before, after, width), n in convolutions)
    return count + 65 * classes, work + 64 * classes


@pytest.mark.parametrize(
    ("depth", "millions"),
    [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")],  # He et al. 2016, table 6
)
def test_resnets_have_the_size_of_the_paper(depth: int, millions: str) -> None:
    with torch.device("meta"):
        network = models.ResNet(depth)
    assert (parameters(network), multiply_adds(network)) == resnet_by_formula(depth, 10, "A")
    assert f"{parameters(network) / 1e6:.{len(millions) - 2}f}" == millions


def test_resnet20_has_exactly_the_known_size() -> None:
    with torch.device("meta"):
        a, b = models.resnet20(), models.resnet20(shortcut="B")
    assert (parameters(a), multiply_adds(a)) == (269_722, 40_551_040)
    assert (parameters(b), multiply_adds(b)) == (272_474, 40_813_184) == resnet_by_formula(20, 10, "B")
    projections = {name for name, module in b.named_modules() if isinstance(module, nn.Conv2d) and "shortcut" in name}
    assert projections == {"stage2.0.shortcut.0", "stage3.0.shortcut.0"}
    assert a.state_dict().keys() == {name for name in b.state_dict() if "shortcut" not in name}


@pytest.mark.parametrize(
    ("depth", "widen", "count"),
    [(16, 4, 2_748_890), (28, 10, 36_479_194), (34, 10, 46_160_474), (40, 2, 2_243_546)],
)
def test_wide_resnets_have_exactly_the_known_size(depth: int, widen: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(models.WideResNet(depth, widen)) == count


@pytest.mark.parametrize("name", models.MODELS)
def test_factories_say_what_they_build(name: str) -> None:
    factory = models.MODELS[name]
    about = inspect.getdoc(factory)
    assert factory.__name__ == name
    assert about is not None
    with torch.device("meta"):
        network = factory()
    for number, unit in [(parameters(network), "parameters"), (multiply_adds(network), "multiply-adds")]:
        if unit in about:
            assert any(f" {number / 1e6:.{digits}f} million {unit}" in about for digits in range(3))


@pytest.mark.parametrize("name", models.MODELS)
def test_number_of_classes(name: str) -> None:
    with torch.device("meta"):
        assert models.load(name, 7).fc.weight.shape[0] == 7


@pytest.mark.parametrize("network", [models.ResNet(8, 5), models.ResNet(8, 5, "B"), models.WideResNet(10, 1, 5)])
def test_networks_compute_and_learn_in_every_parameter(network: nn.Module) -> None:
    logits = network(torch.rand(4, 3, 12, 20))
    assert logits.shape == (4, 5)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_shortcut_a_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    x = torch.rand(2, 4, 6, 8)
    expected = torch.zeros(2, 8, 3, 4)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(models.PadShortcut(4, 8, 2)(x), expected)


def test_a_block_whose_residual_is_zero_is_its_shortcut() -> None:
    basic, wide = models.BasicBlock(4, 4, 1, "A").eval(), models.WideBlock(4, 4, 1).eval()
    nn.init.zeros_(basic.conv2.weight)
    nn.init.zeros_(wide.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(basic(x), x.relu())
    assert torch.equal(wide(x), x)  # pre-activation: nothing comes after the sum


@pytest.mark.parametrize("depth", [2, 7, 18, 19, 21, -4])
def test_impossible_depths_of_a_resnet(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth is {depth}; .* 6n\+2"):
        models.ResNet(depth)


@pytest.mark.parametrize("depth", [4, 9, 20, 33])
def test_impossible_depths_of_a_wide_resnet(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth is {depth}; .* 6n\+4"):
        models.WideResNet(depth)


def test_impossible_shortcut() -> None:
    with pytest.raises(ValueError, match="shortcut is 'C'; it must be 'A' or 'B'"):
        models.resnet20(shortcut="C")


@pytest.mark.parametrize("statistics", models.STATISTICS.values(), ids=models.STATISTICS.keys())
def test_normalize_equals_its_formula(statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    images = torch.rand(2, 3, 4, 5)
    layer = models.Normalize(*statistics)
    for channel, (mean, std) in enumerate(zip(*statistics, strict=True)):
        torch.testing.assert_close(layer(images)[:, channel], (images[:, channel] - mean) / std)
    assert not list(layer.parameters())
    assert layer.state_dict().keys() == {"mean", "std"}


# ---- specs -----------------------------------------------------------------------------------------------------------


def test_a_name_of_the_package_is_that_network() -> None:
    network = sf.models.load("resnet20", 3)
    assert isinstance(network, models.ResNet)
    assert parameters(network) == resnet_by_formula(20, 3, "A")[0]


def test_torchvision() -> None:
    with torch.device("meta"):
        network = models.load("torchvision:resnet18", 7)
    assert isinstance(network, torchvision.models.ResNet)
    assert network.fc.out_features == 7


def test_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    network = models.load("timm:resnet18", 7).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_without_timm_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what import then finds
    with pytest.raises(ValueError, match=r"model is 'timm:resnet18', which cannot be built: .*timm"):
        models.load("timm:resnet18", 7)


class Own(nn.Module):
    """A network as a user would write one."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None].repeat(1, self.classes)


def test_any_callable_that_makes_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_networks", sys.modules[__name__])
    network = models.load("own_networks:Own", 4)
    assert isinstance(network, Own)
    assert network.classes == 4


class Bare(nn.Module):
    """A network without an `__init__`, which seems to take arguments of any name."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


class Handing(Bare):
    def __init__(self, **others: Any) -> None:
        super().__init__(**others)


@pytest.mark.parametrize("kind", [Bare, Handing])
def test_networks_that_take_nothing(kind: type[nn.Module]) -> None:
    assert isinstance(own_network("mine:Net", kind, 3), kind)


@pytest.mark.parametrize(
    ("spec", "message"),
    {
        "resnet21": "an unknown model; near: .*resnet20.*; it must be one of resnet20, .*timm:NAME, hf:FOLDER",
        "": "it must be one of resnet20",
        "torchvision:resnet19": "which cannot be built: Unknown model resnet19; near: .*resnet1",
        "torchvision:": "which cannot be built",
        "no_such_module:network": "which cannot be imported: there is no module no_such_module",
        "torch.nn:NoSuchLayer": "which cannot be imported: torch.nn has no 'NoSuchLayer'",
        "torch.nn:": "which cannot be imported",
        "builtins:dict": "which returned dict; it must return an nn.Module",
    }.items(),
)
def test_specs_that_name_no_network(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"model is '{spec}'[;,] {message}"):
        models.load(spec, 10)


def test_noise_is_put_into_weights_once() -> None:
    with pytest.raises(ValueError, match=r"model is 'resnet20\+pni.*, with noise in its weights more than once"):
        models.load("resnet20" + "+pni" * 2000, 10)


@pytest.mark.parametrize(
    "spec", [":network", ".relative:network", "builtins:int", "torch:__version__", "__main__:network"]
)
def test_specs_that_cannot_be_imported_or_called(spec: str) -> None:
    with pytest.raises(ValueError, match=f"model is '{spec}'"):
        models.load(spec, 10)

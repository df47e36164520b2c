"""Networks that are no CIFAR ResNet in 8 bits, by OpenVINO."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothfast import SmoothedClassifier
from smoothfast.models import ResNet
from smoothfast.quantization import fitting
from smoothfast.runners import DeclinedError
from smoothfast.runners.calibrated import Calibrated

CLASSES, IMAGES = 4, torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

pytestmark = pytest.mark.filterwarnings("ignore:.*quantised to 8 bits:UserWarning")
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 49, CLASSES))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class Pair(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def smoothed(base: nn.Module, **options: Any) -> SmoothedClassifier:
    return SmoothedClassifier(base.eval(), 0.25, CLASSES, **{"runner": "auto", "precision": "int8"} | options)


@needs_openvino
@pytest.mark.skipif(find_spec("nncf") is None, reason="nncf is not installed")
def test_votes_are_nearly_those_in_float32() -> None:
    model = smoothed(Net())
    votes, meta = model.votes(IMAGES, 200), model.engine(IMAGES).meta
    plain = smoothed(Net(), precision="fp32", runner="eager").votes(IMAGES, 200)
    assert (votes - plain).abs().sum() <= 20
    assert (meta["runner"], meta["precision"]) == ("openvino", "int8")


@needs_openvino
def test_without_the_quantiser_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "find_spec", lambda name: None if name == "nncf" else True)
    with pytest.raises(ValueError, match=r"takes nncf for this network: pip install smoothfast\[int8\]"):
        smoothed(Net()).votes(IMAGES, 4)


@pytest.mark.usefixtures("quantiser")
def test_what_only_looks_like_a_cifar_resnet_is_for_openvino() -> None:
    class Bounded(ResNet):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(super().forward(x))

    with pytest.warns(UserWarning, match=r"to 8 bits by OpenVINO.*\(it has aten.tanh"):
        made = smoothed(Bounded(8, CLASSES)).function(IMAGES.repeat(1, 1, 2, 2)).base
    assert isinstance(made, Calibrated)


@pytest.fixture
def quantiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if that of OpenVINO were installed."""
    monkeypatch.setattr(fitting, "find_spec", lambda _: True)


@pytest.mark.usefixtures("quantiser")
def test_other_runners_decline() -> None:
    with pytest.raises(DeclinedError, match="what is no CIFAR ResNet is for openvino"):
        smoothed(Net(), runner="eager").votes(IMAGES, 4)


@pytest.mark.usefixtures("quantiser")
def test_what_returns_more_than_logits_is_refused() -> None:
    with pytest.raises(ValueError, match="return logits alone"):
        smoothed(Pair()).votes(IMAGES, 4)


def test_it_is_for_images() -> None:
    base = nn.Linear(8, CLASSES)
    with pytest.raises(ValueError, match=r"images \[C, H, W\]; these are \[8\]"):
        smoothed(base, bounds=None).votes(torch.rand(2, 8), 4)

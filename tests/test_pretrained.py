"""Networks in files: a classifier of transformers in a folder, ONNX converted or read by OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pretrained import Small, declines, exported, processor, transformer
from torch import Tensor, nn

import smoothfast as sf
from smoothfast import models, pretrained

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- transformers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformer(tmp_path_factory.mktemp("vit"))


def test_a_classifier_of_transformers(folder: Path) -> None:
    network, images = models.load(f"hf:{folder}"), torch.rand(2, 3, 8, 8)
    assert not network.training
    assert network(images).logits.shape == (2, 3)
    statistics = pretrained.transformers_statistics(str(folder))
    assert statistics == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    model = sf.SmoothedClassifier(network, 0.25, normalize=statistics, runner="eager")
    certificate = model.certify((255 * images).byte(), n0=10, n=50)
    assert certificate.counts.shape == (2, 3)
    assert certificate.meta["adapted"] == {"logits": "output.logits"}


@pytest.mark.parametrize(
    "told", [{}, {"image_mean": [0.5], "image_std": [0.5], "do_normalize": False}, {"image_mean": [0.5]}]
)
def test_processors_that_tell_no_normalisation(tmp_path: Path, told: dict[str, Any]) -> None:
    assert pretrained.transformers_statistics(str(tmp_path)) is None
    processor(tmp_path, **told)
    assert pretrained.transformers_statistics(str(tmp_path)) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 10**400},
        {"image_mean": [120.0] * 3},
        {"image_mean": "cifar10"},
        {"image_mean": [None] * 3},
    ],
)
def test_processors_of_other_images(tmp_path: Path, odd: dict[str, Any]) -> None:
    processor(tmp_path, **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | odd)
    with pytest.raises(ValueError, match="tells no normalisation of images"):
        pretrained.transformers_statistics(str(tmp_path))


def test_a_folder_without_a_classifier(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(ValueError, match="which cannot be loaded from this machine"):
        models.load(f"hf:{tmp_path}")


# ---- ONNX ------------------------------------------------------------------------------------------------------------


class Last(nn.Module):
    """The same for images [N, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 3, 1, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "free", "single"), [(Small, True, False), (lambda: Small(1), False, True), (Last, True, False)]
)
def test_onnx_is_converted(tmp_path: Path, make: Callable[[], nn.Module], free: bool, single: bool) -> None:
    pytest.importorskip("onnx2pytorch", reason="onnx2pytorch is not installed")
    torch.manual_seed(0)
    network, images = make(), torch.rand(3, 3, 8, 8)
    last = isinstance(network, Last)
    example = images[:1].permute(0, 2, 3, 1) if last else images[:1]
    found = models.load(f"onnx:{exported(network, tmp_path / 'small.onnx', example, free)}")
    wanted = torch.cat([network(image.permute(0, 2, 3, 1) if last else image) for image in images.split(1)])
    torch.testing.assert_close(found(images), wanted)
    assert (found.last, found.single) == (last, single)
    images.requires_grad_()
    found(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_that_cannot_be_converted_is_read_by_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")

    monkeypatch.setattr(pretrained, "_converted", declines)
    network, images = Small(), torch.rand(3, 3, 8, 8)
    path = exported(network, tmp_path / "small.onnx", images[:1])
    with pytest.warns(UserWarning, match=r"no such operation\): OpenVINO computes it, for votes and without gradients"):
        found = models.load(f"onnx:{path}")
    torch.testing.assert_close(found(images), network(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="OpenVINO computes votes, and no gradients"):
        found(images.requires_grad_())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        models.load(f"onnx:{tmp_path / 'none.onnx'}")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"which cannot be read|it must have one input"):
        models.load(f"onnx:{tmp_path / 'junk.onnx'}")
    path = exported(nn.Linear(4, 3), tmp_path / "flat.onnx", torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"it must have one input, images \[N, C, H, W\]"):
        models.load(f"onnx:{path}")

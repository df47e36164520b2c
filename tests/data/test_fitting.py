"""Images brought to one size, beside torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import pixels, write_image
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from smoothfast import data
from smoothfast.data import Fit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (50, 33), (7, 90), (64, 65)])
@pytest.mark.parametrize(("resize", "crop"), [(32, None), (None, 7), (32, 25), (40, 40), (64, 33), (32, 32)])
def test_as_torchvision_does_it(size: tuple[int, int], resize: int | None, crop: int | None) -> None:
    image = pixels(0, 3, *size)
    steps = [] if resize is None else [v2.Resize(resize)]
    steps += [] if crop is None else [v2.CenterCrop(crop)]
    expected = v2.Compose(steps)(Image.fromarray(image.permute(1, 2, 0).numpy()))
    made = Fit(resize, crop)(image)
    assert torch.equal(made, torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert Fit(resize, crop).size(*size) == tuple(made.shape[1:])
    assert made.is_contiguous()


def test_floats_and_other_numbers_of_channels() -> None:
    image = torch.rand(5, 40, 30, generator=torch.Generator().manual_seed(0))
    made = Fit(15)(image.double())
    assert (made.dtype, made.shape) == (torch.float32, (5, 20, 15))
    expected = F.interpolate(image[None], (20, 15), mode="bilinear", antialias=True)[0]
    assert torch.allclose(made, expected, atol=1e-6)
    assert torch.equal(Fit(7)(torch.ones(1, 20, 20)), torch.ones(1, 7, 7))


def test_what_does_not_fit_names_the_image(tmp_path: Path) -> None:
    write_image(tmp_path / "ape" / "0.png", pixels(0, 3, 5, 7))
    with pytest.raises(ValueError, match=r"ape/0\.png: crop is 6; the image has 5x7 pixels: pass --resize too"):
        data.load(f"folder:{tmp_path}", crop=6)[0]
    with pytest.raises(ValueError, match="image 0: crop is 33; the image has 32x32 pixels"):
        data.load("demo", crop=33)[0]


def test_a_strip_is_not_made_into_gigabytes() -> None:
    message = "resize is 256; the image has 1x80000000 pixels, and would have none or more than 16,384x16,384"
    with pytest.raises(ValueError, match=message):
        Fit(256, 224)(torch.zeros(1, dtype=torch.uint8).expand(3, 1, 80_000_000))
    assert Fit(16_384).size(5, 5) == (16_384, 16_384)
    with pytest.raises(ValueError, match="the image has 0x5 pixels"):
        Fit(2)(torch.zeros(3, 0, 5))


@pytest.mark.parametrize(
    ("resize", "crop", "message"),
    [
        (0, None, "resize is 0; it must be at least 1"),
        (None, -1, "crop is -1; it must be at least 1"),
        (10**6, None, "resize is 1000000; it must be at most 16,384"),
        (32, 33, "crop is 33; it must be at most 32, the resize"),
    ],
)
def test_sides_are_checked(resize: int | None, crop: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load("demo", resize=resize, crop=crop)


def test_images_of_any_kind_of_data_set() -> None:
    source = data.load("demo", resize=16, crop=12)
    images = data.in_memory(source, indices=[0, 5])
    assert images.images.shape == (2, 3, 12, 12)
    assert images.classes == source.classes == data.demo().classes
    assert torch.equal(images.images[1], Fit(16, 12)(data.demo().images[5]))

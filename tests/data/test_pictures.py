"""Image files of every mode: what they are read as, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import equal, pixels, write_image
from PIL import Image
from torch import Tensor

from smoothfast import data

pytestmark = pytest.mark.usefixtures("one_thread")


def read(path: Path) -> Tensor:
    """The image of a file, by the folder of its class."""
    source = data.load(f"folder:{path.parents[1]}")
    assert len(source) == 1
    image, label = source[0]
    assert (image.dtype, label) == (torch.uint8, 0)
    assert image.is_contiguous()
    return image


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves an image of an array, or one of Pillow."""

    def saved(image: Any, suffix: str = "png", **options: Any) -> Path:
        path = tmp_path / "ape" / f"image.{suffix}"
        path.parent.mkdir(exist_ok=True)
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
        return path

    return saved


Save = Callable[..., Path]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    level = 255 if mode == "1" else 102  # in the palette of P
    grey = torch.full((3, 5, 7), level, dtype=torch.uint8)
    write_image(tmp_path / "ape" / "0.png", grey, mode)
    assert equal(data.load(f"folder:{tmp_path}"), [(grey, 0)])


def test_alpha_is_left_out_and_palettes_are_looked_up(save: Save) -> None:
    colours = pixels(0, 5, 7, 4)
    assert torch.equal(read(save(colours.numpy())), colours[..., :3].permute(2, 0, 1))
    few = Image.fromarray(pixels(1, 5, 7, 3).numpy()).quantize(16)
    few.info["transparency"] = 3
    assert torch.equal(read(save(few)), torch.from_numpy(np.array(few.convert("RGB"))).permute(2, 0, 1))


def test_cmyk_becomes_rgb(save: Save) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    assert read(save(ink, "jpg")).float().mean((1, 2)).sub(torch.tensor([254.0, 0, 0])).abs().max() < 3


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled(save: Save, suffix: str) -> None:
    """By 257, rounded; Pillow by itself cuts it off at 255: all white."""
    levels = np.concatenate([257 * np.arange(256), [128, 129, 385, 386, 65406, 65407]]).astype(np.uint16)
    expected = [*range(256), 0, 1, 1, 2, 254, 255]
    image = read(save(levels[None], suffix))
    assert image.tolist() == [[expected]] * 3


def test_grey_of_12_bits_has_its_own_white(tmp_path: Path) -> None:
    """A TIFF of two pixels, 0 and 4095, in three bytes."""
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    content = b"II*\0" + (12).to_bytes(4, "little") + b"\x00\x0f\xff\0" + len(entries).to_bytes(2, "little")
    for tag, value in entries:
        content += tag.to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
        content += value.to_bytes(4, "little")
    path = tmp_path / "ape" / "0.tif"
    path.parent.mkdir()
    path.write_bytes(content + b"\0" * 4)
    assert read(path)[0].tolist() == [[0, 255]]


def test_colours_of_16_bits_lose_the_lower_ones(tmp_path: Path) -> None:
    """Pillow does so as it decodes them."""
    path = tmp_path / "ape" / "0.ppm"
    path.parent.mkdir()
    path.write_bytes(b"P6 1 1 65535 " + np.array([257 * 7, 257 * 200, 65535], ">u2").tobytes())
    assert read(path).flatten().tolist() == [7, 200, 255]


def test_floats_are_scaled(save: Save) -> None:
    """Pillow by itself cuts their fractions off: all black."""
    levels = torch.linspace(0, 1, 35).view(5, 7)
    assert torch.equal(read(save(levels.numpy(), "tif")), (levels * 255).round().byte().expand(3, 5, 7))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 255.0], r"floats over 0 \.\. 255; they must lie in 0 \.\. 1"),
        ([-0.5, 0.5], r"floats over -0\.5 \.\. 0\.5"),
        ([float("nan"), 0], "floats that are not finite"),
        (np.array([0, 70000], np.int32), "integers of 32 bits; save it in 8 or 16 bits"),
    ],
)
def test_numbers_that_are_no_brightness_are_refused_by_name(save: Save, values: Any, message: str) -> None:
    array = values if isinstance(values, np.ndarray) else np.array(values, np.float32)
    with pytest.raises(ValueError, match=rf"image\.tif cannot be read as an image: it has {message}"):
        read(save(array[None], "tif"))

"""Image files of any origin as uint8 RGB: by content, without writing, each error with the name of the file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

KINDS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # as the suffixes that count; others might start a program
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
OF_16_BITS = ("PNG", "PPM")  # kinds whose integers of mode I end at 65,535
BITS_PER_SAMPLE = 258  # tag of a TIFF


def picture(path: str) -> Any:
    """The image in a file, in RGB.

    Raises:
        ValueError: the file is none of `KINDS`, is cut off or broken, claims more pixels than Pillow takes for an
            image (`MAX_IMAGE_PIXELS`, 89 million), which is seen before there is memory for them, or has numbers that
            are no brightness (`eight_bits`). Names the file.
    """
    with naming(path):
        if not Path(path).is_file():
            raise ValueError("it is no file")
        with open(path, "rb") as file:
            return eight_bits(opened(file)).convert("RGB")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Stands around what reads an image, and names it where that fails."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tags that are odd
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (MemoryError, FileNotFoundError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be read as an image: it is none of {', '.join(KINDS)}") from error
    except Exception as error:  # readers that meet noise may raise anything
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def opened(file: IO[bytes]) -> Any:
    """The image in an open file, of which only the head is read by now."""
    from PIL import Image

    return Image.open(file, formats=KINDS)


def tensor_of(image: Any) -> Tensor:
    """An image of Pillow as uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)).contiguous()


def eight_bits(image: Any) -> Any:
    """An image in 8 bits a channel, of one that may be grey in 16 bits or in floating point, whose numbers Pillow
    itself would cut off at 255.

    Raises:
        ValueError: floats that are not all in 0 .. 1, or integers of 32 bits, of which nobody knows what is white.
    """
    from PIL import Image

    if image.mode == "F":
        return Image.fromarray(_of_floats(np.asarray(image)))
    if image.mode != "I" and not image.mode.startswith("I;"):
        return image
    if image.mode == "I" and image.format not in OF_16_BITS:
        raise ValueError("it has integers of 32 bits; save it in 8 or 16 bits, or as floats in 0 .. 1")
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0] if image.format == "TIFF" else 16
    white = 2**bits - 1
    grey = np.asarray(image).astype(np.uint32)
    if grey.size and grey.max() > white:
        raise ValueError(f"it has a grey of {grey.max()}, and white is {white}")
    grey *= 255  # in place: an image may be large
    grey += white // 2
    grey //= white
    return Image.fromarray(grey.astype(np.uint8))


def _of_floats(values: Any) -> Any:
    """Floats in 0 .. 1 as uint8, rounded; ValueError for others."""
    if not np.isfinite(values).all():
        raise ValueError("it has floats that are not finite (NaN or inf)")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        low, high = float(values.min()), float(values.max())
        raise ValueError(f"it has floats over {low:.4g} .. {high:.4g}; they must lie in 0 .. 1, black to white")
    return np.rint(values * 255).astype(np.uint8)

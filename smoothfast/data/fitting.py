"""Images brought to one size: the shorter side resized, the middle cropped, as torchvision's Resize and CenterCrop do
it to images of Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..specs import MOST_SIDE, require_sides
from .labelled import Labelled, classes_of, name_of

MODES = {torch.uint8: "L", torch.float32: "F"}  # of a channel, in Pillow


@dataclass(frozen=True)
class Fit:
    """A way to bring images to one size.

    Attributes:
        resize: the length that the shorter side gets, by linear interpolation with antialiasing; None: as it is.
        crop: the side of the square in the middle that is kept; None: all.
    """

    resize: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        require_sides(self.resize, self.crop)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image gets before it is cropped.

        Raises:
            ValueError: it has no pixels, or is so long that it would have more than the largest square.
        """
        if self.resize is None:
            return height, width
        if not min(height, width) or self.resize**2 * max(height, width) > MOST_SIDE**2 * min(height, width):
            raise ValueError(
                f"resize is {self.resize}; the image has {height}x{width} pixels, and would have none or more than "
                f"{MOST_SIDE:,}x{MOST_SIDE:,}"
            )
        longer = int(self.resize * max(height, width) / min(height, width))
        return (self.resize, longer) if height <= width else (longer, self.resize)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image has in the end.

        Raises:
            ValueError: as of `resized`; or it is smaller than the crop.
        """
        height, width = self.resized(height, width)
        if self.crop is None:
            return height, width
        if min(height, width) < self.crop:
            raise ValueError(f"crop is {self.crop}; the image has {height}x{width} pixels: pass --resize too")
        return self.crop, self.crop

    def __call__(self, image: Tensor) -> Tensor:
        """An image uint8 or float [C, H, W] in its new size; errors as of `size`."""
        before = image.shape[-2], image.shape[-1]
        between, after = self.resized(*before), self.size(*before)
        if between != before:
            image = _resized(image, between)
        top, left = (round((now - then) / 2) for now, then in zip(between, after, strict=True))
        return image[:, top : top + after[0], left : left + after[1]].contiguous()


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image in another size. Each channel by itself, which makes the same of RGB."""
    from PIL import Image

    image = image.float() if image.is_floating_point() else image
    if image.dtype not in MODES:
        raise ValueError(f"images are {image.dtype}; they must be uint8 (0..255) or float (0..1)")

    def channel(pixels: Tensor) -> Any:
        # detached: an image of somebody's data set may hang on a graph
        made = Image.fromarray(pixels.detach().contiguous().numpy())
        return np.array(made.resize(size[::-1], Image.Resampling.BILINEAR))

    made = torch.from_numpy(np.stack([channel(pixels) for pixels in image]))
    return made.clamp_(image.min(), image.max()) if made.is_floating_point() else made  # no rounding beyond 1


@dataclass(frozen=True)
class Fitted:
    """A data set whose images are brought to one size.

    Attributes:
        source: the data set.
        fit: the way.
    """

    source: Labelled
    fit: Fit

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        image, label = self.source[index]
        try:
            return self.fit(image), label
        except ValueError as error:
            raise ValueError(f"{self.name_of(index)}: {error}") from error

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of the data set."""
        return classes_of(self.source)

    def name_of(self, index: int) -> str:
        """The name of an image in messages."""
        return name_of(self.source, index)

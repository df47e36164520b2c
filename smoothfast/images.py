"""Checks of images, their ids and labels, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .streams import MAX_IMAGE_ID

Bounds = tuple[float, float]
UNIT: Bounds = (0.0, 1.0)
ROUNDINGS = 2**-20  # of the range: 8 units in the last place of float32 at its end
LEVEL = 1e-3  # of a level of 8 bits: what float32 and a few operations leave of it
OUTSIDE = 0.1  # of the range: farther off are images in other units, or normalised ones


def checked_bounds(bounds: Sequence[float] | None) -> Bounds | None:
    """The range of images, low and high; None where there is none.

    Raises:
        ValueError: they are not two finite numbers, the lower one first.
    """
    if bounds is None:
        return None
    try:
        ends = tuple(map(float, bounds))
    except (TypeError, ValueError):
        ends = ()
    if len(ends) != 2 or not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise ValueError(f"bounds is {bounds}; it must be (low, high), finite and the lower one first, or None")
    return ends[0], ends[1]


def checked_images(images: Any, bounds: Bounds | None = UNIT) -> Tensor:
    """Images uint8 or float32 [N, C, ...] in their range. Floats that are outside by roundings are put to its ends.

    Args:
        images: tensor, NumPy array, or list of either.
        bounds: of float images; None: they have none.

    Raises:
        ValueError: wrong shape, dtype or range, or a value that is not finite.
    """
    images = finite_images(images, bounds).detach()
    if bounds is None or not images.is_floating_point() or not images.numel():
        return images
    (low, high), (least, most) = bounds, torch.stack(images.aminmax()).tolist()
    if low <= least and most <= high:
        return images
    if min(least - low, high - most) < -ROUNDINGS * (high - low):
        raise ValueError(_told(least, most, bounds))
    return images.clamp(low, high)


def far_outside(images: Tensor, bounds: Bounds | None) -> str | None:
    """Words on images that are far out of their range; None where they are not."""
    if bounds is None or not images.is_floating_point() or not images.numel():
        return None
    (low, high), (least, most) = bounds, torch.stack(images.detach().aminmax()).tolist()
    if min(least - low, high - most) >= -OUTSIDE * (high - low):
        return None
    return _told(least, most, bounds)


def _told(least: float, most: float, bounds: Bounds) -> str:
    low, high = (f"{end:g}" for end in bounds)
    near = bounds[0] <= float(f"{least:.4g}") and float(f"{most:.4g}") <= bounds[1]  # four digits would not tell
    found = f"{least:.9g} .. {most:.9g}" if near else f"{least:.4g} .. {most:.4g}"
    return (
        f"images are float and range over {found}; float images must lie in {low} .. {high} "
        "(pass uint8 for 0 .. 255, normalisation as normalize=(mean, std), "
        "and another range as bounds=(low, high) or None)"
    )


def of_8_bits(images: Tensor) -> bool:
    """Tells whether float images in 0 .. 1 hold what uint8 ones do: whole levels, up to rounding."""
    levels = 255 * images
    return bool(images.is_floating_point() and images.numel() and (levels - levels.round()).abs().max() < LEVEL)


def pixels(images: Any, bounds: Bounds | None = UNIT) -> Tensor:
    """Images float32 [N, C, ...] in their range, of images uint8 or float; errors as of `checked_images`."""
    images = checked_images(images, bounds)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def finite_images(images: Any, bounds: Bounds | None = UNIT) -> Tensor:
    """Images uint8 or float32 [N, C, ...] in whatever range.

    Raises:
        ValueError: wrong shape or dtype, or a value that is not finite; images of 8 bits where bounds are others than
            theirs; forward-mode differentiation, whose tangents would be 0.
    """
    images = _tensor(images)
    if unpack_dual(images).tangent is not None:
        raise ValueError(
            "images have a tangent of forward-mode differentiation (torch.func.jvp, torch.autograd.forward_ad), which "
            "does not go through noise; take reverse mode: backward, or torch.autograd.grad"
        )
    if images.dim() < 2 or 0 in images.shape[1:]:
        raise ValueError(f"images have shape {tuple(images.shape)}; they must be [N, C, H, W], or [N, ...] of any rank")
    if images.dtype == torch.uint8:
        if bounds != UNIT:
            raise ValueError(f"images are uint8, and bounds is {bounds}; these are of float images")
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; they must be uint8 (0..255) or float (0..1)")
    if not images.isfinite().all():
        raise ValueError("images hold values that are not finite (NaN or inf)")
    return images.float()


def _tensor(images: Any) -> Tensor:
    """Images as a tensor: what NumPy takes for an array of numbers, or a list of tensors of one shape."""
    if isinstance(images, Tensor):
        return images
    try:
        if isinstance(images, (list, tuple)) and images and isinstance(images[0], Tensor):
            return torch.stack(list(images))
        return torch.from_numpy(np.ascontiguousarray(images))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"images is a {type(images).__name__} that is no array of numbers ({error}); it must be a tensor "
            "[N, C, H, W], uint8 (0..255) or float (0..1)"
        ) from error


def by_image(values: Tensor, images: Tensor) -> Tensor:
    """Values [N], one for each of the images [N, ...], in a shape that goes along with them."""
    return values.view(-1, *(1,) * (images.dim() - 1))


def by_channel(values: Sequence[float], images: Tensor) -> Tensor:
    """Values float32 [C] or one for all, in a shape that goes along with images [N, C, ...], on their device."""
    return torch.tensor(values, dtype=torch.float32, device=images.device).view(-1, *(1,) * (images.dim() - 2))


def checked_ids(image_ids: Sequence[int] | Tensor | None, count: int) -> list[int]:
    """Ids of `count` images, 0 .. count - 1 if none are given. Raises ValueError unless there are as many, each in 0 ..
    2**44 - 1."""
    given = range(count) if image_ids is None else image_ids.tolist() if isinstance(image_ids, Tensor) else image_ids
    ids = [index(image_id) for image_id in given]
    if len(ids) != count:
        raise ValueError(f"image_ids has {len(ids)} entries; there are {count} images")
    for image_id in ids:
        if not 0 <= image_id <= MAX_IMAGE_ID:
            raise ValueError(f"image_ids holds {image_id}; ids must lie in 0 .. 2**44 - 1")
    return ids


def checked_labels(labels: Sequence[int] | Tensor, count: int, num_classes: int) -> list[int]:
    """Labels of `count` images. Raises ValueError unless there are as many whole numbers, each in 0 .. num_classes -
    1."""
    given = labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) else labels
    try:
        classes = [int(label) if isinstance(label, float) and label.is_integer() else index(label) for label in given]
    except TypeError as error:
        raise ValueError(f"labels holds what is no class ({error}); labels must be whole numbers [N]") from error
    if len(classes) != count:
        raise ValueError(f"labels has {len(classes)} entries; there are {count} images")
    for label in classes:
        if not 0 <= label < num_classes:
            raise ValueError(f"labels holds {label}; labels must lie in 0 .. {num_classes - 1}")
    return classes


def checked_alike(image: Tensor, index: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The image `index` of a data set as `checked_images` has it, if it is like the first one of a run."""
    checked = checked_images(image[None])[0]
    if checked.shape != tuple(shape) or checked.dtype != dtype:
        raise ValueError(
            f"image {index} is {checked.dtype} {tuple(checked.shape)}; the first one is {dtype} {tuple(shape)}, and a "
            "run needs images of one kind"
        )
    return checked

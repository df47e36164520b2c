"""Checks of images, their ids and labels, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from .streams import MAX_IMAGE_ID


def checked_images(images: Tensor) -> Tensor:
    """Images uint8 or float32 [N, C, H, W] in their range.

    Raises:
        ValueError: wrong shape, dtype or range, or a value that is not finite.
    """
    images = finite_images(images).detach()
    if images.is_floating_point() and len(images) and (images.min() < 0 or images.max() > 1):
        low, high = float(images.min()), float(images.max())
        raise ValueError(
            f"images are float and range over {low:.4g} .. {high:.4g}; float images must lie in 0 .. 1 "
            "(pass uint8 for 0 .. 255, and normalisation as normalize=(mean, std))"
        )
    return images


def pixels(images: Tensor) -> Tensor:
    """Images float32 [N, C, H, W] in [0, 1], of images uint8 or float; errors as of `checked_images`."""
    images = checked_images(images)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def finite_images(images: Tensor) -> Tensor:
    """Images uint8 or float32 [N, C, H, W] in whatever range.

    Raises:
        ValueError: wrong shape or dtype, or a value that is not finite.
    """
    if images.dim() != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images have shape {tuple(images.shape)}; they must be [N, C, H, W]")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; they must be uint8 (0..255) or float (0..1)")
    if not images.isfinite().all():
        raise ValueError("images hold values that are not finite (NaN or inf)")
    return images.float()


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
    """Labels of `count` images. Raises ValueError unless there are as many, each in 0 .. num_classes - 1."""
    classes = [index(label) for label in (labels.tolist() if isinstance(labels, Tensor) else labels)]
    if len(classes) != count:
        raise ValueError(f"labels has {len(classes)} entries; there are {count} images")
    for label in classes:
        if not 0 <= label < num_classes:
            raise ValueError(f"labels holds {label}; labels must lie in 0 .. {num_classes - 1}")
    return classes


def checked_alike(image: Tensor, index: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The image `index` of a data set as `checked_images` has it, if it is like the first one of a run."""
    checked: Tensor = checked_images(image[None])[0]
    if checked.shape != tuple(shape) or checked.dtype != dtype:
        raise ValueError(
            f"image {index} is {checked.dtype} {tuple(checked.shape)}; the first one is {dtype} {tuple(shape)}, and a "
            "run needs images of one kind"
        )
    return checked

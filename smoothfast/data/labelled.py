"""A data set: what it has to be, one that is in memory, and how its images are called."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Labelled(Protocol):
    """A sequence of (image, label): images uint8 or float [C, H, W], labels int. Where it has `classes`, these are the
    names of the labels 0, 1, ….
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, C, H, W] and labels int64 [N] held in memory, and the names of their classes if known."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, where they are known."""
        return self.names

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def classes_of(source: Any) -> tuple[str, ...]:
    """The names of the classes of a data set; none where it does not tell them."""
    told = getattr(source, "classes", None)
    return tuple(map(str, told)) if isinstance(told, Iterable) and not isinstance(told, str) else ()


def name_of(source: Labelled, index: int) -> str:
    """The name of an image in messages: its file where it has one."""
    name: Callable[[int], str] | None = getattr(source, "name_of", None)
    return f"image {index}" if name is None else name(index)


def in_memory(
    source: Labelled,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    indices: Sequence[int] | None = None,
) -> Images:
    """Decodes a data set, or the images `indices` of it.

    Raises:
        ValueError: there are no images, or they differ in size; names those that do.
    """
    chosen = range(len(source)) if indices is None else indices
    steps = progress(chosen)
    try:
        pairs = [source[index] for index in steps]
    finally:
        if isinstance(steps, Generator):
            steps.close()  # or a bar, and its thread, would outlive an image that cannot be read
    if not pairs:
        raise ValueError("the data set holds no images")
    require_one_size(source, ((index, image.shape) for index, (image, _) in zip(chosen, pairs, strict=True)))
    images, labels = zip(*pairs, strict=True)
    return Images(torch.stack(images), torch.tensor(labels), classes_of(source))


def require_one_size(source: Labelled, shapes: Iterable[tuple[int, Sequence[int]]]) -> None:
    """Raises ValueError where one of the images of a data set has not the shape [C, H, W] of the first one."""
    first: tuple[int, Sequence[int]] | None = None
    for index, shape in shapes:
        first = first or (index, shape)
        if tuple(shape) != tuple(first[1]):
            side = min(*first[1][-2:], *shape[-2:])
            (one, other) = (f"{name_of(source, i)} is {size_text(s)}" for i, s in (first, (index, shape)))
            raise ValueError(
                f"the images differ in size: {one}, {other} (channels x height x width), and a run needs images of one "
                f"kind; --resize {side} --crop {side}, or resize and crop of data.load, make them one size"
            )


def size_text(shape: Sequence[int]) -> str:
    """The shape of an image in messages, as 3x32x32."""
    return "x".join(map(str, shape))


def batches(data: Images, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches (index, images, labels) of a data set, in order."""
    for index in torch.arange(len(data)).split(size):
        yield index, data.images[index], data.labels[index]

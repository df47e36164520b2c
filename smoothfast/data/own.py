"""Data sets of the user's own code, with items as people have them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index as as_integer
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import told
from .labelled import Images, Labelled, classes_of, size_text
from .pictures import eight_bits, tensor_of

IMAGE = ("image", "img", "pixel_values", "x")  # keys of an item, the first that it has
LABEL = ("label", "labels", "target", "y")
COLOURS = (1, 3)  # channels of an image, wherever they stand
GREY = ("1", "L", "F", "I")  # modes of Pillow, up to a semicolon
ITEM = (
    "an item must be (image, label), or a dict of them: the image a tensor [C, H, W], a NumPy array [H, W, C] or an "
    "image of Pillow, the label an integer"
)


@dataclass(frozen=True)
class Own:
    """A data set of the user's own code, whose items become (image [C, H, W], label).

    Attributes:
        source: what the code made.
        spec: its name, for errors.
    """

    source: Any
    spec: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        with _telling(f"data is {self.spec!r}, whose item {index}"):
            item = self.source[index]
        try:
            image, label = _pair(item)
            return _image(image), _label(label)
        except (ValueError, TypeError) as error:
            raise ValueError(f"data is {self.spec!r}, whose item {index} cannot be taken: {error}; {ITEM}") from error

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, where the data set tells them, also as those of Hugging Face do."""
        features = getattr(self.source, "features", None)
        of_labels = [features[key] for key in LABEL if key in features] if isinstance(features, Mapping) else []
        names = getattr(of_labels[0], "names", ()) if of_labels else ()
        return classes_of(self.source) or tuple(names)

    def name_of(self, index: int) -> str:
        """The name of an item in messages."""
        return f"item {index}"


def own(made: Any, spec: str, split: str) -> Labelled:
    """The data set that an object of the user's code is, or that it makes when it is called.

    Raises:
        ValueError: it is none.
    """
    data = made if _is_data(made) and not isinstance(made, type) else _called(made, spec, split)
    if isinstance(data, Mapping):
        if split not in data:
            raise ValueError(f"data is {spec!r}, a mapping of {', '.join(map(str, data))!s:.200}; it has no {split!r}")
        data = data[split]
    if not _is_data(data):
        raise ValueError(
            f"data is {spec!r}, which returned {type(data).__name__}; it must return a data set{_why(data)}"
        )
    return data if isinstance(data, Images) else Own(data, spec)


@contextmanager
def _telling(whose: str) -> Iterator[None]:
    """Stands around code of the user's, and tells where an error of it was raised."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{whose} raised {told(error)}") from error


def _is_data(made: Any) -> bool:
    return hasattr(made, "__getitem__") and hasattr(made, "__len__")


def _why(made: Any) -> str:
    """The reason why what was returned is no data set, where it looks like one."""
    if hasattr(made, "dataset"):
        return ": not a loader, but the data set that it loads"
    if isinstance(made, Iterable) and not hasattr(made, "__len__"):
        return ", with len() and [index]: list(…) makes one of what can only be gone through"
    return ", with len() and [index]"


def _called(made: Any, spec: str, split: str) -> Any:
    """Calls what makes a data set: with the split, as its argument `split` or `train` or else as the only one, or with
    nothing where it takes nothing."""
    if not callable(made):
        raise ValueError(f"data is {spec!r}, which is neither callable nor a data set with len() and [index]")
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):  # of C
        with _telling(f"data is {spec!r}, which"):
            return made(split)
    named = {name for name, taken in signature.parameters.items() if taken.kind != taken.POSITIONAL_ONLY}
    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((split,), {}), ((), {})]
    if "split" in named:
        ways = [((), {"split": split})]
    elif "train" in named:
        ways = [((), {"train": split == "train"})]
    for arguments, options in ways:
        try:
            signature.bind(*arguments, **options)
        except TypeError:
            continue
        with _telling(f"data is {spec!r}, which"):
            return made(*arguments, **options)
    raise ValueError(f"data is {spec!r}, which takes {signature}; it must take the split, or nothing")


def _pair(item: Any) -> tuple[Any, Any]:
    """The image and the label of an item; ValueError where it has none."""
    if isinstance(item, Mapping):
        image, label = ([key for key in keys if key in item] for keys in (IMAGE, LABEL))
        if not image or not label:
            raise ValueError(
                f"it is a dict of {', '.join(map(str, item))!s:.200}; one of {', '.join(IMAGE)} and one of "
                f"{', '.join(LABEL)} are looked for"
            )
        return item[image[0]], item[label[0]]
    if not isinstance(item, (tuple, list)):
        raise ValueError(f"it is {type(item).__name__}")
    if len(item) < 2:
        raise ValueError(f"it has {len(item)} parts")
    return item[0], item[1]


def _image(image: Any) -> Tensor:
    """An image uint8 or float [C, H, W] of what people have."""
    if hasattr(image, "getbands"):  # of Pillow
        grey = image.mode.partition(";")[0] in GREY
        return tensor_of(eight_bits(image).convert("L" if grey else "RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(_channels_first(image)))
    if not isinstance(image, Tensor):
        raise ValueError(f"its image is {type(image).__name__}")
    image = image[None] if image.dim() == 2 else image
    if image.dim() != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(f"its image is {image.dtype} {size_text(image.shape)}, and must be uint8 or float")
    return image


def _channels_first(image: Any) -> Any:
    """A NumPy image [C, H, W] of one [H, W, C], [H, W] or [C, H, W]; ValueError where nobody can tell."""
    if image.ndim != 3:
        return image
    first, last = image.shape[0] in COLOURS, image.shape[2] in (*COLOURS, 4)
    if first == last:
        raise ValueError(f"its image is an array {size_text(image.shape)}, which side are the channels?")
    return image if first else image.transpose(2, 0, 1)


def _label(label: Any) -> int:
    """A label, of an integer of any kind."""
    if isinstance(label, np.ndarray) and label.size == 1:
        label = label.item()
    try:
        number = as_integer(label)
    except TypeError:
        shape = f" {size_text(label.shape)}" if hasattr(label, "shape") else ""
        raise ValueError(f"its label is {type(label).__name__}{shape} {label!r:.50}, no integer") from None
    if number < 0:
        raise ValueError(f"its label is {number}; labels begin at 0")
    return number

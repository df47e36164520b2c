"""Labelled images behind one spec string: `demo`, `cifar10:ROOT`, `folder:PATH`, … as uint8 tensors.

Nothing is downloaded. Normalisation is not done here: it belongs to the classifier.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from .checks import imported
from .specs import DATA_SPECS, require_data

DEMO = Path(__file__).parent / "assets" / "cifar10-jpeg-test-200.safetensors"
SPECS = DATA_SPECS
SPLITS = ("train", "test")
KINDS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # as the suffixes that count; others might start a program


class Labelled(Protocol):
    """A sequence of (image, label): images uint8 or float [C, H, W], labels int."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, C, H, W] and labels int64 [N] held in memory."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def load(spec: str, split: str = "test") -> Labelled:
    """The data set that a spec names.

    Args:
        spec: `demo` (200 test images of CIFAR-10 (JPEG), part of the package), `cifar10:ROOT`, `cifar100:ROOT`,
            `imagenet:ROOT` (validation images, centre crop of 224), `folder:PATH` (ImageFolder; `PATH/train` and
            `PATH/test` where they exist), or `package.module:callable`, called with the split.
        split: "train" or "test".

    Raises:
        ValueError: the spec is not one of these, or its data are not there.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    require_data(spec)
    if spec == "demo":
        return demo()
    kind, _, rest = spec.partition(":")
    if kind in LOADERS:
        try:
            return LOADERS[kind](Path(rest), split)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"data is {spec!r}, which cannot be read: {error}") from error
    factory = imported(spec, "data", SPECS)
    if not callable(factory):
        raise ValueError(f"data is {spec!r}, which is not callable; accepted: {SPECS}")
    source = factory(split)
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise ValueError(f"data is {spec!r}, which returned {type(source).__name__}; it must return a data set")
    return source


def demo() -> Images:
    """200 class-balanced test images of CIFAR-10 (JPEG) that ship with the package."""
    with safe_open(DEMO, "pt") as file:
        return Images(file.get_tensor("images"), file.get_tensor("labels"))


def in_memory(source: Labelled, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Images:
    """Decodes a whole data set, for training."""
    pairs = [source[index] for index in progress(range(len(source)))]
    if not pairs:
        raise ValueError("the data set holds no images")
    images, labels = zip(*pairs, strict=True)
    if len({image.shape for image in images}) > 1:
        raise ValueError("the images differ in size; training needs one size")
    return Images(torch.stack(images), torch.tensor(labels))


def _cifar10(root: Path, split: str) -> Labelled:
    datasets, transforms = _torchvision()
    return datasets.CIFAR10(str(root), train=split == "train", transform=transforms.PILToTensor())


def _cifar100(root: Path, split: str) -> Labelled:
    datasets, transforms = _torchvision()
    return datasets.CIFAR100(str(root), train=split == "train", transform=transforms.PILToTensor())


def _imagenet(root: Path, split: str) -> Labelled:
    datasets, transforms = _torchvision()
    crop = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    return datasets.ImageNet(str(root), split="train" if split == "train" else "val", transform=crop, loader=picture)


def _folder(path: Path, split: str) -> Labelled:
    datasets, transforms = _torchvision()
    splits = [name for name in SPLITS if _holds_folders(path / name)]
    if splits and split not in splits:
        raise FileNotFoundError(f"it holds {splits[0]}/, but no {split}/ with a folder for each class")
    return datasets.ImageFolder(
        str(path / split if splits else path), transform=transforms.PILToTensor(), loader=picture
    )


def picture(path: str) -> Any:
    """The image in a file, in RGB.

    Raises:
        ValueError: the file is none of `KINDS`, is cut off or broken, or claims more pixels than Pillow takes for an
            image (`MAX_IMAGE_PIXELS`, 89 million), which is seen before there is memory for them. Names the file.
    """
    from PIL import Image

    try:
        if not Path(path).is_file():
            raise ValueError("it is no file")
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # tags that are odd
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=KINDS).convert("RGB")
    except (MemoryError, FileNotFoundError):
        raise
    except Exception as error:  # readers that meet noise may raise anything
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _torchvision() -> tuple[Any, Any]:
    """Data sets and transforms of torchvision, which bring a second of CPU time along, wanted only where they are
    used."""
    return import_module("torchvision.datasets"), import_module("torchvision.transforms.v2")


def _holds_folders(path: Path) -> bool:
    """Whether this is a split; a class that is called "train" holds images."""
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


LOADERS: dict[str, Callable[[Path, str], Labelled]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "imagenet": _imagenet,
    "folder": _folder,
}


def batches(data: Images, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches (index, images, labels) of a data set, in order."""
    for index in torch.arange(len(data)).split(size):
        yield index, data.images[index], data.labels[index]

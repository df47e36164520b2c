"""The data set that a spec names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..checks import imported
from ..specs import ARCHIVES, DATA_SPECS, require_data
from ..torch_files import read_torch
from .fitting import Fit, Fitted
from .folders import Folder, folder, of_classes
from .labelled import Images, Labelled
from .own import own
from .trees import Disk

DEMO = Path(__file__).parents[1] / "assets" / "cifar10-jpeg-test-200.safetensors"
SPECS = DATA_SPECS
SPLITS = ("train", "test")
IMAGENET = 1000  # classes
IMAGENET_FIT = Fit(256, 224)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(spec: str, split: str = "test", resize: int | None = None, crop: int | None = None) -> Labelled:
    """The data set that a spec names.

    Args:
        spec: `demo` (200 test images of CIFAR-10 (JPEG), part of the package), `cifar10:ROOT`, `cifar100:ROOT`,
            `imagenet:ROOT` (validation images, centre crop of 224), `folder:PATH` (a folder for each class, or a zip
            file of one; `PATH/train` and `PATH/test` or `PATH/val` where they exist), or `package.module:callable`,
            called with the split.
        split: "train" or "test".
        resize: the length that the shorter side of an image gets, by linear interpolation with antialiasing; as it is
            if not given.
        crop: the side of the square in the middle that is kept; all if not given.

    Raises:
        ValueError: the spec is not one of these, or its data are not there.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    fit = Fit(resize, crop)
    require_data(spec)
    kind, _, rest = spec.partition(":")
    if fit == Fit() and kind == "imagenet":
        fit = IMAGENET_FIT
    source = _source(spec, kind, Path(rest), split)
    return source if fit == Fit() else Fitted(source, fit)


def _source(spec: str, kind: str, root: Path, split: str) -> Labelled:
    """The data set with images as they are."""
    if spec == "demo":
        return demo()
    if kind not in LOADERS:
        return own(imported(spec, "data", SPECS), spec, split)
    try:
        return LOADERS[kind](root, split)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"data is {spec!r}, which cannot be read: {error}") from error


def demo() -> Images:
    """200 class-balanced test images of CIFAR-10 (JPEG) that ship with the package."""
    with safe_open(DEMO, "pt") as file:
        return Images(file.get_tensor("images"), file.get_tensor("labels"), CIFAR10)


def _cifar10(root: Path, split: str) -> Labelled:
    return _cifar("cifar10", root, split)


def _cifar100(root: Path, split: str) -> Labelled:
    return _cifar("cifar100", root, split)


def _cifar(kind: str, root: Path, split: str) -> Labelled:
    """A CIFAR data set: torchvision compares the files with their published hashes, for they are pickles."""
    archive = ARCHIVES[kind]
    root = root.parent if root.name == archive.folder else root
    if not (root / archive.folder).is_dir():
        raise FileNotFoundError(archive.missing(root))
    datasets, transforms = _torchvision()
    made = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    return made(str(root), train=split == "train", transform=transforms.PILToTensor())


def _imagenet(root: Path, split: str) -> Folder:
    """ImageNet as folders `train` and `val` of classes that are called by their WordNet ids, whose order is the usual
    one. Archives are extracted by torchvision, which needs the development kit for it."""
    place = "train" if split == "train" else "val"
    if not (root / place).is_dir():
        if not any(root.glob("ILSVRC2012_devkit_t12*")):
            raise FileNotFoundError(f"there is no {root / place} with a folder for each class: n01440764, …")
        datasets, _ = _torchvision()
        datasets.ImageNet(str(root), split=place)
    made = of_classes(Disk(root), place, "train" if (root / "train").is_dir() else None)
    count = len(made.classes)
    if count != IMAGENET:
        warnings.warn(
            f"{root / place} holds {count:,} classes, and ImageNet {IMAGENET:,}: their labels are 0 .. {count - 1} in "
            "the order of their names, not those of a network for all of ImageNet",
            stacklevel=2,
        )
    return Folder(made.tree, _in_words(root, made.classes), made.samples)


def _in_words(root: Path, ids: tuple[str, ...]) -> tuple[str, ...]:
    """The names of classes by their WordNet ids, where the file is there in which torchvision keeps them."""
    try:
        told = read_torch(root / "meta.bin")[0]
        return tuple(", ".join(told[name]) for name in ids)
    except Exception:  # there is none, or it is another's
        return ids


def _torchvision() -> tuple[Any, Any]:
    """Data sets and transforms of torchvision, which bring a second of CPU time along, wanted only where they are
    used."""
    return import_module("torchvision.datasets"), import_module("torchvision.transforms.v2")


LOADERS: dict[str, Callable[[Path, str], Labelled]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "imagenet": _imagenet,
    "folder": folder,
}

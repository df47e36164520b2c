"""Folders of classes, on the disk or in a zip file: which is the split, which are the classes, which the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .pictures import SUFFIXES, eight_bits, naming, opened, tensor_of
from .trees import Disk, Tree, Zipped

NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
"""The names of the folder of each split, in whatever case; the first that is there counts."""


@dataclass(frozen=True)
class Folder:
    """A data set of image files in a folder for each class, as torchvision's ImageFolder has it: images uint8 RGB,
    labels the places of their classes among the sorted ones.

    Attributes:
        tree: where the files are.
        classes: the names of the classes.
        samples: the path of each image in the tree, and its label.
    """

    tree: Tree
    classes: tuple[str, ...]
    samples: Sequence[tuple[str, int]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        with naming(self.tree.name_of(path)), self.tree.open(path) as file:
            return tensor_of(eight_bits(opened(file)).convert("RGB")), label

    def name_of(self, index: int) -> str:
        """The name of an image in messages."""
        return self.tree.name_of(self.samples[index][0])

    def size(self, index: int) -> tuple[int, int]:
        """The height and width of an image, of which no more than the head is decoded; errors as of `picture`."""
        path, _ = self.samples[index]
        with naming(self.tree.name_of(path)), self.tree.open(path) as file:
            width, height = opened(file).size
            return height, width


def folder(path: str | Path, split: str) -> Folder:
    """The split of a data set in a folder or a zip file.

    What holds the folders `train`, `test`, … has these splits; else it is a folder of classes, which serves both. A
    single folder in which all others stand is looked through.

    Raises:
        ValueError: it is no zip file.
        OSError: the split, its classes or the images of one are not there.
    """
    path = Path(path)
    tree: Tree = Disk(path) if path.is_dir() else Zipped(path)
    place = ""
    while True:
        splits = dict(_splits(tree, place))
        inner = tree.folders(place)
        if splits or len(inner) != 1 or not tree.folders(joined(place, inner[0])):
            break
        place = joined(place, inner[0])
    if splits and split not in splits:
        there = Path(next(iter(splits.values()))).name
        raise FileNotFoundError(f"it holds {there}/, but no {split}/ with a folder for each class")
    return of_classes(tree, splits.get(split, place), splits.get("train"))


def of_classes(tree: Tree, place: str, whole: str | None = None) -> Folder:
    """The data set of a folder of classes.

    Args:
        tree: where it is.
        place: the folder.
        whole: the folder of the training images. Where there are classes of which `place` has no images, labels are
            numbered as there.

    Raises:
        OSError: there are no classes, or one is without images.
    """
    found = tree.folders(place)
    if not found:
        loose = any(names for _, names in tree.walk(place))
        raise FileNotFoundError(
            f"{tree.name_of(place)} holds no folders, one for each class"
            + (", but images themselves: put them into folders" if loose else "")
        )
    images = {name: tree.pictures(joined(place, name)) for name in found}
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise FileNotFoundError(
            f"{tree.name_of(place)} holds no images in the folders {', '.join(empty[:20])}: each folder is a class; "
            f"fill or remove them, or hide them by a dot in front ({', '.join(SUFFIXES)} count as images)"
        )
    trained = [] if whole is None else tree.folders(whole)
    classes = trained if set(found) < set(trained) else found
    labels = {name: label for label, name in enumerate(classes)}
    return Folder(tree, tuple(classes), [(path, labels[name]) for name, paths in images.items() for path in paths])


def _splits(tree: Tree, place: str) -> Iterator[tuple[str, str]]:
    """The splits that a folder holds; a class that is called "train" holds images."""
    held = {name.lower(): name for name in tree.folders(place)}
    for split, names in NAMES.items():
        there = (joined(place, held[name]) for name in names if name in held)
        first = next((path for path in there if tree.folders(path)), None)
        if first is not None:
            yield split, first


def joined(place: str, name: str) -> str:
    """The path of a folder in a folder."""
    return f"{place}/{name}".lstrip("/")

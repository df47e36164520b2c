"""Image files of classes, and what must be read from them."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import torch
from PIL import Image
from torch import Tensor

from smoothfast import data

Pairs = list[tuple[Tensor, int]]


def pixels(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write_image(path: Path, image: Tensor, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).convert(mode).save(path)


def write_folder(root: Path, seed: int = 0, classes: tuple[str, ...] = ("ape", "bee", "cat")) -> Pairs:
    """Two images of each class, and what must be read from them: classes in alphabetical order."""
    expected = []
    for label, name in enumerate(classes):
        for number in range(2):
            image = pixels(seed + 2 * label + number, 3, 5, 7)
            write_image(root / name / f"{number}.png", image)
            expected.append((image, label))
    return expected


def equal(source: data.Labelled, expected: Pairs) -> bool:
    pairs = [source[index] for index in range(len(source))]
    return [label for _, label in pairs] == [label for _, label in expected] and all(
        image.dtype == wanted.dtype and torch.equal(image, wanted)
        for (image, _), (wanted, _) in zip(pairs, expected, strict=True)
    )


def zipped(root: Path, path: Path, within: str = "") -> None:
    """Packs a folder, with an entry for each folder in it, as most archivers do."""
    with ZipFile(path, "w") as file:
        for each in sorted(root.rglob("*")):
            file.write(each, within + str(each.relative_to(root)))

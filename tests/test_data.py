"""Every kind of data set that a spec names, from small files of its real layout."""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

import smoothfast as sf
from smoothfast import data
from smoothfast.data import Images, in_memory

pytestmark = pytest.mark.usefixtures("one_thread")


def pixels(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write_image(path: Path, image: Tensor, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).convert(mode).save(path)


def write_folder(root: Path, seed: int = 0) -> list[tuple[Tensor, int]]:
    """Two images of each of three classes, and what must be read from them: classes in alphabetical order."""
    expected = []
    for label, name in enumerate(["ape", "bee", "cat"]):
        for number in range(2):
            image = pixels(seed + 2 * label + number, 3, 5, 7)
            write_image(root / name / f"{number}.png", image)
            expected.append((image, label))
    return expected


def equal(source: data.Labelled, expected: list[tuple[Tensor, int]]) -> bool:
    pairs = [source[index] for index in range(len(source))]
    return [label for _, label in pairs] == [label for _, label in expected] and all(
        image.dtype == torch.uint8 and torch.equal(image, wanted)
        for (image, _), (wanted, _) in zip(pairs, expected, strict=True)
    )


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_classes_serves_both_splits(tmp_path: Path) -> None:
    expected = write_folder(tmp_path)
    for split in data.SPLITS:
        assert equal(sf.data.load(f"folder:{tmp_path}", split), expected)
    assert equal(data.load(f"folder:{tmp_path}"), expected)


def test_a_folder_of_splits(tmp_path: Path) -> None:
    expected = {split: write_folder(tmp_path / split, seed) for seed, split in ((0, "train"), (100, "test"))}
    for split in data.SPLITS:
        assert equal(data.load(f"folder:{tmp_path}", split), expected[split])
    assert equal(data.load(f"folder:{tmp_path}"), expected["test"])


@pytest.mark.parametrize(("there", "asked"), [("test", "train"), ("train", "test")])
def test_a_folder_without_the_split_is_not_a_folder_of_classes(tmp_path: Path, there: str, asked: str) -> None:
    write_folder(tmp_path / there)
    with pytest.raises(ValueError, match=f"data is 'folder:{tmp_path}', which cannot be read: .*{asked}"):
        data.load(f"folder:{tmp_path}", asked)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    expected = write_folder(tmp_path)
    write_image(tmp_path / "train" / "0.png", pixels(9, 3, 5, 7))
    assert equal(data.load(f"folder:{tmp_path}", "train"), [*expected, (pixels(9, 3, 5, 7), 3)])


def test_a_colon_in_a_path_is_part_of_it(tmp_path: Path) -> None:
    expected = write_folder(tmp_path / "a:b")
    assert equal(data.load(f"folder:{tmp_path}/a:b"), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = torch.full((3, 5, 7), 102, dtype=torch.uint8)  # in the palette of P
    write_image(tmp_path / "ape" / "0.png", grey, mode)
    assert equal(data.load(f"folder:{tmp_path}"), [(grey, 0)])


def test_real_images(data_root: Path, tmp_path: Path) -> None:
    archive = data_root / "cifar10-jpeg.zip"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(("/0000.jpg", "/0001.jpg"))]
        file.extractall(tmp_path, names)
    for split in data.SPLITS:
        images = in_memory(data.load(f"folder:{tmp_path / 'cifar10-jpeg'}", split))
        assert (images.images.dtype, images.images.shape) == (torch.uint8, (20, 3, 32, 32))
        assert images.labels.tolist() == [label for label in range(10) for _ in range(2)]
        assert images.images.float().std() > 40  # photographs, not a grey plane


# ---- data sets of torchvision ----------------------------------------------------------------------------------------


def dump(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torchvision read CIFAR files that are not the published ones."""
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)


@pytest.mark.usefixtures("any_checksum")
def test_cifar10(tmp_path: Path) -> None:
    rows = pixels(0, 6, 3072)
    root = tmp_path / "cifar-10-batches-py"
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        dump(root / name, {"data": rows[number : number + 1].numpy(), "labels": [number + 2]})
    dump(root / "batches.meta", {"label_names": list("abcdefghij")})
    images = rows.view(6, 3, 32, 32)
    assert equal(data.load(f"cifar10:{tmp_path}", "train"), [(images[n], n + 2) for n in range(5)])
    assert equal(data.load(f"cifar10:{tmp_path}"), [(images[5], 7)])


@pytest.mark.usefixtures("any_checksum")
def test_cifar100(tmp_path: Path) -> None:
    rows = pixels(1, 2, 3072)
    root = tmp_path / "cifar-100-python"
    for number, name in enumerate(["train", "test"]):
        dump(root / name, {"data": rows[number : number + 1].numpy(), "fine_labels": [98 + number]})
    dump(root / "meta", {"fine_label_names": [str(n) for n in range(100)]})
    images = rows.view(2, 3, 32, 32)
    assert equal(data.load(f"cifar100:{tmp_path}", "train"), [(images[0], 98)])
    assert equal(data.load(f"cifar100:{tmp_path}", "test"), [(images[1], 99)])


def test_imagenet_is_resized_and_cropped_at_the_centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def split_folder(root: str, split: str, transform: Any, loader: Any) -> datasets.ImageFolder:
        return datasets.ImageFolder(str(Path(root) / split), transform, loader=loader)

    monkeypatch.setattr(datasets, "ImageNet", split_folder)
    image = pixels(2, 3, 256, 320)  # its short side is right, so only the crop is left to do
    write_image(tmp_path / "val" / "n01440764" / "0.png", image)
    write_image(tmp_path / "train" / "n01440764" / "0.png", torch.full((3, 300, 600), 9, dtype=torch.uint8))
    assert equal(data.load(f"imagenet:{tmp_path}", "test"), [(image[:, 16:240, 48:272], 0)])
    assert equal(data.load(f"imagenet:{tmp_path}", "train"), [(torch.full((3, 224, 224), 9, dtype=torch.uint8), 0)])


# ---- others ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", data.SPLITS)
def test_any_callable_that_makes_a_data_set(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: [(pixels(number, 3, 4, 4), number)] for number, name in enumerate(data.SPLITS)}
    monkeypatch.setitem(sys.modules, "own_images", SimpleNamespace(make=made.get))
    assert equal(data.load("own_images:make", split), made[split])


@pytest.mark.skipif(not data.DEMO.exists(), reason=f"{data.DEMO} is missing")
def test_demo_is_balanced_and_of_cifar_size() -> None:
    images = sf.data.demo()
    assert (images.images.dtype, images.images.shape) == (torch.uint8, (200, 3, 32, 32))
    assert images.labels.dtype == torch.int64
    assert images.labels.bincount().tolist() == [20] * 10
    assert len(images.images.flatten(1).unique(dim=0)) == 200
    assert equal(data.load("demo"), list(zip(images.images, images.labels.tolist(), strict=True)))


# ---- in memory -------------------------------------------------------------------------------------------------------


def test_in_memory_decodes_each_image_once_and_reports_progress(tmp_path: Path) -> None:
    expected = write_folder(tmp_path)
    seen: list[int] = []
    images = in_memory(data.load(f"folder:{tmp_path}"), lambda indices: (seen.append(i) or i for i in indices))
    assert isinstance(images, Images)
    assert images.labels.dtype == torch.int64
    assert equal(images, expected)
    assert seen == list(range(len(expected)))


def test_labels_may_be_integers_of_any_kind() -> None:
    source = [(pixels(0, 3, 2, 2), label) for label in (3, np.int64(1), torch.tensor(2))]
    assert in_memory(source).labels.tolist() == [3, 1, 2]


def test_images_of_different_sizes_do_not_stack() -> None:
    source = [(pixels(0, 3, 5, 7), 0), (pixels(1, 3, 7, 5), 1)]
    with pytest.raises(ValueError, match="the images differ in size"):
        in_memory(source)


def test_no_images_are_an_error_of_their_own() -> None:
    with pytest.raises(ValueError, match="no images"):
        in_memory([])


def test_batches_go_through_all_images_in_order() -> None:
    images = Images(pixels(0, 7, 3, 2, 2), torch.arange(7) * 10)
    batches = list(data.batches(images, 3))
    assert [len(labels) for _, _, labels in batches] == [3, 3, 1]
    index, stacked, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert index.tolist() == list(range(7))
    assert torch.equal(stacked, images.images)
    assert torch.equal(labels, images.labels)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "", "Train"])
def test_unknown_split(split: str) -> None:
    with pytest.raises(ValueError, match=f"split is '{split}'; it must be one of train, test"):
        data.load("demo", split)


@pytest.mark.parametrize("spec", ["mnist", "", "cifar10", "cifar10:", "folder:", "Demo"])
def test_unknown_specs(spec: str) -> None:
    with pytest.raises(ValueError, match=rf"data is '{spec}'; it must be demo, .*or package\.module:callable"):
        data.load(spec)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "imagenet", "folder"])
def test_missing_data(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "nothing"
    with pytest.raises(ValueError, match=f"data is '{kind}:{root}', which cannot be read"):
        data.load(f"{kind}:{root}")
    assert not root.exists()


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "ape").mkdir()
    with pytest.raises(ValueError, match="which cannot be read: Found no valid file for the classes ape"):
        data.load(f"folder:{tmp_path}")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "images.zip"
    file.touch()
    with pytest.raises(ValueError, match=f"data is 'folder:{file}', which cannot be read"):
        data.load(f"folder:{file}")


@pytest.mark.parametrize(
    ("spec", "message"),
    {
        "no_such_module:images": "which cannot be imported .*no_such_module.*; accepted: demo, cifar10:ROOT",
        "json:no_such_name": "which cannot be imported .*no_such_name",
        "builtins:set": "which returned set; it must return a data set",
    }.items(),
)
def test_callables_that_make_no_data_set(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"data is '{spec}', {message}"):
        data.load(spec)

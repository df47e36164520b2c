"""Every kind of data set that a spec names, from small files of its real layout."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import equal, pixels, write_folder, write_image
from torchvision import datasets

import smoothfast as sf
from smoothfast import data
from smoothfast.data import Images, in_memory

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_that_is_not_there_says_where_it_is_from(tmp_path: Path, kind: str) -> None:
    archive = f"{kind.replace('cifar', 'cifar-')}-python.tar.gz"
    for root in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            ValueError, match=rf"get https://www\.cs\.toronto\.edu/~kriz/{archive} and extract it in {root}$"
        ):
            data.load(f"{kind}:{root}")
    (tmp_path / archive).touch()
    with pytest.raises(ValueError, match=rf"is not extracted: tar -xzf {tmp_path}/{archive} -C {tmp_path}$"):
        data.load(f"{kind}:{tmp_path}")


@pytest.mark.usefixtures("any_checksum")
def test_the_folder_of_cifar_itself_is_taken(tmp_path: Path) -> None:
    root = tmp_path / "cifar-100-python"
    dump(root / "test", {"data": pixels(1, 1, 3072).numpy(), "fine_labels": [4]})
    dump(root / "meta", {"fine_label_names": [str(n) for n in range(100)]})
    source = data.load(f"cifar100:{root}")
    assert source[0][1] == 4
    assert len(source.classes) == 100


IDS = [f"n{number:08}" for number in range(1000)]


def write_imagenet(root: Path, count: int) -> None:
    """An image of one level in each of the first classes."""
    for number, name in enumerate(IDS[:count]):
        write_image(root / name / f"{name}.JPEG", torch.full((3, 2, 2), number % 256, dtype=torch.uint8))


def test_imagenet_without_its_development_kit(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_imagenet(tmp_path / "val", 1000)
    source = data.load(f"imagenet:{tmp_path}", resize=1)
    assert (len(source), source[999][1]) == (1000, 999)
    assert source.classes == tuple(IDS)
    assert not recwarn.list
    torch.save(({name: (f"no. {name}", "thing") for name in IDS}, []), tmp_path / "meta.bin")
    assert data.load(f"imagenet:{tmp_path}").classes[7] == f"no. {IDS[7]}, thing"


def test_imagenet_in_part_is_warned_of(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "val", 3)
    with pytest.warns(UserWarning, match=r"val holds 3 classes, and ImageNet 1,000: their labels are 0 \.\. 2"):
        assert [data.load(f"imagenet:{tmp_path}", resize=1)[index][1] for index in range(3)] == [0, 1, 2]


def test_imagenet_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*/val with a folder for each class: n01440764"):
        data.load(f"imagenet:{tmp_path}")
    write_image(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", pixels(0, 3, 4, 4))
    with pytest.raises(ValueError, match="val holds no folders, one for each class, but images themselves"):
        data.load(f"imagenet:{tmp_path}")


@pytest.mark.filterwarnings("ignore:.*ImageNet")
def test_imagenet_is_resized_and_cropped_at_the_centre(tmp_path: Path) -> None:
    image = pixels(2, 3, 256, 320)  # its short side is right, so only the crop is left to do
    write_image(tmp_path / "val" / IDS[0] / "0.png", image)
    write_image(tmp_path / "train" / IDS[0] / "0.png", torch.full((3, 300, 600), 9, dtype=torch.uint8))
    assert equal(data.load(f"imagenet:{tmp_path}", "test"), [(image[:, 16:240, 48:272], 0)])
    assert equal(data.load(f"imagenet:{tmp_path}", "train"), [(torch.full((3, 224, 224), 9, dtype=torch.uint8), 0)])
    assert equal(data.load(f"imagenet:{tmp_path}", crop=250), [(image[:, 3:253, 35:285], 0)])


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
    assert (images.classes[3], len(images.classes)) == ("cat", 10)
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
    with pytest.raises(ValueError, match=r"differ in size: image 0 is 3x5x7, image 1 is 3x7x5 .*--resize 5 --crop 5"):
        in_memory(source)


def test_what_shows_progress_ends_where_an_image_cannot_be_read() -> None:
    ended = []

    def progress(indices: Iterable[int]) -> Iterator[int]:
        try:
            yield from indices
        finally:
            ended.append(True)

    with pytest.raises(KeyError) as kept:
        in_memory({0: (pixels(0, 3, 2, 2), 0), 2: None}, progress)  # type: ignore[arg-type]
    assert (kept.value.args, ended) == ((1,), [True])


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


@pytest.mark.parametrize(
    ("spec", "message"),
    {
        "no_such_module:images": "which cannot be imported .*no_such_module.*; accepted: demo, cifar10:ROOT",
        "json:no_such_name": "which cannot be imported: .*no_such_name",
        "builtins:set": "which returned set; it must return a data set",
    }.items(),
)
def test_callables_that_make_no_data_set(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"data is '{spec}', {message}"):
        data.load(spec)

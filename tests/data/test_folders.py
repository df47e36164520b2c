"""Folders of classes on the disk and in zip files: splits, classes, order, what is passed over and what is refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.pictures import Pairs, equal, pixels, write_folder, write_image, zipped
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

import smoothfast as sf
from smoothfast import data
from smoothfast.data import in_memory, trees
from smoothfast.data.folders import folder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_folder_of_classes_serves_both_splits(tmp_path: Path) -> None:
    expected = write_folder(tmp_path)
    for split in data.SPLITS:
        assert equal(sf.data.load(f"folder:{tmp_path}", split), expected)
    assert equal(data.load(f"folder:{tmp_path}"), expected)
    assert equal(folder(str(tmp_path), "test"), expected)


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


@pytest.mark.parametrize("name", ["val", "valid", "validation", "testing", "Test", "VAL"])
def test_images_to_test_on_by_other_names(tmp_path: Path, name: str) -> None:
    """Once a folder of splits with one split was taken for a folder of one class."""
    expected = write_folder(tmp_path / name)
    assert equal(data.load(f"folder:{tmp_path}"), expected)
    with pytest.raises(ValueError, match=rf"it holds {name}/, but no train/"):
        data.load(f"folder:{tmp_path}", "train")
    trained = write_folder(tmp_path / "Training", 50)
    assert equal(data.load(f"folder:{tmp_path}", "train"), trained)
    if name.lower() != "test":
        tested = write_folder(tmp_path / "test", 70)
        assert equal(data.load(f"folder:{tmp_path}"), tested)


def test_labels_are_those_of_the_training_images(tmp_path: Path) -> None:
    """Where a class has no image to test on, the labels of those after it do not move up."""
    write_folder(tmp_path / "train")
    expected = write_folder(tmp_path / "test", 9, ("ape", "cat"))
    source = data.load(f"folder:{tmp_path}")
    assert source.classes == ("ape", "bee", "cat")
    assert equal(source, [(image, 2 * label) for image, label in expected])


def test_what_is_hidden_is_passed_over(tmp_path: Path) -> None:
    expected = write_folder(tmp_path)
    for name in (".ipynb_checkpoints/0.png", "__MACOSX/ape/._0.png", "ape/.ipynb_checkpoints/0.png", "bee/._0.png"):
        write_image(tmp_path / name, pixels(9, 3, 5, 7))
    assert data.load(f"folder:{tmp_path}").classes == ("ape", "bee", "cat")
    assert equal(data.load(f"folder:{tmp_path}"), expected)
    zipped(tmp_path, tmp_path.with_suffix(".zip"))
    assert equal(data.load(f"folder:{tmp_path}.zip"), expected)


def nested(root: Path) -> Pairs:
    """Images in folders of classes and below, whose order the sign after a name decides."""
    names = ["a/1.png", "a-b/0.png", "a/b/0.PNG", "0.jpeg", "a.png", "b/c/d/2.png", "10.png", "9.png", "notes.txt"]
    for number, name in enumerate(names):
        for kind in ("ape", "bee"):
            if name.endswith("txt"):
                (root / kind / name).write_text("not an image")
            else:
                write_image(root / kind / name, pixels(number, 3, 2, 2))
    source = datasets.ImageFolder(str(root))
    return [(pil_to_tensor(image), label) for image, label in source]


def test_images_are_in_the_order_of_torchvision(tmp_path: Path) -> None:
    expected = nested(tmp_path)
    assert len(expected) == 16
    zipped(tmp_path, tmp_path.with_suffix(".zip"))
    for spec in (f"folder:{tmp_path}", f"folder:{tmp_path}.zip"):
        assert equal(data.load(spec), expected)


def test_a_single_folder_around_all_is_looked_through(tmp_path: Path) -> None:
    expected = {split: write_folder(tmp_path / "all" / "mine" / split, seed) for seed, split in enumerate(data.SPLITS)}
    for split in data.SPLITS:
        assert equal(data.load(f"folder:{tmp_path}", split), expected[split])
    assert data.load(f"folder:{tmp_path}").name_of(0) == str(tmp_path / "all" / "mine" / "test" / "ape" / "0.png")


def test_one_class_may_be_all(tmp_path: Path) -> None:
    expected = write_folder(tmp_path, classes=("ape",))
    assert equal(data.load(f"folder:{tmp_path}"), expected)


# ---- zip files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", ["", "mine/", "a/b/"])
@pytest.mark.parametrize("splits", [False, True])
def test_a_zip_file_of_a_folder(tmp_path: Path, within: str, splits: bool) -> None:
    root, path = tmp_path / "images", tmp_path / "images.zip"
    expected = {split: write_folder(root / split if splits else root) for split in data.SPLITS}
    zipped(root, path, within)
    before = sorted(tmp_path.rglob("*"))
    for split in data.SPLITS:
        assert equal(data.load(f"folder:{path}", split), expected[split])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_file_without_entries_for_folders_and_with_others_beside_them(tmp_path: Path) -> None:
    expected = write_folder(tmp_path / "images")
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("__MACOSX/mine/ape/._0.png", b"resource fork")
        file.writestr("mine/.DS_Store", b"layout")
        file.writestr("../../escaped/0.png", b"never written")
        for each in sorted((tmp_path / "images").rglob("*.png"), reverse=True):
            name = zipfile.ZipInfo("mine/./" + str(each.relative_to(tmp_path / "images")).replace("/", "\\"))
            name.filename = name.filename.replace("/ape", "\\ape")
            file.writestr(name, each.read_bytes())
    source = data.load(f"folder:{path}")
    assert equal(source, expected)
    assert source.name_of(0) == f"{path}/mine/ape/0.png"
    assert not (tmp_path.parents[1] / "escaped").exists()


def test_a_zip_file_travels_to_another_process(tmp_path: Path) -> None:
    expected = write_folder(tmp_path / "images")
    zipped(tmp_path / "images", tmp_path / "images.zip")
    source = data.load(f"folder:{tmp_path / 'images.zip'}")
    assert equal(pickle.loads(pickle.dumps(source)), expected)
    mine = source.tree._opened[1]
    source.tree._opened = (os.getpid() + 1, mine)  # of the process that this one was forked from
    assert equal(source, expected)
    assert source.tree._opened[1] is not mine


def test_an_image_in_a_zip_file_that_claims_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MOST_BYTES", 1000)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ape/0.png", b"\0" * 10**6)
    with pytest.raises(ValueError, match=r"bomb\.zip/ape/0\.png cannot be .*: it claims 1,000,000 bytes; .* 1,000"):
        data.load(f"folder:{path}")[0]
    content = path.read_bytes()
    true, claimed = (number.to_bytes(4, "little") for number in (10**6, 900))
    assert content.count(true) == 2
    path.write_bytes(content.replace(true, claimed))  # more comes out than is claimed
    with pytest.raises(ValueError, match=r"bomb\.zip/ape/0\.png cannot be read as an image: "):
        data.load(f"folder:{path}")[0]


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x05\x06" + b"\0" * 17, b"PK\x03\x04" + b"\0" * 50])
def test_a_file_that_is_no_folder(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.zip"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"data is 'folder:{path}', .*: {path} is neither a folder nor a zip file"):
        data.load(f"folder:{path}")


def test_a_zip_file_cut_or_encrypted(tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    path = tmp_path / "images.zip"
    zipped(tmp_path / "images", path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"images\.zip"):
            data.load(f"folder:{path}")
    flag = whole.index(b"PK\x01\x02") + 8
    for start in (at for at in range(len(whole)) if whole.startswith(b"PK\x01\x02", at)):
        whole = whole[: start + 8] + bytes([whole[start + 8] | 1]) + whole[start + 9 :]
    assert whole[flag] & 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"images\.zip/ape/0\.png cannot be read as an image: .*encrypted"):
        data.load(f"folder:{path}")[0]


def test_a_name_of_thousands_of_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr("a/" * 32_000 + "0.png", b"")
    with pytest.raises(ValueError, match=r"images\.zip has 32000 folders within each other; 32 are read"):
        data.load(f"folder:{tmp_path / 'images.zip'}")


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "ape").mkdir()
    with pytest.raises(ValueError, match="holds no images in the folders ape: each folder is a class"):
        data.load(f"folder:{tmp_path}")


def test_a_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no folders, one for each class$"):
        data.load(f"folder:{tmp_path}")
    write_image(tmp_path / "0.png", pixels(0, 3, 2, 2))
    with pytest.raises(ValueError, match="holds no folders, one for each class, but images themselves: put them"):
        data.load(f"folder:{tmp_path}")


def test_a_pipe_is_no_image_and_no_zip_file(tmp_path: Path) -> None:
    (tmp_path / "images" / "ape").mkdir(parents=True)
    for path in (tmp_path / "images" / "ape" / "0.png", tmp_path / "all.zip"):
        os.mkfifo(path)
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image: it is no file"):
        data.load(f"folder:{tmp_path / 'images'}")[0]
    with pytest.raises(ValueError, match="is neither a folder nor a zip file"):
        data.load(f"folder:{tmp_path / 'all.zip'}")

"""Folders of images through the commands: sizes, classes, and what is found before a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.hostile import ORDERS, obeyed
from helpers.pictures import pixels, write_image
from helpers.toys import Run, arguments, attack_arguments, check_error, timeless
from safetensors import safe_open

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("ape", "bee", "cat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of 8 by 8 pixels for each of three classes, of one level each."""
    root = tmp_path / "images"
    for label, name in enumerate(CLASSES):
        for number in range(2):
            level = (128, 26, 230)[label] + number
            write_image(root / name / f"{number}.png", torch.full((3, 8, 8), level, dtype=torch.uint8))
    return root


def test_sizes_are_settings_of_a_run(certify: Run, folder: Path, tmp_path: Path) -> None:
    sized = {"data": f"folder:{folder}", "resize": 5, "crop": 4}
    done = certify(**sized, max=3)
    assert done.status == 0, done.err
    assert "classes: 0 ape, 1 bee, 2 cat\n" in done.err
    settings = json.loads((tmp_path / "run.tsv.json").read_text())["settings"]
    assert (settings["resize"], settings["crop"]) == (5, 4)
    check_error(
        certify("--resume", data=f"folder:{folder}", resize=4, max=3), "crop was 4, is now not set; resize was 5"
    )
    assert certify("--resume", **sized, max=3).status == 0


def test_a_replay_takes_the_sizes_of_the_log(certify: Run, run: Run, toys: Path, folder: Path) -> None:
    assert certify(data=f"folder:{folder}", resize=4).status == 0
    words = ["--model=smoothfast_toys:model", f"--weights={toys / 'toy.safetensors'}", "--rows=1,4"]
    done = run("replay", "run.tsv", *words)
    assert done.status == 0, done.err
    assert done.out.startswith("run.tsv: 2 rows computed anew, 2 of them the same")


def test_a_zip_file_gives_the_same_log(certify: Run, folder: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    for out, place in (("a.tsv", folder), ("b.tsv", tmp_path / "packed.zip")):
        assert certify(data=f"folder:{place}", resize=4, out=out).status == 0
    assert timeless(tmp_path / "a.tsv") == timeless(tmp_path / "b.tsv")


def test_classes_are_in_the_object_for_programs(certify: Run, run: Run, toys: Path, folder: Path) -> None:
    sized = {"data": f"folder:{folder}", "resize": 4, "max": 2}
    assert json.loads(certify("--json", **sized).out)["classes"] == list(CLASSES)
    attacked = run(*attack_arguments(toys, **sized, steps=1, votes=11), "--json")
    assert json.loads(attacked.out)["classes"] == list(CLASSES)


@pytest.mark.parametrize("command", ["certify", "attack", "sweep", "train"])
def test_files_are_looked_at_before_the_run(run: Run, toys: Path, folder: Path, tmp_path: Path, command: str) -> None:
    shared = {"model": "smoothfast_toys:model", "data": f"folder:{folder}", "resize": None}

    def called() -> list[str]:
        if command == "attack":
            return attack_arguments(toys, **shared)
        if command == "certify":
            return arguments(command, toys, **shared)
        return [command, "--out=new", *(f"--{name}={value}" for name, value in shared.items() if value)] + (
            [f"--weights={toys / 'toy.safetensors'}"] if command == "sweep" else ["--recipe=clean"]
        )

    for path in folder.rglob("*.png"):  # of the size that the model is for
        write_image(path, pixels(0, 3, 4, 4))
    before = sorted(tmp_path.rglob("*"))
    write_image(folder / "cat" / "1.png", pixels(0, 3, 4, 5))
    check_error(run(*called()), "ape/0.png is 3x4x4", "cat/1.png is 3x4x5", "--resize 4 --crop 4")
    (folder / "cat" / "1.png").write_bytes((folder / "cat" / "0.png").read_bytes()[:45])
    check_error(run(*called()), "cat/1.png cannot be read as an image: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_more_or_fewer_classes_than_the_network_has_are_warned_of(certify: Run, folder: Path) -> None:
    for images in (folder / "bee").iterdir():
        images.unlink()
    (folder / "bee").rmdir()
    sized = {"data": f"folder:{folder}", "resize": 4}
    fewer = certify(**sized, classes=3)
    assert fewer.status == 0
    said = "warning: the data have 2 classes and the network 3; labels are the places of the former: 0 ape, 1 cat\n"
    assert fewer.err.count(said) == 1
    assert "warning" not in certify("--quiet", **sized, classes=3, out="quiet.tsv").err
    check_error(
        certify(**sized, out="new.tsv"), "1.weight is (3, 48), the model has (2, 48)",
        "the 2 classes of the model are those of the data: if the weights are of more or fewer, pass --classes",
    )  # fmt: skip
    for images in (folder / "cat").iterdir():
        images.unlink()
    (folder / "cat").rmdir()
    check_error(certify(**sized, out="new.tsv"), "the data have one class alone, 'ape'; pass --classes")


def test_names_of_classes_are_no_orders(certify: Run, folder: Path) -> None:
    (folder / "bee").rename(folder / f"bee{ORDERS.replace('/', '')}")
    done = certify(data=f"folder:{folder}", resize=4)
    assert done.status == 0
    assert "owned" in done.err
    assert obeyed(done.out + done.err) == set()


OWN = """
import torch

def load():
    return [{"image": torch.full((3, 4, 4), 40 * label, dtype=torch.uint8), "label": label} for label in (1, 2, 3)]
"""


def test_own_data_with_labels_from_one(certify: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_labels.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    message = "data is 'own_labels:load', in which item 2 has label 3; the labels of 3 classes lie in"
    check_error(certify(data="own_labels:load", classes=3), message, "do they begin at 1?", status=1)
    assert certify(data="own_labels:load", classes=3, skip=3, out="some.tsv").status == 0
    words = ["--model=smoothfast_toys:model", "--data=own_labels:load", "--recipe=clean", "--classes=3", "--out=new"]
    check_error(run("train", *words), message)


def test_training_on_images_of_one_size(run: Run, folder: Path, tmp_path: Path) -> None:
    words = [
        "train", "--model=smoothfast_toys:model", f"--data=folder:{folder}", f"--test=folder:{folder}", "--out=new",
        "--recipe=clean", "--epochs=1", "--batch=3", "--validation=0",
    ]  # fmt: skip
    done = run(*words, "--resize=5", "--crop=4")
    assert done.status == 0, done.err
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["resize"], about["crop"], about["num_classes"]) == ("5", "4", "3")
    check_error(run(*words, "--resize=4", "--resume"), 'resize was "5", is now "4"', 'crop was "4", is now not set')

"""Data sets of the user's own code: how it is called, and items as people have them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import equal, pixels
from PIL import Image
from torch import Tensor

from smoothfast import data
from smoothfast.data import Within, in_memory

pytestmark = pytest.mark.usefixtures("one_thread")

COLOUR, GREY = pixels(0, 3, 6, 5), pixels(1, 1, 6, 5)
HWC = COLOUR.permute(1, 2, 0).numpy()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads what an object of a module is or makes."""

    def load(made: Any, split: str = "test") -> data.Labelled:
        monkeypatch.setitem(sys.modules, "own_images", SimpleNamespace(make=made))
        return data.load("own_images:make", split)

    return load


# ---- items -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "expected"),
    {
        "tensor": (COLOUR, COLOUR),
        "grey tensor": (GREY[0], GREY),
        "floats": (COLOUR / 255, COLOUR / 255),
        "five channels": (pixels(2, 5, 6, 5), pixels(2, 5, 6, 5)),
        "Pillow": (Image.fromarray(HWC), COLOUR),
        "Pillow, grey": (Image.fromarray(GREY[0].numpy()), GREY),
        "Pillow, black and white": (Image.fromarray(GREY[0].numpy() > 99), (GREY > 99).byte() * 255),
        "Pillow, 16 bits": (Image.fromarray(GREY[0].numpy().astype(np.uint16) * 257), GREY),
        "Pillow, palette": (Image.fromarray(GREY[0].numpy()).convert("P"), GREY.expand(3, 6, 5)),
        "array [H, W, C]": (HWC, COLOUR),
        "array [C, H, W]": (COLOUR.numpy(), COLOUR),
        "array [H, W]": (GREY[0].numpy(), GREY),
        "array with alpha": (pixels(3, 6, 5, 4).numpy(), pixels(3, 6, 5, 4).permute(2, 0, 1)),
        "floats [H, W, C]": (HWC.astype(np.float64) / 255, COLOUR.double() / 255),
        "reversed": (HWC[:, ::-1], COLOUR.flip(2)),
    }.values(),
)
def test_images_of_any_plain_kind(loaded: Any, image: Any, expected: Tensor) -> None:
    assert equal(loaded([(image, 3)]), [(expected, 3)])


@pytest.mark.parametrize("label", [2, np.int64(2), np.uint8(2), np.array(2), np.array([2]), torch.tensor(2)])
@pytest.mark.parametrize(
    "make",
    [
        lambda image, label: (image, label),
        lambda image, label: [image, label],
        lambda image, label: (image, label, {"file": "0.png"}),
        lambda image, label: {"image": image, "label": label, "id": 7},
        lambda image, label: {"img": image, "labels": label},
        lambda image, label: {"pixel_values": image, "target": label},
        lambda image, label: {"x": image, "y": label},
    ],
)
def test_items_of_any_plain_kind(loaded: Any, make: Any, label: Any) -> None:
    source = loaded([make(COLOUR, label)])
    assert equal(source, [(COLOUR, 2)])
    assert type(source[0][1]) is int


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((7, COLOUR, 2), "its image is int"),
        (("a.png", 2), "its image is str"),
        (COLOUR, "it is Tensor"),
        ((COLOUR,), "it has 1 parts"),
        (None, "it is NoneType"),
        ({"picture": COLOUR, "label": 2}, "it is a dict of picture, label; one of image, img, pixel_values, x and"),
        ({"img": COLOUR, "fine_label": 2}, "it is a dict of img, fine_label; one of .* label, labels, target, y are"),
        ((COLOUR, "cat"), "its label is str 'cat', no integer"),
        ((COLOUR, 1.0), r"its label is float 1\.0, no integer"),
        ((COLOUR, torch.tensor(1.0)), r"its label is Tensor .*1\.\), no integer"),
        ((COLOUR, torch.zeros(10)), "its label is Tensor 10 "),
        ((COLOUR, np.zeros(10, int)), "its label is ndarray 10 "),
        ((COLOUR, -1), "its label is -1; labels begin at 0"),
        ((COLOUR.int(), 1), r"its image is torch\.int32 3x6x5, and must be uint8 or float"),
        ((COLOUR[None], 1), r"its image is torch\.uint8 1x3x6x5"),
        ((pixels(0, 3, 6, 3).numpy(), 1), "its image is an array 3x6x3, which side are the channels"),
        ((pixels(0, 5, 6, 7).numpy(), 1), "its image is an array 5x6x7, which side are the channels"),
        ((Image.fromarray(np.full((2, 2), 2.0, np.float32)), 1), r"it has floats over 2 \.\. 2"),
    ],
)
def test_other_items_are_refused_by_number(loaded: Any, item: Any, message: str) -> None:
    source = loaded([(COLOUR, 0), item])
    assert source[0][1] == 0
    with pytest.raises(ValueError, match=rf"data is 'own_images:make', whose item 1 cannot be taken: {message}"):
        source[1]


@pytest.mark.parametrize("tells", [False, True])
def test_labels_that_begin_at_one_are_refused(loaded: Any, tells: bool) -> None:
    class Counted(list):  # type: ignore[type-arg]
        targets = [1, 2, 3] if tells else None

    source = loaded(Counted([(COLOUR, label) for label in (1, 2, 3)]))
    with pytest.raises(
        ValueError,
        match=r"'own_images:make', in which item 2 has label 3; the labels of 3 classes lie in "
        r"0 \.\. 2; do they begin at 1\? Subtract 1",
    ):
        in_memory(Within(source, "own_images:make", 3))
    assert in_memory(Within(source, "own_images:make", 4)).labels.tolist() == [1, 2, 3]


def test_targets_of_another_kind_are_no_labels(loaded: Any) -> None:
    for told in (object(), ["a"], [[1], [2, 3]], torch.ones(7), np.ones(1)):
        made = type("Made", (list,), {"targets": told})([(COLOUR, 1)])
        assert len(Within(loaded(made), "own_images:make", 2)) == 1


# ---- how it is called ------------------------------------------------------------------------------------------------

ITEMS = {"train": [(COLOUR, 0)], "test": [(COLOUR, 1)]}


class BySplit:
    classes = ("ape", "bee")

    def __init__(self, split: str) -> None:
        self.items = ITEMS[split]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.mark.parametrize(
    "made",
    [
        BySplit,
        lambda which: ITEMS[which],
        lambda root="nowhere", *, split: ITEMS[split],
        lambda root="nowhere", train=True: ITEMS["train" if train else "test"],
        lambda: ITEMS,
        lambda *arguments: BySplit(*arguments),
        ITEMS,
    ],
    ids=["class", "function", "split", "train", "mapping made", "any arguments", "mapping"],
)
@pytest.mark.parametrize("split", data.SPLITS)
def test_what_makes_a_data_set_gets_the_split(loaded: Any, made: Any, split: str) -> None:
    assert equal(loaded(made, split), ITEMS[split])


@pytest.mark.parametrize("made", [ITEMS["test"], BySplit("test"), lambda: BySplit("test")])
def test_without_a_split_all_is_for_both(loaded: Any, made: Any) -> None:
    for split in data.SPLITS:
        assert equal(loaded(made, split), ITEMS["test"])


def test_names_of_classes(loaded: Any) -> None:
    assert loaded(BySplit).classes == ("ape", "bee")
    for told in (None, 10, "ab", []):
        assert loaded(type("Made", (list,), {"classes": told})()).classes == ()
    hugging = type("Made", (list,), {"features": {"img": None, "label": SimpleNamespace(names=["ape", "bee"])}})
    assert loaded(hugging([(COLOUR, 0)])).classes == ("ape", "bee")


def test_images_in_memory_stay_what_they_are(loaded: Any) -> None:
    assert isinstance(loaded(data.demo), data.Images)


def endless(split: str) -> Iterator[Any]:
    yield COLOUR, 0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (endless, r"which returned generator; it must return a data set, with len\(\) and \[index\]: list\("),
        (lambda: SimpleNamespace(dataset=[]), "which returned SimpleNamespace; .*: not a loader, but the data set"),
        (lambda: None, "which returned NoneType; it must return a data set"),
        (lambda a, b: None, r"which takes \(a, b\); it must take the split, or nothing"),
        ({"val": []}, "a mapping of val; it has no 'test'"),
        (7, "which is neither callable nor a data set"),
    ],
)
def test_what_makes_none_is_refused(loaded: Any, made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data is 'own_images:make', {message}"):
        loaded(made)


class Failing(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        raise KeyError("no such item")


def failing() -> Any:
    raise RuntimeError("no data here")


def test_errors_of_the_code_are_told_with_their_place(loaded: Any) -> None:
    with pytest.raises(ValueError, match=r"which raised RuntimeError: no data here \(.*:\d+, in failing\)$"):
        loaded(failing)
    source = loaded(Failing([1]))
    with pytest.raises(ValueError, match=r"whose item 0 raised KeyError: 'no such item' \(.*:\d+, in __getitem__\)$"):
        source[0]

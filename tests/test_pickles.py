"""Pickles that would fill the memory or have no end, and those that people save."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smoothfast import pickles
from smoothfast.pickles import require_modest
from smoothfast.torch_files import read_torch
from smoothfast.weights import read_weights

DOUBLED = b"q\0h\0\x86"  # a tuple of the value on the stack and itself
CALL = b"\x85R"  # with one argument


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words)) + words.encode()


def integer(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def name(words: str) -> bytes:
    return b"c" + words.replace(" ", "\n").encode() + b"\n"


STORAGE = b"(" + text("storage") + name("torch FloatStorage") + text("0") + text("cpu") + b"K\3tQ"
WIDE = b"".join(
    (name("torch._utils _rebuild_tensor_v2"), b"(", STORAGE, b"K\0", integer(2**33), b"\x85K\0\x85\x89")
) + b"".join((name("collections OrderedDict"), b")RtR"))  # a tensor of 2**33 elements that are one
BYTES = name("__builtin__ bytearray") + integer(2**31) + CALL

HOSTILE = {
    "a key that is hashed for ever": b"}K\1" + DOUBLED * 40 + b"K\1s",
    "a key as deep as the stack of C": b"}K\1" + b"\x85" * 500_000 + b"K\1s",
    "an error that shows it for ever": b"K\1" + DOUBLED * 40 + b")R",
    "lists that hold one another": b"]q\0(" + b"h\0" * 9 + b"e]q\1(" + b"h\1" * 9 + b"e" + b"q\2(h\2h\2t" * 30,
    "a list that grows where it stands": b"]q\0h\0\x86h\0K\1a",
    "bytes by a number": BYTES,
    "a tuple of them": name("torch Size") + BYTES + CALL,
    "a tensor gone through": name("collections Counter") + WIDE + CALL,
    "a tensor as arguments": name("torch Size") + WIDE + b"R",
    "a tensor as a state": WIDE + WIDE + b"b",
    "a class handed on": name("torch._tensor _rebuild_from_type_v2")
    + (b"(" + name("torch Size") + b"K\1" + WIDE + b"}tR"),
    "a tensor on another device": name("torch._utils _rebuild_device_tensor_from_cpu_tensor") + b"(" + WIDE + b"tR",
    "a sparse tensor": name("torch._utils _rebuild_sparse_tensor") + b"(" + WIDE + b"tR",
    "a number of 2 GB": name("numpy._core.multiarray scalar")
    + (name("numpy dtype") + text("V2000000000") + b"\x89\x88\x87R" + CALL),
    "numbers of 2 GB": name("numpy dtype") + b"](" + text("V2000000000") + b"e" + CALL,
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_would_fill_the_memory_or_take_for_ever_is_refused(tmp_path: Path, what: str, zipped: bool) -> None:
    path, content = tmp_path / "net.pt", b"\x80\2" + HOSTILE[what] + b"."
    with pytest.raises(ValueError, match=r"^its? "):
        require_modest(io.BytesIO(content))
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    if zipped:
        with zipfile.ZipFile(path) as file:
            records = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w") as file:
            for record, data in records.items():
                file.writestr(record, content if record.endswith("data.pkl") else data)
    else:
        path.write_bytes(whole.replace(pickle.dumps({"a": 1}, 2)[:4], content))
    with pytest.raises(ValueError, match=r"net\.pt cannot be read with weights_only=True: its? "):
        read_weights(path)


def saved() -> dict[str, Any]:
    """A checkpoint with all that those of the field have."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam([{"params": network[0].parameters()}, {"params": network[2].parameters()}])
    return {
        "model": network.state_dict(),
        "best": network.state_dict(),
        "parameters": list(network.parameters()),
        "optimizer": optimizer.state_dict(),
        "schedule": {"milestones": Counter([30, 60]), "tuples": ((1, 2),) * 9},
        "best_acc": np.float64(0.5),
        "size": torch.Size([2, 3]),
        "names": {"a", "b"},
        "ordered": OrderedDict(a=1),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_what_people_save_is_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "checkpoint.pt"
    expected = saved()
    torch.save(expected, path, _use_new_zipfile_serialization=zipped)
    found = read_torch(path)
    assert found.keys() == expected.keys()
    assert all(value.equal(expected["model"][name]) for name, value in found["model"].items())
    assert len(read_weights(path).tensors) == len(expected["model"])


def test_a_checkpoint_of_any_size_may_hold_its_weights_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "LEAST", 0)
    weights = {f"layer{number}.weight": list(range(number)) for number in range(50)}
    assert require_modest(io.BytesIO(pickle.dumps({"model": weights, "best": [weights] * 9}, 2)))
    with pytest.raises(ValueError, match="its values hold one another without end"):
        require_modest(io.BytesIO(pickle.dumps([weights] * 30, 2)))


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\2(h\5.", b"\x80\4\x95\x08\0\0\0\0\0\0\0", b"\x80\2a."])
def test_what_torch_does_not_take_is_left_to_it(content: bytes) -> None:
    assert not require_modest(io.BytesIO(content))


@pytest.mark.parametrize("method", ["get", "values", "items", "keys"])
def test_a_method_that_a_pickle_puts_in_the_place_of_another_is_not_called(tmp_path: Path, method: str) -> None:
    class State(OrderedDict):  # type: ignore[type-arg]
        def __reduce__(self) -> Any:
            return OrderedDict, (), {method: 5}, None, iter({"state_dict": {"a": torch.zeros(2)}}.items())

    torch.save(State(), tmp_path / "net.pt")
    assert read_weights(tmp_path / "net.pt").tensors["a"].shape == (2,)

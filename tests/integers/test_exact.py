"""Tensors that are no network in integers: each is refused in one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.integer import random_tensors
from safetensors.torch import save_file
from torch import Tensor

from smoothfast.integers.exact import network_of
from smoothfast.integers.files import FORMAT, save
from smoothfast.weights import read_weights

SHAPE = (16, 32, 16), 1, 3


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return random_tensors(*SHAPE, seed=0)


def change(name: str, value: float, *at: int) -> Callable[[dict[str, Tensor]], None]:
    def changed(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][at] = value

    return changed


def replace(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: value})


REFUSED = {
    "missing": (lambda t: t.pop("blocks.1.second.scale"), "blocks.1.second.scale is missing"),
    "left over": (replace("more", torch.zeros(1)), "has more, which no integer network has"),
    "two blocks": (lambda t: t.pop("blocks.2.shift"), "has 2 blocks"),
    "floats": (lambda t: t.update({"linear": t["linear"].float()}), "linear is torch.float32"),
    "another shape": (replace("blocks.0.shift", torch.zeros(8, dtype=torch.int32)), r"blocks.0.shift is .*\[8\]"),
    "odd widths": (replace("image.weight", torch.zeros(24, 3, 3, 3, dtype=torch.int16)), "24 outputs"),
    "image weights": (change("image.weight", 4096, 0, 0, 0, 0), "image.weight exceeds 4095"),
    "image sums": (change("image.weight", 4000, 1), "an output of image.weight exceeds 65535"),
    "pairs": (change("blocks.1.first.weight", 100, 3, slice(0, 2), 1, 1), "blocks.1.first.weight exceed 128"),
    "pairs of shortcuts": (change("blocks.2.shortcut", 100, 3), "blocks.2.shortcut exceed 128"),
    "negative multipliers": (change("blocks.0.multiplier", -1, 5), "blocks.0.multiplier is negative"),
    "shifts": (change("blocks.0.shift", 25, 5), "blocks.0.shift is outside of 0 .. 24"),
    "overflowing shifts": (change("blocks.0.shift", 24, slice(None)), "blocks.0.second may overflow"),
    "scales of zero": (change("image.scale", 0, 2), "image.scale is outside"),
    "large scales": (change("blocks.0.first.scale", 0.50001, 2), "blocks.0.first.scale is outside"),
    "scales that are none": (change("blocks.0.first.scale", torch.nan, 2), "blocks.0.first.scale is outside"),
    "biases": (change("blocks.0.first.bias", 2.0**29 + 64, 2), "blocks.0.first.bias exceeds"),
    "biases that are none": (change("image.bias", torch.nan, 0, 0, 2), "image.bias exceeds"),
    "a unit of zero": (replace("unit", torch.tensor(0.0)), "unit is 0.0"),
    "an infinite unit": (replace("unit", torch.tensor(torch.inf)), "unit is inf"),
    "large logits": (change("linear", 32767, 0), "linear may overflow"),
    "a large bias of logits": (change("linear_bias", 2**31 - 1, 0), "linear may overflow"),
    "a subnormal unit": (replace("unit", torch.tensor(1e-40)), "unit is 9.99"),
    "one class": (replace("linear", torch.zeros(1, 16, dtype=torch.int16)), "linear has 1 classes"),
    "other channels": (replace("linear", torch.zeros(3, 32, dtype=torch.int16)), "linear takes 32 channels"),
}


@pytest.mark.parametrize(("edit", "said"), REFUSED.values(), ids=REFUSED)
def test_tensors_that_are_no_network_are_refused(
    tensors: dict[str, Tensor], edit: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    network_of(tensors)
    edit(tensors)
    with pytest.raises(ValueError, match=said) as refused:
        network_of(tensors)
    assert "\n" not in str(refused.value)


def test_what_is_just_allowed() -> None:
    """Sums that are a little below 2^31, and other numbers at their limits."""
    tensors = random_tensors(*SHAPE, seed=0)
    tensors["blocks.0.first.scale"][2], tensors["blocks.0.first.bias"][2] = 0.5, 2.0**29
    tensors["linear"][:], tensors["linear_bias"][:] = 8191, 2**31 - 1 - 16 * 8191 * 64 * 255
    network_of(tensors)
    tensors["linear_bias"][1] += 1
    with pytest.raises(ValueError, match="linear may overflow"):
        network_of(tensors)


def test_a_file_is_read_as_it_was_written(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    network = network_of(tensors)
    save(network, tmp_path / "q.safetensors", {"sigma": "0.25"})
    weights = read_weights(tmp_path / "q.safetensors")
    assert weights.about == {"format": FORMAT, "num_classes": "3", "sigma": "0.25"}
    again = weights.integers
    assert again is not None
    assert all(torch.equal(again.state_dict()[name], value) for name, value in network.state_dict().items())
    assert again.shape == network.shape == [16, 32, 16, 1, 3]
    (tmp_path / "other").touch()
    assert (tmp_path / "q.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_that_says_so_and_is_none(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "plain.safetensors")
    assert read_weights(tmp_path / "plain.safetensors").integers is None
    save_file(
        {**tensors, "linear": tensors["linear"][:, :8].contiguous()}, tmp_path / "q.safetensors", {"format": FORMAT}
    )
    with pytest.raises(ValueError, match="the weights are no network in integers: linear takes 8 channels"):
        _ = read_weights(tmp_path / "q.safetensors").integers

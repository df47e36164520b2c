"""A small model and data set for the command line, and how it is called on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Images of one level each. Number 5 is labelled wrongly, and number 6 lies between two classes.
TOYS = """
import os
import torch
from torch import nn

LEVELS, LABELS = (0.5, 0.1, 0.9, 0.45, 0.2, 0.8, 0.7), (0, 1, 2, 0, 1, 0, 2)


def model(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))


class Flat(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(48, num_classes)

    def forward(self, x):
        return self.head(x.flatten(1))


class Counting(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def restless(num_classes):
    return nn.Sequential(nn.Flatten(), Counting(48, num_classes))


class Images:
    classes = ("grey", "dim", "bright")

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        if str(index) == os.environ.get("KILL_AT"):
            os._exit(9)
        if str(index) == os.environ.get("INTERRUPT_AT"):
            raise KeyboardInterrupt
        if str(index) == os.environ.get("GONE_AT"):
            raise FileNotFoundError(2, "No such file or directory", f"{index}.png")
        image = torch.full((3, 4, 4), round(255 * LEVELS[index]), dtype=torch.uint8)
        return image, LABELS[index]


class Uneven(Images):
    def __getitem__(self, index):
        return super().__getitem__(index)[0][:, : 4 - index], 0


class Empty(Images):
    def __len__(self):
        return 0


class Unnamed(Images):
    classes = ()


images, uneven, empty, unnamed = (lambda split, kind=kind: kind() for kind in (Images, Uneven, Empty, Unnamed))
number = 5
"""
LABELS = [0, 1, 2, 0, 1, 0, 2]
# The class is that of the nearest of three levels: (x - c)^2 is least where 2cx - c^2 is largest, x the mean of pixels.
CENTRES = torch.tensor([0.5, 0.1, 0.9])
WEIGHTS = {"1.weight": (2 * CENTRES[:, None] / 48).repeat(1, 48), "1.bias": -(CENTRES**2)}


class Result(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Result]


def arguments(command: str, toys: Path, out: str = "run.tsv", **options: Any) -> list[str]:
    """A run of the toys; an option that is None is left out."""
    chosen: dict[str, Any] = {
        "out": out, "model": "smoothfast_toys:model", "data": "smoothfast_toys:images",
        "weights": toys / "toy.safetensors", "sigma": 0.3, "n": 100, "precision": "fp32", "batch": 16, "seed": 3,
        "normalize": "none",
    }  # fmt: skip
    chosen |= {"n0": 16} if command == "certify" else {}
    chosen |= options
    return [command, *(f"--{name}={value}" for name, value in chosen.items() if value is not None)]


# The methods of certify that stop early. Every toy has a radius far from 0.3.
EARLY: dict[str, dict[str, Any]] = {
    "sequential": {"method": "sequential", "radius": 0.3},
    "tolerance": {"method": "tolerance", "tolerance": 0.4, "n": 4000},
    "grid": {"method": "grid", "radii": "0.05,0.3,0.44", "n": 400, "bound": "cohen"},
}


def timeless(path: Path) -> str:
    """A log without the time column."""
    lines = (line.split("\t") for line in path.read_text().splitlines(keepends=True))
    return "".join("\t".join(cells[:5] + cells[6:]) for cells in lines)


def check_error(result: Result, *parts: str, status: int = 2) -> None:
    """One line, and no table."""
    assert (result.status, result.out) == (status, "")
    last = result.err.splitlines()[-1]
    assert last.startswith("smoothfast: ")
    assert all(part in last for part in parts), last
    assert "Traceback" not in result.err


def attack_arguments(toys: Path, **options: Any) -> list[str]:
    """An attack on the toys; an option that is None is left out."""
    chosen: dict[str, Any] = {
        "attack": "epgd", "out": "adv.safetensors", "model": "smoothfast_toys:model",
        "data": "smoothfast_toys:images", "weights": toys / "toy.safetensors", "sigma": 0.3, "eps": "51/255",
        "steps": 3, "samples": 4, "votes": 50, "precision": "fp32", "batch": 16, "seed": 3, "max": 6,
        "normalize": "none",
    } | options  # fmt: skip
    return ["attack", *(f"--{name}={value}" for name, value in chosen.items() if value is not None)]

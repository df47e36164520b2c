"""The imports of the package: data takes one way, so none runs upwards, and none in a circle."""

from __future__ import annotations

from pathlib import Path

import pytest
from imports import Arrow, House, house

# From the ground up. A room may import those before it.
ORDER = [
    "version", "names", "streams", "normalization", "former", "lazy", "text", "failures", "launch",
    "checks", "specs", "files", "statistics", "procedures",
    "modules", "introductions", "turns", "interrupts", "untraced", "images", "pickles", "torch_files", "data",
    "voting", "losses",
    "ops", "noise", "environment",
    "integers", "layers", "runners", "quantization", "engine",
    "own_networks", "pretrained", "models", "denoising", "layouts", "weights",
    "smoothing", "evaluation", "attacks",
    "processes", "training", "runs", "selftest", "cli", "__main__",
]  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> House:
    return house()


def test_no_file_imports_in_a_circle(drawn: House) -> None:
    assert drawn.circles() == []
    assert drawn.upwards() == []


def test_no_room_imports_one_above_it(drawn: House) -> None:
    folders = drawn.by_folder()
    assert folders.rooms == set(ORDER)
    upwards = [arrow for arrow in folders.arrows | folders.deferred if ORDER.index(arrow[1]) > ORDER.index(arrow[0])]
    assert upwards == []


def test_circles_and_upward_imports_are_found(tmp_path: Path) -> None:
    """Also those within functions, and those that go through the face of a package."""
    files = {
        "__init__": "",
        "low": "def late():\n    from .high import Top",
        "high/__init__": "from .top import Top",
        "high/top": "from .. import low\nclass Top: ...",
        "apart": "from .high import Top",
    }
    for name, text in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    found = house(tmp_path)
    assert found.rooms == {"low", "high/top", "apart"}
    assert found.floors == {"low": 1, "high/top": 2, "apart": 3}
    assert found.upwards() == [Arrow("low", "high/top")]
    assert found.circles() == [{"low", "high/top"}]
    assert found.by_folder().circles() == [{"low", "high"}]

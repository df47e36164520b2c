"""Files that cannot be read, and images of several sizes, found before a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pictures import pixels, write_folder, write_image, zipped

from smoothfast import data
from smoothfast.data import require_readable, required

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["decoded", "by their heads", "in a zip file"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to look at files."""
    if request.param == "by their heads":
        monkeypatch.setattr(required, "DECODED", 1)
    return str(request.param)


def loaded(root: Path, way: str, **sides: int) -> data.Labelled:
    path = root
    if way == "in a zip file":
        path = root.with_suffix(".zip")
        zipped(root, path)
    return data.load(f"folder:{path}", **sides)  # type: ignore[arg-type]


def test_sound_files_pass(tmp_path: Path, way: str) -> None:
    write_folder(tmp_path / "all")
    for sides in ({}, {"resize": 4}, {"crop": 3}):
        require_readable(loaded(tmp_path / "all", way, **sides), range(6))


def test_a_broken_file_is_named(tmp_path: Path, way: str) -> None:
    write_folder(tmp_path / "all")
    path = tmp_path / "all" / "bee" / "1.png"
    whole = path.read_bytes()
    for content in (b"", b"not an image", *([whole[:-40]] if way != "by their heads" else [])):
        path.write_bytes(content)
        source = loaded(tmp_path / "all", way)
        require_readable(source, [0, 1, 2])  # of which it is none
        with pytest.raises(ValueError, match=r"bee/1\.png cannot be read as an image: "):
            require_readable(source, range(6))


def test_mixed_sizes_name_both_files_and_a_remedy(tmp_path: Path, way: str) -> None:
    write_folder(tmp_path / "all")
    write_image(tmp_path / "all" / "cat" / "0.png", pixels(0, 3, 9, 7))
    source = loaded(tmp_path / "all", way)
    with pytest.raises(
        ValueError,
        match=r"differ in size: .*ape/0\.png is 3x5x7, .*cat/0\.png is 3x9x7 \(channels x height x width\).*"
        r"--resize 5 --crop 5",
    ):
        require_readable(source, range(6))
    with pytest.raises(ValueError, match=r"ape/0\.png is 3x5x7, .*cat/0\.png is 3x6x5"):
        require_readable(loaded(tmp_path / "all", way, resize=5), range(6))
    require_readable(loaded(tmp_path / "all", way, resize=5, crop=5), range(6))
    with pytest.raises(ValueError, match=r"ape/0\.png: crop is 6; the image has 5x7 pixels"):
        require_readable(loaded(tmp_path / "all", way, crop=6), range(6))


def test_other_data_sets_are_read_as_they_are_needed() -> None:
    require_readable([], range(5))  # type: ignore[arg-type]

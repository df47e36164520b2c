"""Folders of image files, on the disk or in a zip file, which is read as it stands."""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import IO

from .pictures import SUFFIXES

MOST_BYTES = 2**28  # of an image in a zip file: what Pillow's most pixels take in RGB
MOST_LEVELS = 32  # of folders within each other in a zip file: a name of 64 KiB may tell 32,000
NOT_SHOWN = "__MACOSX"  # beside the hidden ones: what the archiver of macOS puts in


def shown(name: str) -> bool:
    """Tells whether a file or folder counts: it is not hidden."""
    return not name.startswith(".") and name != NOT_SHOWN


def pictured(names: Iterable[str]) -> list[str]:
    """Names of files that count as images, sorted."""
    return sorted(name for name in names if shown(name) and name.lower().endswith(SUFFIXES))


class Tree(ABC):
    """Folders below a root, `""`, and the images in them; `a/b` is a folder in a folder."""

    @abstractmethod
    def folders(self, place: str) -> list[str]:
        """The names of the folders in a folder, sorted; not those that are hidden."""

    @abstractmethod
    def walk(self, place: str) -> Iterator[tuple[str, list[str]]]:
        """A folder and those below it, each with the names of its images; not those that are hidden."""

    @abstractmethod
    def open(self, path: str) -> IO[bytes]:
        """Opens an image."""

    @abstractmethod
    def name_of(self, path: str) -> str:
        """The name of an image or folder in messages."""

    def pictures(self, place: str) -> list[str]:
        """The paths of all images below a folder, in the order of torchvision's ImageFolder."""
        return [f"{folder}/{name}" for folder, names in sorted(self.walk(place)) for name in names]


class Disk(Tree):
    """Folders on the disk.

    Args:
        root: the one that they are in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folders(self, place: str) -> list[str]:
        return sorted(child.name for child in (self.root / place).iterdir() if shown(child.name) and child.is_dir())

    def walk(self, place: str) -> Iterator[tuple[str, list[str]]]:
        for folder, inner, names in os.walk(self.root / place, followlinks=True):
            inner[:] = filter(shown, inner)
            yield os.path.relpath(folder, self.root).replace(os.sep, "/"), pictured(names)

    def open(self, path: str) -> IO[bytes]:
        if not (self.root / path).is_file():  # a pipe or a device has no end
            raise ValueError("it is no file")
        return (self.root / path).open("rb")

    def name_of(self, path: str) -> str:
        return str(self.root / path)


class Zipped(Tree):
    """Folders in a zip file. Each process opens it for itself: a file that is shared has one place to read at.

    Args:
        path: the file.

    Raises:
        ValueError: it is no zip file, or a broken one.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} is neither a folder nor a zip file of one")
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._file()

    def _file(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except Exception as error:  # a reader that meets noise may raise anything
                raise ValueError(f"{self.path} is neither a folder nor a zip file of one: {error}") from error
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_opened": None}

    @cached_property
    def _held(self) -> tuple[dict[str, set[str]], dict[str, dict[str, zipfile.ZipInfo]]]:
        """The folders in each folder, and the images in each."""
        folders: dict[str, set[str]] = {"": set()}
        images: dict[str, dict[str, zipfile.ZipInfo]] = {"": {}}
        for record in self._file().infolist():
            parts = [part for part in record.filename.replace("\\", "/").split("/") if part not in ("", ".")]
            if not parts or not all(map(shown, parts)):
                continue
            above = parts if record.is_dir() else parts[:-1]
            if len(above) > MOST_LEVELS:
                raise ValueError(f"{self.path} has {len(above)} folders within each other; {MOST_LEVELS} are read")
            for depth, name in enumerate(above):
                folders["/".join(above[:depth])].add(name)
                folders.setdefault("/".join(above[: depth + 1]), set())
                images.setdefault("/".join(above[: depth + 1]), {})
            if not record.is_dir():
                images["/".join(above)][parts[-1]] = record
        return folders, images

    def folders(self, place: str) -> list[str]:
        return sorted(self._held[0].get(place, ()))

    def walk(self, place: str) -> Iterator[tuple[str, list[str]]]:
        folders, images = self._held
        yield place, pictured(images.get(place, ()))
        for name in folders.get(place, ()):
            yield from self.walk(f"{place}/{name}".lstrip("/"))

    def open(self, path: str) -> IO[bytes]:
        folder, _, name = path.rpartition("/")
        record = self._held[1][folder][name]
        if record.file_size > MOST_BYTES:
            raise ValueError(f"it claims {record.file_size:,} bytes; an image may have {MOST_BYTES:,}")
        with self._file().open(record) as file:  # which hands out no more than is claimed
            return BytesIO(file.read())

    def name_of(self, path: str) -> str:
        return f"{self.path}/{path}"

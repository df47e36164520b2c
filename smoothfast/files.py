"""Files of runs: there whole or not at all, not overwritten, written by one process at a time, gone on with only by the
same settings."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

# What matplotlib draws, by suffix. Known without it, since it takes half a second to import.
PICTURES = (
    "eps", "jpeg", "jpg", "pdf", "pgf", "png", "ps", "raw", "rgba", "svg", "svgz", "tif", "tiff", "webp",
)  # fmt: skip


def require_new(path: Path) -> None:
    """Raises FileExistsError where there is a file of a run, for callers with work to do before they open it."""
    if path.exists():
        raise exists(path)


def require_no_folder(path: Path) -> None:
    """Raises ValueError where the file to write is a folder."""
    if path.is_dir():
        raise ValueError(f"--out is a directory: {path}; name a file")


def exists(path: Path) -> FileExistsError:
    """The error of a run that would write over another."""
    return FileExistsError(f"{path} exists: go on with it (--resume) or choose another --out")


def require_present(path: Path | None) -> None:
    """Raises FileNotFoundError where a file that was named is not there, before it is read."""
    if path is not None and not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def require_picture(argument: str, path: Path | None) -> None:
    """Raises ValueError unless the suffix of a picture says in which format to draw it, for callers with work to do
    before they draw."""
    if path is not None and path.suffix[1:] not in PICTURES:
        raise ValueError(f"{argument} is {str(path)!r}; its suffix must be one of {', '.join(PICTURES)}")


GO_ON = "run it again, with --resume where the command has it"
APART = f"wait until it has ended and {GO_ON}, or choose another --out"


def claim(descriptor: int, path: Path) -> None:
    """Locks a file or folder that this process has opened to write there, until it is closed. A lock does not outlive
    its process, however that ends. Without one where the system or the file system has none.

    Raises:
        BlockingIOError: another process writes there, or has just put another file in its place.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"{path} is being written by another process: {APART}") from None
    except OSError:  # a file system without locks
        return
    if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
        raise BlockingIOError(f"{path} was just written by another process: {APART}")


def contents(path: Path, most: int) -> bytes:
    """The bytes of a file, of which no more than `most` are ever in memory.

    Raises:
        ValueError: it has more.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} has more than {most:,} bytes: it is no file of a run")
    return data


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A folder, made if need be, in which one of the processes that ask for it so writes at a time; errors as of
    `claim`."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        claim(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def put(partial: Path, path: Path) -> None:
    """Puts a file in the place of another once it is on the disk, so that a power cut too leaves one of them whole."""
    with partial.open("rb") as file:
        os.fsync(file)
    partial.replace(path)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file that is there whole or not at all: where to write what takes the place of `path` in the end.

    Its folder is made and the file opened at once: what cannot be written is known before the work, and so is another
    process that has begun to write the same (`claim`).
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial{path.suffix}")
    with partial.open("ab") as opened:
        claim(opened.fileno(), partial)
        try:
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # safetensors leaves it to its owner alone
            put(partial, path)
        finally:
            partial.unlink(missing_ok=True)


OBSERVED = ("row_function",)  # stood among the settings of versions up to 0.2.0, and is no choice
HOW = ("runner", "micro_batch", "device", "graph")  # on which no bit of a network in integers depends
ADDED = ("weights_sha256", "entropy", "margin", "sharpness")  # were not among them
TOLD = 50  # settings that differ, at most: a run has fewer
LEVELS = 32  # of lists and objects within each other in settings


def plain(value: Any, levels: int = LEVELS) -> bool:
    """Tells whether a value that JSON has told can be written and shown again: it is at most so deep, and no number in
    it is infinite or NaN, or an integer that no float is near."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(plain(each, levels - 1) for each in inner)
    return not isinstance(value, (int, float)) or abs(value) <= sys.float_info.max


def same_settings(path: Path, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ValueError unless a file of a run was made with the settings that are given; names each that differs."""
    # Compared as JSON text, in which a tuple and the list read back for it are the same.
    given = _without_added(given, kept)
    old, new = (
        {name: json.dumps(value, sort_keys=True) for name, value in _chosen(side).items()} for side in (kept, given)
    )
    differing = [
        f"{name:.100} was {old.get(name, 'not set'):.1000}, is now {new.get(name, 'not set'):.1000}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differing:
        more = f" and {len(differing) - TOLD} more" if len(differing) > TOLD else ""
        raise ValueError(f"{path} was made with other settings: {'; '.join(differing[:TOLD])}{more}")


def _chosen(settings: Any) -> Any:
    """Settings without what was observed, and what decides nothing, at any depth."""
    if not isinstance(settings, Mapping):
        return settings
    in_integers = settings.get("precision") == "int8" and settings.get("runner") != "openvino"
    left = OBSERVED + HOW if in_integers else OBSERVED
    return {name: _chosen(value) for name, value in settings.items() if name not in left}


def _without_added(given: Any, kept: Any) -> Any:
    """Settings without what those that were kept could not have, at any depth."""
    if not (isinstance(given, Mapping) and isinstance(kept, Mapping)):
        return given
    known = (name for name in given if name in kept or name not in ADDED)
    return {name: _without_added(given[name], kept.get(name)) for name in known}

"""Files of runs: there whole or not at all, not overwritten, gone on with only by the same settings."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What matplotlib draws, by suffix. Known without it, since it takes half a second to import.
PICTURES = (
    "eps", "jpeg", "jpg", "pdf", "pgf", "png", "ps", "raw", "rgba", "svg", "svgz", "tif", "tiff", "webp",
)  # fmt: skip


def require_new(path: Path) -> None:
    """Raises FileExistsError where there is a file of a run, for callers with work to do before they open it."""
    if path.exists():
        raise exists(path)


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


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file that is there whole or not at all: where to write what takes the place of `path` in the end.

    Its folder is made and the file opened at once: what cannot be written is known before the work.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial{path.suffix}")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors leaves it to its owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


OBSERVED = ("row_function",)  # stood among the settings of versions up to 0.2.0, and is no choice
ADDED = ("weights_sha256",)  # was not among them


def same_settings(path: Path, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ValueError unless a file of a run was made with the settings that are given; names each that differs."""
    # Compared as JSON text, in which a tuple and the list read back for it are the same.
    given = _without_added(given, kept)
    old, new = (
        {name: json.dumps(value, sort_keys=True) for name, value in _chosen(side).items()} for side in (kept, given)
    )
    differing = [
        f"{name} was {old.get(name, 'not set')}, is now {new.get(name, 'not set')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differing:
        raise ValueError(f"{path} was made with other settings: {'; '.join(differing)}")


def _chosen(settings: Any) -> Any:
    """Settings without what was observed, at any depth."""
    if not isinstance(settings, Mapping):
        return settings
    return {name: _chosen(value) for name, value in settings.items() if name not in OBSERVED}


def _without_added(given: Any, kept: Any) -> Any:
    """Settings without what those that were kept could not have, at any depth."""
    if not (isinstance(given, Mapping) and isinstance(kept, Mapping)):
        return given
    known = (name for name in given if name in kept or name not in ADDED)
    return {name: _without_added(given[name], kept.get(name)) for name in known}

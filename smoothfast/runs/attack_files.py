"""Files of attacks on data sets, in safetensors: one when all is done, until then one a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import plain, same_settings, whole
from .attack_options import parts_of

COLUMNS = {
    "adversarial": (torch.float32, 4),
    **dict.fromkeys(("labels", "indices"), (torch.int64, 1)),
    **dict.fromkeys(("base_clean", "base_adversarial", "smoothed_clean", "smoothed_adversarial"), (torch.int64, 2)),
    **dict.fromkeys(("linf", "l2"), (torch.float64, 1)),
}
"""The dtype and the dimensions of each column."""


@dataclass(frozen=True, eq=False)
class Attacked:
    """The images [N] of an attack: what became of them, and what it took.

    Attributes:
        columns: `adversarial` float32 [N, C, H, W] in [0, 1]; `labels` and `indices` in the data set, int64 [N]; votes
            by class, int64 [N, K]: `base_clean`, `base_adversarial` (one for each, without noise), `smoothed_clean`,
            `smoothed_adversarial` (fresh ones); `linf` and `l2` float64 [N], the distances.
        votes: samples of the smoothed classifier for each image.
        gradients, forwards: see `Attack`, over all images.
        environment: see `environment.environment`, where the run began.
    """

    columns: dict[str, Tensor]
    votes: int
    gradients: int
    forwards: int
    environment: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.columns["labels"])


def save(attacked: Attacked, settings: Mapping[str, Any], path: str | Path) -> None:
    """Writes the columns, and as metadata `run`: JSON of the settings, the environment, gradients and forward passes.

    In one entry, since safetensors puts several in an order that depends on luck.
    """
    about = {
        "settings": settings,
        "environment": attacked.environment,
        "gradients": attacked.gradients,
        "forwards": attacked.forwards,
    }
    try:
        save_file(attacked.columns, path, {"run": json.dumps(about)})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def read(path: str | Path, settings: Mapping[str, Any], shape: Sequence[int], num_classes: int) -> Attacked:
    """Reads what `save` wrote of images of a shape [C, H, W] and so many classes.

    Raises:
        ValueError: it was with other settings (names each), or the file is another's or cut off.
        OSError: the file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["run"])
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = about["settings"]
        attacked = Attacked(columns, found["votes"], about["gradients"], about["forwards"], about["environment"])
        _require_numbers(about | {"votes": attacked.votes})
        _require_columns(attacked, tuple(shape), num_classes)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is cut off, or no file of an attack ({error}): remove it, or choose another --out"
        ) from error
    same_settings(Path(path), found, settings)
    return attacked


def _require_numbers(about: Mapping[str, Any]) -> None:
    """Raises ValueError unless all can be counted and written again."""
    if not plain(about):
        raise ValueError("it tells what no run does")
    for name in ("votes", "gradients", "forwards"):
        if not isinstance(about[name], int) or about[name] < 0:
            raise ValueError(f"{name} is {about[name]!r:.50}")


def _require_columns(attacked: Attacked, shape: tuple[int, ...], num_classes: int) -> None:
    """Raises ValueError or KeyError unless all is there that is counted, shown and put together."""
    if attacked.columns.keys() != COLUMNS.keys():
        raise ValueError(f"columns are {', '.join(attacked.columns)}"[:500])
    count = len(attacked)
    for name, (dtype, dims) in COLUMNS.items():
        column, of_image = attacked.columns[name], {4: shape, 2: (num_classes,), 1: ()}[dims]
        if column.dtype != dtype or column.shape != (count, *of_image) or not count:
            raise ValueError(f"column {name} is {column.dtype} {tuple(column.shape)}")
        if name != "labels" and not (column.isfinite().all() and column.min() >= 0):
            raise ValueError(f"column {name} has values that are negative or not finite")


def keep(out: Path, settings: Mapping[str, Any], part: Attacked) -> None:
    """Saves a batch; its file is there whole or not at all."""
    with whole(parts_of(out) / f"{part.columns['indices'][0]:012}.safetensors") as path:
        save(part, settings, path)


def kept(
    out: Path, settings: Mapping[str, Any], indices: list[int], shape: Sequence[int], num_classes: int
) -> list[Attacked]:
    """Reads what is there of a run on the images `indices`, of a shape [C, H, W]: its file, else its batches.

    Raises:
        ValueError: a file is not as `read` wants it, or not of the images that come next; names it.
        OSError: a file cannot be read.
    """
    parts: list[Attacked] = []
    for path in _files(out):
        part = read(path, settings, shape, num_classes)
        begun = sum(map(len, parts))
        if part.columns["indices"].tolist() != indices[begun : begun + len(part)]:
            raise ValueError(f"{path} does not go on where the {begun} images before it end: remove it")
        parts.append(part)
    return parts


def settings_of(out: Path) -> dict[str, Any] | None:
    """The settings of a run of which there is a file; None where there is none, or one that `kept` refuses."""
    for path in _files(out)[:1]:
        try:
            with safe_open(path, "pt") as file:
                settings = json.loads((file.metadata() or {})["run"])["settings"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
            return None
        return settings if isinstance(settings, dict) else None
    return None


def _files(out: Path) -> list[Path]:
    """The files of a run: the one of all its images, or else those of its batches; not one that a kill has cut off."""
    folder = parts_of(out)
    paths = [out] if out.exists() else sorted(folder.iterdir()) if folder.exists() else []
    return [path for path in paths if ".partial" not in path.suffixes]


def discard_parts(out: Path) -> None:
    """Removes the batches of a run that is done."""
    folder = parts_of(out)
    if folder.exists():
        for path in folder.glob("*.safetensors"):
            path.unlink()
        folder.rmdir()

"""The folder of a training run: its metrics by epoch, the checkpoint that it goes on from, and in the end its weights.

In a run of many processes rank 0 alone touches it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..files import plain, put, same_settings, whole
from ..torch_files import read_torch
from ..version import __version__
from .settings import Settings

CHECKPOINT, METRICS, WEIGHTS = "checkpoint.pt", "metrics.jsonl", "model.safetensors"


class Best(TypedDict):
    """The epoch whose weights are the best so far: its score (higher is better), its metrics, and the weights."""

    score: float
    metrics: dict[str, float]
    model: dict[str, Tensor]


class State(TypedDict):
    """The state that a run goes on from: epochs and steps done, the metrics of the last epoch, sums over the images of
    the current one and its seconds so far, the best epoch where one is selected, and states of model and optimizer."""

    epoch: int
    step: int
    metrics: dict[str, float]
    sums: dict[str, float]
    seconds: float
    best: Best | None
    model: dict[str, Tensor]
    optimizer: dict[str, Any]


class RunFolder:
    """The files of one run. Each but the metrics is there whole or not at all, so a kill leaves the last one.

    Args:
        path: the folder, made when the run begins.
        settings: of the run. A run is gone on with only by the same ones and the same metadata.
        metadata: strings to keep beside the weights.

    Attributes:
        about: settings and metadata as one.
    """

    def __init__(self, path: str | Path, settings: Settings, metadata: dict[str, str]) -> None:
        self.path = Path(path)
        self.checkpoint, self.metrics, self.weights = (self.path / name for name in (CHECKPOINT, METRICS, WEIGHTS))
        self._settings, self._metadata = asdict(settings), metadata
        self.about: dict[str, Any] = self._settings | metadata

    def begin(self) -> None:
        """Makes the folder ready for a new run."""
        self.metrics.parent.mkdir(parents=True, exist_ok=True)
        self.metrics.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint

    def append(self, metrics: dict[str, float]) -> None:
        """Adds the line of an epoch to the metrics; OSError where it cannot."""
        with written(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file)  # before the checkpoint that counts on it

    def save(self, state: State) -> None:
        """Writes the checkpoint; OSError where it cannot."""
        # Not by files.whole: torch.save names what is in the file after the path that it writes to.
        partial = self.checkpoint.with_suffix(".partial")
        with written(self.checkpoint):
            try:
                torch.save({"settings": json.dumps(self.about)} | state, partial)
                put(partial, self.checkpoint)
            finally:
                partial.unlink(missing_ok=True)  # of a full disk

    def require_same(self) -> State | None:
        """Reads the checkpoint, tensors on the CPU; None if there is none.

        Raises:
            ValueError: it was made with other settings, or is broken.
        """
        if not self.checkpoint.exists():
            return None
        state = read_torch(self.checkpoint)
        same_settings(self.checkpoint, self._kept_settings(state), self.about)
        return state

    def restore(self) -> State | None:
        """Reads the checkpoint as `require_same` does, and cuts the metrics back to its epochs."""
        state = self.require_same()
        if state is None:
            return None
        lines = self.metrics.read_bytes().splitlines(keepends=True) if self.metrics.exists() else []
        if len(lines) > state["epoch"]:  # the last is of an epoch whose checkpoint a kill has cut off
            with whole(self.metrics) as partial:
                partial.write_bytes(b"".join(lines[: state["epoch"]]))
        return state

    def _kept_settings(self, state: Any) -> dict[str, Any]:
        """Takes the settings out of what a checkpoint holds."""
        try:
            settings = json.loads(state.pop("settings"))
            if isinstance(settings, dict) and plain(settings) and _whole(state):
                return settings
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            pass
        raise self.broken("it lacks what a run goes on from")

    def broken(self, why: object) -> ValueError:
        """The error of a checkpoint that cannot be gone on with."""
        return ValueError(f"{self.checkpoint} is no checkpoint of this run ({why}): remove it, or choose another --out")

    def save_weights(self, weights: dict[str, Tensor], metrics: dict[str, float]) -> None:
        """Writes the weights of the run, with the settings and metrics that they are of, unless they are there: a run
        may be resumed at its end."""
        if self.weights.exists():
            return
        about = {"settings": json.dumps(self._settings), "metrics": json.dumps(metrics)}
        about["smoothfast"] = __version__  # not of the settings: a newer version may resume
        with written(self.weights), whole(self.weights) as partial:
            save_file({name: value.contiguous() for name, value in weights.items()}, partial, self._metadata | about)


def _whole(state: State) -> bool:
    """Tells whether a state has all of its parts, of their types: weights and the optimizer's are looked at when they
    are taken up."""
    best, counts = state["best"], (state["epoch"], state["step"])
    told = [state["metrics"], state["sums"], {"seconds": state["seconds"]}]
    if best is not None:
        told += [best["metrics"], {"score": best["score"]}]
    return (
        state.keys() == State.__annotations__.keys()
        and (best is None or best.keys() == Best.__annotations__.keys())
        and all(type(count) is int and count >= 0 for count in counts)
        and all(type(name) is str and type(number) in (int, float) for each in told for name, number in each.items())
    )


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Stands around what writes a file, and says what is to be done where that fails."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # of a full disk: by Python, torch, safetensors
        why = str(error).partition("\n")[0]
        raise OSError(
            f"cannot write {path} ({why}); the last checkpoint is kept: make room and go on with --resume"
        ) from error

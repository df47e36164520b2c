"""Follows a call through the package: the files and rooms that it enters, and from which to which.

    python tests/project/journey.py forward|certify|epgd

A room is a folder of the package or a file beside the folders. ResNet-20 in eager mode, two images; what is counted are
different steps from one file (room) to another, not how often each is taken.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import smoothfast as sf

PACKAGE = str(Path(sf.__file__).parent)


def calls() -> dict[str, Callable[[], Any]]:
    """The calls that can be followed, by name."""
    base = sf.models.resnet20()
    sf.weights.read_weights(sf.weights.DEMO).load_into(base)
    data = sf.data.demo()
    model = sf.SmoothedClassifier(
        base.eval(), 0.25, 10, normalize=sf.models.CIFAR10_STATISTICS, runner="eager", max_batch=8
    )
    attack = sf.attacks.EPGD(model, steps=2, samples=4, runner="eager")
    return {
        "forward": lambda: model(data.images[:2]),
        "certify": lambda: model.certify(data.images[:2], n0=16, n=64),
        "epgd": lambda: attack(data.images[:2], data.labels[:2]),
    }


def followed(call: Callable[[], Any]) -> tuple[set[str], set[tuple[str, str]]]:
    """The files that a call enters, and the steps between them."""
    files: set[str] = set()
    steps: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        here = frame.f_code.co_filename
        if event != "call" or not here.startswith(PACKAGE) or frame.f_code.co_name == "<module>":
            return
        files.add(here.removeprefix(PACKAGE + "/"))
        caller = frame.f_back.f_code.co_filename if frame.f_back else ""
        if caller.startswith(PACKAGE) and caller != here:
            steps.add((caller.removeprefix(PACKAGE + "/"), here.removeprefix(PACKAGE + "/")))

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return files, steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    files, steps = followed(calls()[sys.argv[1]])
    rooms = {file.split("/")[0] for file in files}
    between = {(a.split("/")[0], b.split("/")[0]) for a, b in steps}
    between = {(a, b) for a, b in between if a != b}
    print(f"{len(files)} files, {len(steps)} steps; {len(rooms)} rooms, {len(between)} steps")
    for step in sorted(steps):
        print("  ", *step)

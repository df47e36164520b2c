"""Names that pickles of version 0.1 hold for what stands elsewhere now; found when one is read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Generic, TypeVar

MOVED = {
    "smoothfast.cohen": {"Smooth": "smoothfast.smoothing:Smooth"},
    "smoothfast.passes": {"Passes": "smoothfast.engine:Gradients"},
    "smoothfast.soft": {"SoftClassifier": "smoothfast.smoothing:SoftClassifier"},
}
"""The names of each module of version 0.1, and where each stands now."""

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """The cache of engines in a pickle of version 0.1, which is always empty."""


class _Former(MetaPathFinder, Loader):
    """Finds the modules of version 0.1."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        for name, place in MOVED[module.__name__].items():
            home, _, now = place.partition(":")
            setattr(module, name, getattr(import_module(home), now))


def find_former() -> None:
    """Lets the modules of version 0.1 be found."""
    sys.meta_path.append(_Former())


def classifier_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a pickled `SmoothedClassifier`, also of one of version 0.1, which had no bounds."""
    if "num_classes" in state:
        others = {name: value for name, value in state.items() if name not in ("num_classes", "_network", "_workload")}
        new = {"known_classes": state["num_classes"], "_rule": "prediction", "bounds": (0.0, 1.0)}
        return others | new | {"_said_far_outside": False}
    return state

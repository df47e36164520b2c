"""Training of base classifiers for smoothing: one Trainer, recipes as small functions, presets with their sources.

Every draw is a pure function of seed, epoch, step and image, so a run that was killed and resumed, or shared out among
processes, is the run that was not.

Names are imported when they are first asked for: settings and presets work without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .augment import crop_and_flip
    from .parameters import parameter_groups
    from .presets import PRESETS
    from .recipes import RECIPES
    from .settings import BATCH_STATISTICS, LEARNED, PRECISIONS, SCHEDULES, SELECTIONS, Settings
    from .trainer import Trainer

__all__ = [
    "BATCH_STATISTICS",
    "LEARNED",
    "PRECISIONS",
    "PRESETS",
    "RECIPES",
    "SCHEDULES",
    "SELECTIONS",
    "Settings",
    "Trainer",
    "crop_and_flip",
    "parameter_groups",
]

if not TYPE_CHECKING:  # where a type checker sees `__getattr__`, it takes every name for one of the package
    __getattr__, __dir__ = lazy(
        __name__,
        __all__,
        {
            "augment": ["crop_and_flip"],
            "parameters": ["parameter_groups"],
            "presets": ["PRESETS"],
            "recipes": ["RECIPES"],
            "settings": ["BATCH_STATISTICS", "LEARNED", "PRECISIONS", "SCHEDULES", "SELECTIONS", "Settings"],
            "trainer": ["Trainer"],
        },
    )

"""Training of base classifiers for smoothing: one Trainer, recipes as small functions, presets with their sources.

Every draw is a pure function of seed, epoch, step and image, so a run that was killed and resumed, or shared out among
processes, is the run that was not.
"""

from .augment import crop_and_flip
from .presets import PRESETS
from .recipes import RECIPES
from .settings import LEARNED, NORMS, PRECISIONS, SCHEDULES, SELECTIONS, Settings
from .trainer import Trainer, parameter_groups

__all__ = [
    "LEARNED",
    "NORMS",
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

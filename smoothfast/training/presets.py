"""Settings by name: short ones that fit a few cores."""

from __future__ import annotations

from dataclasses import replace

from ..models import CIFAR10_STATISTICS
from .settings import Settings

_QUICK = Settings(normalize=CIFAR10_STATISTICS)

PRESETS: dict[str, Settings] = {
    "quick-gaussian": _QUICK,
    "quick-clean": replace(_QUICK, recipe="clean", sigma=0.0, batch=128, learning_rate=0.2),
    "quick-adversarial": replace(
        _QUICK, recipe="adversarial", sigma=0.0, batch=128, learning_rate=0.2, validation=2500, select="best"
    ),
}

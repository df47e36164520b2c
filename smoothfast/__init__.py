"""smoothfast: randomized smoothing that is fast, sample-efficient and sound."""

from . import attacks, data, evaluation, layers, models, noise, ops, procedures, statistics, training, weights
from .cohen import Smooth
from .procedures import ABSTAIN
from .smoothing import Certificate, Prediction, SmoothedClassifier
from .soft import SoftClassifier
from .version import __version__

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Prediction",
    "Smooth",
    "SmoothedClassifier",
    "SoftClassifier",
    "__version__",
    "attacks",
    "data",
    "evaluation",
    "layers",
    "models",
    "noise",
    "ops",
    "procedures",
    "statistics",
    "training",
    "weights",
]

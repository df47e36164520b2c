"""Labelled images behind one spec string: `demo`, `cifar10:ROOT`, `folder:PATH`, … as uint8 tensors.

Nothing is downloaded, and nothing is written. Normalisation is not done here: it belongs to the classifier.
"""

from __future__ import annotations

from .fitting import Fit
from .folders import Folder
from .labelled import Images, Labelled, batches, in_memory, name_of
from .loading import DEMO, LOADERS, SPECS, SPLITS, demo, load
from .own import Own
from .pictures import KINDS, picture
from .required import Within, require_readable

__all__ = [
    "DEMO",
    "KINDS",
    "LOADERS",
    "SPECS",
    "SPLITS",
    "Fit",
    "Folder",
    "Images",
    "Labelled",
    "Own",
    "Within",
    "batches",
    "demo",
    "in_memory",
    "load",
    "name_of",
    "picture",
    "require_readable",
]

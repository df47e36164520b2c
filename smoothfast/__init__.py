"""smoothfast: randomized smoothing that is fast, sample-efficient and sound.

What users name:

    smoothing    SmoothedClassifier, Smooth (the API of Cohen et al. 2019): predict, certify, scores
    attacks      FGSM, PGD, EPGD, … on plain and smoothed classifiers; evaluation judges them
    training     base classifiers worth smoothing; layers puts noise into networks, denoising takes it out before them
    quantization networks in integers, the same bits on every processor; integers says what these compute
    statistics   bounds, radii and sequential tests on counts; procedures ask for as few samples as these allow
    noise, data, models, weights, voting, losses

How it is computed, from the images up:

    ops          one typed function per kernel, and its definition in plain PyTorch
    runners      a network as a function of one micro-batch
    engine       one base function: micro-batches of its replicas, from images to votes or gradients

Files and terminal: runs, cli.

Everything is imported when it is first named, so that the command line can help without torch. The operators
`torch.ops.smoothfast.*` are there once `smoothfast.ops` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .former import find_former
from .lazy import lazy
from .version import __version__

if TYPE_CHECKING:
    from . import (
        attacks,
        data,
        denoising,
        evaluation,
        integers,
        layers,
        losses,
        models,
        noise,
        ops,
        procedures,
        quantization,
        statistics,
        training,
        voting,
        weights,
    )
    from .procedures import ABSTAIN
    from .smoothing import Certificate, Prediction, Replay, Smooth, SmoothedClassifier, SoftClassifier, replay

find_former()

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Prediction",
    "Replay",
    "Smooth",
    "SmoothedClassifier",
    "SoftClassifier",
    "__version__",
    "attacks",
    "data",
    "denoising",
    "evaluation",
    "integers",
    "layers",
    "losses",
    "models",
    "noise",
    "ops",
    "procedures",
    "quantization",
    "replay",
    "statistics",
    "training",
    "voting",
    "weights",
]

if not TYPE_CHECKING:  # where a type checker sees `__getattr__`, it takes every name for one of the package
    __getattr__, __dir__ = lazy(
        __name__,
        __all__,
        {
            "procedures": ["ABSTAIN"],
            "smoothing": [
                "Certificate", "Prediction", "Replay", "Smooth", "SmoothedClassifier", "SoftClassifier", "replay",
            ],
        },
    )  # fmt: skip

"""The streams of noise, by what a sample is drawn for, and how far images and samples are numbered."""

from __future__ import annotations

import secrets
from enum import IntEnum

MAX_IMAGE_ID = 2**44 - 1
MAX_SAMPLE_ID = 2**40 - 1


def drawn_seed() -> int:
    """A seed that nobody knew before, from the operating system: of 53 bits, which every reader of JSON gets whole."""
    return secrets.randbits(53)


class Stream(IntEnum):
    """The purpose of a sample; samples of two streams are independent by construction.

    REFINE never stands alone: the bits that refine a lattice draw of stream s carry the tag s * 16 + REFINE. Nor do
    WEIGHT and ACTIVATION: the noise in the network that a sample of stream s passes carries s * 16 + WEIGHT.
    """

    SELECT = 1
    ESTIMATE = 2
    REFINE = 3
    ATTACK = 4
    ATTACK_START = 5
    WEIGHT = 6
    ACTIVATION = 7
    TRAIN = 8
    PREDICT = 9
    RANDOMIZE = 10
    FORWARD = 11
    AUGMENT = 12

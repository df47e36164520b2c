"""The noise contract of docs/noise.md once more, in integers of Python and in mpmath.

What it is for is to share nothing with what it checks, not even a constant: no array, no table, no other module of the
package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any, NamedTuple

from mpmath import mp, mpf

WORD = 2**32
BITS = 256  # of mpmath: thresholds have 96
STREAMS = {
    "SELECT": 1, "ESTIMATE": 2, "ATTACK": 4, "ATTACK_START": 5, "TRAIN": 8, "PREDICT": 9, "RANDOMIZE": 10,
    "FORWARD": 11, "AUGMENT": 12,
}  # fmt: skip
"""Tags of the streams that stand alone."""
REFINE, WEIGHT = 3, 6  # lower halves of the tags of others

KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD - 1,) * 4, (WORD - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
"""Counters, keys and words of philox4x32-10 as Random123 publishes them (kat_vectors): zeros, ones, digits of pi."""


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al. 2011): four words of a counter and two of a key to four random words."""
    a, b, c, d = counter
    for turn in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        low_key, high_key = ((key[0] + 0x9E3779B9 * turn) % WORD, (key[1] + 0xBB67AE85 * turn) % WORD)
        a, b, c, d = right // WORD ^ b ^ low_key, right % WORD, left // WORD ^ d ^ high_key, left % WORD
    return a, b, c, d


class Place(NamedTuple):
    """A sample of an image under a seed, and the tag of what it is drawn for."""

    seed: int
    image: int
    sample: int
    tag: int

    def words(self, block: int) -> tuple[int, int, int, int]:
        """The four words of a block."""
        last = self.image // WORD * 2**20 + self.sample // WORD * 2**12 + self.tag * 2**4 + 1
        return philox((block, self.sample % WORD, self.image % WORD, last), (self.seed % WORD, self.seed // WORD))

    def word(self, element: int) -> int:
        """The word of an element."""
        block, number = _block(element)
        return self.words(block)[number]


def _block(element: int) -> tuple[int, int]:
    """The block of an element, and the number of its word there."""
    tile, inside = divmod(element, 64)
    return 16 * tile + inside % 16, inside // 16


def reach(sigma: float) -> int:
    """The largest grey level of lattice noise, M."""
    return math.ceil(Fraction(13, 2) * 255 * Fraction(sigma))


@lru_cache(maxsize=100_000)
def threshold(i: int, sigma: float) -> int:
    """The threshold T[i] of 96 bits."""
    with mp.workprec(BITS):
        return int(mp.floor(mp.ldexp(mp.ncdf(mpf(2 * i + 1) / (510 * mpf(sigma))), 96)))


def lattice(place: Place, element: int, sigma: float) -> int:
    """Lattice noise of an element, in grey levels. The refining bits are always drawn."""
    first, second, *_ = place._replace(tag=16 * place.tag + REFINE).words(element)
    u = (place.word(element) * WORD + first) * WORD + second
    most = reach(sigma)
    near = NormalDist().inv_cdf(min(max(u / 2.0**96, 2.0**-96), 1 - 2.0**-53))
    level = min(max(round(255 * sigma * near), -most), most)
    while level < most and threshold(level, sigma) <= u:
        level += 1
    while level > -most and threshold(level - 1, sigma) > u:
        level -= 1
    return level


def tied(place: Place, element: int, sigma: float) -> bool:
    """Whether the word of an element is the upper part of a threshold, so that refining bits decide."""
    level, word = lattice(place, element, sigma), place.word(element)
    most = reach(sigma)
    return any(threshold(i, sigma) // 2**64 == word for i in range(max(level - 1, -most), min(level + 1, most)))


def normal(place: Place, element: int) -> Any:
    """Standard normal number of an element, by Box and Muller: words 0 and 1 of a block are radius and angle of two
    elements, words 2 and 3 of two others."""
    block, number = _block(element)
    radius, angle = place.words(block)[number // 2 * 2 :][:2]
    with mp.workprec(BITS):
        length = mp.sqrt(-2 * mp.log(mpf(radius + 1) / WORD))
        turn = 2 * mp.pi * angle / WORD
        return length * (mp.sin(turn) if number % 2 else mp.cos(turn))


def uniform(seed: int, image: int) -> Fraction:
    """The uniform number of randomized bounds of an image."""
    first, second, *_ = Place(seed, image, 0, STREAMS["RANDOMIZE"]).words(0)
    return Fraction((first * WORD + second) // 2**11 + 1, 2**53)


@lru_cache(maxsize=16)
def cells(sigma: float) -> tuple[Fraction, ...]:
    """Probabilities of the grey levels -M .. M of lattice noise."""
    most = reach(sigma)
    edges = [0, *(threshold(i, sigma) for i in range(-most, most)), 2**96]
    return tuple(Fraction(after - before, 2**96) for before, after in pairwise(edges))

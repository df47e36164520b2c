"""Noise, element by element, against the definition in integers and mpmath."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any, NamedTuple

import torch
from mpmath import mp, mpf
from torch import Tensor

from .. import noise
from ..noise import Stream
from ..ops.laws import Law
from . import definition
from .backends import Backend, on_each
from .definition import STREAMS, Place
from .effort import Effort
from .records import Check, Finding, judged, none_differ

SUBJECT = "Noise"
SIGMAS = (0.12, 0.25, 0.5, 1.0)
# What float32 rounds of a normal number: u = (word + 1) / 2^32, which moves the square of the radius, -2 ln u; and then
# the radius, the sine or cosine, sigma and their products.
SQUARE, FACTORS = 2.0**-22, 4 * 2.0**-24


class Case(NamedTuple):
    """Noise of an image: its place but for the tag, the stream, the standard deviation and the shape."""

    seed: int
    image: int
    sample: int
    stream: str
    sigma: float
    shape: tuple[int, int, int]

    @property
    def place(self) -> Place:
        """The place, with the tag of the stream by the contract."""
        return Place(self.seed, self.image, self.sample, STREAMS[self.stream])


# Ids on both sides of 2^32 and the last ones; shapes of one element, of less than a tile, of tiles that end anywhere.
ENDS = (
    Case(0, 0, 0, "ESTIMATE", 0.25, (3, 32, 32)),
    Case(2**64 - 1, 2**44 - 1, 2**40 - 1, "SELECT", 0.12, (3, 35, 39)),
    Case(2**63, 2**32 - 1, 2**32, "PREDICT", 0.5, (1, 28, 28)),
    Case(2**32, 2**32, 2**32 - 1, "ESTIMATE", 1.0, (3, 5, 7)),
    Case(1, 2**43 + 1, 2**39, "ATTACK", 0.25, (1, 1, 1)),
)
# Samples and elements, found by search, whose word ties with a threshold, as one in a million does. For some of each
# sigma the refining bits pass the threshold, for others they fail it.
TIES = (
    (0.12, 2**63 + 7, 5, "ESTIMATE", ((1013, 819), (3379, 2188), (3571, 1599), (5873, 654), (6327, 1178))),
    (0.25, 12345678901, 2**33 + 1, "SELECT", ((2781, 1321), (3761, 2088), (4708, 750), (5248, 1371))),
    (0.5, 1, 2**32 - 1, "ESTIMATE", ((2**40 - 19804, 1528), (2**40 - 18240, 64), (2**40 - 13964, 2915))),
    (1.0, 2**64 - 1, 17, "ATTACK", ((2**39 + 105, 1205), (2**39 + 375, 1962), (2**39 + 420, 1728))),
)


def checks(effort: Effort) -> Iterator[Check]:
    """Makes the checks of this subject."""
    yield Check(SUBJECT, "streams have the numbers of the contract", stream_numbers)
    yield from on_each(SUBJECT, "lattice", partial(lattice_elements, effort))
    yield from on_each(SUBJECT, "lattice, ties with a threshold", lattice_ties)
    yield from on_each(SUBJECT, "gaussian", partial(gaussian_elements, effort))
    yield from on_each(SUBJECT, "in the weights of a network", partial(weight_elements, effort))
    yield Check(SUBJECT, "uniform number of randomized bounds", partial(uniforms, effort))


def cases(effort: Effort) -> list[Case]:
    """Cases at the ends of the ranges, and as many more at random."""
    rng = Random(effort.seed)
    names = [name for name in STREAMS if name != "RANDOMIZE"]
    return [
        *ENDS,
        *(
            Case(
                rng.getrandbits(64), rng.getrandbits(44), rng.getrandbits(40), rng.choice(names), rng.choice(SIGMAS),
                (rng.randint(1, 4), rng.randint(1, 40), rng.randint(1, 40)),
            )
            for _ in range(2 * len(ENDS))
        ),
    ]  # fmt: skip


def elements_of(case: Case, effort: Effort) -> list[int]:
    """Elements of a case to look at: the first, the last and some at random."""
    size, rng = math.prod(case.shape), Random(effort.seed)
    return sorted({0, size - 1} | set(rng.sample(range(size), min(size, effort.elements))))


def drawn(backend: Backend, case: Case, law: Law) -> Tensor:
    """Noise of a case by a backend: what an image of zeros becomes, flat, in float64."""
    of_levels = law.name == "lattice"
    zeros = torch.zeros(1, *case.shape, dtype=torch.uint8 if of_levels else torch.float32)
    ids = [torch.tensor([number]) for number in (0, case.image, case.sample)]
    key, ones = noise.stream_key(case.seed, Stream[case.stream]), torch.ones(case.shape[0])
    settings = (ones, 0 * ones, False, torch.float32, False)
    return backend.returned("noisy_replicas", zeros, *ids, key, law.name, law.table, *settings).flatten().double()


def stream_numbers() -> Finding:
    """Holds the numbers of the streams against the contract."""
    wrong = sum(Stream[name] != number for name, number in STREAMS.items())
    wrong += (Stream.REFINE, Stream.WEIGHT) != (definition.REFINE, definition.WEIGHT)
    return none_differ(wrong, len(STREAMS) + 1, "numbers")


def lattice_elements(effort: Effort, backend: Backend) -> Finding:
    """Holds lattice noise against the definition."""
    return _held(backend, [(case, elements_of(case, effort)) for case in cases(effort)])


def lattice_ties(backend: Backend) -> Finding:
    """Holds lattice noise against the definition where 32 bits do not decide."""
    pairs = [
        (Case(seed, image, sample, stream, sigma, (1, 1, element + 1)), [element])
        for sigma, seed, image, stream, found in TIES
        for sample, element in found
    ]
    apart = sum(not definition.tied(case.place, elements[0], case.sigma) for case, elements in pairs)
    if apart:
        return judged(False, f"{apart} of {len(pairs)} words do not tie", "all tie")
    return _held(backend, pairs)


def _held(backend: Backend, pairs: list[tuple[Case, list[int]]]) -> Finding:
    wrong = total = 0
    for case, elements in pairs:
        found = drawn(backend, case, noise.lattice_law(case.sigma))
        wanted = [definition.lattice(case.place, element, case.sigma) for element in elements]
        wrong += int((found[elements] != torch.tensor(wanted, dtype=torch.float64)).sum())
        total += len(elements)
    return none_differ(wrong, total, "elements")


def gaussian_elements(effort: Effort, backend: Backend) -> Finding:
    """Holds Gaussian noise against the definition."""
    return _nearest(
        (float(found[element] / case.sigma), case.place, element)
        for case in cases(effort)
        for found in [drawn(backend, case, noise.gaussian_law(case.sigma))]
        for element in elements_of(case, effort)
    )


def weight_elements(effort: Effort, backend: Backend) -> Finding:
    """Holds the normal numbers of weights, those of each and those that a layer shares, against the definition."""
    layers, numbers, passes = (0, 2**32 - 1, 7), (5, 2**28 - 1, 0), (0, 2**32 - 1, 2**40 - 1)
    tag, zeros = 16 * STREAMS["ESTIMATE"] + definition.WEIGHT, torch.zeros(len(layers), 64)
    key = noise.within(noise.stream_key(effort.seed, Stream.ESTIMATE), Stream.WEIGHT)
    where = (torch.tensor([layers, numbers]), torch.tensor(passes), key, torch.float32)
    own = backend.returned("perturb_weights", zeros, zeros + 1, torch.zeros(0, *zeros.shape), *where)
    picks = torch.eye(8, 64)[:, None].expand(8, *zeros.shape).contiguous()  # shared number k is weight k
    shared = backend.returned("perturb_weights", zeros, zeros, picks, *where)
    rng, pairs = Random(effort.seed), []
    for p, t in ((p, t) for p in range(len(passes)) for t in range(len(layers))):
        for element in rng.sample(range(64), 8):
            place = Place(effort.seed, layers[t], passes[p], tag)
            pairs.append((float(own[p, t, element]), place, 64 * numbers[t] + element))
        common = Place(effort.seed, layers[t] + 2**32, passes[p], tag)
        pairs += [(float(shared[p, t, k]), common, k) for k in range(8)]
    return _nearest(iter(pairs))


def _nearest(pairs: Iterator[tuple[float, Place, int]]) -> Finding:
    """Compares normal numbers with those of their places and elements."""
    errors = [_error(*pair) for pair in pairs]
    worst = max(errors) if all(error == error for error in errors) else math.nan
    return judged(worst <= 1, f"{len(errors):,} elements, off by at most {worst:.2f} of what float32 rounds", "1")


def _error(found: float, place: Place, element: int) -> float:
    """The error of a normal number, in units of what float32 may round."""
    wanted, other = (definition.normal(place, each) for each in (element, element ^ 16))
    radius: Any = mp.hypot(wanted, other)
    allowed = mp.sqrt(radius**2 + SQUARE) - radius + FACTORS * radius
    return float(abs(mpf(found) - wanted) / allowed)


def uniforms(effort: Effort) -> Finding:
    """Holds the uniform numbers of randomized bounds against the definition."""
    places = [(case.seed, case.image) for case in cases(effort)]
    wrong = sum(noise.uniform(*place) != definition.uniform(*place) for place in places)
    return none_differ(wrong, len(places), "numbers")

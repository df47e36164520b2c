"""Philox: published answers, and the words of every backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from random import Random

import torch

from .. import ops
from ..ops import philox as of_package
from . import definition
from .backends import Backend, on_each
from .definition import KNOWN_ANSWERS, WORD
from .effort import Effort
from .records import Check, Finding, none_differ, skipped

SUBJECT = "Philox"


def checks(effort: Effort) -> Iterator[Check]:
    """Makes the checks of this subject."""
    yield Check(SUBJECT, "published answers, plain integers", plain_answers)
    yield from on_each(SUBJECT, "published answers", published_answers)
    yield from on_each(SUBJECT, "other words", partial(other_words, effort))


def plain_answers() -> Finding:
    """Holds the plain definition against the published answers."""
    wrong = sum(definition.philox(counter, key) != words for counter, key, words in KNOWN_ANSWERS)
    return none_differ(wrong, len(KNOWN_ANSWERS), "vectors")


def published_answers(backend: Backend) -> Finding:
    """Holds a backend against the published answers."""
    return _compared(backend, KNOWN_ANSWERS)


def other_words(effort: Effort, backend: Backend) -> Finding:
    """Holds a backend against the plain definition, at counters and keys drawn at random."""
    rng = Random(effort.seed)
    drawn = [tuple(rng.randrange(WORD) for _ in range(6)) for _ in range(5 * effort.elements)]
    return _compared(backend, [(each[:4], each[4:], definition.philox(each[:4], each[4:])) for each in drawn])


def _compared(backend: Backend, vectors: Sequence[tuple[tuple[int, ...], ...]]) -> Finding:
    if backend.device != "cpu":
        return skipped("no op tells the words there: the noise of the same backend is checked element by element")
    words = _compiled if backend.instruction_set is not None else _plain
    with backend.in_use():
        wrong = sum(words(counter, key) != wanted for counter, key, wanted in vectors)
    return none_differ(wrong, len(vectors), "vectors")


def _compiled(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Words of a block by the compiled kernels, which compute 16 blocks and have its words 16 apart."""
    assert ops.extension is not None
    return tuple(ops.extension.philox_words(list(counter), list(key), 16)[::16].tolist())


def _plain(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    low, high = map(torch.tensor, key)
    return tuple(int(word) for word in of_package.philox([torch.tensor(word) for word in counter], (low, high)))

"""Checks and what they found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

LEVEL = 1e-9
"""Level of a single test of chance. A self test makes less than a thousand, so that all together fail by chance once in
a million times at most."""


class Finding(NamedTuple):
    """Outcome of a check.

    Attributes:
        status: passed, failed or skipped.
        found: what was found, in a short text; of one that was skipped, what is missing.
        limit: what it had to be.
        chances: how many tests of chance were made, each at LEVEL.
    """

    status: str
    found: str
    limit: str = ""
    chances: int = 0


class Check(NamedTuple):
    """A check that has not been made."""

    subject: str
    name: str
    act: Callable[[], Finding]


class Record(NamedTuple):
    """A check that has been made, its outcome and the seconds it took. `status`, `found`, `limit` and `chances` are
    those of `Finding`."""

    subject: str
    name: str
    status: str
    found: str
    limit: str
    chances: int
    seconds: float


def judged(passed: bool, found: str, limit: str) -> Finding:
    """Outcome of a check without chance."""
    return Finding(PASSED if passed else FAILED, found, limit)


def skipped(missing: str) -> Finding:
    """Outcome of a check that cannot be made here."""
    return Finding(SKIPPED, missing)


def none_differ(different: int, total: int, what: str) -> Finding:
    """Outcome of a comparison of which no case may differ."""
    return judged(total > 0 and different == 0, f"{different} of {total:,} {what} differ", "0")


def by_chance(p_values: Mapping[str, float]) -> Finding:
    """Outcome of tests of chance by their p-values: the smallest one decides, and NaN fails."""
    name, p = min(p_values.items(), key=lambda pair: pair[1] if pair[1] == pair[1] else -1.0)
    several = f"smallest p of {len(p_values)}: {p:.2g} ({name})" if len(p_values) > 1 else f"p {p:.2g}"
    return Finding(PASSED if p >= LEVEL else FAILED, several, f"at least {LEVEL:g}", len(p_values))

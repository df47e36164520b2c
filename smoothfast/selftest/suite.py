"""The suite: all checks of a self test, and the record of one that is made."""

from __future__ import annotations

from time import perf_counter

from . import integers, kernels, laws, levels, noise, philox, rounding, rows
from .effort import Effort
from .records import FAILED, Check, Finding, Record

SUBJECTS = (philox, noise, laws, kernels, integers, levels, rounding, rows)


def every_check(effort: Effort) -> list[Check]:
    """Makes the checks of all subjects, in their order."""
    return [check for subject in SUBJECTS for check in subject.checks(effort)]


def recorded(check: Check) -> Record:
    """Makes a check; one that raises has failed."""
    start = perf_counter()
    try:
        finding = check.act()
    except Exception as error:  # whatever is broken here must not hide what the other checks find
        finding = Finding(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Record(check.subject, check.name, *finding, round(perf_counter() - start, 3))

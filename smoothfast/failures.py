"""Failures of work that had begun, told from what was wrong before it: command lines end with other statuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_work() -> Iterator[None]:
    """Stands around work, all that was given having passed the checks before it, and marks the errors that leave it."""
    try:
        yield
    except Exception as error:
        vars(error)["at_work"] = True
        raise


def was_at_work(error: Exception) -> bool:
    """Tells whether an error left work that had begun."""
    return bool(vars(error).get("at_work", False))

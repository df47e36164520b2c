"""The error by which a runner says that it is not installed, or cannot take a network."""

from __future__ import annotations


class DeclinedError(ValueError):
    """A runner is not installed, or cannot take a network."""


def declined(runner: str, error: Exception) -> DeclinedError:
    """The error of a runner that does not take a network, by the first line of what went wrong."""
    reason = str(error).strip().partition("\n")[0]
    return DeclinedError(f"runner is {runner!r}, which does not take this base classifier: {reason}")

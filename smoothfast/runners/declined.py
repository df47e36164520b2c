"""The error by which a runner says that it is not installed, or cannot take a network."""

from __future__ import annotations


class DeclinedError(ValueError):
    """A runner is not installed, or cannot take a network."""


def declined(runner: str, error: Exception) -> DeclinedError:
    """The error of a runner that does not take a network, by the first line of what went wrong.

    Raises:
        KeyboardInterrupt: it went wrong because of an interrupt, which says nothing of the network. Compilers turn it
            into errors of their own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt) or "KeyboardInterrupt" in str(cause):
            raise KeyboardInterrupt from error
        cause = cause.__cause__ or cause.__context__
    reason = str(error).strip().partition("\n")[0]
    return DeclinedError(f"runner is {runner!r}, which does not take this base classifier: {reason}")

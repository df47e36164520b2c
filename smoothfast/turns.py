"""Turns that threads take with an object that serves one of them at a time."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from threading import RLock

import torch

IMPORTED_IN = os.getpid()


class Turns:
    """A lock for each process: a fork has a new one, since the thread that may hold its parent's is not in it.

    Nor are the threads of OpenMP, for which GNU's waits for ever: from its first turn on, a fork computes in one.
    A thread that has the turn may take it again. Copies and pickles have locks of their own.
    """

    def __init__(self) -> None:
        self._locks: dict[int, AbstractContextManager[bool]] = {}

    def taken(self) -> AbstractContextManager[bool]:
        """Waits for the turn on entering, gives it back on leaving."""
        process = os.getpid()
        if process != IMPORTED_IN and process not in self._locks:
            torch.set_num_threads(1)
        return self._locks.setdefault(process, RLock())  # one step, which no other thread comes between

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()


MAKING = Turns()
"""The turns of making runners: what exports and compiles networks changes torch as a whole for the time being."""

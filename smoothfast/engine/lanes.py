"""Lanes, in which micro-batches are computed. A CPU has a lane for each thread, a GPU has one.

A lane computes its micro-batches whole and in order: noise, base classifier, votes. On a CPU it is a thread that keeps
to one core, so no core waits for another within an operation, and what it computes does not depend on how many there
are. On a GPU calls are made at once, and the device keeps them in order. So they are where there is one thread: glibc
would give back much of what a second one allocates after every micro-batch, and its pages, new each time, take 5 % of
the time of input gradients (ResNet-20, 64 rows, eager).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

from ..interrupts import held_back

DEPTH = 2  # micro-batches that a lane is given before one of them must be done


class Lane:
    """Makes calls in order."""

    def __init__(self, threaded: bool) -> None:
        self._thread = None
        if threaded:
            self._thread = ThreadPoolExecutor(1, "smoothfast lane", torch.set_num_threads, (1,))
        self._started: deque[Future[Any]] = deque()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Makes a call when those before it are done."""
        if self._thread is not None:
            return self._thread.submit(function, *arguments)
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def result(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Makes a call and waits for it, also where the wait is interrupted: what it works on is then free."""
        with held_back():
            future = self.call(function, *arguments)
            try:
                return future.result()
            finally:
                wait([future])

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Makes a call that computes a micro-batch."""
        self._started.append(self.call(function, *arguments))

    def load(self) -> int:
        """Counts the micro-batches that are not done. Raises what one of them raised."""
        while self._started and self._started[0].done():
            self._started.popleft().result()
        return len(self._started)

    def next_done(self) -> Future[Any]:
        """The oldest micro-batch that is not done; there must be one."""
        return self._started[0]

    def finish(self) -> None:
        """Waits for all micro-batches, whatever comes of them."""
        if self._started:
            wait(self._started)
            self._started.clear()


Kind = TypeVar("Kind", bound=Lane)


def make_lanes(device: torch.device, kind: type[Kind]) -> list[Kind]:
    """Lanes of a kind: as many as there are threads on a CPU, elsewhere one."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return [kind(threaded=False)]
    lanes = [kind(threaded=True) for _ in range(threads)]
    try:
        for lane in lanes:
            lane.result(int)  # its thread has begun
    finally:
        torch.set_num_threads(threads)  # what a thread sets for itself, torch also takes for those to come
    return lanes


def idle(lanes: list[Kind]) -> Kind:
    """The lane with the least to do, as soon as one may be given a micro-batch."""
    while True:
        lane = min(lanes, key=Lane.load)
        if lane.load() < DEPTH:
            return lane
        wait([lane.next_done() for lane in lanes], return_when=FIRST_COMPLETED)

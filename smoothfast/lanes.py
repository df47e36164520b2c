"""Where micro-batches are computed. A CPU has a lane for each thread, a GPU has one.

A lane computes its micro-batches whole and in order: noise, base classifier, votes. On a CPU it is a thread that keeps
to one core, so no core waits for another within an operation, and what it computes does not depend on how many there
are. On a GPU calls are made at once, and the device keeps them in order. So they are where there is one thread: glibc
would give back much of what a second one allocates after every micro-batch, and its pages, new each time, take 5 % of
the time of input gradients (ResNet-20, 64 rows, eager).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .runners import Runner

DEPTH = 2  # micro-batches that a lane is given before one of them must be done
STAGED = 4  # micro-batches whose rows may be on their way to the device


class Transfer:
    """A host tensor (pinned, where there is a device) on its way to or from the device."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        apart = device.type != "cpu"
        self.host = torch.empty(tuple(shape), dtype=torch.int64, pin_memory=apart)
        self._device, self._done = device, torch.Event(device) if apart else None

    def started(self) -> None:
        if self._done is not None:
            self._done.record(torch.get_device_module(self._device).current_stream(self._device))

    def arrived(self) -> bool:
        return self._done is None or self._done.query()

    def wait(self) -> Tensor:
        """The host tensor, once the device is through with it."""
        if self._done is not None:
            self._done.synchronize()
        return self.host


class Board:
    """What micro-batches read and write: tensors that stay where they are, since a captured graph is bound to them.

    Args:
        rows: of a micro-batch, B.
        slots: images in flight at most, S.
        votings: voting rules that count each row, V.

    Attributes:
        rows: int64 [3, B]: slot, image id and sample id of each row.
        key: int64 [2], seed and stream.
        counts: int64 [V, S, K], votes by voting rule, slot and class.
        invalid: int64 [V, S], rows without a vote by slot; every rule finds the same.
    """

    def __init__(self, rows: int, slots: int, classes: int, device: torch.device, votings: int = 1) -> None:
        self._table = torch.zeros(3 * rows + 2, dtype=torch.int64, device=device)
        self.rows, self.key = self._table[:-2].view(3, rows), self._table[-2:]
        self.counts = torch.zeros((votings, slots, classes), dtype=torch.int64, device=device)
        self.invalid = torch.zeros((votings, slots), dtype=torch.int64, device=device)
        self._staged = deque(Transfer(self._table.shape, device) for _ in range(STAGED))

    def write(self, rows: NDArray[np.int64] | Tensor, key: Tensor) -> None:
        """Sets rows and key in one transfer, which nothing waits for."""
        self._staged.rotate()
        staged = self._staged[0]
        host = staged.wait()
        host[:-2] = torch.as_tensor(rows).flatten()
        host[-2:] = key
        self._table.copy_(host, non_blocking=True)
        staged.started()

    def take(self, slots: list[int]) -> Transfer:
        """The votes [len(slots), V K + 1] of some slots, which are set back to 0; one transfer from the device."""
        index = sent(torch.tensor(slots, dtype=torch.int64), self.counts.device)
        votes = torch.cat([*self.counts[:, index], self.invalid[0, index, None]], 1)
        self.counts[:, index], self.invalid[:, index] = 0, 0
        transfer = Transfer(votes.shape, votes.device)
        transfer.host.copy_(votes, non_blocking=True)
        transfer.started()
        return transfer

    def clear(self) -> None:
        self.counts.zero_()
        self.invalid.zero_()


class Lane:
    """Makes calls in order.

    Attributes (set by the engine):
        board: what the lane's micro-batches read and write.
        run_base: the base classifier as this lane runs it.
        step: computes the micro-batch that is on the board, and returns its logits.
    """

    board: Board
    run_base: Runner
    step: Callable[[], Tensor]

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

    def start(self, rows: NDArray[np.int64], key: Tensor) -> None:
        """Computes a micro-batch."""
        self._started.append(self.call(self._compute, rows, key))

    def load(self) -> int:
        """Micro-batches that are not done. Raises what one of them raised."""
        while self._started and self._started[0].done():
            self._started.popleft().result()
        return len(self._started)

    def finish(self) -> None:
        """Waits for all calls, whatever comes of them."""
        if self._started:
            wait(self._started)
            self._started.clear()

    def _compute(self, rows: NDArray[np.int64], key: Tensor) -> None:
        self.board.write(rows, key)
        self.step()


def make_lanes(device: torch.device) -> list[Lane]:
    """As many as there are threads on a CPU, elsewhere one."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return [Lane(threaded=False)]
    lanes = [Lane(threaded=True) for _ in range(threads)]
    for lane in lanes:
        lane.call(int).result()  # its thread has begun
    torch.set_num_threads(threads)  # what a thread sets for itself, torch also takes for those to come
    return lanes


def idle(lanes: list[Lane]) -> Lane:
    """The lane with the least to do, as soon as one may be given a micro-batch."""
    while True:
        lane = min(lanes, key=Lane.load)
        if lane.load() < DEPTH:
            return lane
        wait([lane._started[0] for lane in lanes], return_when=FIRST_COMPLETED)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, which the host does not wait for."""
    if tensor.device.type == "cpu" and device.type != "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def capture(forward: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], Tensor], str]:
    """A function as one CUDA graph that is replayed; as it is where it cannot be captured, and why.

    Its inputs and outputs stay in place, the returned tensor included: clone what is to outlive the next call.
    """
    if device.type != "cuda":
        return forward, f"none on {device.type}"
    broke: RuntimeError | None = None
    try:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # which makes its device the current one
            forward()  # what libraries set up at a first call must not be captured
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    logits = forward()
                except RuntimeError as error:
                    broke = error  # what ends the capture complains too, and would hide it
                    raise
        torch.cuda.current_stream(device).wait_stream(stream)
    except RuntimeError as error:
        broke = broke or error
        if isinstance(broke, torch.OutOfMemoryError):
            raise broke from None
        return forward, f"not captured: {str(broke).splitlines()[0]}"

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay, "captured"

"""Buffers that the micro-batches of a lane read and write, and transfers to a device and back without a wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STAGED = 4  # micro-batches whose rows may be on their way to the device


class Transfer:
    """A host tensor (pinned, where there is a device) on its way to or from the device."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        apart = device.type != "cpu"
        self.host = torch.empty(tuple(shape), dtype=torch.int64, pin_memory=apart)
        self._device, self._done = device, torch.Event(device) if apart else None

    def started(self) -> None:
        """Notes that all has been asked of the device: what it has done by then has arrived."""
        if self._done is not None:
            self._done.record(torch.get_device_module(self._device).current_stream(self._device))

    def arrived(self) -> bool:
        """Whether `wait` would return at once."""
        return self._done is None or self._done.query()

    def wait(self) -> Tensor:
        """The host tensor, once the device is through with it."""
        if self._done is not None:
            self._done.synchronize()
        return self.host


class LaneBuffers:
    """The tensors that micro-batches read and write. They stay where they are: a captured graph is bound to them.

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

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps the votes as they are, whatever micro-batches come within."""
        counts, invalid = self.counts.clone(), self.invalid.clone()
        yield
        self.counts.copy_(counts)
        self.invalid.copy_(invalid)

    def clear(self) -> None:
        """Sets all votes back to 0."""
        self.counts.zero_()
        self.invalid.zero_()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, which the host does not wait for."""
    if tensor.device.type == "cpu" and device.type != "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

"""The schedule of a run: the samples that the next micro-batch takes, and what becomes of the votes.

Many images are in flight at once. Each micro-batch takes rows of whatever draws are open, an image whose procedure has
decided leaves, the next one enters, and results come out in order. Since noise is a pure function of seed, image and
sample, and procedures see votes only when a draw is complete, nothing depends on this scheduling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..procedures import Decision, Draw, Procedure, Votes
from ..streams import Stream
from .buffers import Transfer
from .lanes import Lane


@dataclass(frozen=True)
class Job:
    """One image [C, H, W], the number its noise is drawn under, and the procedure that decides on it."""

    image: Tensor
    image_id: int
    procedure: Procedure


@dataclass(eq=False)
class Flight:
    """A job under way: its slot, its open draw, how many samples of it were handed out, and to which lanes."""

    index: int
    slot: int
    job: Job
    draw: Draw
    taken: int = 0
    lanes: set[Lane] = field(default_factory=set)

    @property
    def left(self) -> int:
        """Samples of the draw that no micro-batch has taken."""
        return self.draw.count - self.taken


BatchKey = tuple[Stream, int]
"""The key that rows of a micro-batch share: the stream, which is in the key of the noise, and the number of the sample
where the base classifier has noise of its own (else 0)."""


@dataclass
class Rows:
    """The rows of one micro-batch: samples of flights, and padding."""

    stream: Stream
    parts: list[tuple[Flight, int, int]] = field(default_factory=list)  # flight, first sample, count

    def table(self, size: int) -> NDArray[np.int64]:
        """Slots, image ids and sample ids, int64 [3, size]; padding rows have slot -1."""
        table = np.full((3, size), -1, np.int64)
        row = 0
        for flight, first, count in self.parts:
            table[0, row : row + count] = flight.slot
            table[1, row : row + count] = flight.job.image_id
            table[2, row : row + count] = np.arange(first, first + count)
            row += count
        return table

    def completed(self, lane: Lane) -> list[Flight]:
        """Notes the lane that computes them; the flights whose draws they complete."""
        for flight, _, _ in self.parts:
            flight.lanes.add(lane)
        return [flight for flight, _, _ in self.parts if not flight.left]


@dataclass(eq=False)
class PendingVotes:
    """Votes on their way, [flights, V K + 1], a part from each lane; of flights whose draws were handed out whole."""

    flights: list[Flight]
    parts: list[tuple[Lane, Future[Transfer]]]

    def arrived(self) -> bool:
        """Whether all parts are there."""
        return all(part.done() and part.result().arrived() for _, part in self.parts)

    def imminent(self) -> bool:
        """Whether the lanes have computed them, and they are only to be fetched."""
        return not any(lane.load() for lane, _ in self.parts)

    def wait(self) -> None:
        """Waits until all parts are there."""
        for _, part in self.parts:
            part.result().wait()

    def votes(self) -> Votes:
        """The sum over the lanes."""
        votes: Votes = np.sum([part.result().wait().numpy() for _, part in self.parts], axis=0)
        for lane, _ in self.parts:
            lane.load()  # raises what kept it from voting
        return votes


class Schedule:
    """The jobs of a run: those waiting, those in flight, and decisions that earlier images hold up.

    Args:
        jobs: in the order in which decisions are to come.
        slots: images in flight at most.
        rows: of a micro-batch.
        own_noise: whether the base classifier has noise of its own, of which all rows of a micro-batch share a draw.
        place: puts an image into a slot.
    """

    def __init__(
        self, jobs: Iterable[Job], slots: int, rows: int, own_noise: bool, place: Callable[[int, Tensor], None]
    ) -> None:
        self._waiting, self._slots, self._rows, self._own_noise = enumerate(jobs), slots, rows, own_noise
        self._place = place
        self._free = list(range(slots))
        self._flights: list[Flight] = []
        self._decided: dict[int, Decision] = {}
        self._next_out = 0

    def next_rows(self, pad: bool) -> Rows | None:
        """Rows for the next micro-batch, all of one key: that of the oldest flight whose key can fill it. New images
        enter until one can. If none does, and only if `pad`, the key with most rows. Once as many results as there are
        slots are held up by the oldest flight, that one goes first.
        """
        open_rows: Counter[BatchKey] = Counter()
        for flight in self._flights:
            open_rows[self._key(flight)] += self._open(flight)
        full = self._admit(open_rows)
        flights = [flight for flight in self._flights if flight.left]
        if not flights or (full is None and not pad):
            return None
        held_up = len(self._decided) >= self._slots
        most = self._key(flights[0]) if held_up else max(open_rows, key=open_rows.__getitem__)
        return self._taken(flights, full or most)

    def answer(self, pending: PendingVotes) -> None:
        """Hands votes that have arrived to their procedures, which ask for more or decide."""
        for flight, votes in zip(pending.flights, pending.votes(), strict=True):
            answer = flight.job.procedure.update(votes)
            if isinstance(answer, Draw):
                flight.draw, flight.taken, flight.lanes = answer, 0, set()
                continue
            self._decided[flight.index] = answer
            self._free.append(flight.slot)
            self._flights.remove(flight)

    def decisions(self) -> Iterator[Decision]:
        """The decisions that no earlier image holds up, in order."""
        while self._next_out in self._decided:
            yield self._decided.pop(self._next_out)
            self._next_out += 1

    def _admit(self, open_rows: Counter[BatchKey]) -> BatchKey | None:
        """Lets images enter until the rows of one key fill a micro-batch: that key, None if there are too few."""
        while len(self._decided) < self._slots:
            full = next((key for key, count in open_rows.items() if count >= self._rows), None)
            entering = next(self._waiting, None) if full is None and self._free else None
            if entering is None:
                return full
            index, job = entering
            slot = self._free.pop()
            self._place(slot, job.image)
            flight = Flight(index, slot, job, job.procedure.begin())
            self._flights.append(flight)
            open_rows[self._key(flight)] += self._open(flight)
        return None

    def _taken(self, flights: list[Flight], key: BatchKey) -> Rows:
        """Takes as many rows of a key as a micro-batch holds, of the oldest flights first."""
        rows, room = Rows(key[0]), self._rows
        for flight in flights:
            if room and self._key(flight) == key:
                count = min(self._open(flight), room)
                rows.parts.append((flight, flight.draw.first + flight.taken, count))
                flight.taken += count
                room -= count
        return rows

    def _key(self, flight: Flight) -> BatchKey:
        """The key of the next rows of a flight."""
        return flight.draw.stream, flight.draw.first + flight.taken if self._own_noise else 0

    def _open(self, flight: Flight) -> int:
        """Rows that a flight can give to a micro-batch."""
        return min(flight.left, 1) if self._own_noise else flight.left


def wait_for_any(pending: list[PendingVotes]) -> None:
    """Waits until a part of some votes has come; where all are on their way from a device, for the oldest."""
    coming = [part for one in pending for _, part in one.parts if not part.done()]
    if coming:
        wait(coming, return_when=FIRST_COMPLETED)
    else:
        pending[0].wait()

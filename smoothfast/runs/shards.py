"""The processes of a run that share out the images of a log, or the samples of each image.

Rank 0 alone touches the log. By images, a process takes the next one whenever its engine asks for one, since with early
stopping one image may cost a thousand times another; rows go to rank 0 through torchrun's store. By samples, all
processes decide the same image, each draws its share of every draw, and procedures see the votes of all. Noise is a
pure function of seed, image and sample, so no row depends on how many processes there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import torch

from ..engine import Engine, Job
from ..procedures.votes import Count, Decision, Draw, Votes
from ..processes import POLL, ProcessGroup, SingleProcess, part
from .logs import Row


class Whole:
    """The work on a log by one process: all of it."""

    def take(self, indices: Sequence[int]) -> Iterator[int]:
        """Takes those of these images that this process is to decide."""
        return iter(indices)

    def decide(self, engine: Engine, jobs: Iterable[Job]) -> Iterator[Decision]:
        """Decides every job, in order."""
        return engine.run(jobs)

    def gather(self, rows: Iterable[Row], write: Callable[[Iterable[Row]], None]) -> None:
        """Makes the rows of this process, and on rank 0 writes those of all."""
        write(rows)


class ByImages(Whole):
    """The work on a log by processes of which each takes the next image."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group, self._store = group, group.store

    def take(self, indices: Sequence[int]) -> Iterator[int]:
        while (position := self._store.add("taken", 1) - 1) < len(indices):
            yield indices[position]

    def gather(self, rows: Iterable[Row], write: Callable[[Iterable[Row]], None]) -> None:
        if self._group.rank > 0:
            return self._hand_over(rows)
        ended = Event()
        with ThreadPoolExecutor(1) as pool:  # rows of others are written while the engine is at work
            written = pool.submit(self._write, write, ended)
            try:
                self._hand_over(rows)
            finally:
                ended.set()
        written.result()

    def _hand_over(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._store.set(f"row {self._store.add('rows', 1)}", json.dumps(row))
        self._group.meet()

    def _write(self, write: Callable[[Iterable[Row]], None], ended: Event) -> None:
        try:
            write(self._arriving(ended))
        except BaseException:
            self._store.add("taken", 2**62)  # nobody begins another image that could not be written
            raise

    def _arriving(self, ended: Event) -> Iterator[Row]:
        number = 1
        while True:
            last = ended.is_set()  # asked first: what came before it is then found
            key = f"row {number}"
            if self._store.check([key]):
                yield Row(*json.loads(self._store.get(key)))
                self._store.delete_key(key)
                number += 1
            elif last:
                return
            else:
                time.sleep(POLL)


class BySamples(Whole):
    """The work on a log by processes of which each draws its share of the samples of every image."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group

    def decide(self, engine: Engine, jobs: Iterable[Job]) -> Iterator[Decision]:
        for job in jobs:
            answer: Draw | Decision = job.procedure.begin()
            while isinstance(answer, Draw):
                answer = job.procedure.update(self._votes(engine, job, answer))
            yield answer

    def _votes(self, engine: Engine, job: Job, draw: Draw) -> Votes:
        """The votes of a draw [K + 1], to which each process adds those of its share."""
        ours = share(draw, self._group.rank, self._group.size)
        votes = np.zeros(engine.num_classes + 1, np.int64)
        if ours.count:
            (own,) = engine.run([Job(job.image, job.image_id, Count(ours.count, ours.first, ours.stream))])
            votes[:] = *own.counts, own.invalid
        self._group.sum(torch.from_numpy(votes))
        return votes

    def gather(self, rows: Iterable[Row], write: Callable[[Iterable[Row]], None]) -> None:
        if self._group.rank == 0:
            return write(rows)
        for _ in rows:
            pass


SHARDS: dict[str, Callable[[ProcessGroup], Whole]] = {"images": ByImages, "samples": BySamples}


def shared(group: SingleProcess, shard: str) -> Whole:
    """The share of this process in the work on a log, by what is shared out: "images" or "samples"."""
    return SHARDS[shard](group) if isinstance(group, ProcessGroup) else Whole()


def share(draw: Draw, rank: int, size: int) -> Draw:
    """The samples of a draw that fall to a rank: a run of them, of equal length up to one, maybe none."""
    own = part(draw.count, rank, size)
    return Draw(draw.stream, draw.first + own.start, own.stop - own.start)

"""A data set through a smoothed classifier into a log: what `smoothfast certify`, `predict` and `demo` do."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import at_least
from ..data import Labelled
from ..engine import Engine, Job
from ..environment import environment
from ..failures import at_work
from ..images import checked_alike
from ..procedures.votes import Decision, Procedure
from ..processes import SingleProcess
from .logs import Row, RunLog, put_in_order
from .shards import Whole, shared

GOLDEN = 2654435769  # of 2**32


def foremost(indices: Sequence[int], limit: int) -> list[int]:
    """Takes the first of some images, as runs of before did: of one class, where a data set goes by classes."""
    return list(indices[:limit])


def evenly(indices: Sequence[int], limit: int) -> list[int]:
    """Takes one image of each of `limit` equal parts of a data set, in order: of all classes, where it goes by classes.

    Their places within the parts go by the golden ratio, lest a data set whose classes take turns give the same each
    time.
    """
    ends = [part * len(indices) // limit for part in range(limit + 1)]
    parts = enumerate(pairwise(ends))
    return [indices[start + ((part * GOLDEN % 2**32 * (end - start)) >> 32)] for part, (start, end) in parts]


TAKEN: dict[str, Callable[[Sequence[int], int], list[int]]] = {"evenly": evenly, "first": foremost}
"""The ways to take a few images of a data set, by the name that the settings of a run have."""


def chosen(count: int, skip: int, limit: int | None, taken: str = "evenly") -> list[int]:
    """Chooses, of the indices 0, skip, 2 skip, … of a data set, at most `limit`."""
    at_least(1, skip=skip, max=limit)
    every = range(0, count, skip)
    return list(every) if limit is None or limit >= len(every) else TAKEN[taken](every, limit)


def taken_by(kept: Mapping[str, Any] | None) -> str:
    """The way that images of a run are taken: as the one that it goes on with did, whose settings are given."""
    taken = "evenly" if kept is None else kept.get("taken", "first")
    return taken if taken in list(TAKEN) else "evenly"  # another is refused with the settings


def log_run(
    engine: Engine,
    data: Labelled,
    indices: list[int],
    procedure: Callable[[int, float], Procedure],
    settings: dict[str, Any],
    path: str | Path,
    *,
    resume: bool = False,
    progress: Callable[[Iterable[Row], int, int], Iterable[Row]] = lambda rows, *_: rows,
    group: SingleProcess | None = None,
    shard: str = "images",
) -> None:
    """Decides the images `indices` of a data set and writes a row for each as soon as it is decided.

    In the end rows are in the order of the images, also where several processes wrote them as they came. Whether the
    log is sound stands in the environment beside it, and once it was found not to be, it stays so.

    Args:
        engine: for images like the first of these.
        data: images and labels; the index of an image is the id its noise is drawn under.
        indices: which of them.
        procedure: makes the procedure of one image from its label and the deviation of the noise (`noise.Law`).
        settings: what else the results depend on; the choices of the engine are added.
        path: the log.
        resume: go on with the log if there is one.
        progress: wraps the rows for display: (rows, number to come, number done before).
        group: the processes that share the work, see `processes.joined`; this one if not given.
        shard: what they share out, "images" or "samples".
    """
    group = group or SingleProcess()
    work = shared(group, shard)
    settings = settings | engine.choices
    group.agree(settings | {"images": len(data)})

    agreement, sound = engine.meta["row_function"], engine.sound
    about = environment() | {"processes": group.size, "row_function": agreement, "sound": sound}

    with ExitStack() as opened:  # by one process, until all rows are in order: no other writes them meanwhile
        logs: list[RunLog] = []

        def begin() -> list[int]:
            logs.append(opened.enter_context(RunLog(path, settings, about, resume)))
            if not sound:  # a run before this one may have found nothing
                logs[0].retract()
            return [index for index in indices if index not in logs[0].done]

        def write(rows: Iterable[Row]) -> None:
            for row in progress(rows, len(left), len(logs[0])):
                logs[0].append(row)
                if engine.meta["row_function"] != agreement:  # at once, since this run may be killed
                    logs[0].retract()
            put_in_order(Path(path))

        left = group.first(begin)
        with at_work():
            work.gather(rows(engine, data, left, procedure, work), write)
        if group.sum(torch.tensor(int(not engine.sound))):
            group.first(lambda: logs[0].retract())


def rows(
    engine: Engine,
    data: Labelled,
    indices: list[int],
    procedure: Callable[[int, float], Procedure],
    work: Whole,
) -> Iterator[Row]:
    """Makes a row for each image that this process takes."""
    taken: deque[tuple[int, int]] = deque()  # index and label of images under way

    def jobs() -> Iterator[Job]:
        for index in work.take(indices):
            image, label = data[index]
            taken.append((index, label))
            alike = checked_alike(image, index, engine.function.shape, engine.function.image_dtype)
            yield Job(alike, index, procedure(label, engine.function.deviation))

    started = time.perf_counter()
    for decision in work.decide(engine, jobs()):
        now = time.perf_counter()
        yield _row(*taken.popleft(), decision, now - started)
        started = now


def _row(index: int, label: int, decision: Decision, seconds: float) -> Row:
    counts = decision.counts
    tested = decision.label if decision.label >= 0 else decision.tested
    top = tested if tested >= 0 else int(counts.argmax())
    others = np.delete(counts, top)
    return Row(
        idx=index,
        label=label,
        predict=decision.label,
        radius=decision.radius,
        time=seconds,
        samples=decision.samples,
        nA=int(counts[top]),
        nB=int(others.max()),
        invalid=decision.invalid,
        p_lower=decision.p_lower,
        p_upper=decision.p_upper,
        decision=decision.outcome,
    )

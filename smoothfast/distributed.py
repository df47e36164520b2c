"""One run in many processes, as torchrun starts them: who takes which images or samples, and who writes the log.

Rank 0 alone touches the log. By images, a process takes the next one whenever its engine asks for one, since with early
stopping one image may cost a thousand times another; rows go to rank 0 through torchrun's store. By samples, all
processes decide the same image, each draws its share of every draw, and procedures see the votes of all. Noise is a
pure function of seed, image and sample, so no row depends on how many processes there are.

What is sent is small and on the host, so gloo carries it whatever the device.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import ops
from .engine import Engine, Job
from .logs import Row, require_new
from .procedures import Count, Decision, Draw, Votes

MEETING = timedelta(minutes=10)  # for all to have started
PATIENCE = timedelta(days=1)  # between the first that is done and the last; one that died is noticed at once
POLL = 0.05  # seconds

Value = TypeVar("Value")

dist: Any = torch.distributed


class Alone:
    """The processes of a run that is one process."""

    rank, size = 0, 1

    def device(self, name: str) -> str:
        """The device of this process that is meant by a name."""
        return name

    def begin(self, resume: bool, *paths: Path) -> bool:
        """Whether to go on with files of a run.

        Raises:
            FileExistsError: there is one, and it is not to be gone on with.
        """
        if not resume:
            for path in paths:
                require_new(path)
        return resume

    def agree(self, settings: dict[str, Any]) -> None:
        """Raises ValueError, in every process, unless all have the same settings."""

    def first(self, work: Callable[[], Value]) -> Value:
        """What `work` gives rank 0, in every process, be it an error."""
        return work()

    def take(self, indices: Sequence[int]) -> Iterator[int]:
        """Those of these images that this process is to decide."""
        return iter(indices)

    def decide(self, engine: Engine, jobs: Iterable[Job]) -> Iterator[Decision]:
        """Decides every job, in order."""
        return engine.run(jobs)

    def gather(self, rows: Iterable[Row], write: Callable[[Iterable[Row]], None]) -> None:
        """Makes the rows of this process, and on rank 0 writes those of all."""
        write(rows)

    def part(self, count: int) -> slice:
        """Of so many things in a row, those of this process: as many for each, up to one."""
        return part(count, self.rank, self.size)

    def sum(self, numbers: Tensor) -> Tensor:
        """Numbers added over the processes, in place."""
        return numbers

    def alike(self, tensors: Iterable[Tensor]) -> None:
        """Gives all processes the tensors of rank 0, in place."""

    def averaging(self, network: nn.Module) -> nn.Module:
        """A network whose `backward` leaves the mean gradients of all processes. It begins with the parameters of rank
        0, and with its buffers at every call."""
        return network

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a loss by such a network."""
        loss.backward()


class _Launched(Alone):
    """All processes that torchrun started."""

    def __init__(self, store: Any) -> None:
        self.rank, self.size, self._store = dist.get_rank(), dist.get_world_size(), store

    def device(self, name: str) -> str:
        """A GPU without a number is that of the local rank, and becomes the current one: else all take memory of the
        first."""
        local = int(os.environ["LOCAL_RANK"])
        if name not in ops.GPUS:
            return name
        module = torch.get_device_module(name)
        if local < module.device_count():  # where not, whoever uses it complains
            module.set_device(local)
        return f"{name}:{local}"

    def begin(self, resume: bool, *paths: Path) -> bool:
        """A run that torchrun started again goes on with what it had begun."""

        def begun() -> bool:
            goes_on = _launch_store().check(["begun"]) or Alone.begin(self, resume, *paths)
            _launch_store().set("begun", "")
            return goes_on

        return self.first(begun)

    def agree(self, settings: dict[str, Any]) -> None:
        everyone: list[dict[str, Any]] = [{}] * self.size
        with _all_alive():
            dist.all_gather_object(everyone, settings)
        for rank, theirs in enumerate(everyone):
            differing = [
                f"{key} is {everyone[0].get(key)!r} for rank 0, {theirs.get(key)!r} for rank {rank}"
                for key in sorted(everyone[0].keys() | theirs.keys())
                if everyone[0].get(key) != theirs.get(key)
            ]
            if differing:
                raise ValueError(f"the processes would not compute the same: {'; '.join(differing)}")

    def first(self, work: Callable[[], Value]) -> Value:
        answer: list[Any] = [None]
        if self.rank == 0:
            try:
                answer = [work()]
            except (ValueError, OSError) as error:
                answer = [error]
        with _all_alive():
            dist.broadcast_object_list(answer)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    def sum(self, numbers: Tensor) -> Tensor:
        with _all_alive():
            dist.all_reduce(numbers)
        return numbers

    def alike(self, tensors: Iterable[Tensor]) -> None:
        with _all_alive():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def averaging(self, network: nn.Module) -> nn.Module:
        on_gpu = any(parameter.is_cuda for parameter in network.parameters())
        group = dist.new_group(backend="nccl") if on_gpu else None  # gradients are large: gloo takes them by the host
        return DistributedDataParallel(network, process_group=group)

    def backward(self, loss: Tensor) -> None:
        with _all_alive():
            loss.backward()


class _ByImages(_Launched):
    def take(self, indices: Sequence[int]) -> Iterator[int]:
        while (position := self._store.add("taken", 1) - 1) < len(indices):
            yield indices[position]

    def gather(self, rows: Iterable[Row], write: Callable[[Iterable[Row]], None]) -> None:
        if self.rank > 0:
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
        with _all_alive():
            dist.barrier()

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


class _BySamples(_Launched):
    def decide(self, engine: Engine, jobs: Iterable[Job]) -> Iterator[Decision]:
        for job in jobs:
            answer: Draw | Decision = job.procedure.begin()
            while isinstance(answer, Draw):
                answer = job.procedure.update(self._votes(engine, job, answer))
            yield answer

    def _votes(self, engine: Engine, job: Job, draw: Draw) -> Votes:
        """Those of a draw [K + 1], to which each process adds its share."""
        ours = share(draw, self.rank, self.size)
        votes = np.zeros(engine.num_classes + 1, np.int64)
        if ours.count:
            (own,) = engine.run([Job(job.image, job.image_id, Count(ours.count, ours.first, ours.stream))])
            votes[:] = *own.counts, own.invalid
        with _all_alive():
            dist.all_reduce(torch.from_numpy(votes))
        return votes

    def gather(self, rows: Iterable[Row], write: Callable[[Iterable[Row]], None]) -> None:
        if self.rank == 0:
            return write(rows)
        for _ in rows:
            pass


SHARDS: dict[str, type[_Launched]] = {"images": _ByImages, "samples": _BySamples}


def share(draw: Draw, rank: int, size: int) -> Draw:
    """The samples of a draw that fall to a rank: a run of them, of equal length up to one, maybe none."""
    own = part(draw.count, rank, size)
    return Draw(draw.stream, draw.first + own.start, own.stop - own.start)


def part(count: int, rank: int, size: int) -> slice:
    """Of so many things in a row, those of a rank."""
    return slice(*(count * bound // size for bound in (rank, rank + 1)))


@contextmanager
def joined(shard: str | None = None) -> Iterator[Alone]:
    """The processes of this run, which share out "images" or "samples" of a log if torchrun started them.

    Raises:
        OSError: not all of them came, or one ended before its work was done.
    """
    if not _launched():
        yield Alone()
        return
    with _all_alive():
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = dist.PrefixStore(_meet(rank, size), _launch_store())
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield _Launched(store) if shard is None else SHARDS[shard](store)
    except BaseException:
        _speaks()  # before the others notice that this process is gone, and have something to say about it
        raise
    finally:
        dist.destroy_process_group()


def require_one(command: str) -> None:
    """Raises ValueError where torchrun started several processes, for a command that has no work to share."""
    size = os.environ["WORLD_SIZE"] if _launched() else "1"
    if size != "1":
        raise ValueError(f"{command} runs in one process; torchrun started {size}: run it without torchrun")


def once(act: Callable[[], None]) -> None:
    """Acts in the process of a run that comes here first; the others wait for it. For what all of them would say."""
    if not _launched():
        return act()
    if _speaks():
        act()
        return _launch_store().set("acted", "")
    try:
        _launch_store().wait(["acted"], timedelta(seconds=10))
    except dist.DistStoreError:  # that process was killed over it
        act()


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


@cache
def _speaks() -> bool:
    """Whether this process is the first that failed."""
    return _launch_store().add("failed", 1) == 1


@cache
def _launch_store() -> Any:
    """The store of torchrun. It outlives the processes: what it holds may be of those before a restart."""
    store, _, _ = next(dist.rendezvous("env://", timeout=MEETING))
    return dist.PrefixStore("smoothfast", store)


def _meet(rank: int, size: int) -> str:
    """A name that these processes have in common and none before them had.

    Torchrun gives them none: agents count restarts each for itself, and new machines are no restart. So rank 0 answers
    every call that it finds, old ones too, until each of the others has heard the answer to its own.
    """
    store, name = _launch_store(), uuid4().hex
    if rank > 0:
        store.set(f"call {rank}", name)
        answer = store.get(f"answer {name}").decode()
        store.add(answer, 1)
        return answer
    for key in ("failed", "acted"):
        store.delete_key(key)
    while store.add(name, 0) < size - 1:
        for other in range(1, size):
            store.set(f"answer {store.get(f'call {other}').decode()}", name)
        time.sleep(POLL)
    return name


@contextmanager
def _all_alive() -> Iterator[None]:
    """Around what all processes do together."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(
            f"another process of this run has ended or has never come ({str(error).splitlines()[0]}); what is written "
            "is kept: go on with --resume"
        ) from error

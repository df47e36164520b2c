"""One run in many processes, as torchrun starts them: what all of them know, agree on and add up.

What is sent is small and on the host, so gloo carries it whatever the device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .files import require_new
from .launch import launch_store, launched, speaks
from .ops import GPUS

PATIENCE = timedelta(days=1)  # between the first that is done and the last; one that died is noticed at once
POLL = 0.05  # seconds
Value = TypeVar("Value")
dist: Any = torch.distributed


class SingleProcess:
    """The processes of a run that is one process."""

    rank, size = 0, 1

    def device(self, name: str) -> str:
        """The device of this process that is meant by a name."""
        return name

    def begin(self, resume: bool, *paths: Path) -> bool:
        """Decides whether to go on with files of a run.

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
        """Works in rank 0 alone, and gives every process what it returns or raises."""
        return work()

    def part(self, count: int) -> slice:
        """The things of this process, of so many in a row: as many for each process, up to one."""
        return part(count, self.rank, self.size)

    def sum(self, numbers: Tensor) -> Tensor:
        """Adds numbers over the processes, in place."""
        return numbers

    def alike(self, tensors: Iterable[Tensor]) -> None:
        """Gives all processes the tensors of rank 0, in place."""

    def averaging(self, network: nn.Module) -> nn.Module:
        """A network of which `backward` leaves the mean gradients of all processes. It begins with the parameters of
        rank 0, and with its buffers at every call."""
        return network

    def backward(self, loss: Tensor) -> None:
        """Makes the backward pass of a loss by such a network."""
        loss.backward()


class ProcessGroup(SingleProcess):
    """All processes that torchrun started: they do together what one would do.

    Attributes:
        store: keys and values that they share, and none before them did.
    """

    def __init__(self, store: Any) -> None:
        self.rank, self.size, self.store = dist.get_rank(), dist.get_world_size(), store

    def device(self, name: str) -> str:
        """Takes a GPU without a number for the one of the local rank, and makes it the current one: else all would take
        memory of the first."""
        local = int(os.environ["LOCAL_RANK"])
        if name not in GPUS:
            return name
        module = torch.get_device_module(name)
        if local < module.device_count():  # where not, whoever uses it complains
            module.set_device(local)
        return f"{name}:{local}"

    def begin(self, resume: bool, *paths: Path) -> bool:
        """Goes on with what it had begun where torchrun started the run again."""

        def begun() -> bool:
            goes_on = launch_store().check(["begun"]) or SingleProcess.begin(self, resume, *paths)
            launch_store().set("begun", "")
            return goes_on

        return self.first(begun)

    def agree(self, settings: dict[str, Any]) -> None:
        everyone: list[dict[str, Any]] = [{}] * self.size
        with all_alive():
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
        with all_alive():
            dist.broadcast_object_list(answer)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    def sum(self, numbers: Tensor) -> Tensor:
        with all_alive():
            dist.all_reduce(numbers)
        return numbers

    def alike(self, tensors: Iterable[Tensor]) -> None:
        with all_alive():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def averaging(self, network: nn.Module) -> nn.Module:
        on_gpu = any(parameter.is_cuda for parameter in network.parameters())
        group = dist.new_group(backend="nccl") if on_gpu else None  # gradients are large: gloo takes them by the host
        return DistributedDataParallel(network, process_group=group)

    def backward(self, loss: Tensor) -> None:
        with all_alive():
            loss.backward()

    def meet(self) -> None:
        """Waits until all processes have come here."""
        with all_alive():
            dist.barrier()


def part(count: int, rank: int, size: int) -> slice:
    """The things of a rank, of so many in a row: as many for each rank, up to one."""
    return slice(*(count * bound // size for bound in (rank, rank + 1)))


@contextmanager
def joined() -> Iterator[SingleProcess]:
    """The processes of this run: a `ProcessGroup` if torchrun started them.

    Raises:
        OSError: not all of them came, or one ended before its work was done.
    """
    if not launched():
        yield SingleProcess()
        return
    with all_alive():
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = dist.PrefixStore(_common_name(rank, size), launch_store())
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield ProcessGroup(store)
    except BaseException:
        speaks()  # before the others notice that this process is gone, and have something to say about it
        raise
    finally:
        dist.destroy_process_group()


def _common_name(rank: int, size: int) -> str:
    """Agrees on a name that these processes have in common and none before them had.

    Torchrun gives them none: agents count restarts each for itself, and new machines are no restart. So rank 0 answers
    every call that it finds, old ones too, until each of the others has heard the answer to its own.
    """
    store, name = launch_store(), uuid4().hex
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
def all_alive() -> Iterator[None]:
    """Stands around what all processes do together, and says so where one is gone."""
    try:
        yield
    except torch.OutOfMemoryError:  # of this process
        raise
    except RuntimeError as error:
        raise OSError(
            f"another process of this run has ended or has never come ({str(error).splitlines()[0]}); what is written "
            "is kept: go on with --resume"
        ) from error

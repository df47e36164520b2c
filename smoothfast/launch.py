"""Whether torchrun started this process, and the store that it keeps for all; and its agent, for one machine. Torch is
loaded only where one of these is asked for."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

PROCESSES = "--processes"
MEETING = timedelta(minutes=10)  # for all to have started


def launched() -> bool:
    """Tells whether torchrun started this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    import torch.distributed

    return torch.distributed.is_available()


def require_none(processes: int) -> None:
    """Raises ValueError where several processes are asked for, of which torchrun has started some already."""
    if processes > 1 and launched():
        raise ValueError(
            f"processes is {processes}; torchrun started {os.environ['WORLD_SIZE']} already: leave {PROCESSES} away"
        )


def require_one(command: str) -> None:
    """Raises ValueError where torchrun started several processes, for a command that has no work to share."""
    size = os.environ["WORLD_SIZE"] if launched() else "1"
    if size != "1":
        raise ValueError(f"{command} runs in one process; torchrun started {size}: run it without torchrun")


def leads() -> bool:
    """Tells whether this process is the one of a run that speaks."""
    return not launched() or os.environ["RANK"] == "0"


def in_processes(count: int) -> None:
    """Runs this command line in so many processes of this machine, as torchrun would; they have the threads between
    them that one would have.

    Raises:
        SystemExit: one failed, and has said so.
        OSError: one was killed.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // count))
    logging.disable()  # the processes say what went wrong
    config = LaunchConfig(
        1, 1, count, run_id="smoothfast", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    try:
        elastic_launch(config, sys.executable)("-m", "smoothfast", *without_processes(sys.argv[1:]))
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        statuses = [failure.exitcode for failure in error.failures.values()]
        if max(statuses) > 0:
            sys.exit(max(statuses))
        raise OSError(
            f"a process of this run was killed by signal {-min(statuses)}; what is written is kept: go on with --resume"
        ) from error


def without_processes(words: Sequence[str]) -> list[str]:
    """The words of a command line but for --processes and its number."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word != PROCESSES and before != PROCESSES and not word.startswith(f"{PROCESSES}=")
    ]


def once(act: Callable[[], None]) -> None:
    """Acts in the process of a run that comes here first; the others wait for it. For what all of them would say."""
    if not launched():
        return act()
    from torch.distributed import DistStoreError

    if speaks():
        act()
        return launch_store().set("acted", "")
    try:
        launch_store().wait(["acted"], timedelta(seconds=10))
    except DistStoreError:  # that process was killed over it
        act()


@cache
def speaks() -> bool:
    """Tells whether this process is the first that failed."""
    return launch_store().add("failed", 1) == 1


@cache
def launch_store() -> Any:
    """The store of torchrun. It outlives the processes: what it holds may be of those before a restart."""
    from torch import distributed

    dist: Any = distributed
    store, _, _ = next(dist.rendezvous("env://", timeout=MEETING))
    return dist.PrefixStore("smoothfast", store)

"""Whether torchrun started this process, and the store that it keeps for all. Torch is loaded only where it did."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

MEETING = timedelta(minutes=10)  # for all to have started


def launched() -> bool:
    """Tells whether torchrun started this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    import torch.distributed

    return torch.distributed.is_available()


def require_one(command: str) -> None:
    """Raises ValueError where torchrun started several processes, for a command that has no work to share."""
    size = os.environ["WORLD_SIZE"] if launched() else "1"
    if size != "1":
        raise ValueError(f"{command} runs in one process; torchrun started {size}: run it without torchrun")


def leads() -> bool:
    """Tells whether this process is the one of a run that speaks."""
    return not launched() or os.environ["RANK"] == "0"


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

"""What torchrun does for its processes, without the seconds that each new interpreter takes to import torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed import TCPStore

from smoothfast import cli

CONTEXT = multiprocessing.get_context("forkserver")
# All that a run imports, at once or when it comes to it: SciPy alone takes a process as long as all of its other work.
OURS = ["cli.prepare", "runs.certify", "runs.attack", "runners.gradient", "training.trainer"]
OTHERS = ["torch._dynamo", "torch.utils.flop_counter", "scipy.stats", "rich.progress", "rich.status", "typer._adapters"]
CONTEXT.set_forkserver_preload([*OTHERS, *(f"smoothfast.{name}" for name in OURS)])

PATIENCE = 240  # seconds until a test that hangs fails: before the alarm that ends the suite, with what was printed


class Result(NamedTuple):
    status: int  # -9: killed by SIGKILL
    out: str
    err: str


class Launch:
    """One call of torchrun: a store that outlives the processes, which are started once and again.

    Nothing is done about a process that fails: the others must notice by themselves, as those on other machines do.
    """

    def __init__(self) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def run(
        self,
        size: int,
        *words: object,
        own: Mapping[int, Mapping[str, str]] | None = None,
        attempt: int = 0,
        room: int | None = None,
    ) -> list[Result]:
        """Runs the command line in so many processes.

        Args:
            own: environment of single ranks.
            attempt: restarts before.
            room: bytes that a file may grow to.
        """
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "WORLD_SIZE": str(size),
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(attempt),
        }
        ranks = [
            shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | dict((own or {}).get(rank, {}))
            for rank in range(size)
        ]
        return start(ranks, words, room)


def start(environments: list[dict[str, str]], words: tuple[object, ...], room: int | None = None) -> list[Result]:
    """Runs the command line in a process for each environment, in the present folder."""
    processes = [Running(words, environment, str(number), room) for number, environment in enumerate(environments)]
    try:
        return [process.result() for process in processes]
    finally:
        for process in processes:
            process.kill()


class Running:
    """The command line in a process of its own, in the present folder. It has begun.

    Args:
        words: of the command line.
        environment: what it has beside that of the server.
        name: ends the names of the files that it writes its output to.
        room: bytes that a file may grow to.
    """

    def __init__(
        self, words: tuple[object, ...], environment: Mapping[str, str], name: str = "0", room: int | None = None
    ) -> None:
        self._files = out, err = Path(f"out-{name}"), Path(f"err-{name}")
        about = Path.cwd(), list(map(str, words)), dict(environment), out, err, room
        self._process = CONTEXT.Process(target=work, args=about)
        self._process.start()

    def result(self, seconds: float = PATIENCE) -> Result:
        """Waits for its end."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, "a process hangs"
        return Result(self._process.exitcode, *(file.read_text() for file in self._files))

    def kill(self, seconds: float = 0) -> bool:
        """Kills it after so many seconds, unless it has ended before; tells whether it had to."""
        self._process.join(seconds)
        self._process.kill()
        self._process.join()
        return self._process.exitcode == -signal.SIGKILL


def work(folder: Path, words: list[str], environment: dict[str, str], out: Path, err: Path, room: int | None) -> None:
    """Becomes `smoothfast WORDS`."""
    os.chdir(folder)
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if room is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    torch.set_num_threads(1)
    sys.argv = ["smoothfast", *words]
    cli.main()

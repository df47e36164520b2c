"""Runs in many processes: the same bytes for any number, however they are shared out and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.launcher import Launch, Result, start
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from smoothfast import launch
from smoothfast.names import SHARDS
from smoothfast.noise import Stream
from smoothfast.procedures import Draw
from smoothfast.processes import ProcessGroup, SingleProcess
from smoothfast.runs import shards
from smoothfast.runs.logs import Row, environment_of, read_log

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this build of torch lacks torch.distributed or gloo",
)

# Images of one level each, on whose way to the next class noise carries them more or less often.
TOYS = """
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

LEVELS = (0.5, 0.1, 0.9, 0.32, 0.2, 0.8, 0.7, 0.68, 0.55, 0.05)
CENTRES = torch.tensor([0.5, 0.1, 0.9])


def model(num_classes):
    layer = nn.Linear(48, num_classes)
    with torch.no_grad():
        layer.weight.copy_((2 * CENTRES[:, None] / 48).expand(-1, 48))
        layer.bias.copy_(-(CENTRES**2))
    return nn.Sequential(nn.Flatten(), layer)


def wait(*files):
    end = time.monotonic() + 30
    while not all(Path(file).exists() for file in files):
        assert time.monotonic() < end, f"no sign of {files}"
        time.sleep(0.01)


class Images:
    classes = ("grey", "dim", "bright")

    def __len__(self):
        return len(LEVELS) - int(os.environ.get("LOST", "0"))

    def __getitem__(self, index):
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and index in map(int, os.environ.get("KILL_AT", "").split()):
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if "SLOW" in os.environ:
            Path(f"seen-{index}").touch()
            if index == 1:
                wait(*(f"seen-{later}" for later in range(2, len(LEVELS))))
        if "HELD" in os.environ and index > 0:
            wait("killed")
        side = 3 if os.environ.get("UNEVEN_AT") == str(index) else 4
        return torch.full((3, side, side), round(255 * LEVELS[index]), dtype=torch.uint8), index % 3


def images(split):
    if "NO_DATA" in os.environ:
        raise ValueError("the data are not here")
    return Images()
"""
COUNT = 10

METHODS: dict[str, list[str]] = {
    "fixed": ["certify", "--n0=5", "--n=100"],
    "sequential": ["certify", "--n0=2", "--n=400", "--method=sequential", "--radius=0.2"],
    "tolerance": ["certify", "--n0=5", "--n=3000", "--method=tolerance", "--tolerance=0.4"],
    "grid": ["certify", "--n0=2", "--n=400", "--method=grid", "--radii=0,0.2,0.3", "--bound=cohen"],
    "predict": ["predict", "--n=200", "--method=sequential"],
}
BASIC = [
    "--model=smoothfast_shared_toys:model", "--data=smoothfast_shared_toys:images", "--normalize=none", "--sigma=0.3",
    "--precision=fp32", "--batch=16", "--seed=3", "--out=run.tsv",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("toys")
    (folder / "smoothfast_shared_toys.py").write_text(TOYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The log of a method by a run without torchrun."""

    @cache
    def log(method: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp(method))
            succeeded(start([{}], (*METHODS[method], *BASIC)))
            return timeless("run.tsv")

    return log


def timeless(path: str) -> str:
    """A log without the time column."""
    lines = (line.split("\t") for line in Path(path).read_text().splitlines(keepends=True))
    return "".join("\t".join(cells[:5] + cells[6:]) for cells in lines)


def succeeded(results: list[Result]) -> None:
    for result in results:
        assert result.status == 0, result.err
    assert results[0].out.startswith("| log")
    assert not any(result.out or result.err for result in results[1:])


def failed(results: list[Result], *parts: str, status: int = 2) -> None:
    """All end with an error, and one of them says which, once, and nobody shows a table."""
    assert [result.status for result in results] == [status] * len(results), results
    told = [line for result in results for line in result.err.splitlines() if line.startswith("smoothfast: ")]
    assert len(told) == 1, told
    assert all(part in told[0] for part in parts), told
    assert not any(result.out or "Traceback" in result.err for result in results)


# ---- the same bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize(
    ("method", "size"),
    [("fixed", 1), ("fixed", 2), ("fixed", 3), ("sequential", 4), ("tolerance", 2), ("grid", 2), ("predict", 3)],
)
def test_any_number_of_processes_writes_the_same_bytes(
    plain: Callable[[str], str], method: str, size: int, shard: str
) -> None:
    # Four processes have no share of the first two samples each, nor of the later looks three apart.
    succeeded(Launch().run(size, *METHODS[method], *BASIC, f"--shard={shard}"))
    assert timeless("run.tsv") == plain(method)
    assert sorted(path.name for path in Path().glob("run.tsv*")) == ["run.tsv", "run.tsv.json"]


def test_an_image_that_takes_long_holds_nobody_up(plain: Callable[[str], str]) -> None:
    """Image 1 is not even loaded before all others were."""
    succeeded(Launch().run(2, *METHODS["fixed"], *BASIC, own={rank: {"SLOW": "1"} for rank in (0, 1)}))
    assert timeless("run.tsv") == plain("fixed")


@pytest.mark.parametrize("then", [0, 1, 3])
def test_a_killed_run_goes_on_with_any_number_of_processes(plain: Callable[[str], str], then: int) -> None:
    words = [*METHODS["sequential"], *BASIC]
    results = Launch().run(2, *words, own={rank: {"KILL_AT": "4"} for rank in (0, 1)})
    assert sorted(result.status for result in results) == [-signal.SIGKILL, 1]
    survivor = max(results)
    assert "another process of this run has ended or has never come" in survivor.err
    assert "go on with --resume" in survivor.err
    assert 4 not in read_log("run.tsv").idx
    words.append("--resume")
    succeeded(Launch().run(then, *words) if then else start([{}], tuple(words)))
    assert timeless("run.tsv") == plain("sequential")


def test_a_run_whose_writer_was_killed_goes_on(plain: Callable[[str], str]) -> None:
    """The others hold one image each until then, so rank 0 comes to one that kills it."""
    words = [*METHODS["fixed"], *BASIC]
    own = {0: {"KILL_AT": "4 5 6 7 8 9"}, 1: {"HELD": "1"}, 2: {"HELD": "1"}}
    assert [result.status for result in Launch().run(3, *words, own=own)] == [-signal.SIGKILL, 1, 1]
    assert len(read_log("run.tsv")) < COUNT
    succeeded(Launch().run(2, *words, "--resume", "--shard=samples"))
    assert timeless("run.tsv") == plain("fixed")


def test_samples_of_a_process_that_died_are_missed_at_once(plain: Callable[[str], str]) -> None:
    words = [*METHODS["fixed"], *BASIC, "--shard=samples"]
    results = Launch().run(3, *words, own={1: {"KILL_AT": "4"}})
    assert [result.status for result in results] == [1, -signal.SIGKILL, 1]
    assert sum("has ended or has never come" in result.err for result in results) == 1
    assert read_log("run.tsv").idx.tolist() == [0, 1, 2, 3]
    succeeded(Launch().run(2, *words, "--resume"))
    assert timeless("run.tsv") == plain("fixed")


def test_a_restart_goes_on_and_takes_nothing_for_its_own_that_is_old(plain: Callable[[str], str]) -> None:
    """The store still holds calls, answers, counters and addresses of those before, whose number was another."""
    again, words = Launch(), [*METHODS["fixed"], *BASIC]
    results = again.run(3, *words, own={rank: {"KILL_AT": "4"} for rank in range(3)})
    assert -signal.SIGKILL in [result.status for result in results]
    succeeded(again.run(2, *words, attempt=1))
    assert timeless("run.tsv") == plain("fixed")


def test_torchrun_restarts_a_killed_process(plain: Callable[[str], str]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = [*torchrun, "-m", "--", "smoothfast", *METHODS["fixed"], *BASIC]
    environment = os.environ | {"KILL_AT": "4", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Signal 9" in done.stderr or "exitcode: -9" in done.stderr
    assert timeless("run.tsv") == plain("fixed")


def test_processes_that_the_command_starts_itself(plain: Callable[[str], str]) -> None:
    words = [*METHODS["fixed"], *BASIC, "--processes", "2"]
    succeeded(start([{"PYTHONPATH": os.pathsep.join(sys.path)}], tuple(words)))
    assert timeless("run.tsv") == plain("fixed")
    assert environment_of(Path("run.tsv"))["processes"] == 2


def test_the_other_words_of_a_command_line_stay() -> None:
    words = ["certify", "--processes", "2", "--n=5", "--processes=3", "--out", "2"]
    assert launch.without_processes(words) == ["certify", "--n=5", "--out", "2"]


@pytest.mark.parametrize(("statuses", "error"), [([2, -15], SystemExit), ([-9, -9], OSError)])
def test_the_end_of_processes_that_failed(
    statuses: list[int], error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exit status of the one that has said why; where all were killed, none has."""

    def fail(*_: object) -> None:
        failures = {rank: ProcessFailure(rank, 1, status, "") for rank, status in enumerate(statuses)}
        raise ChildFailedError("smoothfast", failures)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # is put back
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: fail)
    monkeypatch.setattr("logging.disable", lambda: None)
    with pytest.raises(error, match=r"^2$|killed by signal 9"):
        launch.in_processes(2)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_a_log_is_never_overwritten_or_mixed() -> None:
    words = [*METHODS["fixed"], *BASIC]
    succeeded(Launch().run(2, *words))
    before = [Path(name).read_bytes() for name in ("run.tsv", "run.tsv.json")]
    again = Launch()
    failed(again.run(2, *words), "run.tsv exists", "--resume")
    failed(again.run(2, *words, attempt=1), "run.tsv exists", "--resume")  # nor after a restart
    failed(Launch().run(2, *words, "--resume", "--seed=4"), "other settings: seed was 3, is now 4")
    assert [Path(name).read_bytes() for name in ("run.tsv", "run.tsv.json")] == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--n=5"], "n is 5; it must be"),
        (["--processes=2"], "processes is 2; torchrun started 2 already"),
        (["--shard=pixels"], "shard is 'pixels'; it must be one of images, samples"),
        (["--data=nothing"], "data is 'nothing'"),
    ],
)
def test_bad_usage_is_told_once(words: list[str], part: str) -> None:
    failed(Launch().run(2, *METHODS["fixed"], *BASIC, *words), part)
    assert not Path("run.tsv").exists()


def test_an_attack_shares_nothing_out() -> None:
    words = ["attack", "--attack=fgsm", "--eps=0.1", *(word for word in BASIC if "out" not in word)]
    failed(Launch().run(2, *words, "--out=deep/adv.safetensors"), "attack runs in one process; torchrun started 2")
    assert not Path("deep").exists()
    (alone,) = Launch().run(1, *words, "--out=adv.safetensors")
    assert alone.status == 0, alone.err
    assert Path("adv.safetensors").exists()


def test_an_unknown_shard_without_torchrun() -> None:
    failed(start([{}], (*METHODS["fixed"], *BASIC, "--shard=pixels")), "shard is 'pixels'")


def test_the_error_of_one_process_is_that_of_the_run() -> None:
    results = Launch().run(3, *METHODS["fixed"], *BASIC, own={1: {"NO_DATA": "1"}})
    assert [result.status for result in results] == [1, 2, 1]
    assert "the data are not here" in results[1].err
    assert not any("smoothfast: " in results[rank].err for rank in (0, 2))
    assert not Path("run.tsv").exists()


@pytest.mark.parametrize("shard", SHARDS)
def test_an_error_amid_the_run(shard: str) -> None:
    words = [*METHODS["fixed"], *BASIC, f"--shard={shard}"]
    results = Launch().run(2, *words, own={rank: {"UNEVEN_AT": "4"} for rank in (0, 1)})
    assert {result.status for result in results} == {1}
    told = [line for result in results for line in result.err.splitlines() if line.startswith("smoothfast: ")]
    assert len(told) == 1
    assert "image 4 is torch.uint8 (3, 3, 3)" in told[0]
    assert 4 not in read_log("run.tsv").idx


def test_processes_that_would_not_compute_the_same() -> None:
    results = Launch().run(3, *METHODS["fixed"], *BASIC, own={2: {"LOST": "2"}})
    failed(results, "would not compute the same: images is 10 for rank 0, 8 for rank 2")
    assert not Path("run.tsv").exists()


def test_a_full_disk_ends_the_run_and_keeps_what_is_written(plain: Callable[[str], str]) -> None:
    pytest.importorskip("resource", reason="this system has no file size limits")
    words = [*METHODS["fixed"], *BASIC]
    succeeded(Launch().run(1, *words))
    log = Path("run.tsv").read_bytes()
    Path("run.tsv").write_bytes(b"".join(log.splitlines(keepends=True)[:3]))  # its sidecar is larger than the log
    results = Launch().run(2, *words, "--resume", room=len(log) // 2)
    assert [result.status for result in results] == [1, 1]
    assert "smoothfast: " not in results[1].err
    assert "cannot write to run.tsv (File too large)" in " ".join(results[0].err.split())
    assert 2 < len(read_log("run.tsv")) < COUNT
    succeeded(Launch().run(2, *words, "--resume"))
    assert timeless("run.tsv") == plain("fixed")


# ---- parts -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 300))
def test_shares_make_up_the_draw(first: int, count: int, size: int) -> None:
    shares = [shards.share(Draw(Stream.ESTIMATE, first, count), rank, size) for rank in range(size)]
    assert {share.stream for share in shares} == {Stream.ESTIMATE}
    assert sum(share.count for share in shares) == count
    assert max(share.count for share in shares) - min(share.count for share in shares) <= 1
    end = first
    for share in shares:
        assert (share.first, share.count >= 0) == (end, True)
        end += share.count


@pytest.mark.parametrize(
    ("name", "local", "device", "current"),
    [
        ("cpu", 1, "cpu", None),
        ("cuda", 1, "cuda:1", 1),
        ("cuda:0", 1, "cuda:0", None),
        ("xpu", 0, "xpu:0", 0),
        ("cuda", 2, "cuda:2", None),  # there is none, as whoever uses it says
    ],
)
def test_each_process_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str, local: int, device: str, current: int | None
) -> None:
    chosen: list[int] = []
    gpus = SimpleNamespace(device_count=lambda: 2, set_device=chosen.append)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 5)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    assert ProcessGroup(None).device(name) == device
    assert chosen == ([] if current is None else [current])
    assert SingleProcess().device(name) == name


def test_nobody_begins_an_image_that_could_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    store = torch.distributed.HashStore()
    ours, other = (shards.ByImages(ProcessGroup(store)) for _ in range(2))
    indices = list(range(10, 20))
    others = other.take(indices)
    assert next(others) == 10
    failed = threading.Event()

    def write(rows: Iterable[Row]) -> None:
        next(iter(rows))
        failed.set()
        raise OSError("No space left on device")

    def rows() -> Iterator[Row]:
        yield Row(next(ours.take(indices)), 1, 1, 0.1, 1.5, 100, 99, 1, 0, 0.9, 0.1, "certified")
        assert failed.wait(30)

    with pytest.raises(OSError, match="No space left"):
        ours.gather(rows(), write)
    assert list(others) == []


def test_every_shard_has_a_name() -> None:
    assert tuple(shards.SHARDS) == SHARDS
    assert type(shards.shared(SingleProcess(), "samples")) is shards.Whole


def test_help_names_the_shards() -> None:
    for command in ("certify", "predict"):
        (result,) = start([{}], (command, "--help"))
        assert "--shard" in result.out

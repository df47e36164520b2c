"""Commands that are killed, run out of room or memory, meet each other, or a model that fails: nothing is lost, doubled
or wrong afterwards, and what is said tells what to do."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.launcher import Result, Running, start
from helpers.privilege import require_privilege_to_give_up
from helpers.tiny import metrics_of
from helpers.toys import timeless
from safetensors import safe_open

from smoothfast.runs.logs import read_log

TOYS = """
import os
import time

import torch
from torch import nn

LEVELS = (0.5, 0.1, 0.9, 0.32, 0.2, 0.8, 0.7)
CENTRES = torch.tensor([0.5, 0.1, 0.9])
if "READ_ONLY" in os.environ:
    from helpers.privilege import give_up
    give_up()
if "BACKWARDS" in os.environ:
    clock = iter(range(10**9, 0, -1000))
    time.time = lambda: float(next(clock))


class Frail(nn.Sequential):
    passes = 0

    def forward(self, x):
        Frail.passes += 1
        time.sleep(float(os.environ.get("PAUSE", "0")))
        end = time.monotonic() + 60
        while "HELD" in os.environ and os.path.exists(os.environ["HELD"]) and not os.path.exists("out-told"):
            assert time.monotonic() < end, "nobody is told"
            time.sleep(0.01)
        kind, _, number = os.environ.get("FAULT", "none:999999").partition(":")
        return super().forward(x) if Frail.passes < int(number) else getattr(self, kind)(super().forward(x))

    def fails(self, logits):
        raise RuntimeError("the cable is out\\x1b[2J")

    def memory(self, logits):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def host_memory(self, logits):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    def nan(self, logits):
        return logits * float("nan")

    def classes(self, logits):
        return logits[:, :2]

    def sleeps(self, logits):
        time.sleep(0.01)
        return logits


def model(num_classes):
    layer = nn.Linear(48, num_classes)
    with torch.no_grad():
        layer.weight.copy_((2 * CENTRES[:, None] / 48).expand(-1, 48))
        layer.bias.copy_(-(CENTRES**2))
    return Frail(nn.Flatten(), layer)


class Images:
    classes = ("grey", "dim", "bright")

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((3, 4, 4), round(255 * LEVELS[index % 7])).byte(), index % 3


def images(split):
    return Images(7)


def many(split):
    return Images(52)
"""
TOY = (
    "--model=smoothfast_frail_toys:model --data=smoothfast_frail_toys:images --normalize=none --precision=fp32 --seed=3"
)


class Command(NamedTuple):
    """A command, and what of its files is the same in every run.

    Attributes:
        words: of the command line; "--resume" apart.
        files: that there are when it is done.
        kept: what does not depend on the clock.
        begun: the file that is there once it has begun to write.
        resume: the word that goes on with a run.
    """

    words: list[str]
    files: list[str]
    kept: Callable[[], Any]
    begun: str
    resume: list[str]


def trained() -> Any:
    """The weights, metrics and checkpoint of a run, without the seconds that it took."""
    with safe_open("net/model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    del about["metrics"]
    state = torch.load("net/checkpoint.pt", weights_only=True)
    for clocked in (state, state["metrics"], state["best"]["metrics"] if state["best"] else {}):
        clocked.pop("seconds", None)
    return weights, about, metrics_of(Path("net")), repr(state)


COMMANDS = {
    "certify": Command(
        f"certify {TOY} --runner=eager --sigma=0.3 --batch=16 --n0=16 --n=100 --out=run.tsv".split(),
        ["run.tsv", "run.tsv.json"],
        lambda: (timeless(Path("run.tsv")), Path("run.tsv.json").read_bytes()),
        "run.tsv",
        ["--resume"],
    ),
    "attack": Command(
        f"attack {TOY} --runner=eager --sigma=0.3 --batch=1 --max=6 --attack=epgd --eps=51/255 --steps=3 --samples=4 "
        "--votes=10 --out=adv.safetensors".split(),
        ["adv.safetensors"],
        lambda: Path("adv.safetensors").read_bytes(),
        "adv.partial.safetensors",
        ["--resume"],
    ),
    "train": Command(
        f"train {TOY} --data=smoothfast_frail_toys:many --batch=16 --epochs=3 --validation=20 --learning-rate=0.1 "
        "--select=best-clean --out=net".split(),
        ["net", "net/checkpoint.pt", "net/metrics.jsonl", "net/model.safetensors"],
        trained,
        "net",
        ["--resume"],
    ),
    "sweep": Command(
        f"sweep {TOY} --runner=eager --batch=16 --sigmas=0,0.3 --samples=1,4 --attack=pgd --steps=2 --eps=0.1 "
        "--attack-seeds=2 --out=rows.csv".split(),
        ["rows.csv", "rows.csv.json"],
        lambda: (Path("rows.csv").read_bytes(), Path("rows.csv.json").read_bytes()),
        "rows.csv",
        [],
    ),
}
of_each = pytest.mark.parametrize("name", COMMANDS)
PAUSE = {"PAUSE": "0.004"}  # seconds a pass: a run is killed amid its work and not before


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("toys")
    (folder / "smoothfast_frail_toys.py").write_text(TOYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Plain(NamedTuple):
    """A run that nothing happened to: what it left, and about how many seconds it took."""

    kept: Any
    seconds: float


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plain]:
    @cache
    def made(name: str) -> Plain:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp(name))
            run(["--version"])  # the server of processes is there from now on
            begun = time.monotonic()
            succeeded(run(COMMANDS[name].words, PAUSE))
            return Plain(COMMANDS[name].kept(), time.monotonic() - begun)

    return made


def run(words: list[str], environment: dict[str, str] | None = None, room: int | None = None) -> Result:
    (result,) = start([environment or {}], tuple(words), room)
    return result


def succeeded(result: Result) -> None:
    assert result.status == 0, result.err


def complained(result: Result, *parts: str, status: int = 1) -> None:
    """The last line says what is wrong."""
    last = result.err.splitlines()[-1]
    assert (result.status, last.startswith("smoothfast: ")) == (status, True), result.err
    assert all(part in last for part in parts), last


def left() -> list[str]:
    """What a run left, by name, but for what the tests wrote of what it said."""
    return sorted(path.as_posix() for path in Path().rglob("*") if not path.name.startswith(("out-", "err-")))


def goes_on(name: str, plain: Callable[[str], Plain]) -> None:
    """The command ends with what it would have left without what has happened."""
    command = COMMANDS[name]
    succeeded(run([*command.words, *command.resume]))
    assert command.kept() == plain(name).kept
    assert left() == command.files


# ---- kills -----------------------------------------------------------------------------------------------------------


def kill_and_go_on(name: str, plain: Callable[[str], Plain], moments: random.Random, kills: int) -> int:
    """Kills a command at random moments, so many times at most, and then lets it end. Returns the number of kills."""
    command, seconds, killed = COMMANDS[name], plain(name).seconds, 0
    while killed < kills:
        words = [*command.words, *command.resume]
        if not Running(tuple(words), PAUSE).kill(moments.uniform(0.1, 0.9) * seconds):
            break  # it was done before
        killed += 1
    goes_on(name, plain)
    return killed


@of_each
def test_a_command_killed_at_random_moments_leaves_what_one_that_was_not_does(
    plain: Callable[[str], Plain], name: str
) -> None:
    kill_and_go_on(name, plain, random.Random(name), 2)


@pytest.mark.slow
@of_each
def test_fifty_kills_of_each_command(
    plain: Callable[[str], Plain], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments, killed, number = random.Random(0), 0, 0
    while killed < 50:
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        killed += kill_and_go_on(name, plain, moments, min(moments.randint(1, 6), 50 - killed))
        number += 1
    print(f"{name}: {killed} kills in {number} runs")


# ---- no room ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "room", "part"),
    [
        ("attack", 3000, "cannot write adv.partial.safetensors"),
        ("train", 3000, "cannot write net/checkpoint.pt"),
    ],
)
def test_a_full_disk(plain: Callable[[str], Plain], name: str, room: int, part: str) -> None:
    pytest.importorskip("resource", reason="this system has no file size limits")
    result = run(COMMANDS[name].words, room=room)
    complained(result, part)
    assert "Traceback" not in result.err
    goes_on(name, plain)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("certify", "images already written are kept: make room and go on with --resume"),
        ("sweep", "rows already written are kept: make room and run it again"),
    ],
)
def test_a_disk_that_fills_up_amid_the_records(plain: Callable[[str], Plain], name: str, part: str) -> None:
    pytest.importorskip("resource", reason="this system has no file size limits")
    command = COMMANDS[name]
    succeeded(run(command.words))
    path = Path(command.files[0])
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))  # the sidecar of a few rows is larger than they are
    complained(run([*command.words, *command.resume, "--quiet"], room=len(whole) // 3 * 2), part)
    assert path.read_bytes().count(b"\n") > 3
    goes_on(name, plain)


@of_each
def test_a_folder_that_cannot_be_written_in(name: str) -> None:
    require_privilege_to_give_up()
    Path("there").mkdir(mode=0o555)
    words = [word.replace("--out=", "--out=there/") for word in COMMANDS[name].words]
    complained(run(words, {"READ_ONLY": "1"}), "Permission denied", "there/", status=2)
    assert left() == ["there"]


# ---- two at once -----------------------------------------------------------------------------------------------------


@of_each
def test_a_second_process_on_the_same_output_is_told(plain: Callable[[str], Plain], name: str) -> None:
    command = COMMANDS[name]
    first = Running(tuple(command.words), {"HELD": command.begun}, "first")
    end = time.monotonic() + 60
    while not Path(command.begun).exists():
        assert time.monotonic() < end, "nothing is written"
        time.sleep(0.01)
    second = Running((*command.words, *command.resume), {}, "second").result()
    complained(second, "is being written by another process: wait until it has ended")
    Path("out-told").touch()
    succeeded(first.result())
    assert command.kept() == plain(name).kept
    assert left() == command.files


@of_each
def test_of_two_that_begin_together_one_goes_on(plain: Callable[[str], Plain], name: str) -> None:
    command = COMMANDS[name]
    both = [Running((*command.words, *command.resume), PAUSE, each) for each in ("a", "b")]
    results = [process.result() for process in both]
    assert 0 in [result.status for result in results], results
    for result in results:
        if result.status:
            complained(result, "another process")
    assert command.kept() == plain(name).kept
    assert left() == command.files


# ---- models that fail ------------------------------------------------------------------------------------------------

AMID = {"certify": 45, "attack": 150, "train": 7, "sweep": 12}  # passes after which some of the work is on the disk
FAULTS = {
    "fails": ("RuntimeError: the cable is out\\x1b[2J; raised as shown above", "run it again, with --resume"),
    "memory": ("out of memory (CUDA out of memory. Tried to allocate 2.00 GiB)", "with a smaller --batch"),
    "host_memory": ("out of memory (DefaultCPUAllocator: can't allocate memory", "run it again, with --resume"),
}


def something_is_kept(name: str) -> bool:
    """Whether the files of a run that failed hold a part of its work."""
    match name:
        case "certify":
            return 0 < len(read_log("run.tsv")) < 7
        case "attack":
            return any(Path("adv.parts").iterdir())
        case "train":
            return 0 < len(metrics_of(Path("net"))) < 3
    return Path("rows.csv").read_bytes().count(b"\n") > 1


@of_each
@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_fails_in_the_middle(plain: Callable[[str], Plain], name: str, fault: str) -> None:
    if fault == "host_memory" and name != "certify":
        pytest.skip("the same as of a GPU")
    result = run(COMMANDS[name].words, {"FAULT": f"{fault}:{AMID[name]}"})
    complained(result, *FAULTS[fault])
    assert ("Traceback" in result.err) is (fault == "fails")
    assert "\x1b" not in result.err
    assert something_is_kept(name)
    goes_on(name, plain)


def test_a_model_that_changes_its_classes(plain: Callable[[str], Plain]) -> None:
    result = run(COMMANDS["certify"].words, {"FAULT": f"classes:{AMID['certify']}"})
    complained(result, "num_classes is 3; the base classifier turns 16 images into (16, 2)")
    assert something_is_kept("certify")
    goes_on("certify", plain)


def test_logits_that_are_not_numbers_are_no_votes(plain: Callable[[str], Plain]) -> None:
    succeeded(run(COMMANDS["certify"].words, {"FAULT": f"nan:{AMID['certify']}"}))
    log, before = read_log("run.tsv"), plain("certify").kept[0].splitlines()[1:]
    invalid = log.invalid.tolist()
    assert invalid[0] == 0
    assert invalid[-1] == 16  # which select no class
    assert (log.predict[-1], log.radius[-1]) == (-1, 0)
    whole = timeless(Path("run.tsv")).splitlines()[1:]
    assert [line for line, wrong in zip(whole, invalid, strict=True) if not wrong] == before[: invalid.count(0)]


def test_a_loss_that_is_no_number_ends_the_run(plain: Callable[[str], Plain]) -> None:
    result = run(COMMANDS["train"].words, {"FAULT": f"nan:{AMID['train']}"})
    complained(result, "the loss is nan in epoch 1", "Lower learning_rate")
    assert len(metrics_of(Path("net"))) == 1
    goes_on("train", plain)


def test_a_model_that_sleeps_takes_time_and_nothing_else(plain: Callable[[str], Plain]) -> None:
    succeeded(run(COMMANDS["certify"].words, {"FAULT": "sleeps:20"}))
    assert COMMANDS["certify"].kept() == plain("certify").kept
    assert read_log("run.tsv").time.sum() > 0.2


@of_each
def test_a_clock_that_is_set_back(plain: Callable[[str], Plain], name: str) -> None:
    command = COMMANDS[name]
    succeeded(run(command.words, {"BACKWARDS": "1"}))
    assert command.kept() == plain(name).kept
    if name == "certify":
        assert (read_log("run.tsv").time >= 0).all()
    if name == "train":
        lines = [json.loads(line) for line in Path("net/metrics.jsonl").read_text().splitlines()]
        assert all(0 <= line["seconds"] < 60 for line in lines)

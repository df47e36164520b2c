"""What logs and sweeps have in common: what is cut off at any byte is made again, and the file is the same."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from smoothfast import files
from smoothfast.runs.logs import Row, RunLog, read_log
from smoothfast.runs.records import RecordFile, discard
from smoothfast.runs.sweep_log import SettingAccuracy, SweepLog, read

SETTINGS = {"sigma": 0.25, "n": 100_000}
ROW = Row(7, 3, 3, 0.1 + 0.2, 1.5, 100_100, 99_000, 700, 0, 0.99, 1 / 3, "certified")
ACCURACY = SettingAccuracy("pgd", 0, 0.12, "soft", 4, 10, 40)


class Kind(NamedTuple):
    """A file of records, by what its tests need of it."""

    name: str
    open: Callable[[Path], RecordFile]  # goes on with a file that is there
    records: list[Any]
    append: Callable[[Any, Any], None]
    read: Callable[[Path], list[Any]]
    program: str  # writes a record and waits in the middle of the next


LOG = Kind(
    "run.tsv",
    lambda path: RunLog(path, SETTINGS, resume=True),
    [ROW._replace(idx=idx) for idx in (10, 11, 12)],
    lambda log, row: log.append(row),
    lambda path: read_log(path).idx.tolist(),
    "RunLog(sys.argv[1], {}).append(Row(0, 3, 3, 0.5, 1.5, 100, 99, 1, 0, 0.9, 0.1, 'certified'))",
)
SWEEP = Kind(
    "rows.csv",
    lambda path: SweepLog(path, SETTINGS),
    [replace(ACCURACY, seed=seed) for seed in (10, 11, 12)],
    lambda log, row: log.append([row]),
    lambda path: [row.seed for row in read(path)],
    "SweepLog(sys.argv[1], {}).append([SettingAccuracy('pgd', 0, 0.12, 'soft', 4, 10, 40)])",
)
of_both = pytest.mark.parametrize("kind", [LOG, SWEEP], ids=["log", "sweep"])


def write(kind: Kind, path: Path, records: list[Any]) -> None:
    with kind.open(path) as log:
        for record in records:
            kind.append(log, record)


@of_both
def test_a_file_cut_at_any_byte_of_its_last_line_becomes_the_same_again(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    write(kind, path, kind.records)
    whole, sidecar = path.read_bytes(), path.with_name(path.name + ".json").read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last + 1):
        path.write_bytes(whole[:-cut])
        assert kind.read(path) == [10, 11]
        with kind.open(path) as log:
            assert len(log) == 2
            assert path.read_bytes() == whole[:-last]
            kind.append(log, kind.records[-1])
        assert path.read_bytes() == whole
        assert path.with_name(path.name + ".json").read_bytes() == sidecar


@of_both
def test_a_file_cut_at_any_byte_of_its_header_is_begun(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    write(kind, path, kind.records)
    whole, sidecar = path.read_bytes(), path.with_name(path.name + ".json").read_bytes()
    for length in range(len(whole.splitlines(keepends=True)[0])):
        path.write_bytes(whole[:length])
        path.with_name(path.name + ".json").write_bytes(sidecar[: length % len(sidecar)])
        write(kind, path, kind.records)
        assert path.read_bytes() == whole
        assert path.with_name(path.name + ".json").read_bytes() == sidecar


@of_both
def test_a_sidecar_that_is_cut_is_named(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    write(kind, path, kind.records)
    whole, beside = path.read_bytes(), path.with_name(path.name + ".json")
    text = beside.read_text()
    for length in range(len(text.rstrip())):
        beside.write_text(text[:length])
        with pytest.raises(ValueError, match=rf"{kind.name}\.json: expected a JSON object"):
            kind.open(path)
    beside.unlink()
    with pytest.raises(ValueError, match=rf"{kind.name} cannot be resumed: .*{kind.name}\.json with its settings is m"):
        kind.open(path)
    assert path.read_bytes() == whole


@of_both
def test_a_foreign_file_is_left_alone(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    for content in (b"precious data", b"precious\ndata\n", b"a,b\r\n1,2\r\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{kind.name} cannot be resumed: its columns are not "):
            kind.open(path)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


@of_both
def test_a_full_disk_keeps_what_is_written(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    path = tmp_path / kind.name
    with kind.open(path) as log:
        kind.append(log, kind.records[0])
        with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as patch:
            patch.setattr(log, "_file", full)
            with pytest.raises(OSError, match=r"the 1 (images|rows) already written are kept: make room and ") as error:
                kind.append(log, kind.records[1])
    assert isinstance(error.value.__cause__, OSError)
    assert len(log) == 1
    assert kind.read(path) == [10]


@of_both
def test_each_line_is_on_the_disk_before_the_next(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / kind.name, list[int]()
    fsync = os.fsync

    def watched(file: Any) -> None:
        fsync(file)
        if Path(file.name) == path:
            synced.append(len(path.read_bytes().splitlines()))

    monkeypatch.setattr(os, "fsync", watched)
    write(kind, path, kind.records)
    assert synced == [1, 2, 3, 4]  # the header, and each record


@of_both
def test_a_killed_process_loses_only_the_line_in_flight(kind: Kind, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from smoothfast.runs.logs import Row, RunLog
from smoothfast.runs.sweep_log import SettingAccuracy, SweepLog
{kind.program}
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / kind.name
    child = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert kind.read(path) == [0]
    assert "{}" in path.with_name(path.name + ".json").read_text()


@of_both
def test_a_file_is_written_by_one_at_a_time(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    with kind.open(path) as log:
        kind.append(log, kind.records[0])
        before = path.read_bytes()
        for act in (kind.open, discard):
            with pytest.raises(BlockingIOError, match=rf"{kind.name} is being written by another process: wait until"):
                act(path)
        assert path.read_bytes() == before
        kind.append(log, kind.records[1])
    with kind.open(path) as log:
        assert len(log) == 2
    discard(path)
    assert list(tmp_path.iterdir()) == []


@of_both
def test_a_file_that_was_replaced_meanwhile_is_not_written_to(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a run that put its records in order after this one had opened the file."""
    path = tmp_path / kind.name
    write(kind, path, kind.records)
    whole = path.read_bytes()

    def replaced(*_: Any) -> None:
        path.with_name("sorted").write_bytes(whole)
        os.replace(path.with_name("sorted"), path)

    with monkeypatch.context() as patch:
        patch.setattr(files.fcntl, "flock", replaced)
        with pytest.raises(BlockingIOError, match=f"{kind.name} was just written by another process"):
            kind.open(path)
    write(kind, path, [])
    assert path.read_bytes() == whole


@of_both
def test_a_file_system_without_locks_has_none(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    write(kind, tmp_path / kind.name, kind.records)
    assert kind.read(tmp_path / kind.name) == [10, 11, 12]


@of_both
def test_a_record_is_written_once(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / kind.name) as log:
        kind.append(log, kind.records[0])
        with pytest.raises(ValueError, match="already, expected each"):
            kind.append(log, kind.records[0])
    assert kind.read(tmp_path / kind.name) == [10]


def test_neither_needs_torch() -> None:
    code = """
import sys
from smoothfast.runs import attack_options, logs, plots, records, sweep_log, tables
from smoothfast import launch
launch.require_one("sweep")
launch.once(lambda: None)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- sweeps ----------------------------------------------------------------------------------------------------------

HEADER = "images,seed,sigma,voting,samples,correct,count\r\n"


def test_a_sweep_has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.csv"
    with SweepLog(path, {"eps": 0.1, "samples": [1, 4]}) as log:
        log.append([ACCURACY, replace(ACCURACY, images="clean", sigma=0.0, voting="prediction", samples=1)])
    lines = "pgd,0,0.12,soft,4,10,40\r\nclean,0,0.0,prediction,1,10,40\r\n"
    assert path.read_bytes() == (HEADER + lines).encode()
    beside = path.with_name("rows.csv.json").read_text()
    assert beside == json.dumps({"eps": 0.1, "samples": [1, 4]}, indent=1) + "\n"
    assert read(path) == log.rows
    assert log.done == {row.setting for row in log.rows}


def test_a_sweep_goes_on_with_equal_settings_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write(SWEEP, path, SWEEP.records)
    with SweepLog(path, SETTINGS) as log:
        assert log.rows == SWEEP.records
    with pytest.raises(ValueError, match=r"rows\.csv was made with other settings: sigma was 0\.25, is now 0\.5"):
        SweepLog(path, SETTINGS | {"sigma": 0.5})
    path.with_name("rows.csv.json").write_text("[]")
    with pytest.raises(ValueError, match=r"rows\.csv\.json: expected a JSON object, the settings of a sweep"):
        SweepLog(path, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correct": 41}, "correct is 41, expected at most count, which is 40"),
        ({"correct": -1}, "correct is '-1', expected an integer >= 0"),
        ({"sigma": float("nan")}, "sigma is 'nan', expected a number from 0 to 1"),
        ({"voting": "most"}, "voting is 'most', expected one of prediction, "),
        ({"samples": 0}, "samples is '0', expected an integer >= 1"),
        ({"seed": 0, "correct": 11}, "has a line of Setting.* already"),
    ],
)
def test_a_row_that_no_sweep_can_hold_is_not_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "rows.csv"
    with SweepLog(path, {}) as log:
        with pytest.raises(ValueError, match=message):
            log.append([ACCURACY, replace(ACCURACY, **{"seed": 1} | changes)])
        assert log.rows == [ACCURACY]
    assert read(path) == [ACCURACY]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pgd,1,0.12,soft,4,10", "expected 7 fields separated by commas, found 6"),
        ("pgd,1,0.12,soft,4,10,40,1", "expected 7 fields separated by commas, found 8"),
        ("", "expected 7 fields separated by commas, found 1"),
        ("pgf,1,0.12,soft,4,10,40", "images is 'pgf', expected one of clean, fgsm, pgd"),
        ("pgd,-1,0.12,soft,4,10,40", "seed is '-1', expected an integer >= 0"),
        ("pgd,1.0,0.12,soft,4,10,40", "seed is '1.0', expected an integer >= 0"),
        ("pgd,1,-0.12,soft,4,10,40", "sigma is '-0.12', expected a number from 0 to 1"),
        ("pgd,1,inf,soft,4,10,40", "sigma is 'inf', expected a number from 0 to 1"),
        ("pgd,1,0.12,softer,4,10,40", "voting is 'softer', expected one of prediction, weighted, soft, logit"),
        ("pgd,1,0.12,soft,0,10,40", "samples is '0', expected an integer >= 1"),
        ("pgd,1,0.12,soft,4,,40", "correct is '', expected an integer >= 0"),
        ("pgd,1,0.12,soft,4,0,0", "count is '0', expected an integer >= 1"),
        ("pgd,1,0.12,soft,4,8,1", "correct is 8, expected at most count, which is 1"),
        ("pgd,0,0.12,soft,4,9,40", "the same setting stands in an earlier line"),
        ("\xff\xfe", "expected 7 fields"),
    ],
)
def test_a_bad_line_of_a_sweep_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(f"{HEADER}pgd,0,0.12,soft,4,10,40\r\n{line}\r\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"rows\.csv, line 3: {message}"):
        read(path)


@pytest.mark.parametrize("content", ["", "a,b\r\n1,2\r\n", HEADER.rstrip()])
def test_a_bad_header_of_a_sweep_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"rows\.csv, line 1: expected the header images,seed,sigma,voting,samples,"):
        read(path)

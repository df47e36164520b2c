from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smoothfast.runs.logs import Row, RunLog, put_in_order, read_log

SETTINGS = {"sigma": 0.25, "alpha": 0.001, "n": 100_000, "mean": (0.1, 0.2), "bound": "multiclass"}
COHEN = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def row(idx: int, **changes: Any) -> Row:
    base = Row(
        idx=idx,
        label=3,
        predict=3,
        radius=0.1 + 0.2,
        time=1.5,
        samples=100_100,
        nA=99_000,
        nB=700,
        invalid=0,
        p_lower=math.nextafter(0.99, 0.0),
        p_upper=1 / 3,
        decision="certified",
    )
    return base._replace(**changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.tsv"


def write(path: Path, *rows: Row) -> None:
    with RunLog(path, SETTINGS) as log:
        for each in rows:
            log.append(each)


def test_round_trip_is_exact(path: Path) -> None:
    rows = [
        row(0),
        row(7, radius=math.nextafter(1.0, 0.0), time=1e-5),
        row(3, predict=-1, radius=0.0),
    ]
    write(path, *rows)
    log = read_log(path)
    assert len(log) == 3
    for name in Row._fields:
        assert getattr(log, name).tolist() == [getattr(each, name) for each in rows], name
    assert log.correct.tolist() == [True, True, False]
    assert log.settings == SETTINGS | {"mean": [0.1, 0.2]}
    assert path.read_text().splitlines()[0].split("\t") == [
        *("idx", "label", "predict", "radius", "correct", "time"),
        *("samples", "nA", "nB", "invalid", "p_lower", "p_upper", "decision"),
    ]
    assert "\t0.000010\t" in path.read_text()  # plain decimal seconds


DECISIONS = ["predicted", "certified", "not certified", "undecided"]


def test_every_decision_round_trips(path: Path) -> None:
    write(path, *(row(idx, decision=decision) for idx, decision in enumerate(DECISIONS)))
    log = read_log(path)
    assert log.decision is not None
    assert log.decision.tolist() == DECISIONS
    assert (log.decision == "not certified").tolist() == [False, False, True, False]
    assert [line.split("\t")[-1] for line in path.read_text().splitlines()] == ["decision", *DECISIONS]


def test_a_log_without_images_has_no_decisions(path: Path) -> None:
    write(path)
    log = read_log(path)
    assert log.decision is not None
    assert log.decision.tolist() == []


@pytest.mark.parametrize("word", ["", "maybe", "Certified", "certified ", "not certified\n", "not\tcertified", "1"])
def test_a_decision_of_another_word_is_not_written(path: Path, word: str) -> None:
    with RunLog(path, SETTINGS) as log:
        log.append(row(0))
        with pytest.raises(ValueError, match=r"decision is .*, expected one of predicted, certified, not certified, "):
            log.append(row(1, decision=word))
        assert log.done == {0}
    assert read_log(path).idx.tolist() == [0]


@pytest.mark.parametrize("word", ["", "maybe", "CERTIFIED", " certified", "nan", "0"])
def test_a_decision_of_another_word_is_named(path: Path, word: str) -> None:
    write(path, row(0), row(1))
    lines = path.read_text().splitlines()
    cells = lines[2].split("\t")
    path.write_text("\n".join([*lines[:2], "\t".join([*cells[:-1], word]), ""]))
    message = f"decision is '{word}', expected one of {', '.join(DECISIONS)}"
    with pytest.raises(ValueError, match=rf"run\.tsv, line 3: {message}"):
        read_log(path)


@pytest.mark.parametrize("end", ["\tcertified", "\tnot", "\tundecided\r"])
def test_resume_cuts_a_torn_decision_away(path: Path, end: str) -> None:
    write(path, row(0), row(1))
    whole = path.read_bytes()
    line = whole.splitlines()[-1].decode().replace("1\t3", "2\t3", 1)
    path.write_bytes(whole + (line.rpartition("\t")[0] + end).encode())
    with RunLog(path, SETTINGS, resume=True) as log:
        assert log.done == {0, 1}
        log.append(row(2, decision="undecided"))
    decision = read_log(path).decision
    assert decision is not None
    assert decision.tolist() == ["certified", "certified", "undecided"]


def older(path: Path) -> str:
    """Takes the column `decision` out of a log, as logs of before it are."""
    text = "".join(line.rpartition("\t")[0] + "\n" for line in path.read_text().splitlines())
    path.write_text(text)
    return text


def test_a_log_from_before_decisions_reads(path: Path) -> None:
    write(path, row(0), row(1, predict=-1, radius=0.0))
    now, text = read_log(path), older(path)
    log = read_log(path)
    assert log.decision is None
    for name in set(Row._fields) - {"decision"}:
        assert getattr(log, name).tolist() == getattr(now, name).tolist()
    with pytest.raises(ValueError, match=r"run\.tsv cannot be resumed: its columns are not idx .* decision"):
        RunLog(path, SETTINGS, resume=True)
    assert path.read_text() == text


def test_numpy_values_are_written_as_numbers(path: Path) -> None:
    write(path, row(np.int64(4), radius=np.float64(0.1), samples=np.int32(5)))  # type: ignore[arg-type]
    log = read_log(path)
    assert (log.idx[0], log.radius[0], log.samples[0]) == (4, 0.1, 5)  # type: ignore[index]


@pytest.mark.parametrize("changes", [{"radius": math.nan}, {"p_upper": 1.5}, {"nA": -1}])
def test_a_value_that_no_log_can_hold_is_not_written(path: Path, changes: dict[str, float]) -> None:
    with RunLog(path, SETTINGS) as log:
        with pytest.raises(ValueError, match=next(iter(changes))):
            log.append(row(0, **changes))
        assert not log.done
    assert len(read_log(path)) == 0


def test_lines_and_settings_are_on_disk_at_once(path: Path) -> None:
    with RunLog(path, SETTINGS, environment={"cores": 2}) as log:
        sidecar = json.loads(path.with_name("run.tsv.json").read_text())
        assert sidecar["settings"]["sigma"] == 0.25
        assert sidecar["environment"] == {"cores": 2}
        log.append(row(5))
        assert read_log(path).idx.tolist() == [5]


def test_an_existing_log_is_left_alone(path: Path) -> None:
    write(path, row(0))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"run\.tsv exists.*--resume.*--out"):
        RunLog(path, SETTINGS)
    assert path.read_bytes() == before


@pytest.mark.parametrize("torn", ["", "9", "9\t3\t3\t0.3", "9\t3\t3\t0.3\t1\t1.5\t9\t9\t0\t0\t0.9\t1"])
def test_resume_cuts_a_torn_line_away(path: Path, torn: str) -> None:
    write(path, row(0), row(1))
    with path.open("a") as file:
        file.write(torn)
    assert read_log(path).idx.tolist() == [0, 1]
    with RunLog(path, SETTINGS, environment={"cores": 64}, resume=True) as log:
        assert log.done == {0, 1}
        log.append(row(9))
        assert log.done == {0, 1, 9}
    assert read_log(path).idx.tolist() == [0, 1, 9]


@pytest.mark.parametrize("left", [None, "", "idx\tlab"])
def test_resume_of_a_run_killed_at_its_start_begins_it(path: Path, left: str | None) -> None:
    if left is not None:
        path.write_text(left)
    with RunLog(path, SETTINGS, resume=True) as log:
        assert log.done == set()
        log.append(row(2))
    assert read_log(path).idx.tolist() == [2]


def test_resume_with_other_settings_names_each_difference(path: Path) -> None:
    write(path, row(0))
    changed = {**SETTINGS, "sigma": 0.5, "seed": 1}
    del changed["bound"]
    with pytest.raises(ValueError, match="made with other settings") as error:
        RunLog(path, changed, resume=True)
    message = str(error.value)
    assert 'bound was "multiclass", is now not set' in message
    assert "seed was not set, is now 1" in message
    assert "sigma was 0.25, is now 0.5" in message
    assert "alpha" not in message
    assert read_log(path).idx.tolist() == [0]


def test_resume_needs_the_sidecar(path: Path) -> None:
    write(path, row(0))
    path.with_name("run.tsv.json").unlink()
    assert read_log(path).settings is None
    with pytest.raises(ValueError, match=r"run\.tsv\.json .* missing"):
        RunLog(path, SETTINGS, resume=True)


@pytest.mark.parametrize("content", [COHEN, "precious data", "precious\ndata"])
def test_resume_leaves_a_foreign_file_alone(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.tsv cannot be resumed"):
        RunLog(path, SETTINGS, resume=True)
    assert path.read_text() == content


def test_settings_that_are_not_json_create_nothing(path: Path) -> None:
    with pytest.raises(TypeError):
        RunLog(path, {"sigma": object()})
    assert not path.exists()


def test_a_missing_folder_is_created(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "run.tsv"
    write(path, row(0))
    assert len(read_log(path)) == 1


def test_a_full_disk_keeps_what_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with RunLog(path, SETTINGS) as log:
        log.append(row(0))
        with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as patch:
            patch.setattr(log, "_file", full)
            with pytest.raises(OSError, match=r"1 images already written are kept.*--resume") as error:
                log.append(row(1))
    assert isinstance(error.value.__cause__, OSError)
    assert log.done == {0}
    assert read_log(path).idx.tolist() == [0]


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a process that met a limit within the second line of torn.tsv, and was killed after the first of
    killed.tsv.

    It is not this process. A limit is one for all that other threads write, such as those of torch.compile. And where
    Triton has compiled a kernel, LLVM handles the signal of the limit, which Python ignores, as that of a crash: it
    takes its handlers down, and with them those of `faulthandler`.
    """
    pytest.importorskip("resource", reason="this system has no file size limits")
    code = """
import os, pytest, resource, signal, sys
from pathlib import Path
from smoothfast.runs.logs import Row, RunLog
row = Row(0, 3, 3, 0.5, 1.5, 100, 99, 1, 0, 0.9, 0.1, "certified")
torn, killed = (RunLog(Path(sys.argv[1], name), {}) for name in ("torn.tsv", "killed.tsv"))
torn.append(row)
killed.append(row)
room = torn.path.stat().st_size + 5
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
with pytest.raises(OSError, match="1 images already written are kept.*--resume"):
    torn.append(row._replace(idx=1))
with pytest.raises(ValueError, match="closed"):  # nothing may follow the torn line
    torn.append(row._replace(idx=2))
os.kill(os.getpid(), signal.SIGKILL)
"""
    folder = tmp_path_factory.mktemp("left")
    child = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert child.returncode == -signal.SIGKILL
    return folder


def test_a_line_torn_by_a_limit_can_be_resumed(left_behind: Path) -> None:
    path = left_behind / "torn.tsv"
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    assert whole.count(b"\n") == 1
    assert len(torn) == 5
    with RunLog(path, {}, resume=True) as log:
        log.append(row(1))
    assert read_log(path).idx.tolist() == [0, 1]


def test_a_killed_process_loses_only_the_line_in_flight(left_behind: Path) -> None:
    with RunLog(left_behind / "killed.tsv", {}, resume=True) as log:
        assert log.done == {0}


def test_rows_are_put_in_order(path: Path) -> None:
    write(path, row(10), row(9), row(100), row(0, predict=-1))
    header, ten, nine, hundred, none = path.read_text().splitlines(keepends=True)
    put_in_order(path)
    assert path.read_text() == "".join([header, none, nine, ten, hundred])
    assert sorted(each.name for each in path.parent.iterdir()) == ["run.tsv", "run.tsv.json"]


def test_rows_in_other_digits_and_odd_spaces_are_put_in_order(path: Path) -> None:
    write(path, row(10), row(9))
    path.write_bytes(path.read_bytes().replace(b"\n9\t", "\n\x0b\u0669\r\t".encode()))
    put_in_order(path)
    assert read_log(path).idx.tolist() == [9, 10]


@pytest.mark.parametrize("indices", [[], [3], [0, 5, 9, 10]])
def test_a_log_in_order_is_left_as_it_is(path: Path, indices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, *map(row, indices))
    monkeypatch.setattr(os, "replace", None)
    put_in_order(path)
    assert read_log(path).idx.tolist() == indices


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_log_that_could_not_be_put_in_order_is_whole(path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_room(*_: Any) -> None:
        raise OSError("No space left on device")

    write(path, row(2), row(0), row(1))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, step, out_of_room)
        with pytest.raises(OSError, match="No space left"):
            put_in_order(path)
    assert path.read_bytes() == before
    with RunLog(path, SETTINGS, resume=True) as log:
        assert log.done == {0, 1, 2}
    put_in_order(path)
    assert read_log(path).idx.tolist() == [0, 1, 2]
    assert sorted(each.name for each in path.parent.iterdir()) == ["run.tsv", "run.tsv.json"]


def test_both_ways_of_writing_time(path: Path) -> None:
    times = ["0:02:31.238689", "1:00:00", "15.4", "7", "0:00:01.50"]
    path.write_text(COHEN + "".join(f"{i}\t0\t0\t0.5\t1\t{t}\n" for i, t in enumerate(times)))
    log = read_log(path)
    np.testing.assert_allclose(log.time, [151.238689, 3600, 15.4, 7, 1.5], rtol=1e-15)
    assert log.samples is None
    assert log.p_lower is None
    assert log.decision is None
    assert log.settings is None


@pytest.mark.parametrize("content", ["", "idx\tlabel\n", "idx\tidx\tlabel\tpredict\tcorrect\ttime\n"])
def test_a_bad_header_is_named(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.tsv, line 1: expected a header .* idx label predict"):
        read_log(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t0\t0\t0.5\t1", "expected 6 tab-separated fields, found 5"),
        ("", "expected 6 tab-separated fields, found 1"),
        ("x\t0\t0\t0.5\t1\t1.0", "idx is 'x', expected an integer >= 0"),
        (f"{2**63}\t0\t0\t0.5\t1\t1.0", "idx is .*, expected an integer"),
        ("1\t0\t-2\t0.5\t1\t1.0", "predict is '-2', expected a class or -1"),
        ("1\t0\t0\tnan\t1\t1.0", "radius is 'nan', expected a number from 0 to 1"),
        ("1\t0\t0\t1.1e100\t1\t1.0", "radius is '1.1e100', expected a number from 0 to 1"),
        ("1\t0\t0\tinf\t1\t1.0", "radius is 'inf', expected a number from 0 to 1"),
        ("1\t0\t0\t0.5\tTrue\t1.0", "correct is 'True', expected 0 or 1"),
        ("1\t0\t0\t0.5\t1\t1:2", "time is '1:2', expected seconds or H:MM:SS"),
        ("1\t0\t0\t0.5\t1\t__import__('os')", "time is .*, expected seconds"),
        ("0\t0\t0\t0.5\t1\t1.0", "image 0 stands in an earlier line"),
        ("\xff\xfe", "expected 6 tab-separated fields"),
    ],
)
def test_a_bad_line_is_named(path: Path, line: str, message: str) -> None:
    good = "0\t0\t0\t0.5\t1\t1.0\n"
    path.write_bytes(f"{COHEN}{good}{line}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"run\.tsv, line 3: {message}"):
        read_log(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": 1}', "[" * 100_000, "\xff"])
def test_a_bad_sidecar_is_named(path: Path, content: str) -> None:
    write(path)
    path.with_name("run.tsv.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"run\.tsv\.json: expected a JSON object"):
        read_log(path)


@pytest.mark.parametrize("environment", [None, 5, [], {"torch": "1.0"}])
def test_a_log_is_retracted_whatever_its_environment(path: Path, environment: Any) -> None:
    write(path)
    sidecar = path.with_name("run.tsv.json")
    sidecar.write_text(json.dumps({"settings": SETTINGS, "environment": environment, "note": "kept"}))
    with RunLog(path, SETTINGS, resume=True) as log:
        log.retract()
    kept = environment if isinstance(environment, dict) else {}
    found = json.loads(sidecar.read_text())
    assert found.pop("settings")["n"] == SETTINGS["n"]
    assert found == {"environment": kept | {"sound": False}, "note": "kept"}


def test_published_logs(published_logs: Path) -> None:
    certified = read_log(published_logs / "certify/cifar10/resnet110/noise_0.25/test/sigma_0.25")
    assert len(certified) == 500
    assert certified.time.mean() == pytest.approx(16.882, abs=5e-4)
    assert certified.predict[1] == -1
    assert not certified.correct[1]
    assert certified.decision is None

    predicted = read_log(published_logs / "predict/imagenet/N_1000")
    assert len(predicted) == 500
    assert predicted.time.mean() == pytest.approx(1.503, abs=5e-4)
    assert not predicted.radius.any()
    assert predicted.decision is None

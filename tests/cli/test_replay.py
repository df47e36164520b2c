"""smoothfast replay: rows of a log computed anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.toys import EARLY, Run, arguments

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL, DATA = ("--model", "smoothfast_toys:model"), ("--data", "smoothfast_toys:images")


@pytest.fixture
def log(certify: Run, tmp_path: Path) -> Path:
    assert certify().status == 0
    return tmp_path / "run.tsv"


@pytest.fixture
def replay(run: Run, toys: Path) -> Run:
    weights = "--weights", toys / "toy.safetensors", "--classes", 3
    return lambda path, *words, named=(*MODEL, *DATA): run("replay", path, *weights, *named, *words)


def edit(log: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    sidecar = log.with_name("run.tsv.json")
    content = json.loads(sidecar.read_text())
    change(content)
    sidecar.write_text(json.dumps(content))


def test_a_log_is_the_same_again(replay: Run, log: Path) -> None:
    result = replay("run.tsv")
    assert result.status == 0, result.err
    assert result.out == "run.tsv: 7 rows computed anew, 7 of them the same\n"
    told = json.loads(replay("run.tsv", "--rows", "5,0", "--json").out)
    assert told == {"log": "run.tsv", "reasons": [], "rows": 2, "same": 2, "differences": []}
    assert "2 rows computed" in replay("run.tsv", "--max", "2").out


@pytest.mark.parametrize("method", EARLY)
def test_other_methods_and_predictions(
    replay: Run, run: Run, certify: Run, toys: Path, tmp_path: Path, method: str
) -> None:
    assert certify(**EARLY[method]).status == 0
    assert replay("run.tsv").status == 0
    assert run(*arguments("predict", toys, out="predicted.tsv", method="sequential", n=400)).status == 0
    assert replay("predicted.tsv").status == 0


def test_what_differs_is_told(replay: Run, log: Path) -> None:
    lines = log.read_text().splitlines()
    column = lines[0].split("\t").index("nA")
    cells = lines[3].split("\t")
    cells[column] = str(int(cells[column]) - 1)
    log.write_text("\n".join([*lines[:3], "\t".join(cells), *lines[4:], ""]))
    result = replay("run.tsv")
    assert result.status == 1
    told = result.out.splitlines()
    assert told[0] == "run.tsv: 7 rows computed anew, 6 of them the same"
    assert told[1] == f"image 2: nA was {cells[column]}, is {int(cells[column]) + 1}"
    assert told[2] == "nothing is known that may be why: images or code are others, or the log was edited"
    edit(log, lambda content: content["environment"].update(torch="1.0"))
    assert 'what may be why: torch was "1.0", is "' in replay("run.tsv").out


def test_a_log_names_no_code_to_run(replay: Run, log: Path) -> None:
    result = replay("run.tsv", named=())
    assert result.status == 2
    assert "which names code: pass --model and its --weights if you trust it" in " ".join(result.err.split())
    result = replay("run.tsv", named=MODEL)
    assert "data is 'smoothfast_toys:images' in the log" in result.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["settings"].pop("sigma"), "run.tsv.json: its settings are not those of a log"),
        (lambda content: content["settings"].update(n="100"), "its settings are not those of a log"),
        (lambda content: content["settings"].update(normalize=3), "run.tsv.json: its settings are not those of a log"),
        (lambda content: content["settings"].update(alpha=2), "run.tsv cannot be replayed: alpha is 2"),
        (
            lambda content: content["settings"].update(sigma=[10**400]),
            'run.tsv.json: expected a JSON object whose "set',
        ),
        (lambda content: content["settings"].update(method="grid"), "its settings are not those of a log"),
        (lambda content: content["settings"].update(method="grid", radii=3), "its settings are not those of a log"),
        (
            lambda content: content["settings"].update(method="grid", radii=["a"], beta=0.1),
            "run.tsv cannot be replayed: radii is \"'a'\"; it must be numbers separated by commas",
        ),
        (lambda content: content["settings"].update(device=True), "run.tsv cannot be replayed: device is True"),
        (lambda content: content["settings"].update(device=""), "run.tsv cannot be replayed: device is ''"),
        (lambda content: content["settings"].update(normalize=[[0, 0], [1, 1]]), "run.tsv cannot be replayed: normal"),
        (lambda content: content["settings"].update(command=[]), "run.tsv is by command []; it must be by one of"),
        (lambda content: content["settings"].update(command="attack"), "it must be by one of certify, predict, demo"),
    ],
)
def test_a_malformed_sidecar_is_an_error(replay: Run, log: Path, change: Any, message: str) -> None:
    edit(log, change)
    result = replay("run.tsv")
    assert result.status == 2
    assert message in " ".join(result.err.split())


def test_rows_must_be_there(replay: Run, log: Path) -> None:
    result = replay("run.tsv", "--rows", "3,9")
    assert result.status == 2
    assert "rows is 9; run.tsv has no such image" in result.err
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines, "7" + lines[-1][1:]]))
    assert "run.tsv has image 7; data is 'smoothfast_toys:images', which has 7 images" in replay("run.tsv").err
    log.with_name("run.tsv.json").unlink()
    assert "with the settings of the run is missing" in replay("run.tsv").err

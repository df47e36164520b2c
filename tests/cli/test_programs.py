"""--json, for programs: one JSON object on stdout and nothing else; --quiet: nothing on stderr but errors."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers.toys import Run, arguments, attack_arguments, check_error
from safetensors import safe_open

from smoothfast import models
from smoothfast.evaluation import accuracy
from smoothfast.runs import tables
from smoothfast.runs.logs import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


def parsed(text: str) -> dict[str, Any]:
    """The object that is all of a text, of numbers that every reader of JSON knows."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("command", ["certify", "predict"])
def test_a_log_for_programs(run: Run, toys: Path, tmp_path: Path, command: str) -> None:
    result = run(*arguments(command, toys, out="deep/run.tsv"), "--json")
    assert result.status == 0, result.err
    assert "7 images" in result.err
    found, log = parsed(result.out), read_log(tmp_path / "deep/run.tsv")
    assert (found["sound"], found["meta"].pop("row_function")) == (True, "bit for bit")
    assert found["settings"] | found["meta"] == log.settings
    assert not found["settings"].keys() & found["meta"].keys()
    assert (found["settings"]["command"], found["meta"]["runner"]) == (command, "eager")
    assert found["accuracy"] == pytest.approx(tables.certified_accuracy(log, found["radii"]).tolist())
    assert (found["acr"], found["abstain"], found["images"]) == (tables.average_certified_radius(log), 1 / 7, 7)
    assert found["effort"]["mean"] == found["effort"]["median"] == (116 if command == "certify" else 100)
    assert sum(found["effort"]["decisions"].values()) == 7
    assert found["effort"]["decisions"]["undecided"] == 1
    assert found["log"] == "deep/run.tsv"
    resumed = run(*arguments(command, toys, out="deep/run.tsv"), "--json", "--resume")
    assert resumed.out == result.out  # nothing is left to do


def test_a_log_that_is_not_sound_stays_so(run: Run, toys: Path) -> None:
    """Though nothing is left to do for the run that goes on with it."""
    words = arguments("certify", toys, model="smoothfast_toys:restless")
    first = run(*words, "--json")
    assert parsed(first.out)["sound"] is False
    assert "run.tsv is not sound: the base classifier changed while it was sampled" in " ".join(first.err.split())
    assert parsed(run(*words, "--json", "--resume").out)["sound"] is False
    assert parsed(run(*arguments("certify", toys, out="other.tsv"), "--json").out)["sound"] is True


def test_an_attack_for_programs(run: Run, toys: Path, tmp_path: Path) -> None:
    result = run(*attack_arguments(toys), "--json")
    assert result.status == 0, result.err
    found = parsed(result.out)
    with safe_open(tmp_path / "adv.safetensors", "pt") as file:
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["run"])
    for classifier in ("base", "smoothed"):
        for images in ("clean", "adversarial"):
            expected, told = accuracy(columns[f"{classifier}_{images}"], columns["labels"]), found[classifier][images]
            assert (told["correct"], told["count"]) == (expected.correct, expected.count)
            assert (told["accuracy"], told["low"], told["high"]) == (expected.share, expected.low, expected.high)
    assert found["settings"] == about["settings"]
    assert (found["gradients"], found["forwards"]) == (about["gradients"], about["forwards"])
    for norm, told in found["distances"].items():
        assert (told["largest"], told["mean"]) == (float(columns[norm].max()), float(columns[norm].mean()))
    right = [columns[f"smoothed_{of}"].argmax(1) == columns["labels"] for of in ("clean", "adversarial")]
    fooled = columns["l2"][right[0] & ~right[1]]
    assert found["fooled"] == {"images": len(fooled), "mean_l2": pytest.approx(float(fooled.mean()))}
    assert len(fooled)
    assert (found["images"], found["votes"], found["level"], found["path"]) == (6, 50, 0.95, "adv.safetensors")


def test_an_attack_that_fools_nobody_has_no_distance(run: Run, toys: Path) -> None:
    found = parsed(run(*attack_arguments(toys, eps=0), "--json").out)
    assert found["fooled"] == {"images": 0, "mean_l2": None}


def test_logs_for_programs(run: Run, toys: Path, tmp_path: Path) -> None:
    assert run(*arguments("certify", toys)).status == 0
    (tmp_path / "old").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.3\t1\t0.1\n")
    found = parsed(run("analyze", "run.tsv", "old", "--radii=0,0.25", "--json").out)
    plain = parsed(run("analyze", "run.tsv", "old", "--radii=0,0.25", "--format=json").out)
    assert found["radii"] == plain["radii"]
    for row, same in zip(found["rows"], plain["rows"], strict=True):
        assert {name: row[name] for name in same} == same
    ours, old = found["rows"]
    assert (ours["path"], old["path"]) == ("run.tsv", "old")
    assert (ours["settings"], old["settings"]) == (read_log(tmp_path / "run.tsv").settings, None)
    assert (ours["effort"]["mean"], old["effort"]) == (116, None)
    check_error(run("analyze", "run.tsv", "--json", "--format=csv"), "format is 'csv'; --json has one of its own")


def test_quiet(run: Run, toys: Path) -> None:
    spoken = run(*arguments("certify", toys))
    quiet = run(*arguments("certify", toys, out="again.tsv"), "--quiet")
    assert spoken.err
    assert (quiet.status, quiet.err) == (0, "")
    assert quiet.out.splitlines()[2].split("|")[2:] == spoken.out.splitlines()[2].split("|")[2:]
    assert run(*attack_arguments(toys), "--quiet").err == ""
    check_error(run(*attack_arguments(toys), "--quiet"), "adv.safetensors exists")
    assert "written: " in run(*arguments("predict", toys, out="predicted.tsv")).err  # the next one speaks again


def test_quiet_warnings(run: Run, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = models.maker

    def maker(*words: Any) -> Any:
        warnings.warn("a runner declines the network", stacklevel=2)
        return build(*words)

    monkeypatch.setattr(models, "maker", maker)
    assert "warning: a runner declines the network\n" in run(*arguments("certify", toys)).err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = run(*arguments("certify", toys, out="again.tsv"), "--quiet", "--json")
    assert (quiet.status, quiet.err) == (0, "")
    assert parsed(quiet.out)["images"] == 7


def test_a_sweep_is_quiet(run: Run, toys: Path) -> None:
    options = {"model": "smoothfast_toys:model", "data": "smoothfast_toys:images", "weights": toys / "toy.safetensors"}
    words = [f"--{name}={value}" for name, value in options.items()]
    result = run("sweep", "--out=rows.csv", "--sigmas=0.2", "--samples=1,2", "--max=2", *words, "--quiet")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("| images |")

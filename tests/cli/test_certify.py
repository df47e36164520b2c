"""smoothfast certify and predict: logs, methods, resuming, weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.launcher import start
from helpers.toys import EARLY, LABELS, WEIGHTS, Run, arguments, attack_arguments, check_error, timeless
from safetensors.torch import save_file

from smoothfast import data
from smoothfast.procedures import PILOT
from smoothfast.runs import attack_files
from smoothfast.runs import certify as runs_certify
from smoothfast.runs.certify import chosen
from smoothfast.runs.logs import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


def test_certify_writes_a_log_a_sidecar_and_a_table(certify: Run, tmp_path: Path) -> None:
    result = certify(out="deep/run.tsv")
    assert result.status == 0, result.err
    assert result.out.startswith("| log |     0 |  0.25 |")
    assert result.out.splitlines()[2].split("|")[1].strip() == "run"
    assert "7 images, 116 samples each at most" in result.err
    assert "eager base classifier, precision fp32, normalisation none" in result.err
    expected = "expected for 7 images, of 116 samples each: eager 0.0 s, openvino 1.5 s, compiled 5.3 s"
    assert f"{expected}; eager takes least for all of the run\n" in result.err
    assert "written: deep/run.tsv" in result.err

    log = read_log(tmp_path / "deep/run.tsv")
    assert log.idx.tolist() == list(range(7))
    assert log.label.tolist() == LABELS
    assert log.predict.tolist() == [0, 1, 2, 0, 1, 2, -1]
    assert log.correct.tolist() == [True] * 5 + [False] * 2
    assert (log.radius[:6] > 0.1).all()
    assert log.radius[6] == 0
    assert log.samples.tolist() == [116] * 7
    assert (log.nA + log.nB).tolist() == [100] * 7
    assert log.decision.tolist() == ["certified"] * 6 + ["undecided"]

    sidecar = json.loads((tmp_path / "deep/run.tsv.json").read_text())
    expected = {
        "command": "certify", "n0": 16, "n": 100, "alpha": 0.001, "method": "fixed", "bound": "multiclass",
        "radius": None, "tolerance": None, "labels_known": False, "data": "smoothfast_toys:images",
        "model": "smoothfast_toys:model", "sigma": [0.3], "normalize": None,
        "seed": 3, "skip": 1, "max": None, "runner": "eager", "precision": "fp32", "micro_batch": 16, "device": "cpu",
        "law": "lattice", "clip": False,
    }  # fmt: skip
    assert [len(sidecar["settings"].pop(name)) for name in ("weights", "weights_sha256")] == [64, 64]
    assert sidecar["environment"].pop("row_function") == "bit for bit"
    assert sidecar["settings"] == expected
    assert {"smoothfast", "torch", "python", "platform", "processor", "kernels"} <= set(sidecar["environment"])


def test_predict(run: Run, toys: Path, tmp_path: Path) -> None:
    result = run(*arguments("predict", toys))
    assert result.status == 0, result.err
    log = read_log(tmp_path / "run.tsv")
    assert log.predict.tolist() == [0, 1, 2, 0, 1, 2, -1]
    assert log.radius.tolist() == [0] * 7
    assert log.samples.tolist() == [100] * 7
    assert log.settings["command"] == "predict"
    assert "n0" not in log.settings
    assert log.decision.tolist() == ["predicted"] * 6 + ["undecided"]
    assert run(*arguments("predict", toys, out="bold.tsv", alpha=0.99)).status == 0
    assert read_log(tmp_path / "bold.tsv").predict[6] in (0, 2)


def test_predict_sequential(run: Run, toys: Path, tmp_path: Path) -> None:
    result = run(*arguments("predict", toys, method="sequential", n=400))
    assert result.status == 0, result.err
    assert run(*arguments("predict", toys, n=400, out="fixed.tsv")).status == 0
    log, fixed = (read_log(tmp_path / name) for name in ("run.tsv", "fixed.tsv"))
    assert log.predict.tolist() == fixed.predict.tolist() == [0, 1, 2, 0, 1, 2, -1]
    assert log.decision.tolist() == fixed.decision.tolist() == ["predicted"] * 6 + ["undecided"]
    assert log.samples.tolist() == [16] * 6 + [400]
    assert (log.nA + log.nB).tolist() == log.samples.tolist()
    assert (log.settings["method"], fixed.settings["method"]) == ("sequential", "fixed")
    assert not {"radius", "tolerance", "bound", "labels_known"} & set(log.settings)


def test_certify_sequential(certify: Run, tmp_path: Path) -> None:
    result = certify(**EARLY["sequential"], n=400)
    assert result.status == 0, result.err
    assert "416 samples each at most" in result.err
    log = read_log(tmp_path / "run.tsv")
    assert log.decision.tolist() == ["certified"] * 6 + ["not certified"]
    assert log.predict.tolist() == [0, 1, 2, 0, 1, 2, -1]
    assert log.radius.tolist() == [0.3] * 6 + [0.0]
    assert (log.samples < 416).all()
    assert len(set(log.samples.tolist())) > 1
    assert (log.nA + log.nB + 16).tolist() == log.samples.tolist()
    assert (log.p_lower > log.p_upper).tolist() == [True] * 6 + [False]
    told = {name: log.settings[name] for name in ("method", "radius", "tolerance", "bound", "labels_known", "n0", "n")}
    assert told == {
        "method": "sequential", "radius": 0.3, "tolerance": None, "bound": "multiclass", "labels_known": False,
        "n0": 16, "n": 400,
    }  # fmt: skip


def test_certify_on_a_grid(certify: Run, tmp_path: Path) -> None:
    result = certify(method="grid", radii="0,0.2,0.4,0.6", n=400)
    assert result.status == 0, result.err
    assert result.out.startswith("| log |     0 |   0.2 |   0.4 |   0.6 |")
    log = read_log(tmp_path / "run.tsv")
    assert log.decision.tolist()[:6] == ["certified"] * 6
    assert log.predict.tolist() == [0, 1, 2, 0, 1, 2, -1]
    assert set(log.radius[:6]) <= {0.2, 0.4, 0.6}
    assert (log.samples[:4] < 416).all()
    told = {name: log.settings[name] for name in ("method", "radius", "radii", "beta", "n")}
    assert told == {"method": "grid", "radius": None, "radii": [0, 0.2, 0.4, 0.6], "beta": 0.05, "n": 400}
    assert certify(method="grid", radii="0.2", beta=0.001, max=1, out="other.tsv").status == 0
    assert read_log(tmp_path / "other.tsv").settings["beta"] == 0.001


def test_certify_within_a_tolerance(certify: Run, tmp_path: Path) -> None:
    assert certify(**EARLY["tolerance"]).status == 0
    assert certify(n=4000, out="fixed.tsv").status == 0
    log, fixed = (read_log(tmp_path / name) for name in ("run.tsv", "fixed.tsv"))
    assert log.decision.tolist() == fixed.decision.tolist() == ["certified"] * 6 + ["undecided"]
    assert log.predict.tolist() == fixed.predict.tolist()
    assert (log.radius >= fixed.radius - 0.4 * 0.3).all()
    assert (log.samples <= fixed.samples + PILOT).all()
    assert log.samples.sum() < fixed.samples.sum()
    assert (log.settings["method"], log.settings["tolerance"], log.settings["radius"]) == ("tolerance", 0.4, None)


def test_certify_by_the_bound_of_cohen(certify: Run, tmp_path: Path) -> None:
    assert certify(bound="cohen").status == 0
    assert certify(out="multiclass.tsv").status == 0
    assert certify(bound="cohen", out="sequential.tsv", **EARLY["sequential"]).status == 0
    cohen, multiclass, sequential = (read_log(tmp_path / f"{name}.tsv") for name in ("run", "multiclass", "sequential"))
    assert cohen.settings["bound"] == sequential.settings["bound"] == "cohen"
    assert cohen.nA.tolist() == multiclass.nA.tolist()
    assert (cohen.p_lower > multiclass.p_lower)[:6].all()  # all of alpha, not 0.9 of it
    assert cohen.p_lower + cohen.p_upper == pytest.approx(1)
    assert sequential.decision.tolist() == ["certified"] * 6 + ["not certified"]


@pytest.mark.parametrize("method", ["fixed", *EARLY])
def test_labels_known(certify: Run, tmp_path: Path, method: str) -> None:
    options = EARLY.get(method, {})
    assert certify("--labels-known", **options).status == 0
    assert certify(out="selected.tsv", **options).status == 0
    known, selected = (read_log(tmp_path / name) for name in ("run.tsv", "selected.tsv"))
    assert (known.settings["labels_known"], selected.settings["labels_known"]) == (True, False)
    # The label of image 5 is not the class that the network sees there.
    assert known.predict.tolist() == [0, 1, 2, 0, 1, -1, -1]
    assert known.decision[:5].tolist() == ["certified"] * 5
    assert known.decision[5] == ("not certified" if method in ("sequential", "grid") else "undecided")
    if method != "tolerance":  # which plans with the samples that select
        assert known.radius[:5].tolist() == selected.radius[:5].tolist()
        assert known.samples[:5].tolist() == (selected.samples[:5] - 16).tolist()
    assert known.correct.tolist() == [True] * 5 + [False] * 2


def test_labels_known_draw_no_selection_samples(certify: Run, tmp_path: Path) -> None:
    assert certify("--labels-known").status == 0
    assert certify("--labels-known", out="none.tsv", n0=0).status == 0
    assert read_log(tmp_path / "run.tsv").samples.tolist() == [100] * 7
    assert timeless(tmp_path / "run.tsv") == timeless(tmp_path / "none.tsv")


@pytest.mark.parametrize("options", [{}, EARLY["sequential"], EARLY["grid"], EARLY["tolerance"] | {"tolerance": 0.01}])
def test_no_image_takes_more_samples_than_announced(certify: Run, tmp_path: Path, options: dict[str, Any]) -> None:
    result = certify(max=2, **options)
    announced = re.search(r"([\d,]+) samples each at most", result.err)
    assert announced
    assert read_log(tmp_path / "run.tsv").samples.max() <= int(announced[1].replace(",", ""))


@pytest.mark.parametrize("method", EARLY)
def test_analyze_reads_the_logs_of_methods_that_stop_early(certify: Run, run: Run, method: str) -> None:
    assert certify(**EARLY[method]).status == 0
    result = run("analyze", "run.tsv", "--radii=0,0.2", "--format=json")
    assert result.status == 0, result.err
    assert json.loads(result.out)["rows"][0]["accuracy"] == pytest.approx([5 / 7, 5 / 7])


def test_some_of_the_images(certify: Run, tmp_path: Path) -> None:
    assert certify(skip=2, max=2).status == 0
    assert certify(out="all.tsv").status == 0
    some, every = (timeless(tmp_path / name).splitlines() for name in ("run.tsv", "all.tsv"))
    assert some == [every[0], every[1], every[7]]
    assert read_log(tmp_path / "run.tsv").settings["taken"] == "evenly"


def test_a_few_images_are_of_all_classes(certify: Run, tmp_path: Path) -> None:
    labels = data.demo().labels
    assert sorted(labels[chosen(200, 1, 10)].tolist()) == list(range(10))
    assert len({index % 10 for index in chosen(200, 1, 10)}) > 6  # of a data set whose classes take turns
    for limit in range(1, 8):
        assert len(set(chosen(7, 1, limit))) == len(chosen(7, 1, limit)) == limit
    assert chosen(7, 2, 9) == chosen(7, 2, None) == [0, 2, 4, 6]


@pytest.mark.parametrize("command", ["certify", "predict", "attack", "sweep"])
def test_a_run_that_took_the_first_images_goes_on_with_them(
    run: Run, toys: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """As those of version 0.1 did, whose settings have no word of it."""
    words, out = {
        "attack": (attack_arguments(toys, max=3, steps=1, batch=1), "adv.safetensors"),
        "sweep": ([*arguments("sweep", toys, out="rows.csv", sigma=None, n=None, samples="1", max=3), "--sigmas=0,0.3",
            "--voting=prediction"], "rows.csv"),
    }.get(command, (arguments(command, toys, max=3), "run.tsv"))  # fmt: skip
    resume = [] if command == "sweep" else ["--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(runs_certify, "taken_by", lambda kept: "first")
        assert run(*words).status == 0
    first = Path(out).read_bytes()
    if command != "attack":
        assert "taken" not in Path(f"{out}.json").read_text()
        Path(out).write_bytes(b"".join(first.splitlines(keepends=True)[:2]))
    if command == "attack":
        assert attack_files.settings_of(Path(out)).get("taken") is None
    assert run(*words, *resume).status == 0
    if command in ("certify", "predict"):
        assert read_log(out).idx.tolist() == [0, 1, 2]
    else:
        assert Path(out).read_bytes() == first


def test_a_seed_is_drawn_for_each_run_and_kept_for_the_rest_of_it(certify: Run, tmp_path: Path) -> None:
    logs = [tmp_path / name for name in ("run.tsv", "other.tsv")]
    for log in logs:
        assert certify(out=log.name, seed=None, max=2).status == 0
    seeds = [read_log(log).settings["seed"] for log in logs]
    assert seeds[0] != seeds[1]
    whole = timeless(logs[0])
    logs[0].write_text("".join(logs[0].read_text().splitlines(keepends=True)[:-1]))
    assert certify("--resume", seed=None, max=2).status == 0
    assert (timeless(logs[0]), read_log(logs[0]).settings["seed"]) == (whole, seeds[0])


@pytest.mark.parametrize("method", ["fixed", *EARLY])
def test_the_same_seed_gives_the_same_bytes(certify: Run, tmp_path: Path, method: str) -> None:
    # Neither the state of torch's generator nor the rows per forward pass matter.
    with torch.random.fork_rng():
        for seed, batch, out in ((3, 16, "a.tsv"), (3, 7, "b.tsv"), (4, 16, "c.tsv")):
            torch.manual_seed(batch)
            assert certify(out=out, seed=seed, batch=batch, **EARLY.get(method, {})).status == 0
    a, b, c = (timeless(tmp_path / name) for name in ("a.tsv", "b.tsv", "c.tsv"))
    assert a == b != c


@pytest.mark.parametrize("method", ["fixed", *EARLY])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    certify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    options = {"batch": 1} | EARLY.get(method, {})  # rows enough for few images at a time
    options |= {"n": 1100} if method == "tolerance" else {}  # of which a few more than 1,024 are planned alike
    assert certify(out="whole.tsv", **options).status == 0
    for index in (3, 6):
        monkeypatch.setenv("INTERRUPT_AT", str(index))
        assert certify("--resume", **options).status == 130
        assert len(read_log(tmp_path / "run.tsv")) <= index
    assert len(read_log(tmp_path / "run.tsv")) > 0
    monkeypatch.delenv("INTERRUPT_AT")
    held = len(read_log(tmp_path / "run.tsv"))
    resumed = certify("--resume", "--runner=eager", **options)
    assert resumed.status == 0
    left = "1 image that is left" if held == 6 else f"{7 - held} images that are left"
    assert f"expected for {left}, of {'116' if method == 'fixed' else 'about'} " in resumed.err
    assert "s; eager is asked for\n" in resumed.err
    assert timeless(tmp_path / "run.tsv") == timeless(tmp_path / "whole.tsv")
    before = (tmp_path / "run.tsv").read_bytes()
    assert certify("--resume", **options).status == 0  # nothing is left to do
    assert (tmp_path / "run.tsv").read_bytes() == before


@pytest.mark.parametrize("options", [{}, EARLY["sequential"]], ids=["fixed", "sequential"])
def test_a_killed_run_resumes_to_the_same_bytes(
    certify: Run, toys: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {"batch": 1} | options
    (killed,) = start([{"KILL_AT": "4"}], tuple(arguments("certify", toys, **options)))
    assert killed.status == 9, killed.err
    assert 0 < len(read_log(tmp_path / "run.tsv")) <= 4
    with (tmp_path / "run.tsv").open("a") as file:
        file.write("4\t1\t1\t0.2")  # a line that was not finished
    assert certify("--resume", **options).status == 0
    assert certify(out="whole.tsv", **options).status == 0
    assert timeless(tmp_path / "run.tsv") == timeless(tmp_path / "whole.tsv")


def test_a_log_is_never_overwritten_or_mixed(certify: Run, tmp_path: Path) -> None:
    assert certify().status == 0
    before = [(tmp_path / name).read_bytes() for name in ("run.tsv", "run.tsv.json")]
    check_error(certify(), "run.tsv exists", "--resume")
    save_file(WEIGHTS, tmp_path / "other.safetensors", {"trained": "again"})
    for option, value, old, new in (("sigma", 0.5, "[0.3]", "[0.5]"), ("seed", 4, "3", "4"), ("max", 2, "null", "2")):
        check_error(certify("--resume", **{option: value}), f"other settings: {option} was {old}, is now {new}")
    check_error(certify("--resume", n=99, batch=8), "micro_batch was 16, is now 8; n was 100, is now 99")
    check_error(certify("--resume", weights="other.safetensors"), "weights was ")
    check_error(certify("--resume", bound="cohen"), 'bound was "multiclass", is now "cohen"')
    check_error(certify("--resume", "--labels-known"), "labels_known was false, is now true")
    check_error(
        certify("--resume", **EARLY["sequential"]),
        'method was "fixed", is now "sequential"; radius was null, is now 0.3',
    )
    check_error(certify("--resume", data="smoothfast_toys:unnamed", classes=3), "data was ")
    assert [(tmp_path / name).read_bytes() for name in ("run.tsv", "run.tsv.json")] == before


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_of_torch_with_the_prefixes_of_wrappers(certify: Run, tmp_path: Path) -> None:
    wrapped = {f"module.1.{name}": value for name, value in WEIGHTS.items()} | {"module.0.mean": torch.zeros(3)}
    torch.save({"epoch": 90, "arch": "toy", "state_dict": wrapped}, tmp_path / "checkpoint.pth.tar")
    assert certify().status == 0
    assert certify(out="wrapped.tsv", weights="checkpoint.pth.tar").status == 0
    assert timeless(tmp_path / "wrapped.tsv") == timeless(tmp_path / "run.tsv")


def test_weights_tell_classes_and_normalisation(certify: Run, tmp_path: Path) -> None:
    settings = {"normalize": [[0.5] * 3, [0.25] * 3]}
    save_file(WEIGHTS, tmp_path / "told.safetensors", {"num_classes": "3", "settings": json.dumps(settings)})
    options = {"data": "smoothfast_toys:unnamed", "weights": "told.safetensors"}
    assert certify(normalize=None, **options).status == 0
    assert read_log(tmp_path / "run.tsv").settings["normalize"] == settings["normalize"]
    assert certify(out="none.tsv", normalize="none", **options).status == 0
    assert read_log(tmp_path / "none.tsv").settings["normalize"] is None
    check_error(certify(out="untold.tsv", data="smoothfast_toys:unnamed"), "classes is not given")

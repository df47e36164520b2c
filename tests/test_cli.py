"""The command line on a small model and data set: logs, resuming, tables, exit status."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.stats import binomtest

from smoothfast import SmoothedClassifier, attack_files, cli, logs, ops, runs
from smoothfast.attacks import EPGD
from smoothfast.evaluation import base_votes
from smoothfast.logs import read_log
from smoothfast.procedures import PILOT

pytestmark = pytest.mark.usefixtures("one_thread")

# Images of one level each. Number 5 is labelled wrongly, and number 6 lies between two classes.
TOYS = """
import os
import torch
from torch import nn

LEVELS, LABELS = (0.5, 0.1, 0.9, 0.45, 0.2, 0.8, 0.7), (0, 1, 2, 0, 1, 0, 2)


def model(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))


class Images:
    classes = ("grey", "dim", "bright")

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        if str(index) == os.environ.get("KILL_AT"):
            os._exit(9)
        if str(index) == os.environ.get("INTERRUPT_AT"):
            raise KeyboardInterrupt
        image = torch.full((3, 4, 4), round(255 * LEVELS[index]), dtype=torch.uint8)
        return image, LABELS[index]


class Uneven(Images):
    def __getitem__(self, index):
        return super().__getitem__(index)[0][:, : 4 - index], 0


class Empty(Images):
    def __len__(self):
        return 0


class Unnamed(Images):
    classes = ()


images, uneven, empty, unnamed = (lambda split, kind=kind: kind() for kind in (Images, Uneven, Empty, Unnamed))
number = 5
"""
LABELS = [0, 1, 2, 0, 1, 0, 2]
# The class is that of the nearest of three levels: (x - c)^2 is least where 2cx - c^2 is largest, x the mean of pixels.
CENTRES = torch.tensor([0.5, 0.1, 0.9])
WEIGHTS = {"1.weight": (2 * CENTRES[:, None] / 48).repeat(1, 48), "1.bias": -(CENTRES**2)}


class Result(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the module `smoothfast_toys` and its weights."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "smoothfast_toys.py").write_text(TOYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        save_file(WEIGHTS, folder / "toy.safetensors")
        yield folder


@pytest.fixture
def run(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["smoothfast", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Result(exit_.value.code, *capsys.readouterr())

    return call


def arguments(command: str, toys: Path, out: str = "run.tsv", **options: Any) -> list[str]:
    """A run of the toys; an option that is None is left out."""
    chosen: dict[str, Any] = {
        "out": out, "model": "smoothfast_toys:model", "data": "smoothfast_toys:images",
        "weights": toys / "toy.safetensors", "sigma": 0.3, "n": 100, "precision": "fp32", "batch": 16, "seed": 3,
    }  # fmt: skip
    chosen |= {"n0": 16} if command == "certify" else {}
    chosen |= options
    return [command, *(f"--{name}={value}" for name, value in chosen.items() if value is not None)]


# The methods of certify that stop early. Every toy has a radius far from 0.3.
EARLY: dict[str, dict[str, Any]] = {
    "sequential": {"method": "sequential", "radius": 0.3},
    "tolerance": {"method": "tolerance", "tolerance": 0.4, "n": 4000},
}


@pytest.fixture
def certify(run: Run, toys: Path) -> Run:
    return lambda *flags, **options: run(*arguments("certify", toys, **options), *flags)


def timeless(path: Path) -> str:
    """A log without the time column."""
    lines = (line.split("\t") for line in path.read_text().splitlines(keepends=True))
    return "".join("\t".join(cells[:5] + cells[6:]) for cells in lines)


def check_error(result: Result, *parts: str, status: int = 2) -> None:
    """One line, and no table."""
    assert (result.status, result.out) == (status, "")
    last = result.err.splitlines()[-1]
    assert last.startswith("smoothfast: ")
    assert all(part in last for part in parts), last
    assert "Traceback" not in result.err


# ---- certify and predict ---------------------------------------------------------------------------------------------


def test_certify_writes_a_log_a_sidecar_and_a_table(certify: Run, tmp_path: Path) -> None:
    result = certify(out="deep/run.tsv")
    assert result.status == 0, result.err
    assert result.out.startswith("| log |     0 |  0.25 |")
    assert result.out.splitlines()[2].split("|")[1].strip() == "run"
    assert "7 images, 116 samples each at most" in result.err
    assert "eager base classifier, precision fp32, normalisation none" in result.err
    assert "expected for 812 forward passes: eager 0 s, openvino 2 s, compiled 5 s" in result.err
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
        "law": "lattice", "clip": False, "row_function": True,
    }  # fmt: skip
    assert len(sidecar["settings"].pop("weights")) == 64  # SHA-256
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
    assert known.decision[5] == ("not certified" if method == "sequential" else "undecided")
    if method != "tolerance":  # which plans with the samples that select
        assert known.radius[:5].tolist() == selected.radius[:5].tolist()
        assert known.samples[:5].tolist() == (selected.samples[:5] - 16).tolist()
    assert known.correct.tolist() == [True] * 5 + [False] * 2


def test_labels_known_draw_no_selection_samples(certify: Run, tmp_path: Path) -> None:
    assert certify("--labels-known").status == 0
    assert certify("--labels-known", out="none.tsv", n0=0).status == 0
    assert read_log(tmp_path / "run.tsv").samples.tolist() == [100] * 7
    assert timeless(tmp_path / "run.tsv") == timeless(tmp_path / "none.tsv")


@pytest.mark.parametrize("options", [{}, EARLY["sequential"], EARLY["tolerance"] | {"tolerance": 0.01}])
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
    assert certify(skip=2, max=3).status == 0
    assert certify(out="all.tsv").status == 0
    some, every = (timeless(tmp_path / name).splitlines() for name in ("run.tsv", "all.tsv"))
    assert some == [every[0], every[1], every[3], every[5]]


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
    assert certify(out="whole.tsv", **options).status == 0
    for index in (3, 6):
        monkeypatch.setenv("INTERRUPT_AT", str(index))
        assert certify("--resume", **options).status == 130
        assert len(read_log(tmp_path / "run.tsv")) <= index
    assert len(read_log(tmp_path / "run.tsv")) > 0
    monkeypatch.delenv("INTERRUPT_AT")
    assert certify("--resume", **options).status == 0
    assert timeless(tmp_path / "run.tsv") == timeless(tmp_path / "whole.tsv")
    before = (tmp_path / "run.tsv").read_bytes()
    assert certify("--resume", **options).status == 0  # nothing is left to do
    assert (tmp_path / "run.tsv").read_bytes() == before


@pytest.mark.parametrize("options", [{}, EARLY["sequential"]], ids=["fixed", "sequential"])
def test_a_killed_run_resumes_to_the_same_bytes(
    certify: Run, toys: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {"batch": 1} | options
    command = [sys.executable, "-m", "smoothfast", *arguments("certify", toys, **options)]
    environment = os.environ | {"KILL_AT": "4", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True).returncode == 9
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


# ---- attack ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def attack(run: Run, toys: Path) -> Run:
    return lambda *flags, **options: run(*attack_arguments(toys, **options), *flags)


def attack_arguments(toys: Path, **options: Any) -> list[str]:
    """An attack on the toys; an option that is None is left out."""
    chosen: dict[str, Any] = {
        "attack": "epgd", "out": "adv.safetensors", "model": "smoothfast_toys:model",
        "data": "smoothfast_toys:images", "weights": toys / "toy.safetensors", "sigma": 0.3, "eps": "51/255",
        "steps": 3, "samples": 4, "votes": 50, "precision": "fp32", "batch": 16, "seed": 3, "max": 6,
    } | options  # fmt: skip
    return ["attack", *(f"--{name}={value}" for name, value in chosen.items() if value is not None)]


IN_THREE: dict[str, Any] = {"batch": 1, "samples": 4}  # batches of 2 images


def columns_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_attack_writes_a_file_a_picture_and_tables(attack: Run, tmp_path: Path) -> None:
    result = attack(out="deep/adv.safetensors", picture="pictures/adv.png")
    assert result.status == 0, result.err
    assert '6 images, epgd on the smoothed classifier: {"eps": 0.2' in " ".join(result.err.split())
    assert "attack: eager base classifier, precision fp32" in result.err
    assert "votes: eager base classifier, precision fp32, normalisation none" in result.err
    assert "written: deep/adv.safetensors, pictures/adv.png" in result.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adv.png", "adv.safetensors", "deep", "pictures"]
    assert (tmp_path / "pictures/adv.png").read_bytes().startswith(b"\x89PNG")

    columns = columns_of(tmp_path / "deep/adv.safetensors")
    assert columns["labels"].tolist() == LABELS[:6]
    assert columns["indices"].tolist() == list(range(6))
    assert (
        columns["base_clean"].argmax(1).tolist() == columns["smoothed_clean"].argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.out.splitlines()]
    assert rows[0] == ["classifier", "clean accuracy (95% interval)", "adversarial accuracy (95% interval)"]
    assert rows[2] == ["base, without noise", *(accuracy_of(columns, f"base_{of}") for of in ("clean", "adversarial"))]
    assert rows[3] == [
        "smoothed, 50 votes",
        *(accuracy_of(columns, f"smoothed_{of}") for of in ("clean", "adversarial")),
    ]
    assert rows[3][1].startswith("0.833 (0.359 .. 0.996)")
    assert rows[3][2] < rows[3][1]
    moved = [f"{value:.4f}" for norm in ("linf", "l2") for value in (columns[norm].max(), columns[norm].mean())]
    assert rows[7] == ["epgd", "12", "12", *moved, rows[7][-1]]
    fooled = (columns["smoothed_clean"].argmax(1) == columns["labels"]) & (
        columns["smoothed_adversarial"].argmax(1) != columns["labels"]
    )
    assert rows[7][-1] == f"{columns['l2'][fooled].mean():.4f}"
    assert moved[0] == "0.2000"


def accuracy_of(columns: dict[str, torch.Tensor], name: str) -> str:
    correct = int((columns[name].argmax(1) == columns["labels"]).sum())
    low, high = binomtest(correct, len(columns["labels"])).proportion_ci(0.95, "exact")
    return f"{correct / len(columns['labels']):.3f} ({low:.3f} .. {high:.3f})"


def test_attack_is_the_api_called_directly(attack: Run, tmp_path: Path) -> None:
    assert attack(skip=2, max=3, runner="eager").status == 0
    columns = columns_of(tmp_path / "adv.safetensors")
    base = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).eval()
    base.load_state_dict(WEIGHTS)
    model = SmoothedClassifier(base, 0.3, 3, seed=3, precision="fp32", max_batch=16, runner="eager")
    images = torch.stack([torch.full((3, 4, 4), round(255 * level)) for level in (0.5, 0.9, 0.2)]).byte()
    labels = [0, 2, 1]
    epgd = EPGD(model, 0.2, steps=3, samples=4, seed=3, precision="fp32", max_batch=16, runner="eager")
    adversarial = epgd(images, labels, [0, 2, 4])
    assert columns["adversarial"].equal(adversarial)
    assert columns["smoothed_adversarial"].equal(model.votes(adversarial, 50, [0, 2, 4]))
    assert columns["base_adversarial"].equal(base_votes(model, adversarial))


def test_attack_records_what_repeats_it(attack: Run, tmp_path: Path) -> None:
    assert attack(skip=2, alpha="1e-2", source="base", targeted="random").status == 0
    with safe_open(tmp_path / "adv.safetensors", "pt") as file:
        about = json.loads(file.metadata()["run"])
    assert len(about["settings"].pop("weights")) == 64  # SHA-256
    assert about["settings"] == {
        "command": "attack", "attack": "epgd", "source": "base", "votes": 50, "eps": 0.2, "alpha": 0.01, "steps": 3,
        "samples": 4, "norm": "linf", "restarts": 1, "loss": "ce", "targeted": "random",
        "data": "smoothfast_toys:images", "model": "smoothfast_toys:model", "sigma": [0.3], "normalize": None,
        "seed": 3, "skip": 2, "max": 6,
        "crafted_by": {"runner": "eager", "precision": "fp32", "micro_batch": 16},
        "judged_by": {
            "runner": "eager", "precision": "fp32", "micro_batch": 16, "device": "cpu", "law": "gaussian",
            "clip": False, "row_function": True,
        },
    }  # fmt: skip
    assert (about["gradients"], about["forwards"]) == (4 * 12, 4 * 12)
    assert "smoothfast" in about["environment"]


def test_attack_gives_the_same_bytes_twice(attack: Run, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        for number, (out, seed) in enumerate((("a", 3), ("b", 3), ("c", 4))):
            torch.manual_seed(number)
            assert attack(out=f"{out}.safetensors", seed=seed).status == 0
    a, b, c = ((tmp_path / f"{out}.safetensors").read_bytes() for out in "abc")
    assert a == b != c
    assert attack(out="d.safetensors", batch=5).status == 0
    few, many = columns_of(tmp_path / "d.safetensors"), columns_of(tmp_path / "a.safetensors")
    assert all(few[name].equal(many[name]) for name in many)


def test_an_attack_overwrites_nothing_and_leaves_nothing_half(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adv.safetensors").write_text("mine")
    check_error(attack(), "adv.safetensors exists: go on with it (--resume) or choose another --out")
    assert (tmp_path / "adv.safetensors").read_text() == "mine"
    monkeypatch.setenv("INTERRUPT_AT", "4")
    assert attack(out="deep/adv.safetensors", picture="deep/adv.png").status == 130
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("tables", [True, False])
def test_an_attack_on_a_full_disk_keeps_what_is_written(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: bool
) -> None:
    def full(columns: dict[str, torch.Tensor], *about: Any) -> None:
        if len(columns["indices"]) == 6 if tables else 4 in columns["indices"]:
            raise SafetensorError("No space left on device")
        save_file(columns, *about)

    with monkeypatch.context() as patch:
        patch.setattr(attack_files, "save_file", full)
        result = attack(**IN_THREE)
    assert result.status == 1
    assert "No space left on device" in result.err.splitlines()[-1]
    assert ("| smoothed, 50 votes" in result.out) is tables
    assert list(tmp_path.iterdir()) == [tmp_path / "adv.parts"]
    assert len(list((tmp_path / "adv.parts").iterdir())) == 2 + tables
    assert attack("--resume", **IN_THREE).status == 0


def test_an_interrupted_attack_resumes_to_the_same_bytes(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attack("--resume", out="whole.safetensors", **IN_THREE)  # there is nothing to go on with
    assert whole.status == 0, whole.err
    monkeypatch.setenv("INTERRUPT_AT", "4")
    for flags in ([], ["--resume"]):
        assert attack(*flags, **IN_THREE).status == 130
        assert len(list((tmp_path / "adv.parts").iterdir())) == 2
        assert not (tmp_path / "adv.safetensors").exists()
    check_error(attack(**IN_THREE), "adv.parts exists: go on with it (--resume) or choose another --out")
    monkeypatch.setenv("INTERRUPT_AT", "2")  # is not attacked again
    resumed = attack("--resume", **IN_THREE)
    assert resumed.status == 0, resumed.err
    assert resumed.out == whole.out
    assert (tmp_path / "adv.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    monkeypatch.delenv("INTERRUPT_AT")
    (tmp_path / "adv.parts").mkdir()  # killed before it was gone
    assert attack("--resume", picture="adv.png", **IN_THREE).out == whole.out  # nothing is left to do
    assert (tmp_path / "adv.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adv.png", "adv.safetensors", "whole.safetensors"]


def test_a_killed_attack_resumes_to_the_same_bytes(attack: Run, toys: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smoothfast", *attack_arguments(toys, **IN_THREE)]
    environment = os.environ | {"KILL_AT": "4", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True).returncode == 9
    assert len(list((tmp_path / "adv.parts").iterdir())) == 2
    assert attack("--resume", **IN_THREE).status == 0
    assert attack(out="whole.safetensors", **IN_THREE).status == 0
    assert (tmp_path / "adv.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_an_attack_goes_on_with_its_own_settings_alone(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERRUPT_AT", "4")
    assert attack(**IN_THREE).status == 130
    monkeypatch.delenv("INTERRUPT_AT")
    first, second = sorted((tmp_path / "adv.parts").iterdir())
    before = [first.read_bytes(), second.read_bytes()]
    for option, value, old, new in (
        ("eps", 0.1, "0.2", "0.1"), ("steps", 4, "3", "4"), ("votes", 60, "50", "60"), ("seed", 4, "3", "4"),
        ("attack", "smoothadv", '"epgd"', '"smoothadv"'), ("source", "base", '"smoothed"', '"base"'),
        ("max", 5, "6", "5"),
    ):  # fmt: skip
        result = attack("--resume", **IN_THREE | {option: value})
        check_error(result, f"{first.name} was made with other settings: ", f"{option} was {old}, is now {new}")
    result = attack("--resume", **IN_THREE | {"batch": 2})
    check_error(result, 'crafted_by was {"micro_batch": 1, ', 'is now {"micro_batch": 2, ', "judged_by was ")
    assert [first.read_bytes(), second.read_bytes()] == before
    second.write_bytes(before[1][:-1])
    check_error(attack("--resume", **IN_THREE), f"adv.parts/{second.name} is cut off, or no file of an attack")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [first.name, second.name, "adv.parts"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"attack": "magic"}, "attack is 'magic'; it must be one of fgsm, pgd, epgd, smoothadv, multi-targeted"),
        ({"attack": "fgsm"}, "steps is 3; attack 'fgsm' takes none, as pgd, epgd"),
        ({"attack": "smoothadv", "loss": "ce"}, "loss is 'ce'; attack 'smoothadv' takes none, as fgsm, pgd, epgd, "),
        ({"attack": "multi-targeted", "targeted": "none"}, "targeted is 'none'; attack 'multi-targeted' takes none"),
        ({"eps": "8/0"}, "eps is '8/0'; it must be a number as 0.03 or 8/255"),
        ({"eps": "much"}, "eps is 'much'"),
        ({"eps": "nan"}, "eps is 'nan'"),
        ({"eps": "1e999"}, "eps is '1e999'"),
        ({"alpha": "8/255/2"}, "alpha is '8/255/2'"),
        ({"votes": 0}, "votes is 0; it must be at least 1"),
        ({"runner": "fast"}, "runner is 'fast'; it must be one of auto, eager"),
        ({"out": "adv.pt"}, "out is 'adv.pt'; it must end in .safetensors"),
        ({"picture": "adv.xyz"}, "picture is 'adv.xyz'; its suffix must be one of"),
    ],
)
def test_attack_refuses_settings_before_anything_is_loaded(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], part: str
) -> None:
    def untouchable(*_: Any) -> None:
        raise AssertionError("loaded before the settings were checked")

    for module, name in ((cli.models, "load"), (cli.data, "load"), (cli, "read_weights")):
        monkeypatch.setattr(module, name, untouchable)
    check_error(attack(**options), part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "part", "status"),
    [
        ({"eps": "-1/255"}, "eps is -0.00392", 2),
        ({"alpha": "-0.1"}, "alpha is -0.1; it must be at least 0", 2),
        ({"steps": 0}, "steps is 0; it must be at least 1", 2),
        ({"samples": 0}, "samples is 0; it must be at least 1", 2),
        ({"restarts": 0}, "restarts is 0", 2),
        ({"norm": "l1"}, "norm is 'l1'; it must be one of linf, l2", 2),
        ({"loss": "best"}, "loss is 'best'; it must be one of ce, margin, dlr", 2),
        ({"source": "both"}, "source is 'both'; it must be one of smoothed, base", 2),
        ({"targeted": "cat"}, "targeted is 'cat'; it must be one of none, random, least-likely", 2),
        ({"sigma": 0}, "sigma is 0", 2),
        ({"seed": -1}, "seed is -1", 2),
        ({"batch": 0}, "max_batch is 0", 2),
        ({"max": 0}, "max is 0", 2),
        ({"precision": "int8"}, "precision is 'int8'", 2),
        ({"classes": 4}, "the model has (4, 48)", 2),
        ({"data": "smoothfast_toys:empty"}, "which holds no images", 2),
        ({"data": "smoothfast_toys:uneven"}, "image 1 is torch.uint8 (3, 3, 4)", 2),
        ({"out": "file/adv.safetensors"}, "file", 2),
        ({"picture": "folder.png"}, "Is a directory: 'folder.png'", 1),
    ],
)
def test_attack_complains_in_one_line_and_leaves_no_file(
    attack: Run, tmp_path: Path, options: dict[str, Any], part: str, status: int
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    check_error(attack(**options), part, status=status)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


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
    assert certify(**options).status == 0
    assert read_log(tmp_path / "run.tsv").settings["normalize"] == settings["normalize"]
    assert certify(out="none.tsv", normalize="none", **options).status == 0
    assert read_log(tmp_path / "none.tsv").settings["normalize"] is None
    check_error(certify(out="untold.tsv", data="smoothfast_toys:unnamed"), "classes is not given")


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"n": 10}, ["n is 10; it must be a whole number of at least 11"]),
        ({"n0": 0}, ["n0 is 0"]),
        ({"alpha": 0}, ["alpha is 0"]),
        ({"sigma": 0}, ["sigma is 0"]),
        ({"sigma": "nan"}, ["sigma is nan"]),
        ({"method": "magic"}, ["method is 'magic'; it must be one of fixed"]),
        ({"bound": "best"}, ["bound is 'best'; it must be one of multiclass, cohen"]),
        ({"noise": "pink"}, ["noise is 'pink'; it must be one of lattice, gaussian"]),
        ({"runner": "fast"}, ["runner is 'fast'; it must be one of auto, eager, compiled, openvino"]),
        ({"precision": "int8"}, ["precision is 'int8'; it must be one of auto, fp32, bf16"]),
        ({"normalize": "best"}, ["normalize is 'best'; it must be one of none, cifar10, cifar100, imagenet"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"batch": 0}, ["batch is 0"]),
        ({"skip": 0}, ["skip is 0"]),
        ({"max": 0}, ["max is 0"]),
        ({"device": "frog"}, ["device is 'frog', which cannot be used"]),
        ({"classes": -3}, ["classes is -3"]),
        ({"classes": 4}, ["1.weight is (3, 48), the model has (4, 48)", "1.bias is (3,)"]),
        ({"model": "resnet21"}, ["model is 'resnet21'; it must be one of resnet20, ", "package.module:callable"]),
        ({"model": "torchvision:resnet1"}, ["model is 'torchvision:resnet1', which cannot be built"]),
        ({"model": "smoothfast_toys:nothing"}, ["model is 'smoothfast_toys:nothing', which cannot be imported"]),
        ({"model": "no_such_module:f"}, ["model is 'no_such_module:f', which cannot be imported"]),
        ({"model": "builtins:dict"}, ["model is 'builtins:dict', which returned dict; it must return an nn.Module"]),
        ({"model": "smoothfast_toys:number"}, ["model is 'smoothfast_toys:number'"]),
        ({"model": "resnet20"}, ["the weights do not fit the model: conv1.weight is missing", "and 113 more"]),
        ({"weights": None, "model": "resnet32"}, ["weights is not given; the embedded weights are of resnet20"]),
        ({"weights": "none.safetensors"}, ["No such file or directory: 'none.safetensors'"]),
        ({"weights": "junk.safetensors"}, ["junk.safetensors is not a safetensors file"]),
        ({"weights": "pickle.pt"}, ["pickle.pt cannot be read with weights_only=True"]),
        ({"weights": "empty.pt"}, ["empty.pt holds no state dict"]),
        ({"weights": "junk.pt"}, ["junk.pt cannot be read"]),
        ({"data": "mnist"}, ["data is 'mnist'; it must be demo, cifar10:ROOT"]),
        ({"data": "cifar10:"}, ["data is 'cifar10:'"]),
        ({"data": "cifar10:nowhere"}, ["data is 'cifar10:nowhere', which cannot be read"]),
        ({"data": "folder:nowhere"}, ["data is 'folder:nowhere', which cannot be read"]),
        ({"data": "smoothfast_toys:nothing"}, ["data is 'smoothfast_toys:nothing', which cannot be imported"]),
        ({"data": "builtins:id"}, ["data is 'builtins:id', which returned int; it must return a data set"]),
        ({"data": "smoothfast_toys:number"}, ["data is 'smoothfast_toys:number'"]),
        ({"data": ":images"}, ["data is ':images'"]),
        ({"data": "smoothfast_toys:empty"}, ["data is 'smoothfast_toys:empty'"]),
    ],
)
def test_bad_usage_is_one_line_before_any_log(
    certify: Run, tmp_path: Path, options: dict[str, Any], parts: list[str]
) -> None:
    for name in ("junk.safetensors", "junk.pt"):
        (tmp_path / name).write_text("junk")
    torch.save({"state_dict": Result(0, "", "")}, tmp_path / "pickle.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    check_error(certify(**options), *parts)
    assert not (tmp_path / "run.tsv").exists()


SEQUENTIAL, TOLERANCE = EARLY["sequential"], EARLY["tolerance"]


@pytest.mark.parametrize(
    ("command", "options", "part"),
    [
        ("certify", {"method": "sequential"}, "radius is None; method 'sequential' needs one"),
        ("certify", {"method": "tolerance"}, "tolerance is None; method 'tolerance' needs one"),
        ("certify", {"radius": 0.2}, "radius is 0.2; method 'fixed' takes none; 'sequential' does"),
        ("certify", {"tolerance": 0.4}, "tolerance is 0.4; method 'fixed' takes none; 'tolerance' does"),
        ("certify", TOLERANCE | {"radius": 0.2}, "radius is 0.2; method 'tolerance' takes none"),
        ("certify", SEQUENTIAL | {"tolerance": 0.4}, "tolerance is 0.4; method 'sequential' takes none"),
        ("certify", SEQUENTIAL | {"radius": 0}, "radius is 0.0; it must be positive and below"),
        ("certify", SEQUENTIAL | {"radius": -0.2}, "radius is -0.2; it must be positive and below"),
        ("certify", SEQUENTIAL | {"radius": "nan"}, "radius is nan; it must be positive and below"),
        ("certify", SEQUENTIAL | {"radius": 3}, "radius is 3.0; it must be positive and below 0.447"),
        ("certify", SEQUENTIAL | {"n": 10}, "n is 10; it must be a whole number of at least 11"),
        ("certify", SEQUENTIAL | {"n0": 0}, "n0 is 0; it must be a whole number of at least 1"),
        ("certify", SEQUENTIAL | {"sigma": 0}, "sigma is 0.0; it must be positive and finite"),
        ("certify", SEQUENTIAL | {"sigma": "nan"}, "sigma is nan; it must be positive and finite"),
        ("certify", SEQUENTIAL | {"bound": "best"}, "bound is 'best'; it must be one of multiclass, cohen"),
        ("certify", TOLERANCE | {"tolerance": 0}, "tolerance is 0.0; it must be positive and finite"),
        ("certify", TOLERANCE | {"tolerance": -1}, "tolerance is -1.0; it must be positive and finite"),
        ("certify", TOLERANCE | {"tolerance": "nan"}, "tolerance is nan; it must be positive and finite"),
        ("certify", TOLERANCE | {"n": 10}, "n is 10; it must be a whole number of at least 11"),
        ("certify", {"method": "magic"}, "method is 'magic'; it must be one of fixed, sequential, tolerance"),
        ("predict", {"method": "magic"}, "method is 'magic'; it must be one of fixed, sequential"),
        ("predict", {"method": "tolerance"}, "method is 'tolerance'; it must be one of fixed, sequential"),
        ("predict", {"method": "sequential", "n": 10}, "n is 10; it must be a whole number of at least 11"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_loaded(
    run: Run,
    toys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: dict[str, Any],
    part: str,
) -> None:
    def untouchable(*_: Any) -> None:
        raise AssertionError("loaded before the settings were checked")

    for module, name in ((cli.models, "load"), (cli.data, "load"), (cli, "read_weights")):
        monkeypatch.setattr(module, name, untouchable)
    result = run(*arguments(command, toys, out="deep/run.tsv", **options))
    check_error(result, part)
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_predict_takes_no_options_of_certify(run: Run, toys: Path, tmp_path: Path) -> None:
    for option in ("--radius=0.2", "--tolerance=0.4", "--bound=cohen", "--labels-known", "--n0=5"):
        assert run(*arguments("predict", toys), option).status == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [16, 100])
def test_certify_sequential_at_the_largest_radius_of_n(certify: Run, tmp_path: Path, n: int) -> None:
    largest = 0.3 * NormalDist().inv_cdf(0.0009 ** (1 / n))
    result = certify(method="sequential", radius=f"{0.999 * largest:.6f}", n=n)
    assert result.status == 0, result.err
    assert read_log(tmp_path / "run.tsv").decision[0] == "certified"


def test_images_of_two_sizes(certify: Run) -> None:
    check_error(certify(data="smoothfast_toys:uneven"), "image 1 is torch.uint8 (3, 3, 4)", "needs images of one kind")


def test_a_full_disk_fails_and_keeps_what_is_written(
    certify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any) -> None:
        written.append(file)
        if len(written) == 5:  # sidecar, header, two lines
            raise OSError(errno.ENOSPC, "No space left on device")

    written: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(logs.os, "fsync", full)
        check_error(certify(), "No space left", "2 images already written are kept", "--resume", status=1)
    assert certify("--resume").status == 0
    assert certify(out="whole.tsv").status == 0
    assert timeless(tmp_path / "run.tsv") == timeless(tmp_path / "whole.tsv")


def test_weights_that_are_a_folder_fail(certify: Run) -> None:
    check_error(certify(weights="."), "Is a directory", status=1)


def test_usage(run: Run) -> None:
    for words in (["frobnicate"], ["certify"], ["certify", "--out=x", "--n=many"], ["info", "--yaml"]):
        assert run(*words).status == 2
    helped = run("certify", "--help")
    assert helped.status == 0
    assert all(option in helped.out for option in ("--model", "--weights", "--data", "--sigma", "--out", "--resume"))
    assert all(option in helped.out for option in ("--method", "--radius", "--tolerance", "--bound", "--labels-known"))
    assert "--method" in run("predict", "--help").out


def test_as_a_module(toys: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "smoothfast", "certify", "--n=5", "--out=run.tsv"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    check_error(Result(done.returncode, done.stdout, done.stderr), "n is 5")
    assert len(done.stderr.splitlines()) == 1


# ---- analyze and info ------------------------------------------------------------------------------------------------


RADII = (0.0, 0.25, 0.5)


@pytest.fixture
def published(published_logs: Path) -> list[Path]:
    return [
        published_logs / f"certify/{name}/noise_0.25/test/sigma_0.25"
        for name in ("cifar10/resnet110", "imagenet/resnet50")
    ]


@pytest.mark.parametrize("table_format", ["markdown", "latex", "csv", "json"])
def test_analyze(run: Run, published: list[Path], table_format: str) -> None:
    result = run("analyze", *published, f"--radii={','.join(map(str, RADII))}", f"--format={table_format}")
    assert result.status == 0, result.err
    if table_format == "json":
        accuracy = [row["accuracy"] for row in json.loads(result.out)["rows"]]
    else:
        separator = {"markdown": "|", "latex": "&", "csv": ","}[table_format]
        rows = [line.strip("|").split(separator) for line in result.out.splitlines() if "sigma" in line]
        accuracy = [[float(cell) for cell in row[1:4]] for row in rows]
    expected = [[(log.correct & (log.radius >= radius)).mean() for radius in RADII] for log in map(read_log, published)]
    assert accuracy == [pytest.approx(row, abs=5e-4) for row in expected]


def test_analyze_plots(run: Run, published: list[Path], tmp_path: Path) -> None:
    assert run("analyze", *published, "--plot=curves.png").status == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_analyze_complains(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("idx\tlabel\n1\t2\n")
    (tmp_path / "log").write_text("idx\tlabel\tpredict\tcorrect\ttime\n0\t1\t1\t1\t0.1\n")
    check_error(run("analyze", "broken"), "broken, line 1: expected a header")
    check_error(run("analyze", "missing"), "No such file", "missing")
    check_error(run("analyze", "log", "--format=yaml"), "format is 'yaml'", "markdown, latex, csv, json")
    check_error(run("analyze", "log", "--radii=0;1"), "radii is '0;1'; it must be numbers separated by commas")


def test_info(run: Run) -> None:
    plain, structured = run("info"), run("info", "--json")
    facts = json.loads(structured.out)
    assert (plain.status, structured.status) == (0, 0)
    assert facts["torch"] == torch.__version__
    assert facts["precision"] in ("fp32", "bf16")
    assert [line.split()[0] for line in plain.out.splitlines()] == list(facts)
    assert {"smoothfast", "processor", "python", "kernels", "extension", "instruction_sets", "threads"} <= set(facts)
    assert facts["backends"] == ops.backends()
    assert (facts["cuda"], facts["cudnn"]) == (torch.version.cuda, torch.backends.cudnn.version())
    assert facts["libraries"]["numpy"] == np.__version__
    assert set(facts["libraries"]) >= {"scipy", "safetensors", "triton"}
    assert len(facts["devices"]) == torch.cuda.device_count() + torch.xpu.device_count()


def test_info_of_gpus(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it reads where there are some: a CUDA driver, two GPUs, no triton."""

    def get_version(supported: Any) -> None:
        supported._obj.value = 13020

    def version(name: str) -> str:
        if name == "triton":
            raise PackageNotFoundError(name)
        return "1.2"

    about = SimpleNamespace(name="Fast", major=9, minor=0, total_memory=80 * 2**30)
    gpus = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda _: about)
    none = SimpleNamespace(is_available=lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_device_module", lambda kind: gpus if kind == "cuda" else none)
        patch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(cuDriverGetVersion=get_version))
        patch.setattr(runs, "version", version)
        facts = json.loads(run("info", "--json").out)
    assert facts["driver"] == "13.2"
    assert facts["devices"][1] == {"device": "cuda:1", "name": "Fast", "capability": "9.0", "GiB": 80.0}
    assert facts["libraries"]["triton"] is None


def test_info_of_the_extension(extension: Any) -> None:
    """The generations of GPUs it was compiled for: none, or machine code and PTX."""
    architectures = extension.build_info()["cuda_architectures"]
    names, live = architectures.split(",") if architectures else [], ops.backends()["cuda"]
    assert all(re.fullmatch(r"(sm|compute)_\d+[af]?", name) for name in names)
    assert names or not live.startswith("compiled")
    assert not names or "without CUDA sources" not in live

"""What the command line refuses, in one line and before any work; failures that keep what is written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from helpers.toys import EARLY, Result, Run, arguments, check_error, timeless

from smoothfast import data, models
from smoothfast.cli import prepare
from smoothfast.cli.attack import AttackOptions
from smoothfast.cli.certify import CertifyOptions
from smoothfast.cli.sweep import SweepOptions
from smoothfast.runs import records
from smoothfast.runs.logs import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


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
        ({"precision": "int4"}, ["precision is 'int4'; it must be one of auto, fp32, bf16"]),
        (
            {"normalize": "best"},
            ["normalize is 'best'; it must be one of none, cifar10, cifar10-cohen, cifar100"],
        ),
        ({"seed": -1}, ["seed is -1"]),
        ({"batch": 0}, ["batch is 0"]),
        ({"skip": 0}, ["skip is 0"]),
        ({"max": 0}, ["max is 0"]),
        ({"device": "frog"}, ["device is 'frog', which cannot be used"]),
        ({"classes": -3}, ["classes is -3"]),
        ({"classes": 4}, ["1.weight is (3, 48), the model has (4, 48)", "1.bias is (3,)"]),
        (
            {"model": "resnet21"},
            ["model is 'resnet21', an unknown model; near: ", "package.module:callable"],
        ),
        ({"model": "torchvision:resnet1"}, ["model is 'torchvision:resnet1', which cannot be built"]),
        ({"model": "smoothfast_toys:nothing"}, ["model is 'smoothfast_toys:nothing', which cannot be imported"]),
        ({"model": "no_such_module:f"}, ["model is 'no_such_module:f', which cannot be imported"]),
        ({"model": "builtins:dict"}, ["model is 'builtins:dict', which returned dict; it must return an nn.Module"]),
        ({"model": "smoothfast_toys:number"}, ["model is 'smoothfast_toys:number'"]),
        (
            {"model": "resnet20"},
            ["do not fit the model: conv1.weight, ", "113 more are missing; 1.bias, 1.weight are"],
        ),
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


SEQUENTIAL, TOLERANCE, GRID = EARLY["sequential"], EARLY["tolerance"], EARLY["grid"]


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
        ("certify", {"method": "grid"}, "radii is None; method 'grid' needs one"),
        ("certify", {"radii": "0,1"}, "radii is (0.0, 1.0); method 'fixed' takes none; 'grid' does"),
        ("certify", SEQUENTIAL | {"beta": 0.1}, "beta is 0.1; method 'sequential' takes none; 'grid' does"),
        ("certify", GRID | {"radius": 0.2}, "radius is 0.2; method 'grid' takes none; 'sequential' does"),
        ("certify", GRID | {"radii": "0;1"}, "radii is '0;1'; it must be numbers separated by commas"),
        ("certify", GRID | {"radii": "0.3,0.2"}, "radii is (0.3, 0.2); they must be at least 0, increasing and below"),
        ("certify", GRID | {"radii": "0,nan"}, "radii is (0.0, nan); they must be at least 0, increasing and below"),
        ("certify", GRID | {"radii": "-1,0"}, "radii is (-1.0, 0.0); they must be at least 0, increasing and below"),
        ("certify", GRID | {"radii": "0,3"}, "they must be at least 0, increasing and below 0.6351"),
        ("certify", GRID | {"beta": 1}, "beta is 1; it must be at least 1e-100 and below 1"),
        ("certify", GRID | {"n": 2_000_000}, "it must be at most 1,000,000 by method sequential or grid"),
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

    for module, name in ((models, "load"), (data, "load"), (prepare, "read_weights")):
        monkeypatch.setattr(module, name, untouchable)
    result = run(*arguments(command, toys, out="deep/run.tsv", **options))
    check_error(result, part)
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_predict_takes_no_options_of_certify(run: Run, toys: Path, tmp_path: Path) -> None:
    grid = "--radii=0,0.2", "--beta=0.1"
    for option in ("--radius=0.2", "--tolerance=0.4", *grid, "--bound=cohen", "--labels-known", "--n0=5"):
        assert run(*arguments("predict", toys), option).status == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [16, 100])
def test_certify_sequential_at_the_largest_radius_of_n(certify: Run, tmp_path: Path, n: int) -> None:
    largest = 0.3 * NormalDist().inv_cdf(0.0009 ** (1 / n))
    result = certify(method="sequential", radius=f"{0.999 * largest:.6f}", n=n)
    assert result.status == 0, result.err
    assert read_log(tmp_path / "run.tsv").decision[0] == "certified"


def test_images_of_two_sizes(certify: Run) -> None:
    result = certify(data="smoothfast_toys:uneven")
    check_error(result, "image 1 is torch.uint8 (3, 3, 4)", "needs images of one kind", status=1)


def test_a_full_disk_fails_and_keeps_what_is_written(
    certify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any) -> None:
        written.append(file)
        if len(written) == 5:  # sidecar, header, two lines
            raise OSError(errno.ENOSPC, "No space left on device")

    written: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(records.os, "fsync", full)
        check_error(certify(), "No space left", "2 images already written are kept", "--resume", status=1)
    assert certify("--resume").status == 0
    assert certify(out="whole.tsv").status == 0
    assert timeless(tmp_path / "run.tsv") == timeless(tmp_path / "whole.tsv")


def test_weights_that_are_a_folder_fail(certify: Run) -> None:
    check_error(certify(weights="."), "Is a directory")


def test_usage(run: Run) -> None:
    for words in (["frobnicate"], ["certify"], ["certify", "--out=x", "--n=many"], ["info", "--yaml"]):
        assert run(*words).status == 2
    helped = run("certify", "--help")
    assert helped.status == 0
    assert all(option in helped.out for option in ("--model", "--weights", "--data", "--sigma", "--out", "--resume"))
    assert all(option in helped.out for option in ("--method", "--radius", "--radii", "--bound", "--labels-known"))
    assert "--method" in run("predict", "--help").out


def test_as_a_module(toys: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "smoothfast", "certify", "--n=5", "--out=run.tsv"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    check_error(Result(done.returncode, done.stdout, done.stderr), "n is 5")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("resume", [False, True])
def test_a_log_that_is_a_folder(tmp_path: Path, resume: bool) -> None:
    with pytest.raises(ValueError, match="--out is a directory"):
        CertifyOptions(out=tmp_path, resume=resume).check()
    with pytest.raises(ValueError, match="--out is a directory"):
        SweepOptions(out=tmp_path).check()
    with pytest.raises(ValueError, match="--out is a directory"):
        AttackOptions(attack="pgd", out=tmp_path, resume=resume).check()

"""smoothfast analyze and info."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toys import EARLY, Run, check_error

from smoothfast import environment, ops
from smoothfast.cli import display
from smoothfast.runs.logs import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_a_table_fits_the_terminal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "idx\tlabel\tpredict\tradius\tcorrect\ttime", "0\t1\t1\t95.5\t1\t0.1"
    (tmp_path / "far.tsv").write_text("".join(f"{line}\n" for line in lines))
    for columns in (40, 80):
        monkeypatch.setattr(display, "width", lambda columns=columns: columns)
        assert max(map(len, run("analyze", "far.tsv").out.splitlines())) <= columns
        assert max(map(len, run("analyze", "far.tsv", "--radii=0,1,2,3,4,5,6,7,8,9").out.splitlines())) <= columns


def test_analyze_tells_of_p_a_and_of_radii_beside_the_grid(certify: Run, run: Run) -> None:
    assert certify(**EARLY["grid"]).status == 0
    result = run("analyze", "run.tsv")
    assert result.status == 0, result.err
    first, second = result.out.strip().split("\n\n")
    assert first.startswith("| log |  0.05 |   0.3 |  0.44 |")
    assert second.startswith("| right, and p_A at least |   0.5 |")
    assert second.splitlines()[2].endswith("| 400 | 0.001 |")
    assert result.err == ""
    asked = run("analyze", "run.tsv", "--radii=0.3,0.4", "--json")
    assert "run was asked at 0.05, 0.3, 0.44 alone: at 0.4 it counts" in asked.err
    (row,) = json.loads(asked.out)["rows"]
    assert row["p_A"]["at_least"] == [0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999]
    assert row["p_A"]["share"][0] == pytest.approx(5 / 7)
    assert "p_A" not in run("analyze", "run.tsv", "--format=csv").out


def test_analyze_tells_intervals_and_draws_how_images_differ(certify: Run, run: Run, tmp_path: Path) -> None:
    assert certify().status == 0
    result = run("analyze", "run.tsv", "--radii=0,0.3", "--intervals", "--plot=a.png", "--spread=s.pdf")
    assert result.status == 0, result.err
    _, second, _ = result.out.strip().split("\n\n")
    assert max(map(len, second.splitlines())) < 80
    (row,) = json.loads(run("analyze", "run.tsv", "--radii=0,0.3", "--intervals", "--json").out)["rows"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in second.splitlines()[2:]]
    assert [line[2:] for line in rows] == [
        [f"{share:.3f}", *(f"{end:.3f}" for end in ends)]
        for share, ends in zip(row["accuracy"], row["intervals"], strict=True)
    ]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "s.pdf").read_bytes().startswith(b"%PDF-")


def test_analyze_plots(run: Run, published: list[Path], tmp_path: Path) -> None:
    assert run("analyze", *published, "--plot=curves.png").status == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_analyze_complains(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("idx\tlabel\n1\t2\n")
    (tmp_path / "log").write_text("idx\tlabel\tpredict\tcorrect\ttime\n0\t1\t1\t1\t0.1\n")
    check_error(run("analyze", "broken"), "broken, line 1: expected a header")
    check_error(run("analyze", "missing"), "No such file", "missing")
    check_error(run("analyze", "log", "--format=yaml"), "format is 'yaml'", "markdown, latex, csv, json")
    check_error(run("analyze", "log", "--spread=s.png"), "log has no columns samples and p_lower")
    check_error(run("analyze", "log", "--spread=s"), "spread is 's'; its suffix must be one of")
    check_error(
        run("analyze", "log", "--format=csv", "--intervals"), "format is 'csv'; --intervals goes with markdown or"
    )
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
        patch.setattr(environment, "version", version)
        patch.setattr(environment, "libraries", environment.libraries.__wrapped__)  # which is asked once
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

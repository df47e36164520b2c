"""The benchmarks at tiny sizes: contenders compute the same, and rows go under the header of the recorded ones."""

from __future__ import annotations

import csv
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from smoothfast.benchmarks import attack_step, baselines, certify, harness, noisy_replicas, replica_sum, samples, tally
from torch import nn

from smoothfast import cli, ops

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = harness.CPU
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
FORMS = list(product(harness.DTYPES, harness.FORMATS))


def results(contenders: dict[str, Any]) -> dict[str, Any]:
    return {name: call() for name, call in contenders.items()}


# ---- contenders agree ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "memory_format"), FORMS)
def test_sums_agree(dtype: str, memory_format: str) -> None:
    found = results(replica_sum.contenders(9, 3, 5, dtype, memory_format, CPU))
    assert len(found) == 3
    for sums in found.values():
        torch.testing.assert_close(sums, found["replica_sum"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", attack_step.LIMITS)
def test_steps_agree(norm: str) -> None:
    found = results(attack_step.contenders(9, 4, norm, CPU))
    assert len(found) == 2
    torch.testing.assert_close(found["torch chain"], found["attack_step"], rtol=0, atol=1e-6)


def test_steps_agree_where_they_are_projected() -> None:
    """Far out of the ball, and of the range of pixels."""
    clean, start = torch.rand(2, 4, 3, 5, 5)
    gradients = torch.randn_like(clean)
    for norm, chain in attack_step.CHAINS.items():
        alpha, _, *limits = attack_step.LIMITS[norm]
        stepped = start.clone()
        ops.attack_step(stepped, clean, gradients, norm, alpha, 0.3, *limits)
        assert (stepped - start).abs().max() > 0.1
        torch.testing.assert_close(chain(start, clean, gradients, alpha, 0.3, *limits), stepped, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_votes_agree(dtype: torch.dtype) -> None:
    found = results(tally.contenders(50, 7, dtype, CPU))
    counts = [torch.as_tensor(votes).tolist() for votes in found.values()]
    assert len(counts) == 3
    assert all(votes == counts[0] for votes in counts)
    assert sum(counts[0]) == 50


@pytest.mark.parametrize(("dtype", "memory_format"), FORMS)
def test_replicas_are_of_one_form(dtype: str, memory_format: str) -> None:
    """What is drawn differs; shape, dtype, memory format, mean and deviation do not."""
    found = results(noisy_replicas.contenders(9, 200, dtype, memory_format, CPU))
    assert list(found) == ["lattice", "gaussian", "copy of as many bytes", "torch repeat + randn", "torch chain"]
    wanted = found["torch chain"]
    for name in ("lattice", "gaussian"):
        assert (found[name].shape, found[name].dtype) == (wanted.shape, wanted.dtype)
        assert found[name].stride() == wanted.stride()
        mean, deviation = (found[name].float().mean(0) - wanted.float().mean(0)), found[name].float().std()
        assert mean.abs().max() < 1  # of 200 copies with deviation 1: six times that of a mean
        assert abs(deviation / wanted.float().std() - 1) < 0.05
    assert found["copy of as many bytes"].nbytes == wanted.nbytes


def test_certify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row of a network too small to take time."""
    forwards = []

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            forwards.append(len(x))
            return self.linear(x.mean((2, 3)))

    monkeypatch.setattr(certify, "_network", lambda case: Tiny().eval())
    case = certify.Case("tiny", "Tiny", 32, 10, 300, ("eager",), (None, 16), (50,))
    rows = certify.rows(case, CPU)
    assert [row.contender for row in rows] == [
        f"{kind} {precision}{batch}"
        for precision in ("bf16", "fp32")
        for batch in ("", ", batch 16")
        for kind in ("certify eager", "bare eager forward")
    ] + ["Cohen's loop, eager fp32, batch 50"]
    assert {row.baseline for row in rows} == {rows[-1].contender}
    assert capsys.readouterr().out.count("certify / bare forward") == 4
    assert set(forwards) == {32, 16, 50}


@pytest.mark.parametrize("device", certify.CASES)
def test_networks_of_certify(device: str) -> None:
    for case in certify.CASES[device]:
        with torch.device("meta" if case.model != "resnet20" else "cpu"):
            network = certify._network(case)
        assert not network.training
        assert len(certify._statistics(case)[0]) == 3


def test_cohen_counts_every_sample() -> None:
    image = torch.rand(3, 4, 4)
    base = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()
    assert baselines.cohen_counts(base, image, 25, 0.25, 10, 5).sum() == 25


# ---- timing and rows -------------------------------------------------------------------------------------------------


def test_clocks_are_read_when_the_device_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch.cpu, "synchronize", lambda: told.append("synchronize"))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: told.append("clock") or float(len(told)))
    [row] = harness.compare("b", "s", {"c": lambda: told.append("call")}, 2.0, "s", 1, calls=3)
    assert told == ["call", "synchronize", "clock", "call", "call", "call", "synchronize", "clock"]
    assert row.median == pytest.approx((8 - 3) / (3 * 2.0), abs=1e-4)
    assert (row.device, row.ratio, row.baseline) == ("cpu", 1, "c")
    assert row.kernels == harness.kernels(CPU)


@pytest.mark.parametrize("op", ops.OPS)
def test_implementations_on_a_gpu(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves the op, and Triton beside it unless that is the one."""
    pytest.importorskip("triton")
    gpu = torch.device("cuda")
    assert list(harness.implementations(op, CPU)) == [""]
    for live, wanted in (("compiled", ["", ", Triton"]), ("triton", [""])):
        monkeypatch.setattr(ops, "backends", lambda live=live: {"cuda": f"{live} (for a reason)"})
        assert harness.kernels(gpu) == live
        found = harness.implementations(op, gpu)
        assert list(found) == wanted
        assert all(callable(kernel) for kernel in found.values())


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_recorded_rows_have_the_header_of_new_ones(path: Path) -> None:
    row = samples.Row if path.stem == "samples" else harness.Row
    rows = list(csv.reader(path.open(newline="")))
    assert rows[0] == [field.name for field in fields(row)]
    assert {len(cells) for cells in rows} == {len(rows[0])}
    if row is harness.Row:
        assert all(cells[rows[0].index("device")] for cells in rows)
        assert {cells[0] for cells in rows[1:]} == {path.stem}


def test_rows_are_appended_under_one_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    for _ in range(2):
        harness.report(tally.rows(20, 3, torch.float32, CPU), out)
    rows = list(csv.DictReader(out.open()))
    assert [row["contender"] for row in rows[:3]] == [row["contender"] for row in rows[3:]]
    assert {row["device"] for row in rows} == {"cpu"}
    assert capsys.readouterr().out.count("ns/row") == 6


def test_every_benchmark_has_a_name() -> None:
    recorded = {path.stem for path in RESULTS.glob("*.csv")}
    assert recorded == set(cli.BENCHMARKS.values())
    makefile = (RESULTS.parents[1] / "Makefile").read_text()
    assert all(f" {name} " in makefile.replace(";", " ;") for name in cli.BENCHMARKS)

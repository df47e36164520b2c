"""The benchmarks at tiny sizes: contenders compute the same, and rows go under the header of the recorded ones."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smoothfast.benchmarks import (
    attack_step,
    baselines,
    certify,
    harness,
    noisy_replicas,
    peers,
    replica_sum,
    tally,
)
from torch import nn

from smoothfast import SmoothedClassifier, cli, ops

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


class Colours(nn.Module):
    """Logits that are the mean of each colour, and seven that are less; keeps the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 10)
        self.linear.load_state_dict({"weight": torch.eye(10, 3), "bias": torch.tensor([0.0] * 3 + [-9.0] * 7)})
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return self.linear(x.mean((2, 3)))


@pytest.fixture
def red() -> torch.Tensor:
    """uint8 [2, 3, 32, 32], red and blue: noise of 0.25 moves the mean of 1,024 pixels by 0.008."""
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[0, 0], images[1, 2] = 255, 255
    return images


def test_peers_count_as_the_engine_does(red: torch.Tensor) -> None:
    """Votes that no noise moves: Cohen's loop, SIAM's and the package's own, each of n samples."""
    smoothed = SmoothedClassifier(Colours().eval(), 0.25, 10, runner="eager")
    wanted = smoothed.votes(red, 25)
    assert wanted[:, [0, 2]].tolist() == [[25, 0], [0, 25]]
    found = baselines.siam_votes(Colours(), red / 255, 25, torch.full((3, 1, 1), 0.25), 10)
    assert torch.equal(found, wanted)
    for image, votes in zip(red, wanted, strict=True):
        base = Colours()
        assert baselines.cohen_counts(base, image / 255, 25, 0.25, 10, 10).tolist() == votes.tolist()
        assert base.batches == [10, 10, 5]


def test_art_counts_n_samples(red: torch.Tensor) -> None:
    """Its class and radius are those of as many unanimous votes."""
    for module in ("art", "statsmodels"):
        pytest.importorskip(module)
    base = Colours()
    call = peers.art_certify(base, red[1] / 255, 400, 0.25, 128, 10)
    assert call is not None
    [label], [radius] = call()
    assert base.batches == [100, 128, 128, 44]
    wanted = SmoothedClassifier(Colours().eval(), 0.25, 10, runner="eager").certify(red[1:], 100, 300, bound="cohen")
    assert label == wanted.labels[0] == 2
    assert radius == pytest.approx(float(wanted.radii[0]), rel=1e-3)


def test_a_peer_that_is_missing_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda module: None if module == "art" else object())
    peers.missing.cache_clear()
    for batch in (32, 128):
        assert peers.art_certify(nn.Identity(), torch.zeros(3, 4, 4), 400, 0.25, batch, 10) is None
    said = "adversarial-robustness-toolbox is left out: art not installed (pip install smoothfast[peers])\n"
    assert capsys.readouterr().out == said
    peers.missing.cache_clear()


def test_certify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row of a network too small to take time."""
    base = Colours()
    monkeypatch.setattr(certify, "_network", lambda case: base.eval())
    monkeypatch.setattr(certify, "PRODUCT", 16)
    monkeypatch.setattr(peers, "art_certify", lambda *arguments: None)
    case = certify.Case("tiny", "Tiny", 32, 10, 300, ("eager",), micro_batches=(None, 16), cohen=(50, 60), siam=(20,))
    rows = certify.rows(case, CPU)
    times = [row for row in rows if row.unit == "us/sample"]
    engines = [f"{precision}{batch}" for precision in ("bf16", "fp32") for batch in ("", ", batch 16")]
    loops = [f"Cohen's loop, eager fp32, batch {batch}" for batch in (50, 60)]
    assert [row.contender for row in times] == [
        *(f"{kind} {engine}" for engine in engines for kind in ("certify eager", "bare eager forward")),
        *loops,
        "SIAM MC predict, eager fp32, 20 images",
    ]
    fastest = min((row for row in times if row.contender in loops), key=lambda row: row.value)
    assert {row.baseline for row in times} == {fastest.contender}
    assert fastest.ratio == 1
    assert capsys.readouterr().out.count("certify / bare forward") == 4
    assert set(base.batches) > {16, 50, 60, 20}
    assert certify.flops(base, 32) == 60
    rates = rows[len(times) :]
    assert [row.contender for row in rates] == [
        f"matrix product {engines[0]}", *(f"certify eager {engine}" for engine in engines[:2]),
        f"matrix product {engines[2]}", *(f"certify eager {engine}" for engine in engines[2:]),
    ]  # fmt: skip
    by_name = {row.contender: row for row in times}
    for row in rates:
        assert (row.unit, row.baseline) == ("TFLOP/s", f"matrix product {row.baseline[-4:]}")
        if row.contender in by_name:
            assert row.value == pytest.approx(60e-6 / by_name[row.contender].value, rel=1e-3)
            assert row.ratio < 1


@pytest.mark.parametrize("device", certify.CASES)
def test_networks_of_certify(device: str) -> None:
    for case in certify.CASES[device]:
        with torch.device("meta" if case.model != "resnet20" else "cpu"):
            network = certify._network(case)
        assert not network.training
        assert len(certify._statistics(case)[0]) == 3
        assert all(case.n % count == 0 for count in case.siam)


# ---- timing and rows -------------------------------------------------------------------------------------------------


def test_clocks_are_read_when_the_device_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch.cpu, "synchronize", lambda: told.append("synchronize"))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: told.append("clock") or float(len(told)))
    [row] = harness.compare("b", "s", {"c": lambda: told.append("call")}, 2.0, "s", 1, calls=3)
    assert told == ["call", "synchronize", "clock", "call", "call", "call", "synchronize", "clock"]
    assert row.value == pytest.approx((8 - 3) / (3 * 2.0), abs=1e-4)
    assert (row.device, row.ratio, row.baseline) == ("cpu", 1, "c")
    assert row.kernels == harness.kernels(CPU)
    assert row.repeats == 1


def test_ratios_are_taken_within_a_round() -> None:
    """The machine is twice as slow in the second round, and ten times in the third."""
    figures = {"ours": [1.0, 2.0, 10.0, 1.0], "slow": [9.0] * 4, "best": [3.0, 6.0, 30.0, 4.0]}
    rows = harness.rows("b", "s", figures, "s", ["slow", "best"])
    assert {row.baseline for row in rows} == {"best"}
    ours, slow, best = rows
    assert (ours.ratio, best.ratio) == (3, 1)
    assert slow.ratio == pytest.approx((4 / 9 + 6 / 9) / 2, rel=1e-4)
    assert (ours.value, ours.low, ours.high, ours.min, ours.max, ours.repeats) == (1.5, 1, 4, 1, 10, 4)
    faster, _ = harness.rows("b", "s", {"ours": [2.0, 8.0], "product": [1.0, 2.0]}, "TFLOP/s", ["product"])
    assert faster.ratio == 3


def test_means_have_an_error() -> None:
    (row,) = harness.means("b", "s", {"c": [True, False, False, False]}, "right")
    assert (row.value, row.repeats, row.ratio, row.baseline) == (0.25, 4, None, "")
    assert row.error == pytest.approx(np.sqrt(0.25 * 0.75 / 4), rel=1e-4)


def test_memory_is_that_of_the_contender() -> None:
    """Not what the process once had."""
    if not harness.FORGET.exists():
        pytest.skip(f"no {harness.FORGET}: the peak of a process cannot be told")
    size = 64 * 2**20
    harness.forget_peak()
    bytearray(size)
    _, memory = harness.timed({"little": lambda: None, "much": lambda: bytearray(b"1") * size}, 2)
    assert 50 < memory["much"] - memory["little"] < 80


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
    rows = harness.read(path)
    assert next(csv.reader(path.open(newline=""))) == harness.HEADER
    assert {row.benchmark for row in rows} == {path.stem}
    for row in rows:
        assert all((row.setting, row.contender, row.unit, row.device, row.date))
        assert (row.ratio is None) == (not row.baseline)


def test_rows_are_appended_under_one_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    for _ in range(2):
        harness.report([tally.rows(20, 3, torch.float32, CPU)], out)
    rows = list(csv.DictReader(out.open()))
    assert [row["contender"] for row in rows[:3]] == [row["contender"] for row in rows[3:]]
    assert {row["device"] for row in rows} == {"cpu"}
    assert capsys.readouterr().out.count("ns/row") == 6
    out.write_text("benchmark,setting\n")
    with pytest.raises(ValueError, match="first line is not the header"):
        harness.report(iter(()), out)


def test_every_benchmark_has_a_name() -> None:
    recorded = {path.stem for path in RESULTS.glob("*.csv")}
    assert recorded == set(cli.BENCHMARKS.values())
    makefile = (RESULTS.parents[1] / "Makefile").read_text()
    assert all(f" {name} " in makefile.replace(";", " ;") for name in cli.BENCHMARKS)

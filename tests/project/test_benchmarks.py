"""The benchmarks at tiny sizes: contenders compute the same, and rows go under the header of the recorded ones."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image as pictured
from smoothfast.benchmarks import (
    attack,
    attack_step,
    baselines,
    certify,
    flights,
    harness,
    memory,
    methods,
    noisy_replicas,
    peers,
    pictures,
    processes,
    replica_sum,
    scaling,
    start,
    strength,
    tally,
    threads,
    weights,
)
from torch import nn
from typer.testing import CliRunner

from smoothfast import SmoothedClassifier, cli, models, ops
from smoothfast.cli.report import BENCHMARKS
from smoothfast.names import VOTINGS
from smoothfast.noise import Stream
from smoothfast.voting import voting_rule

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = harness.CPU
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
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


def test_a_kind_of_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for chosen, wanted in ((None, ["cpu", "cuda"]), ("cuda", ["cuda"]), ("cpu", ["cpu"])):
        if chosen is not None:
            monkeypatch.setenv("SMOOTHFAST_BENCH_ON", chosen)
        assert [device.type for device in harness.devices()] == wanted


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


@pytest.mark.parametrize("voting", VOTINGS[1:])
def test_sums_by_other_voting_rules_agree(voting: str) -> None:
    found = results(tally.contenders(50, 7, torch.float32, CPU, voting))
    ours, theirs = found.values()
    torch.testing.assert_close((ours * voting_rule(voting, 7).unit).float(), theirs, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("dtype", harness.DTYPES.values())
def test_noisy_weights_are_of_one_law(dtype: torch.dtype) -> None:
    """What is drawn differs; shape, dtype and the mean square of the noise of every layer do not."""
    bank = weights.coloured(CPU)
    found = results(weights.contenders(bank, 64, dtype))
    assert list(found) == ["perturb_weights", "memory of as many bytes", "torch, layer by layer"]
    assert found["perturb_weights"].nbytes == found["memory of as many bytes"].nbytes
    assert sum(shape.numel() for shape in bank.shapes) == 270_896
    power = bank.scales.square() + bank.factors.square().sum(0)
    for layer, shape in enumerate(bank.shapes):
        here = bank.tiles[0] == layer
        ours = found["perturb_weights"][:, here].flatten(1)[:, : shape.numel()]
        theirs = torch.stack([drawn[layer] for drawn in found["torch, layer by layer"]])
        assert (theirs.shape[1:], theirs.dtype) == (shape, dtype)
        mean, wanted = (part[here].flatten()[: shape.numel()] for part in (bank.weights, power))
        for drawn in (ours, theirs.flatten(1)):
            assert abs((drawn - mean).square().mean() / wanted.mean() - 1) < 0.15  # five deviations of what is shared


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


def test_the_published_attack_adds_up_its_gradients() -> None:
    """By hand, on a parabola whose slope changes its sign on the way."""
    images, labels = torch.full((3, 1, 2, 2), 0.46), torch.zeros(3, dtype=torch.int64)
    eps, alpha, sigma, low, high = torch.tensor([0.1, 0.025, 0.0, 0.0, 1.0]).view(5, 1, 1, 1)

    def height(x: torch.Tensor) -> torch.Tensor:
        return 20 * (x.flatten(1).mean(1) - 0.5).square()

    class Parabola(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([height(x), torch.zeros(len(x))], 1)

    torch.manual_seed(0)
    found = baselines.siam_epgd(
        Parabola(), images, labels, eps=eps, alpha=alpha, sigma=sigma, limits=(low, high), steps=9, samples=2
    )
    torch.manual_seed(0)
    x, total = images + 0.1 * (2 * torch.rand_like(images) - 1), torch.zeros(3)
    for _ in range(9):
        means = x.flatten(1).mean(1)
        total = total - torch.sigmoid(-height(x)) * 40 * (
            means - 0.5
        )  # of the cross-entropy of class 0, up to a factor
        x = (x + 0.025 * total.sign().view(3, 1, 1, 1)).clamp(0.36, 0.56)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)


def test_attacks_of_equal_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack, "RUNNERS", [("eager", "fp32")])
    monkeypatch.setattr(attack, "FUSED", [])
    monkeypatch.setattr(attack, "REPEATS", 1)
    monkeypatch.setattr(peers, "missing", lambda *_: True)
    rows = attack.beside(2, 1, 2, CPU)
    assert [row.contender for row in rows] == ["EPGD, eager fp32", attack.FROZEN, "SIAM's loop, as published"]
    assert {row.unit for row in rows} == {"us/gradient"}
    assert rows[1].ratio == 1
    pixels = harness.embedded_images(2)[0] / 255
    for call in (attack.ours(2, 1, 2, CPU) | attack.theirs(2, 1, 2, CPU)).values():
        found = call()
        assert found.shape == pixels.shape
        assert torch.isfinite(found).all()


def test_torchattacks_has_the_same_budget() -> None:
    pytest.importorskip("torchattacks", reason="torchattacks is not installed: pip install smoothfast[peers]")
    seen: list[int] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 4 * 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return self.linear(x.flatten(1))

    call = peers.torchattacks_attack(
        "EOTPGD", Net(), torch.rand(5, 3, 4, 4), torch.zeros(5, dtype=torch.int64), 0.25, eps=0.1, alpha=0.02, steps=3,
        eot_iter=4,
    )  # fmt: skip
    assert call is not None
    call()
    assert seen == [5] * 12


def test_strength(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    monkeypatch.setattr(
        harness, "embedded", lambda device: SmoothedClassifier(Colours().eval(), 0.25, 10, runner="eager")
    )
    monkeypatch.setattr(strength, "VOTES", 10)
    rows = strength.rows(2, "l2", (8, 16), CPU)
    assert [row.contender for row in rows] == [
        f"{name}, {budget} gradients" for name in ("PGD", "EPGD", "SmoothAdv") for budget in (8, 16)
    ]
    assert all(row.repeats == 2 for row in rows)
    attacks = [strength.contenders(harness.embedded(CPU), "linf", (8, 16))]
    steps = [(one.steps, one.samples) for attack in attacks for _, one in attack]
    assert steps == [(8, 1), (16, 1), (1, 8), (2, 8), (1, 8), (2, 8)]
    pictures.draw(rows, tmp_path / "strength.png")
    assert pictured.imread(tmp_path / "strength.png").std() > 0


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
    call = peers.art_certify(base, red[1] / 255, 100, 300, 0.25, 128, 10)
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
        assert peers.art_certify(nn.Identity(), torch.zeros(3, 4, 4), 100, 300, 0.25, batch, 10) is None
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
        assert all(case.n % count == 0 for count in (certify.N0, *case.siam))


# ---- suites ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> SmoothedClassifier:
    """In place of the embedded network, on the embedded images."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))

    def embedded(device: torch.device = CPU) -> SmoothedClassifier:
        return SmoothedClassifier(base.eval(), 0.25, 10, precision="fp32", runner="eager")

    for name in ("embedded", "fastest"):
        monkeypatch.setattr(harness, name, embedded)
    return embedded()


def test_votes_of_more_samples_begin_with_those_of_fewer(tiny: SmoothedClassifier) -> None:
    """One pass counts what a run with each number of samples counts."""
    images, labels, ids = harness.embedded_images(4)
    assert ids == [0, 50, 100, 150]
    assert labels.tolist() == [0, 2, 5, 7]
    ns = (1, 3, 10, 40)
    votes = scaling.counted(tiny.engine(images), images, ids, ns)
    for look, n in enumerate(ns):
        assert votes[Stream.PREDICT][:, look, :-1].tolist() == tiny.votes(images, n, ids).tolist()
    figures = scaling.judged(votes, labels.numpy(), ns, tiny.engine(images).function.deviation)
    certificate = tiny.certify(images, scaling.N0, ns[-1], image_ids=ids)
    assert votes[Stream.ESTIMATE][:, -1, :-1].tolist() == certificate.counts.tolist()
    right = certificate.labels == labels
    assert figures[scaling.RADIUS][:, -1].tolist() == torch.where(right, certificate.radii, 0).tolist()
    prediction = tiny.predict(images, ns[-1], image_ids=ids).labels
    assert figures[scaling.PREDICTED][:, -1].tolist() == (prediction == labels).tolist()
    assert figures[scaling.ABSTAINED][:, -1].tolist() == (prediction < 0).tolist()
    assert figures[scaling.ABSTAINED][:, :3].all()  # no 10 samples decide at alpha 0.001


def test_scaling_and_its_picture(tiny: SmoothedClassifier, tmp_path: Path) -> None:
    rows = harness.report(scaling.groups(6, (1, 10, 100), CPU), tmp_path / "rows.csv")
    assert {row.setting for row in rows} == {"ResNet-20, eager fp32, 6 embedded images, sigma 0.25, alpha 0.001"}
    units = [scaling.VOTED, scaling.PREDICTED, scaling.ABSTAINED, scaling.RADIUS, *scaling.CERTIFIED, scaling.TIME]
    assert [(row.unit, row.contender) for row in rows] == list(product(units, ("n = 1", "n = 10", "n = 100")))
    assert harness.read(tmp_path / "rows.csv") == rows
    pixels = drawn(rows, tmp_path)
    coloured = (pixels.max(-1) - pixels.min(-1) > 0.5).any(1)
    assert coloured[: len(coloured) // 3].any()  # a panel each
    assert coloured[-len(coloured) // 4 :].any()


def drawn(rows: list[harness.Row], folder: Path) -> np.ndarray[Any, Any]:
    """The pixels of the picture of rows."""
    pictures.draw(rows, folder / "rows.png")
    pixels: np.ndarray[Any, Any] = pictured.imread(folder / "rows.png")[..., :3]
    assert pixels.std() > 0.05
    return pixels


def test_flights(tiny: SmoothedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "N_CERTIFY", 400)
    rows = [row for group in flights.groups(5, (1, 2), CPU) for row in group]
    assert [(row.contender, row.unit) for row in rows] == 2 * [
        (size, unit) for unit in ("us/sample", "s/image") for size in ("1 at once", "2 at once")
    ]
    images, _, ids = harness.embedded_images(5)
    samples = tiny.predict(images, method="sequential", image_ids=ids).samples.double().mean()
    for sample, image in zip(rows[:2], rows[2:4], strict=True):
        assert sample.ratio == image.ratio
        assert image.value / sample.value * 1e6 == pytest.approx(float(samples), rel=1e-3)


def test_threads(tiny: SmoothedClassifier) -> None:
    rows = threads.rows((1, 2), 130)
    assert [(row.contender, row.threads) for row in rows] == [("1 thread", 1), ("2 threads", 2)]
    assert torch.get_num_threads() == 1


def test_methods(tiny: SmoothedClassifier) -> None:
    rows = [row for group in methods.groups(3, 200, CPU) for row in group]
    assert [row.contender for row in rows] == 2 * list(methods.METHODS)
    assert rows[0].value == 300
    assert {row.unit for row in rows[:3]} == {"samples/image"}
    assert {row.baseline for row in rows[3:]} == {"fixed"}


def test_memory() -> None:
    """In processes of their own, which count all samples and tell their peak."""
    (row,) = memory.rows([(300, 2)], 1)
    assert (row.contender, row.unit) == ("n = 300, images: 2", "MiB")
    assert 50 < row.value < 5000
    assert memory.run(300, 2) == 600


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Commands run within this process, and are listed with their environment."""
    asked: list[tuple[list[str], dict[str, str]]] = []

    def run(*words: str, **variables: str) -> str:
        asked.append((list(words), variables))
        first = words.index("smoothfast") + 1
        done = CliRunner().invoke(cli.app, list(words[first:]), catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    monkeypatch.setattr(harness, "whole_process", run)
    return asked


def test_start(commands: list[tuple[list[str], dict[str, str]]]) -> None:
    rows = start.rows(("eager", "auto"), 1, 20, 1)
    runs = [f"{runner}, {run} run" for runner in ("eager", "auto") for run in ("first", "second")]
    assert [row.contender for row in rows] == runs
    assert {row.baseline for row in rows} == {"eager, second run"}
    caches = [variables["TORCHINDUCTOR_CACHE_DIR"] for _, variables in commands]
    assert [caches[0] == caches[1], caches[1] == caches[2], caches[2] == caches[3]] == [True, False, True]
    assert not Path(caches[0]).exists()


def test_processes(commands: list[tuple[list[str], dict[str, str]]]) -> None:
    """The launched command does the same here, so no rows differ; its times are shared out."""
    rows = [row for group in processes.groups(2, 20, (2,), "eager", 1) for row in group]
    assert [(row.contender, row.unit) for row in rows] == [
        (name, unit)
        for unit in ("s", "us/sample", "share of rows differing")
        for name in ("1 process", "launched, 2 processes")
    ]
    assert [row.value for row in rows[4:]] == [0, 0]
    assert rows[2].value * 2 * 120 * 1e-6 < rows[0].value  # sampling is a part of the command
    (alone, environment), (launched, _) = commands[-2:]
    assert launched[: len(launched) - len(alone)] == [
        "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--",
    ]  # fmt: skip
    assert environment == {"OMP_NUM_THREADS": "1"}


def test_rows_that_differ_are_counted() -> None:
    logs = [
        {"idx": ["0", "1"], "time": times, "nA": ["5", votes]}
        for times, votes in ((["1", "2"], "7"), (["3", "4"], "8"))
    ]
    first, second = (processes._untimed(log) for log in logs)
    assert [row != other for row, other in zip(first, second, strict=True)] == [False, True]


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"no_such_module: exit status 1\n.*No module named"):
        harness.whole_process("no_such_module")


def test_embedded() -> None:
    smoothed, (images, labels, _) = harness.embedded(), harness.embedded_images(20)
    found = smoothed.base(models.Normalize(*smoothed.normalize)(images / 255)).argmax(1)
    assert (found == labels).float().mean() > 0.5
    assert smoothed.runner in ("openvino", "compiled")
    with pytest.raises(ValueError, match=r"max is 201; it must be 1 .. 200"):
        harness.embedded_images(201)


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


def test_bars(tmp_path: Path) -> None:
    rows = tally.rows(20, 3, torch.float32, CPU)
    height, width, _ = drawn(rows, tmp_path).shape
    assert width > height > 200
    assert drawn(2 * rows, tmp_path).shape[0] > height
    drawn(harness.means("b", "s", {"none": [0, 0]}, "share"), tmp_path)


def test_bench_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: SmoothedClassifier) -> None:
    monkeypatch.setattr(scaling, "NS", (1, 20))
    bench = [
        "bench",
        "scaling",
        "--max",
        "2",
        "--out",
        str(tmp_path / "rows.csv"),
        "--plot",
        str(tmp_path / "rows.png"),
    ]
    done = CliRunner().invoke(cli.app, bench, catch_exceptions=False)
    assert done.exit_code == 0
    assert "2 embedded images" in done.stdout
    assert len(harness.read(tmp_path / "rows.csv")) == 14
    assert pictured.imread(tmp_path / "rows.png").std() > 0.05
    for words, message in (
        (
            ["tally", "--max", "2"],
            "max is 2; tally has no number of images, only methods, flights, processes, scaling, strength have",
        ),
        (["tally", "--plot", "x.doc"], "plot is 'x.doc'"),
        (["scaling", "--max", "0"], "max is 0; it must be 1 .. 200"),
    ):
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(cli.app, ["bench", *words], catch_exceptions=False)


def test_every_benchmark_has_a_name() -> None:
    recorded = {path.stem for path in RESULTS.glob("*.csv")}
    assert recorded == set(BENCHMARKS.values())
    makefile = (RESULTS.parents[1] / "Makefile").read_text()
    assert all(f" {name} " in makefile.replace(";", " ;") for name in BENCHMARKS)

"""Votes of one image: the engine against the published loop and against the bare network, captured as a graph on a GPU.

The published loop runs as torch is set up: its float32 convolutions on a GPU may be TF32, those of the engine are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn

from smoothfast import data, models
from smoothfast.engine import Engine
from smoothfast.lanes import Lane, capture
from smoothfast.runners import strict_arithmetic
from smoothfast.smoothing import SmoothedClassifier
from smoothfast.weights import DEMO, read_weights

from . import baselines, harness

SIGMA = 0.25
REPEATS = 3


@dataclass(frozen=True)
class Case:
    """One network in one setting.

    Attributes:
        model: a spec of `models.load`.
        about: the network, as the rows name it. Weights decide nothing about speed.
        n: samples.
        micro_batches: of the engine, None for its own choice.
        batches: of Cohen's loop; ratios are against the last.
    """

    model: str
    about: str
    size: int
    classes: int
    n: int
    runners: tuple[str, ...]
    micro_batches: tuple[int | None, ...]
    batches: tuple[int, ...]


BOTH = ("eager", "compiled")
CPU_RUNNERS = ("compiled", "openvino") if find_spec("openvino") else ("compiled",)
CASES = {
    "cpu": [Case("resnet20", "ResNet-20", 32, 10, 10_000, CPU_RUNNERS, (None,), (1000, 100))],
    "cuda": [
        Case("resnet20", "ResNet-20", 32, 10, 100_000, BOTH, (None, 1024), (1000,)),
        Case("resnet110", "ResNet-110 (random weights)", 32, 10, 20_000, BOTH, (None, 1024), (1000,)),
        Case("torchvision:resnet50", "ResNet-50 (random weights)", 224, 1000, 10_000, BOTH, (None, 256), (400,)),
    ],
}


def main(out: Path | None) -> None:
    """On the CPU ResNet-20, on a GPU ResNet-110 and ResNet-50 too."""
    for device in harness.devices():
        for case in CASES[device.type]:
            harness.report(rows(case, device), out)


def rows(case: Case, device: torch.device) -> list[harness.Row]:
    """Each precision, runner and micro-batch: the engine and its bare network on as many rows; and Cohen's loop."""
    network = _network(case).to(device)
    image = data.demo().images[:1] if case.size == 32 else torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    contenders: dict[str, Callable[[], object]] = {}
    for (runner, form), smoothed in _classifiers(case, network):
        engine = smoothed.engine(image)
        contenders[f"certify {runner} {form}"] = partial(smoothed.certify, image, 100, case.n - 100)
        contenders[f"bare {runner} forward {form}"] = bare_forward(engine, case.n)
        graph = engine.meta.get("graph", "none")
        print(f"{case.about}, {runner} {form}: micro-batch {engine.micro_batch}, graph {graph}", flush=True)
    for batch in case.batches:
        contenders[f"Cohen's loop, eager fp32, batch {batch}"] = _cohen(case, network, image, batch)
    setting = f"{case.about} {case.size}x{case.size}, n = {case.n:,}"
    found = harness.compare("certify", setting, contenders, case.n * 1e-6, "us/sample", REPEATS, device=device)
    _print_overhead(found)
    return found


def _network(case: Case) -> nn.Module:
    network = models.load(case.model, case.classes).eval()
    if case.model == "resnet20":
        read_weights(DEMO).load_into(network)
    return network


def _statistics(case: Case) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return models.STATISTICS["cifar10" if case.size == 32 else "imagenet"]


def _classifiers(case: Case, network: nn.Module) -> Iterator[tuple[tuple[str, str], SmoothedClassifier]]:
    """By runner, and by precision and micro-batch."""
    for precision in ("bf16", "fp32"):
        for runner in case.runners:
            for micro_batch in case.micro_batches:
                form = precision if micro_batch is None else f"{precision}, batch {micro_batch}"
                yield (runner, form), SmoothedClassifier(
                    network, SIGMA, case.classes, normalize=_statistics(case), precision=precision,
                    max_batch=micro_batch, runner=runner,
                )  # fmt: skip


def bare_forward(engine: Engine, n: int) -> Callable[[], None]:
    """The engine's own runners, each on a stored micro-batch, as often as n samples need: no noise, no votes."""
    replicas = torch.randn(engine.micro_batch, *engine.shape, device=engine.device).to(engine.dtype)
    replicas = replicas.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(lane: Lane) -> Tensor:
        with strict_arithmetic(engine.device):
            return lane.run_base(replicas)

    steps = [lane.call(capture, partial(forward, lane), engine.device).result()[0] for lane in engine.lanes]
    lanes = list(zip(engine.lanes, steps, strict=True))

    def call() -> None:
        batches = range(-(-n // engine.micro_batch))
        wait([lane.call(step) for _, (lane, step) in zip(batches, cycle(lanes), strict=False)])

    return call


def _cohen(case: Case, network: nn.Module, image: Tensor, batch: int) -> Callable[[], object]:
    device = next(network.parameters()).device
    published = nn.Sequential(models.Normalize(*_statistics(case)), network).eval().to(device)
    pixels = image[0].to(device) / 255
    return lambda: baselines.cohen_counts(published, pixels, case.n, SIGMA, batch, case.classes)


def _print_overhead(found: list[harness.Row]) -> None:
    time = {row.contender: row.median for row in found}
    for name, floor in time.items():
        if name.startswith("bare "):
            run = name.removeprefix("bare ").replace(" forward", "", 1)
            print(f"certify / bare forward, {run}: {time[f'certify {run}'] / floor:.3f}")

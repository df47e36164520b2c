"""Votes of one image: the engine against what people run today, the bare network, and the hardware.

On a GPU the bare network is captured as a graph. What people run runs as torch is set up: its float32 convolutions on a
GPU may be TF32, those of the engine are not. Ratios of times are against Cohen's loop at its best batch, those of rates
against a large matrix product. A share of the processor's peak is not given: that takes the clock, which virtual
machines hide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from smoothfast import models
from smoothfast.engine import Engine
from smoothfast.engine.graphs import capture
from smoothfast.engine.votes import VoteLane
from smoothfast.runners import choice
from smoothfast.runners.fused import arithmetics, preferred
from smoothfast.runners.precision import strict_arithmetic
from smoothfast.smoothing import SmoothedClassifier
from smoothfast.weights import DEMO, read_weights

from . import baselines, harness, peers

SIGMA = 0.25
N0 = 128  # samples that select, and with them n: whole micro-batches, whose padding would count where n is small
REPEATS = 3
PRODUCT = 4096  # rows and columns of the matrices

Contenders = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One network in one setting.

    Attributes:
        model: a spec of `models.load`.
        about: the network, as the rows name it. Weights decide nothing about speed.
        n: samples, a multiple of 128 and of `siam`.
        micro_batches: of the engine, None for its own choice.
        cohen: batches of Cohen's loop.
        art: batches of ART's `certify`; 32 is its default, 128 that of ART's `predict`.
        siam: images at once in SIAM's prediction.
    """

    model: str
    about: str
    size: int
    classes: int
    n: int
    runners: tuple[str, ...]
    precisions: tuple[str, ...] = ("bf16", "fp32")
    micro_batches: tuple[int | None, ...] = (None,)
    cohen: tuple[int, ...] = (32, 100, 400, 1000)
    art: tuple[int, ...] = (32, 128)
    siam: tuple[int, ...] = (128,)


BOTH = ("eager", "compiled")
CPU_RUNNERS = ("compiled", *(("openvino",) if find_spec("openvino") else ()))
FUSED = ("fused",) if arithmetics() else ()
ALL = ("bf16", "fp32", "int8")
RESNET110, WIDE, RESNET50 = (f"{name} (random weights)" for name in ("ResNet-110", "WRN-34-10", "ResNet-50"))
CASES = {
    "cpu": [
        Case("resnet20", "ResNet-20", 32, 10, 10_240, CPU_RUNNERS + FUSED, ALL),
        Case("resnet110", RESNET110, 32, 10, 1_024, CPU_RUNNERS + FUSED, ALL),
        Case("wrn34_10", WIDE, 32, 10, 256, CPU_RUNNERS, ("bf16",), cohen=(32, 100), art=(128,), siam=()),
    ],
    "cuda": [
        Case("resnet20", "ResNet-20", 32, 10, 102_400, BOTH, micro_batches=(None, 1024)),
        Case("resnet110", RESNET110, 32, 10, 20_480, BOTH, micro_batches=(None, 1024)),
        Case(
            "torchvision:resnet50", RESNET50, 224, 1000, 10_240, BOTH, micro_batches=(None, 256), cohen=(100, 400),
            art=(),  # 24 GB of noisy copies
        ),
    ],
}  # fmt: skip


def main(out: Path | None) -> list[harness.Row]:
    """Times ResNet-20, ResNet-110 and WRN-34-10 on the CPU, and on a GPU ResNet-50 in place of the last."""
    devices = harness.devices()
    return harness.report((rows(case, device) for device in devices for case in CASES[device.type]), out)


def rows(case: Case, device: torch.device) -> list[harness.Row]:
    """Rows in microseconds a sample, of all contenders, and in TFLOP/s, of the engine beside a matrix product."""
    network = _network(case).to(device)
    samplers = {**_ours(case, network), **_cohen(case, network), **_peers(case, network)}
    multiplied = [precision for precision in case.precisions if precision in harness.DTYPES]
    products: Contenders = {_product(precision): product(precision, device) for precision in multiplied}
    took, memory = harness.timed(samplers | products, REPEATS, device)
    _print_overhead(took)
    setting = f"{case.about} {case.size}x{case.size}, n = {case.n:,}"
    times = {name: [seconds / case.n * 1e6 for seconds in took[name]] for name in samplers}
    loops = [name for name in samplers if name.startswith("Cohen")]
    found = harness.rows("certify", setting, times, "us/sample", loops, device, memory)
    operations = choice.measure(network, (3, case.size, case.size)).operations * case.n
    for precision in multiplied:
        work = {_product(precision): 2 * PRODUCT**3} | {
            name: operations for name in samplers if name.startswith("certify") and f" {precision}" in name
        }
        rates = {name: [work[name] / seconds * 1e-12 for seconds in took[name]] for name in work}
        found += harness.rows("certify", setting, rates, "TFLOP/s", [_product(precision)], device, memory)
    return found


def product(precision: str, device: torch.device) -> Callable[[], Tensor]:
    """A call of the matrix product that shows what rate the hardware reaches."""
    left, right = torch.randn(2, PRODUCT, PRODUCT, device=device).to(harness.DTYPES[precision])
    return partial(torch.matmul, left, right)


def _product(precision: str) -> str:
    return f"matrix product {precision}"


def _network(case: Case) -> nn.Module:
    network = models.load(case.model, case.classes).eval()
    if case.model == "resnet20":
        read_weights(DEMO).load_into(network)
    return network


def _images(case: Case, count: int) -> Tensor:
    """Images uint8 [count, 3, H, W]: embedded ones, or noise in their place."""
    if case.size == 32:
        return harness.embedded_images(count)[0]
    return torch.randint(0, 256, (count, 3, case.size, case.size), dtype=torch.uint8)


def _statistics(case: Case) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return models.STATISTICS["cifar10" if case.size == 32 else "imagenet"]


def _classifiers(case: Case, network: nn.Module) -> Iterator[tuple[tuple[str, str], SmoothedClassifier]]:
    """Smoothed classifiers of a case, by runner, and by precision and micro-batch."""
    for precision in case.precisions:
        for runner in case.runners:
            absent = runner == "fused" and not preferred(precision)
            if absent or (precision == "int8" and runner != "fused"):
                continue
            for micro_batch in case.micro_batches:
                form = precision if micro_batch is None else f"{precision}, batch {micro_batch}"
                yield (runner, form), SmoothedClassifier(
                    network, SIGMA, case.classes, normalize=_statistics(case), precision=precision,
                    max_batch=micro_batch, runner=runner,
                )  # fmt: skip


def bare_forward(engine: Engine, n: int) -> Callable[[], None]:
    """A call of the engine's own runners, each on a stored micro-batch, as often as n samples need: no noise, no
    votes."""
    function = engine.function
    replicas = torch.randn(function.micro_batch, *function.shape, device=function.device).to(function.dtype)
    replicas = replicas.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(lane: VoteLane) -> Tensor:
        with strict_arithmetic(function.device):
            return lane.run_base(replicas)

    steps = [lane.call(capture, partial(forward, lane), function.device).result()[0] for lane in engine.lanes]
    lanes = list(zip(engine.lanes, steps, strict=True))

    def all_lanes() -> None:
        batches = range(-(-n // function.micro_batch))
        for call in [lane.call(step) for _, (lane, step) in zip(batches, cycle(lanes), strict=False)]:
            call.result()

    return all_lanes


def _ours(case: Case, network: nn.Module) -> Contenders:
    """Contenders of the package, for each precision, runner and micro-batch: the engine, and its bare network on as
    many rows."""
    image, found = _images(case, 1), Contenders()
    for (runner, form), smoothed in _classifiers(case, network):
        engine = smoothed.engine(image)
        found[f"certify {runner} {form}"] = partial(smoothed.certify, image, N0, case.n - N0)
        found[f"bare {runner} forward {form}"] = bare_forward(engine, case.n)
        graph = engine.meta.get("graph", "none")
        print(f"{case.about}, {runner} {form}: micro-batch {engine.function.micro_batch}, graph {graph}", flush=True)
    return found


def _cohen(case: Case, network: nn.Module) -> Contenders:
    base, pixels = _published(case, network)
    return {
        f"Cohen's loop, eager fp32, batch {batch}": partial(
            baselines.cohen_counts, base, pixels, case.n, SIGMA, batch, case.classes
        )
        for batch in case.cohen
    }


def _peers(case: Case, network: nn.Module) -> Contenders:
    """Contenders of others: ART from image to radius; SIAM's prediction of a batch of images, n samples in all."""
    found = Contenders()
    base, pixels = _published(case, network)
    for batch in case.art:
        certify = peers.art_certify(base, pixels, N0, case.n - N0, SIGMA, batch, case.classes)
        if certify is not None:
            found[f"ART certify, eager fp32, batch {batch}"] = certify
    mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in _statistics(case))
    for count in case.siam:
        images = (_images(case, count).to(pixels.device) / 255 - mean) / std
        found[f"SIAM MC predict, eager fp32, {count} images"] = partial(
            baselines.siam_votes, network, images, case.n // count, SIGMA / std, case.classes
        )
    return found


def _published(case: Case, network: nn.Module) -> tuple[nn.Module, Tensor]:
    """The network that normalises inside, and one image in [0, 1]."""
    device = next(network.parameters()).device
    base = nn.Sequential(models.Normalize(*_statistics(case)), network).eval().to(device)
    return base, _images(case, 1)[0].to(device) / 255


def _print_overhead(took: dict[str, list[float]]) -> None:
    for name, floor in took.items():
        if name.startswith("bare "):
            run = name.removeprefix("bare ").replace(" forward", "", 1)
            overhead = median(own / bare for own, bare in zip(took[f"certify {run}"], floor, strict=True))
            print(f"certify / bare forward, {run}: {overhead:.3f}")

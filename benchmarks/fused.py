"""CIFAR ResNets by the fused kernels, forwards and backwards, on one core: against the other runners, and by layers
against the rate of their tile products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smoothfast import models, ops
from smoothfast.engine.graphs import capture
from smoothfast.losses import Differentiated, cross_entropy
from smoothfast.noise import Stream, lattice_law, stream_key
from smoothfast.quantization import quantize
from smoothfast.runners import make_runners, micro_batch_of
from smoothfast.runners.fused import Fused, FusedIntegers, arithmetics, dtype_of, preferred
from smoothfast.runners.gradient import traced
from smoothfast.runners.resnets import recognised
from smoothfast.voting import PREDICTION

from . import harness

ROWS, REPEATS = 64, 9
GPU_ROWS = 4096
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
DEPTHS = (20, 56, 110)
OPENVINO = ["openvino"] if find_spec("openvino") else []
OTHERS = {20: [*OPENVINO, "compiled"]}  # which takes minutes to compile gradients of a deeper one


def main(out: Path | None) -> list[harness.Row]:
    """Microseconds a row of a micro-batch of 64, on one thread: logits, and logits and gradients; then the groups of
    layers of the fused network. On a GPU those from images to votes."""
    torch.set_num_threads(1)
    whole = (compared(depth, gradients, dtype) for depth in DEPTHS for gradients in (False, True) for dtype in dtypes())
    integers = (of_integers(depth) for depth in DEPTHS)
    votes = (voted(live) for live in (ROWS, ROWS // 4))
    layers = (profiled(20, arithmetic) for arithmetic in arithmetics() if arithmetic in ("amx", "avx512_bf16"))
    here = chain(whole, integers, votes, layers) if harness.CPU in harness.devices() else ()
    gpus = (on_device(depth, device) for device in harness.devices() if device != harness.CPU for depth in DEPTHS)
    return harness.report(chain(here, gpus), out)


def dtypes() -> list[torch.dtype]:
    """Dtypes that fused networks of floats compute in here."""
    return [dtype for dtype, name in NAMES.items() if preferred(name)]


def compared(depth: int, gradients: bool, dtype: torch.dtype) -> list[harness.Row]:
    """Rows of the runners of a network on stored replicas: neither noise nor votes."""
    setting = f"ResNet-{depth}, {'logits and gradients' if gradients else 'logits'}, {ROWS} rows, {NAMES[dtype]}"
    return harness.compare("fused", setting, contenders(depth, gradients, dtype), ROWS * 1e-6, "us/row", REPEATS)


@torch.no_grad()
def contenders(depth: int, gradients: bool, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Runners of a network with random weights; ratios are against the last."""
    base, shape = network(depth), (ROWS, 3, 32, 32)
    replicas = micro_batch_of(shape, dtype, harness.CPU, torch.channels_last).copy_(torch.randn(shape))
    inputs = (replicas, torch.arange(ROWS)[:, None] % 10) if gradients else (replicas,)
    found = recognised(base, (replicas,))
    named: dict[str, Callable[[], Any]] = {}
    for arithmetic in arithmetics():
        if dtype_of(arithmetic) != dtype:
            continue
        run = Fused(found, arithmetic, gradients)
        named[f"fused, {arithmetic}"] = partial(run.gradients if gradients else run, *inputs)
    for runner in OTHERS.get(depth, OPENVINO):
        given: nn.Module = base
        if gradients:
            given = traced(Differentiated(base, cross_entropy), runner, dtype, inputs)
        (call,) = make_runners(given, runner, dtype, harness.CPU, inputs, 1)
        named[runner] = partial(call, *inputs)
    return named


@torch.no_grad()
def of_integers(depth: int) -> list[harness.Row]:
    """Rows of a network in integers by each arithmetic, beside OpenVINO on the one that it was made of."""
    base, shape = network(depth), (ROWS, 3, 32, 32)
    made, replicas = quantize(base, 0.25), torch.randn(shape)
    named: dict[str, Callable[[], Any]] = {
        f"fused, {arithmetic}": partial(FusedIntegers(made, arithmetic), replicas) for arithmetic in preferred("int8")
    }
    for dtype in dtypes() if OPENVINO else ():
        inputs = micro_batch_of(shape, dtype, harness.CPU, torch.channels_last).copy_(replicas)
        (call,) = make_runners(base, "openvino", dtype, harness.CPU, (inputs,), 1)
        named[f"openvino {NAMES[dtype]}"] = partial(call, inputs)
    setting = f"ResNet-{depth}, logits, {ROWS} rows, int8"
    return harness.compare("fused", setting, named, ROWS * 1e-6, "us/row", REPEATS)


def voted(live: int) -> list[harness.Row]:
    """Rows from images to votes, in one call and by the operators of which it is made."""
    found = recognised(network(20), (torch.zeros(2, 3, 32, 32),))
    slots = torch.where(torch.arange(ROWS) < live, 0, -1)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    noisy: ops.Noisy = (
        images, slots, torch.zeros_like(slots), torch.arange(ROWS), stream_key(0, Stream.PREDICT), lattice_law(0.25),
        *ops.affine(None, 3, torch.uint8), False,
    )  # fmt: skip
    votes = torch.zeros(1, 10, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    calls: dict[str, Callable[[], Any]] = {}
    for arithmetic in arithmetics():
        run = Fused(found, arithmetic, gradients=False)

        def apart(run: Fused = run) -> None:
            replicas = ops.noisy_replicas(*noisy, dtype_of(run.arithmetic), torch.channels_last)
            ops.tally(run(replicas), slots, *votes)

        calls[f"one call, {arithmetic}"] = partial(run.votes, noisy, (), PREDICTION, *votes)
        calls[f"three calls, {arithmetic}"] = apart
    setting = f"ResNet-20, noise, logits and votes, {live} rows and {ROWS - live} of padding"
    return harness.compare("fused", setting, calls, live * 1e-6, "us/row", REPEATS)


@torch.no_grad()
def on_device(depth: int, device: torch.device, rows: int = GPU_ROWS) -> list[harness.Row]:
    """Rows from images to votes on a GPU: in one kernel, and as a graph of torch's bf16 between noise and votes."""
    base = network(depth)
    found, made = recognised(base, (torch.zeros(2, 3, 32, 32),)), quantize(base, 0.25).to(device)
    slots, numbers = torch.zeros(rows, dtype=torch.int64, device=device), torch.arange(rows, device=device)
    images, (scale, shift) = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8), ops.affine(None, 3, torch.uint8)
    noisy: ops.Noisy = (
        images.to(device), slots, slots, numbers, stream_key(0, Stream.PREDICT).to(device),
        lattice_law(0.25).to(device), scale.to(device), shift.to(device), False,
    )  # fmt: skip
    votes = torch.zeros(1, 10, dtype=torch.int64, device=device), slots[:1].clone()
    named: dict[str, Callable[[], Any]] = {}
    for arithmetic in preferred("int8", device.type):
        named[f"fused, {arithmetic}"] = partial(FusedIntegers(made, arithmetic).votes, noisy, (), PREDICTION, *votes)
    for arithmetic in preferred("bf16", device.type):
        run = Fused(found, arithmetic, gradients=False, device=device)
        named[f"fused, {arithmetic}"] = partial(run.votes, noisy, (), PREDICTION, *votes)
    given = micro_batch_of((rows, 3, 32, 32), torch.bfloat16, device, torch.channels_last)
    (call,) = make_runners(base.to(device), "eager", torch.bfloat16, device, (given,), 1)

    def apart() -> Tensor:
        logits: Tensor = call(ops.noisy_replicas(*noisy, torch.bfloat16, torch.channels_last))
        ops.tally(logits, slots, *votes)
        return logits

    named["eager bf16, a graph"] = capture(apart, device)[0]
    setting = f"ResNet-{depth}, noise, logits and votes, {rows} rows"
    return harness.compare("fused", setting, named, rows * 1e-6, "us/row", REPEATS, device=device)


def profiled(depth: int, arithmetic: str) -> list[harness.Row]:
    """Microseconds a row of the groups of layers, and the share of the rate of tile products that each reaches."""
    found = recognised(network(depth), (torch.zeros(2, 3, 32, 32),))
    packed, shape = found.packed(arithmetic, gradients=True).numpy(), found.shape
    runs = [ops.extension.fused_profile(packed, shape, arithmetic, 50) for _ in range(REPEATS)]
    times: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    for product, samples, layers in runs:
        groups: dict[str, list[tuple[float, int]]] = {}
        for weight, backward, products, seconds in layers:
            groups.setdefault(group(weight, backward, shape[3]), []).append((seconds, products))
        groups["all"] = [part for parts in list(groups.values()) for part in parts]
        for name, parts in groups.items():
            taken = sum(seconds for seconds, _ in parts)
            times.setdefault(name, []).append(taken / samples * 1e6)
            shares.setdefault(name, []).append(product * sum(count for _, count in parts) / taken)
    setting = f"ResNet-{depth}, {arithmetic}"
    return [
        *harness.rows("fused", f"{setting}, layers", times, "us/row", ["all"]),
        *harness.rows("fused", f"{setting}, share of the rate of products", shares, "share", ["all"]),
    ]


def group(weight: int, backward: bool, blocks: int) -> str:
    """The layers that a weight is counted with: those of a stage, but for the first, which changes the shape."""
    first = {0: "first", 2 * blocks + 1: "to stage 2", 2 * blocks + 2: "to stage 2"}
    first |= {4 * blocks + 2: "to stage 3", 4 * blocks + 3: "to stage 3"}
    stage = 1 + (weight > 2 * blocks) + (weight > 4 * blocks + 1)
    return first.get(weight, f"stage {stage}") + (", backwards" if backward else "")


def network(depth: int) -> nn.Module:
    """A CIFAR ResNet with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.ResNet(depth).eval()

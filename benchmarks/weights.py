"""Noisy weights of a network, and predictions of a smoothed classifier that has such a network for its base: against
small operations for each layer and pass, as published."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smoothfast.layers import Bank, WeightNoise, bank_of, inject_noise, noisy_layers
from smoothfast.models import resnet20b
from smoothfast.noise import Stream, stream_key, within
from smoothfast.smoothing import SmoothedClassifier

from . import baselines, harness
from .harness import DTYPES

RANK = 5
REPEATS = {1: 51, 64: 15}  # by passes


SAMPLES, SIGMA, IMAGES = 64, 0.25, (1, 128)
RUNNERS = ("eager", "compiled", *(("openvino",) if find_spec("openvino") else ()))


def main(out: Path | None) -> list[harness.Row]:
    """Times all convolutions and the linear layer of a ResNet-20, for 1 and 64 passes, in float32 and bfloat16; and
    smoothed predictions for 1 and 128 images by 64 passes."""
    forms = product(harness.devices(), REPEATS, DTYPES)
    kernels = (perturbed(passes, dtype, device) for device, passes, dtype in forms)
    predictions = (predicted(images, device) for device, images in product(harness.devices(), IMAGES))
    return harness.report(chain(kernels, predictions), out)


def predicted(count: int, device: torch.device) -> list[harness.Row]:
    """Microseconds a pass of an image, noise on images and in weights included."""
    setting = f"ResNet-20, CNI-W, {SAMPLES} passes, images: {count}"
    named = predictors(count, device)
    return harness.compare("weights", setting, named, SAMPLES * count * 1e-6, "us/sample", 5, device=device)


def predictors(count: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Contenders that return votes of all images, by passes that are alike in law; the last is SIAM's loop as
    published."""
    ours, published = (inject_noise(resnet20b(), "cni", rank=RANK).to(device).eval() for _ in range(2))
    baselines.draws_as_published(published)
    images = torch.rand(count, 3, 32, 32, device=device)
    autocast = torch.autocast(device.type, torch.bfloat16)
    made = {
        f"SmoothedClassifier {runner} {precision}": SmoothedClassifier(
            ours, SIGMA, 10, precision=precision, runner=runner
        )
        for precision in DTYPES for runner in RUNNERS
        if device.type == "cpu" or runner != "openvino"
    }  # fmt: skip
    return {
        **{name: partial(model.votes, images, SAMPLES) for name, model in made.items()},
        "SIAM's loop in bf16": autocast(partial(baselines.siam_votes, published, images, SAMPLES, SIGMA, 10)),
        "SIAM's loop": partial(baselines.siam_votes, published, images, SAMPLES, SIGMA, 10),
    }


def perturbed(passes: int, dtype: str, device: torch.device) -> list[harness.Row]:
    """Nanoseconds a weight and pass."""
    bank = coloured(device)
    count = sum(shape.numel() for shape in bank.shapes)
    setting = f"ResNet-20, CNI of rank {RANK}, {count:,} weights, passes: {passes}, {dtype}"
    named = contenders(bank, passes, DTYPES[dtype])
    per = passes * count * 1e-9
    calls = harness.calls_on(device) if passes == 1 else 1
    return harness.compare("weights", setting, named, per, "ns/weight", REPEATS[passes], device=device, calls=calls)


@torch.no_grad()
def coloured(device: torch.device) -> Bank:
    """The bank of a network with random weights; shortcuts are convolutions."""
    network = inject_noise(resnet20b(), "cni", linear="cni", rank=RANK).to(device)
    return bank_of([layer for layer in noisy_layers(network) if isinstance(layer, WeightNoise)])


def contenders(bank: Bank, passes: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Contenders that return the weights of all passes: ours in tiles, [passes, T, 64], the published ones by pass and
    layer. Beside them memory of the size of ours, fresh from the system where it is large, which takes its time too."""
    device, numbers = bank.weights.device, torch.arange(passes, device=bank.weights.device)
    key = within(stream_key(0, Stream.PREDICT, device), Stream.WEIGHT)
    arguments = (bank.weights, bank.scales, bank.factors, bank.tiles, numbers, key, dtype)
    parts = published(bank)
    return {
        **{
            f"perturb_weights{by}": partial(kernel, *arguments)
            for by, kernel in harness.implementations("perturb_weights", device).items()
        },
        "memory of as many bytes": lambda: torch.full((passes, *bank.weights.shape), 1.0, dtype=dtype, device=device),
        "torch, layer by layer": lambda: [
            [baselines.cni_weights(*part).to(dtype) for part in parts] for _ in range(passes)
        ],
    }


def published(bank: Bank) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The weights, diagonal and factors [*shape, rank] of a bank, by layer."""
    counts = [int((bank.tiles[0] == layer).sum()) for layer in range(len(bank.shapes))]

    def by_layer(tiled: Tensor) -> list[Tensor]:
        """Tensors [*shape, …] of the layers, from tiles [T, 64, …]."""
        parts = zip(tiled.split(counts), bank.shapes, strict=True)
        return [part.flatten(0, 1)[: shape.numel()].unflatten(0, shape).contiguous() for part, shape in parts]

    weights, scales = by_layer(bank.weights), by_layer(bank.scales)
    diagonals = [scale.square() / weight.std() for weight, scale in zip(weights, scales, strict=True)]
    return list(zip(weights, diagonals, by_layer(bank.factors.movedim(0, -1)), strict=True))

"""EPGD on the embedded network: gradients of many images beside what people run, and by the number of samples."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from smoothfast import models
from smoothfast.attacks import EPGD
from smoothfast.runners.fused import preferred

from . import baselines, harness, peers

IMAGES, STEPS, SAMPLES, REPEATS = 128, 7, 8, 3
EPS, SIGMA = 8 / 255, 0.25
MANY = (1, 8, 64, 512)  # samples of one gradient
FEW = 16  # images, where samples are many
RUNNERS = [(runner, precision) for runner in ("openvino", "compiled", "eager") for precision in ("bf16", "fp32")]
FUSED = [("fused", precision) for precision in ("bf16", "fp32") if preferred(precision)]

Contenders = dict[str, Callable[[], Tensor]]


def main(out: Path | None) -> list[harness.Row]:
    """128 images, 7 steps of 8 samples; then 16 images, one step of 1 to 512 samples."""
    return harness.report(
        (
            group
            for device in harness.devices()
            for group in (beside(IMAGES, STEPS, SAMPLES, device), by_samples(MANY, device))
        ),
        out,
    )


def beside(images: int, steps: int, samples: int, device: torch.device) -> list[harness.Row]:
    """Microseconds a sample gradient, all included; ratios are against SIAM's loop with frozen weights."""
    named = ours(images, steps, samples, device) | theirs(images, steps, samples, device)
    took, memory = harness.timed(named, REPEATS, device)
    per = images * steps * samples * 1e-6
    figures = {name: [seconds / per for seconds in rounds] for name, rounds in took.items()}
    setting = f"EPGD, ResNet-20, {steps} steps of {samples} samples, {images} images"
    return harness.rows("attack", setting, figures, "us/gradient", [FROZEN], device, memory)


def by_samples(many: tuple[int, ...], device: torch.device) -> list[harness.Row]:
    """Time and memory by the number of samples: the one is linear in it, the other constant."""
    smoothed, (pixels, labels, ids) = harness.embedded(device), harness.embedded_images(FEW)
    named = {
        f"{samples} samples": partial(
            EPGD(smoothed, EPS, steps=1, samples=samples, runner=smoothed.runner), pixels, labels, ids
        )
        for samples in many
    }
    took, memory = harness.timed(named, REPEATS, device)
    pairs = zip(many, took.items(), strict=True)
    figures = {name: [s / (FEW * samples) * 1e6 for s in rounds] for samples, (name, rounds) in pairs}
    setting = f"EPGD, {harness.described(smoothed, pixels)}, 1 step, {FEW} images"
    return harness.rows("attack", setting, figures, "us/gradient", list(named)[-1:], device, memory)


def ours(images: int, steps: int, samples: int, device: torch.device) -> Contenders:
    """EPGD of the package on the embedded network, by its runner and precision."""
    pixels, labels, ids = harness.embedded_images(images)
    smoothed = harness.embedded(device)
    return {
        f"EPGD, {runner} {precision}": partial(
            EPGD(smoothed, EPS, steps=steps, samples=samples, runner=runner, precision=precision), pixels, labels, ids
        )
        for runner, precision in RUNNERS + (FUSED if device.type == "cpu" else [])
        if runner != "openvino" or (device.type == "cpu" and find_spec("openvino"))
    }


FROZEN = "SIAM's loop, frozen weights"


def theirs(images: int, steps: int, samples: int, device: torch.device) -> Contenders:
    """EPGD of others on the same network with the same noise and budget, in eager float32."""
    pixels, labels, _ = harness.embedded_images(images)
    pixels, labels = pixels.to(device) / 255, labels.to(device)
    base = harness.embedded(device).base
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in models.CIFAR10_STATISTICS)
    loop = partial(
        baselines.siam_epgd, images=(pixels - mean) / std, labels=labels, eps=EPS / std, alpha=EPS / 4 / std,
        sigma=SIGMA / std, limits=(-mean / std, (1 - mean) / std), steps=steps, samples=samples,
    )  # fmt: skip
    frozen = deepcopy(base).requires_grad_(False)
    found: Contenders = {FROZEN: partial(loop, frozen), "SIAM's loop, as published": partial(loop, base)}
    inside = nn.Sequential(models.Normalize(*models.CIFAR10_STATISTICS), deepcopy(base)).eval().to(device)
    eot = peers.torchattacks_attack(
        "EOTPGD", inside, pixels, labels, SIGMA, eps=EPS, alpha=EPS / 4, steps=steps, eot_iter=samples
    )
    return found if eot is None else found | {"torchattacks EOTPGD": eot}

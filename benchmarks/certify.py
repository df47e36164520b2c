"""Votes of one image, ResNet-20 at n = 10,000: the engine against the published loop and against the bare network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from smoothfast import data, models
from smoothfast.smoothing import SmoothedClassifier
from smoothfast.weights import DEMO, read_weights

from . import baselines, harness

N = 10_000
REPEATS = 3


def main(out: Path | None) -> None:
    """Each precision: the engine, its bare network on the same number of rows, and Cohen's loop at its two batches."""
    network = models.resnet20().eval()
    read_weights(DEMO).load_into(network)
    published = nn.Sequential(models.Normalize(*models.CIFAR10_STATISTICS), network).eval()
    image = data.demo().images[:1]
    contenders = {}
    bare = {}
    for precision in ("bf16", "fp32"):
        smoothed = SmoothedClassifier(
            network, 0.25, 10, normalize=models.CIFAR10_STATISTICS, precision=precision, runner="compiled"
        )
        contenders[f"certify compiled {precision}"] = lambda smoothed=smoothed: smoothed.certify(image, 100, N - 100)
        bare[precision] = _bare_forward(smoothed, image)
        contenders[f"bare compiled forward {precision}"] = bare[precision]
    for batch in (1000, 100):
        contenders[f"Cohen's loop, eager fp32, batch {batch}"] = lambda batch=batch: baselines.cohen_counts(
            published, image[0] / 255, N, 0.25, batch, 10
        )
    setting = f"ResNet-20 32x32, n = {N:,}"
    rows = harness.compare(
        "certify", setting, contenders, N * 1e-6, "us/sample", REPEATS, "Cohen's loop, eager fp32, batch 100"
    )
    harness.report(rows, out)
    for precision in bare:
        time = {row.contender: row.median for row in rows}
        engine, floor = time[f"certify compiled {precision}"], time[f"bare compiled forward {precision}"]
        print(f"certify / bare forward, {precision}: {engine / floor:.3f}")


def _bare_forward(smoothed: SmoothedClassifier, image: torch.Tensor):  # type: ignore[no-untyped-def]
    """The engine's own runner on one stored micro-batch, as often as N samples need: no noise, no votes."""
    engine = smoothed.engine(image)
    replicas = torch.randn(engine.micro_batch, *engine.shape).to(engine.dtype)
    replicas = replicas.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(-(-N // engine.micro_batch)):
            engine.run_base(replicas)

    return forward

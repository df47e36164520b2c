"""The embedded network: certificates do not depend on company, and votes hardly on the size of the micro-batch."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from helpers.classifiers import embedded
from torch import Tensor

import smoothfast as sf
from smoothfast import data
from smoothfast.models import CIFAR10_STATISTICS
from smoothfast.noise import Stream, stream_key

pytestmark = pytest.mark.slow
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


def make(precision: str = "fp32", max_batch: int | None = None, runner: str = "compiled") -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(
        embedded(), 0.25, 10, normalize=CIFAR10_STATISTICS, precision=precision, max_batch=max_batch, runner=runner
    )


def test_certificates_do_not_depend_on_company() -> None:
    """One, seven or all of 256 images at a time, shuffled: the same bits."""
    images = data.demo().images
    smoothed, images = make("bf16"), torch.cat([images, images.flip(3)])[:256]
    settings = {"method": "sequential", "radius": 0.25, "n": 600}
    whole = smoothed.certify(images, **settings)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    for size in (1, 7, 256):
        for chunk in order.split(size):
            part = smoothed.certify(images[chunk], image_ids=chunk, **settings)
            assert part.decisions == [whole.decisions[i] for i in chunk]
            for name in ("labels", "radii", "p_lower", "p_upper", "counts", "samples"):
                assert torch.equal(getattr(part, name), getattr(whole, name)[chunk]), name


def votes(smoothed: sf.SmoothedClassifier, rows: int) -> tuple[Tensor, Tensor]:
    """Logits and votes of the first `rows` (image, sample) pairs, a micro-batch at a time; 64 samples an image."""
    images = data.demo().images
    engine = smoothed.engine(images[:1])
    lane, key, slots = engine.lanes[0], stream_key(0, Stream.ESTIMATE), torch.arange(engine.function.micro_batch)
    parts = []
    for first in range(0, rows, engine.function.micro_batch):
        pairs = slots + first
        engine._images[: len(slots)] = images[pairs // 64 % len(images)]
        lane.buffers.write(torch.stack([slots, pairs // 64, pairs % 64]), key)
        parts.append(lane.call(lane.step).result())
    logits = torch.cat(parts)[:rows].float()
    return logits, logits.argmax(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("runner", ["eager", "compiled", pytest.param("openvino", marks=needs_openvino)])
def test_votes_that_other_shapes_move(precision: str, runner: str) -> None:
    rows = 12_800
    logits, expected = votes(make(precision, runner=runner), rows)
    gap = logits.topk(2, 1).values.diff(dim=1).abs()[:, 0]
    moved = {}
    for max_batch in (16, 100, 256):
        _, seen = votes(make(precision, max_batch, runner), rows)
        moved[f"micro-batch {max_batch}"] = int((seen != expected).sum())
        assert gap[seen != expected].numel() == 0 or gap[seen != expected].max() < 0.1 * logits.abs().max()
    print(f"\n{runner} {precision}: of {rows:,} votes moved {moved}")
    assert max(moved.values()) <= 0.005 * rows

"""Training in no time: a small network, a few small images, and what came of a run on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smoothfast.data import Images
from smoothfast.models import CIFAR10_STATISTICS
from smoothfast.training import Settings, Trainer

SETTINGS = Settings(epochs=2, batch=16, learning_rate=0.1, precision="fp32", normalize=CIFAR10_STATISTICS)
State = dict[str, Tensor]


def network(seed: int = 0, dropout: float = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(32, 4),
        )


def pixels(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


IMAGES = Images(pixels(0, 70, 3, 8, 8), torch.arange(70) % 4)  # four batches, and 6 images left over in every epoch
TEST_IMAGES = Images(pixels(1, 20, 3, 8, 8), torch.arange(20) % 4)


def trainer(out: str | Path, settings: Settings = SETTINGS, model: nn.Module | None = None, **options: Any) -> Trainer:
    return Trainer(model or network(), IMAGES, settings, out, **options)


def trained(out: Path, settings: Settings = SETTINGS, **options: Any) -> State:
    run = trainer(out, settings, **options)
    run.fit()
    return run.model.state_dict()


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metrics_of(out: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]

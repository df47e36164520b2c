"""Networks in files as other programs write them, small: a folder of transformers, ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.io import write_png


def transformer(path: Path) -> Path:
    """Writes a vision transformer of three classes for images of 8x8 into a folder."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(path)
    processor(path, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3])
    return path


def processor(path: Path, **told: Any) -> None:
    (path / "preprocessor_config.json").write_text(json.dumps(told))


class Small(nn.Module):
    """Convolution, batch norm, a view whose first size is free or 1."""

    def __init__(self, rows: int = -1) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 5)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.convolution(x)).relu().view(self.rows, 144))


def exported(network: nn.Module, path: Path, example: Tensor, free: bool = True) -> Path:
    pytest.importorskip("onnx", reason="onnx is not installed")
    axes = {"dynamic_axes": {"x": {0: "n"}}} if free else {}
    torch.onnx.export(network.eval(), (example,), path, dynamo=False, input_names=["x"], **axes)
    return path


def declines(path: Path) -> nn.Module:
    """A converter that knows no operation."""
    raise NotImplementedError("no such operation")


def pictures(path: Path) -> None:
    """Writes an image of 8x8 for each of two classes."""
    for label in range(2):
        (path / str(label)).mkdir(parents=True)
        write_png(torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8), str(path / f"{label}/0.png"))

"""publish.py NAME…: the trained weights into weights/, where they may take 1.5 MB; in float16 if need be."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).parent
MOST = 1_500_000  # bytes

for name in sys.argv[1:]:
    trained = HERE / "trained" / name / "model.safetensors"
    with safe_open(trained, "pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if trained.stat().st_size > MOST:
        tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        about["rounded"] = str(torch.float16)
    path = HERE / "weights" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, about)
    if path.stat().st_size > MOST:
        path.unlink()
        sys.exit(f"{name} does not fit into {MOST:,} bytes")

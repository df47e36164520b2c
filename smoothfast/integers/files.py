"""Files of networks in integers: safetensors whose metadata say what they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from ..files import whole
from .network import IntegerResNet

FORMAT = "smoothfast integers 1"


def save(network: IntegerResNet, path: str | Path, about: Mapping[str, str] | None = None) -> None:
    """Writes a network in integers, which `weights.read_weights` reads.

    Args:
        about: what it was made of and how, for the metadata of the file.
    """
    known = {"format": FORMAT, "num_classes": str(len(network.linear))}
    with whole(Path(path)) as partial:
        save_file(network.state_dict(), partial, {**(about or {}), **known})

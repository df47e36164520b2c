"""Weights files: safetensors, or torch checkpoints loaded with `weights_only=True`."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .layers import noise_parameters

DEMO = Path(__file__).parent / "assets" / "resnet20-cifar10-jpeg-sigma0.25.safetensors"

LARGEST = 1e6  # mean or deviation of pixels, in units of their range

# Prefixes that wrappers leave: DataParallel, Sequential(normalise, network), SmoothedClassifier, torch.compile.
PREFIXES = ("module.", "1.", "base.", "_orig_mod.")


@dataclass(frozen=True)
class Weights:
    """Tensors of a network, and what the file says about them.

    Attributes:
        tensors: name to tensor.
        about: metadata of a safetensors file; empty for a torch checkpoint.
        sha256: of the file.
    """

    tensors: Mapping[str, Tensor]
    about: dict[str, str] = field(default_factory=dict)
    sha256: str = ""

    @property
    def num_classes(self) -> int:
        """The number of classes that the file tells; 0 where it tells none.

        Raises:
            ValueError: it tells something else.
        """
        told = self.about.get("num_classes", "0")
        if not told.isdecimal() or len(told) > 9:
            raise ValueError(f"the weights tell num_classes {told!r:.50}, expected a number: pass --classes")
        return int(told)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that `smoothfast train` trained with, where it wrote this file."""
        try:
            settings = json.loads(self.about.get("settings", "{}"))
        except (ValueError, RecursionError):  # another program's
            return {}
        return settings if isinstance(settings, dict) else {}

    @property
    def normalize(self) -> Any:
        """Mean and deviation by channel that the network was trained with, as the file tells; None where it does not.

        Raises:
            ValueError: it tells something else.
        """
        told = self.settings.get("normalize")
        match told:
            case None:
                return None
            case [list(mean), list(deviation)] if len(mean) == len(deviation):
                if all(isinstance(value, (int, float)) and abs(value) < LARGEST for value in mean + deviation):
                    return told
        raise ValueError(f"the weights tell normalize {told!r:.100}, expected two lists of numbers: pass --normalize")

    def load_into(self, network: nn.Module) -> None:
        """Loads the tensors, names matched up to the prefixes of wrappers. A network with noise in its weights also
        takes those of the plain one; strengths of noise are then left as they are.

        Raises:
            ValueError: a tensor is missing, left over, or of another shape.
        """
        wanted = network.state_dict()
        strengths = {id(parameter) for parameter in noise_parameters(network)}
        ours = {name: value for name, value in network.named_parameters() if id(value) in strengths}
        given = _unwrapped(self.tensors, wanted)
        if not ours.keys() & given.keys():
            given = _unwrapped(self.tensors, {name: wanted[name] for name in wanted if name not in ours}) | ours
        faults = [f"{name} is missing" for name in wanted if name not in given]
        faults += [f"{name} is not in the model" for name in given if name not in wanted]
        faults += [
            f"{name} is {tuple(given[name].shape)}, the model has {tuple(wanted[name].shape)}"
            for name in wanted
            if name in given and given[name].shape != wanted[name].shape
        ]
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise ValueError(f"the weights do not fit the model: {'; '.join(faults[:5])}{more}")
        network.load_state_dict(given)


def read_weights(path: Path) -> Weights:
    """Reads a safetensors file, or a torch file that holds a state dict or has one under "state_dict" or "model".

    Raises:
        ValueError: the file is neither, or holds anything but plain tensors.
        OSError: it cannot be read.
    """
    digest = _digest(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                names = file.keys()
                return Weights({name: file.get_tensor(name) for name in names}, file.metadata() or {}, digest)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    state = read_torch(path)
    for name in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not state or not all(map(_plain, state.values())):
        raise ValueError(f"{path} holds no state dict of tensors")
    return Weights({str(name): value for name, value in state.items()}, {}, digest)


def read_torch(path: Path) -> Any:
    """Reads what `torch.save` has written, tensors on the CPU, without running any code of the file.

    Raises:
        ValueError: it holds code, is cut off or broken, or claims to hold more than its size.
        OSError: it cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            _require_honest(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler that meets noise may raise anything
        if isinstance(error, OSError) and error.filename is not None:  # not of a step to before the file
            raise
        raise ValueError(f"{path} cannot be read with weights_only=True: {error}") from error


def _require_honest(path: Path) -> None:
    """Raises ValueError where the records of a zip file, which torch does not compress, claim more than the file."""
    with zipfile.ZipFile(path) as file:
        claimed, held = sum(record.file_size for record in file.infolist()), path.stat().st_size
    if claimed > held:
        raise ValueError(f"its records claim {claimed:,} bytes, the file has {held:,}")


def _digest(path: Path) -> str:
    """The SHA-256 of a file, which is read piece by piece."""
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device has no end
        raise ValueError(f"{path} is no regular file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _plain(value: Any) -> bool:
    """Tells whether this is a tensor with all of its numbers."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _unwrapped(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes of wrappers, as far as the network's own names ask for it."""
    names = {name: name for name in given}  # in the network, in the file
    while names and names.keys() != wanted.keys():
        if all(name.startswith(("0.", "1.")) for name in names):
            # Sequential(normalise, network), as in Cohen's checkpoints: what layer 0 keeps is not the network's.
            inner = {name: source for name, source in names.items() if name.startswith("1.")}
        else:
            inner = names
        prefix = next((p for p in PREFIXES if inner and all(name.startswith(p) for name in inner)), None)
        if prefix is None:
            break
        names = {name.removeprefix(prefix): source for name, source in inner.items()}
    return {name: given[source] for name, source in names.items()}

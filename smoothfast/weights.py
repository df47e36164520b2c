"""Weights files: safetensors, or torch checkpoints loaded with `weights_only=True`."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .integers import IntegerResNet
from .integers.exact import network_of
from .integers.files import FORMAT
from .layers import noise_parameters
from .layouts import LARGEST, Fitted, architecture_of, fitted, state_of
from .modules import warn
from .specs import DEMO_INTEGERS as DEMO_INTEGERS
from .torch_files import read_torch

DEMO = Path(__file__).parent / "assets" / "resnet20-cifar10-jpeg-sigma0.25.safetensors"
HEADS = ("fc", "linear", "classifier", "head", "heads", "logits")  # names of last layers
SHOWN = 3  # names or faults in a message


@dataclass(frozen=True)
class Weights:
    """Tensors of a network, and what the file says about them.

    Attributes:
        tensors: name to tensor.
        about: metadata of a safetensors file; empty for a torch checkpoint.
        sha256: of the file.
        architecture: the name that a torch checkpoint has under "arch".
    """

    tensors: Mapping[str, Tensor]
    about: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    architecture: str = ""

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
    def rows(self) -> int:
        """The rows of the last layer by the names and the order of the tensors: most likely the number of classes; 0
        where nothing looks like it."""
        found = [
            (any(part in HEADS for part in name.split(".")), value.shape[0])
            for name, value in self.tensors.items()
            if value.dim() == 2 and name.endswith(".weight")
        ]
        heads = [rows for is_head, rows in found if is_head]
        return heads[-1] if heads else 0

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
        raise ValueError(
            f"the weights tell normalize {reprlib.repr(told):.100}, expected two lists of numbers: pass --normalize"
        )

    @property
    def integers(self) -> IntegerResNet | None:
        """The network in integers that the file holds; None where it holds weights of another.

        Raises:
            ValueError: it says that it does, and does not.
        """
        if self.about.get("format") != FORMAT:
            return None
        try:
            return network_of(self.tensors)
        except ValueError as error:
            raise ValueError(f"the weights are no network in integers: {error}") from error

    def load_into(self, network: nn.Module) -> None:
        """Loads the tensors, names matched up to what wrappers and other programs make of them (`layouts`). A network
        with noise in its weights also takes those of the plain one; strengths of noise are then left as they are. Warns
        where the checkpoint has a layer in front of the network, as one that normalises.

        Raises:
            ValueError: a tensor is missing, left over, or of another shape.
        """
        found = self.fill(network)
        if found.behind:
            known = "its tensors do not tell" if found.statistics is None else f"normalize={found.statistics}"
            warn(f"a layer in front of the network is left out; if it normalises, give the classifier its own: {known}")

    def fill(self, network: nn.Module) -> Fitted:
        """Loads the tensors as `load_into` does; returns them, and what the checkpoint has in front of the network."""
        wanted = network.state_dict()
        strengths = {id(parameter) for parameter in noise_parameters(network)}
        ours = {name: value for name, value in network.named_parameters() if id(value) in strengths}
        found = fitted(self.tensors, wanted)
        if not ours.keys() & found.tensors.keys():
            found = fitted(self.tensors, {name: wanted[name] for name in wanted if name not in ours})
            found = replace(found, tensors=found.tensors | ours)
        faults = _faults(found.tensors if found.tensors.keys() & wanted.keys() else self.tensors, wanted)
        if faults:
            told = f"; the checkpoint tells arch {self.architecture!r}" if self.architecture else ""
            raise ValueError(f"the weights do not fit the model: {faults}{told}")
        network.load_state_dict(found.tensors)
        return found


def _faults(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Faults of tensors for a network, in a line: what was looked for, and what was found."""
    missing, extra = [name for name in wanted if name not in given], [name for name in given if name not in wanted]
    shapes = [
        f"{name} is {tuple(given[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    said = [f"{_some(missing)} missing"] if missing else []
    said += [f"{_some(extra)} not in the model"] if extra else []
    said += [f"{'; '.join(shapes[:SHOWN])}{_more(shapes)}"] if shapes and not said else []
    projected = any(part in name for name in extra for part in (".shortcut.", ".downsample."))
    if projected and not any(".shortcut." in name for name in wanted):
        said.append("its shortcuts are 1x1 convolutions, as those of resnet20b and resnet110b")
    return "; ".join(said)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{_more(names)} {'is' if len(names) == 1 else 'are'}"


def _more(names: list[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""


def read_weights(path: str | Path) -> Weights:
    """Reads a safetensors file, or a torch file that holds a state dict or has one by a key of `layouts.KEYS`.

    Raises:
        ValueError: the file is neither, or holds anything but plain tensors.
        OSError: it cannot be read.
    """
    path = Path(path)
    digest = _digest(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                names = file.keys()
                return Weights({name: file.get_tensor(name) for name in names}, file.metadata() or {}, digest)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    checkpoint = read_torch(path)
    state = state_of(checkpoint)
    tensors = {name: state[name] for name in state} if isinstance(state, Mapping) else {}
    if not tensors or not all(map(_plain, tensors.values())):
        raise ValueError(f"{path} holds no state dict of tensors{_found(state)}")
    return Weights({str(name): value for name, value in tensors.items()}, {}, digest, architecture_of(checkpoint))


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


def _found(state: Any) -> str:
    """Names of what there is in the place of a state dict."""
    if not isinstance(state, Mapping) or not state:
        return ""
    return f"; it has {', '.join(str(key)[:30] for key in list(state)[:SHOWN])}{_more(list(state))}"

"""Networks that are files with their weights: image classifiers of transformers, and ONNX.

Nothing is downloaded, and no code of the files is run.
"""

from __future__ import annotations

import json
import logging
import warnings
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from .modules import warn
from .normalization import Normalization, statistics_of, text_of
from .runners.openvino import core

CLOSE = 1e-3  # of a converted network to OpenVINO, in units of its largest output
PIXELS = 1 / 255  # what Hugging Face processors multiply bytes by, unless they tell


def transformers_network(name: str) -> nn.Module:
    """The image classifier in a folder, or of a name that is in the local cache: safetensors alone.

    Raises:
        ValueError: it is not there, is something else, or transformers is not installed.
    """
    try:
        kinds = import_module("transformers")
        network = kinds.AutoModelForImageClassification.from_pretrained(
            name, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # transformers raises what its parts raise
        said = " ".join(str(error).split())
        raise ValueError(f"model is 'hf:{name}', which cannot be loaded from this machine: {said:.300}") from error
    return network.eval()


def transformers_statistics(name: str) -> Normalization | None:
    """The statistics that the processor beside a classifier of transformers tells; None where it tells none.

    Raises:
        ValueError: it tells something else, or takes no images in 0 .. 1.
    """
    path = _processor(name)
    if path is None:
        return None
    try:
        told = json.loads(path.read_text())
        mean, std = told.get("image_mean"), told.get("image_std")
        if not told.get("do_normalize", True) or mean is None or std is None:
            return None
        if not told.get("do_rescale", True) or abs(told.get("rescale_factor", PIXELS) / PIXELS - 1) > 1e-6:
            raise ValueError("its images do not lie in 0 .. 1")
        return statistics_of(text_of((mean, std)))
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path} tells no normalisation of images in 0 .. 1 ({error}): pass --normalize") from error


def _processor(name: str) -> Path | None:
    """The file of the processor, in the folder or in the local cache."""
    file = "preprocessor_config.json"
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    found = import_module("huggingface_hub").try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


class Onnx(nn.Module):
    """A network that was converted from ONNX.

    Args:
        network: from one input to one output.
        last: it takes channels last, [N, H, W, C].
        single: it takes one image at a time.
    """

    def __init__(self, network: nn.Module, last: bool, single: bool = False) -> None:
        super().__init__()
        self.network, self.last, self.single = network, last, single

    def forward(self, images: Tensor) -> Tensor:
        """Outputs for normalised images [N, C, H, W]."""
        images = images.permute(0, 2, 3, 1).contiguous() if self.last else images.contiguous()
        if self.single:
            return torch.cat([self.network(image) for image in images.split(1)])
        return self.network(images)


class Votes(nn.Module):
    """An ONNX file that OpenVINO computes: it has no gradients, and weights that torch does not see."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.compiled: Any = core().compile_model(
            str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )
        self._free = Lock()

    def forward(self, images: Tensor) -> Tensor:
        """Outputs for images in the layout of the file."""
        if torch.is_grad_enabled() and images.requires_grad:
            raise ValueError("the ONNX file could not be converted to torch; OpenVINO computes votes, and no gradients")
        with self._free:
            outputs = self.compiled([images.detach().float().cpu().numpy()])
            return torch.from_numpy(outputs[0].copy()).to(images.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Votes:
        return self


def onnx_network(name: str) -> nn.Module:
    """The network in an ONNX file, converted to torch; where that cannot be done, one that OpenVINO computes.

    Raises:
        ValueError: it has not one input of images and one output, or nothing that is installed takes it.
    """
    path = Path(name)
    shape = _onnx_shape(path)
    last = shape[1] not in (1, 3, 4) and shape[3] in (1, 3, 4)
    examples = torch.rand(2, *(size or 32 for size in shape[1:]), generator=torch.Generator().manual_seed(0))
    try:
        network = _converted(path)
        found = _tried(network, examples)
        reference = _reference(path, examples)
        if reference is not None and (found - reference).abs().max() > CLOSE * reference.abs().max():
            raise ValueError("it is converted into something else, as OpenVINO has it")
    except Exception as error:  # of the converter, for what it does not know
        said = " ".join(str(error).split()) or type(error).__name__
        return Onnx(_votes(path, said), last, shape[0] is not None).eval()
    return Onnx(network, last, not _takes_two(network, examples, found)).eval()


def _onnx_shape(path: Path) -> list[int | None]:
    """The four sizes of the one input; None where any is taken."""
    try:
        onnx = import_module("onnx")
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # ImportError, or what a parser makes of noise
        raise ValueError(f"model is 'onnx:{path}', which cannot be read: {' '.join(str(error).split())}") from error
    constants = {value.name for value in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    shapes = [[size.dim_value or None for size in value.type.tensor_type.shape.dim] for value in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or len(graph.output) != 1 or shapes[0][0] not in (None, 1):
        raise ValueError(
            f"model is 'onnx:{path}', with inputs {shapes} and {len(graph.output)} outputs; it must have one input, "
            "images [N, C, H, W] or [N, H, W, C] with any N or 1, and one output"
        )
    return shapes[0]


def _converted(path: Path) -> nn.Module:
    """The network by onnx2pytorch."""
    onnx, converter = import_module("onnx"), import_module("onnx2pytorch")
    logging.getLogger("onnx2pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return converter.ConvertModel(onnx.load(str(path)), experimental=True).eval()


@torch.no_grad()
def _tried(network: nn.Module, examples: Tensor) -> Tensor:
    return torch.cat([network(example) for example in examples.split(1)])


@torch.no_grad()
def _takes_two(network: nn.Module, examples: Tensor, found: Tensor) -> bool:
    """Tells whether a network makes of two images what it makes of each."""
    try:
        both = network(examples)
    except Exception:  # a size of 1 that is written into the graph
        return False
    return both.shape == found.shape and bool(torch.allclose(both, found, rtol=CLOSE, atol=CLOSE))


def _reference(path: Path, examples: Tensor) -> Tensor | None:
    """Outputs by OpenVINO; None where it is not installed or does not take the file."""
    try:
        return _tried(Votes(path), examples)
    except Exception:
        return None


def _votes(path: Path, why: str) -> nn.Module:
    try:
        network = Votes(path)
    except Exception as error:
        raise ValueError(
            f"model is 'onnx:{path}', which cannot be converted to torch ({why:.200}), nor read by OpenVINO "
            f"({' '.join(str(error).split()):.200}); pip install smoothfast[onnx] brings both"
        ) from error
    warn(f"{path} cannot be converted to torch ({why:.200}): OpenVINO computes it, for votes and without gradients")
    return network

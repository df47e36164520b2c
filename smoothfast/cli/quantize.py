"""`smoothfast quantize`: a network in integers, whose certificates are the same bits on every processor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import names
from ..checks import at_least, choice, noise_level
from ..files import require_no_folder
from ..normalization import FORM
from ..specs import comes_without_weights, require_data
from . import display
from .options import BY, JsonOptions, ModelOptions, SeedOptions, SizeOptions, command, named

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..normalization import Normalization

MOST_FITTED = 512  # images; 128 do as well


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class QuantizeOptions(ModelOptions, SizeOptions, SeedOptions, JsonOptions):
    """Options of `quantize`."""

    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")]
    sigma: Annotated[
        float, typer.Option("--sigma", help="Standard deviation of the noise that it will see, in [0, 1] pixel units.")
    ] = 0.25
    fit: Annotated[
        str | None,
        typer.Option("--fit", help="Images that it is fitted to, as --data of train; drawn if not given."),
    ] = None
    data: Annotated[
        str | None, typer.Option("--data", help="Labelled images by which the loss is told, as of certify.")
    ] = None
    limit: Annotated[int | None, typer.Option("--max", help="At most this many of them.")] = None
    copies: Annotated[int, typer.Option("--copies", help="Noisy copies of each of them.")] = 20
    precision: Annotated[
        str, named("--precision", names.PRECISIONS, "Of the network that it is compared with. {}", BY)
    ] = "fp32"

    def check(self) -> None:
        super().check()
        if self.weights is None and comes_without_weights(self.model) and self.model != "resnet20":
            raise ValueError(f"weights is not given; the embedded weights are of resnet20, and model is {self.model}")
        for spec in (self.fit, self.data):
            if spec is not None:
                require_data(spec)
        noise_level(sigma=self.sigma)
        at_least(1, max=self.limit, copies=self.copies)
        if self.limit is not None and self.data is None:
            raise ValueError(f"max is {self.limit}, and data is not given: of what to take that many")
        if self.device != "cpu":
            raise ValueError(f"device is {self.device!r}; networks are quantised on the cpu")
        choice("precision", self.precision, names.PRECISIONS)
        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out is {self.out}; its suffix must be .safetensors")
        require_no_folder(self.out)
        if self.out.exists():
            raise FileExistsError(f"{self.out} exists: choose another --out")


@command(QuantizeOptions)
def quantize(options: QuantizeOptions) -> None:
    """Make a network in integers of a trained CIFAR ResNet, and tell what that costs on labelled images."""
    from ..integers.files import save
    from ..quantization import quantize

    options.out.parent.mkdir(parents=True, exist_ok=True)
    network, normalize, source = _trained(options)
    images = None if options.fit is None else _images(options, "fit", options.fit, MOST_FITTED)[0]
    judged = None if options.data is None else _images(options, "data", options.data, options.limit)
    integers = quantize(network, options.sigma, normalize, images, options.seed)
    about = {
        "model": options.model, "source": source, "sigma": str(options.sigma), "seed": str(options.seed),
        "normalize": json.dumps(normalize),
        "fitted": "drawn images" if images is None else f"{len(images)} images of {options.fit}",
    }  # fmt: skip
    save(integers, options.out, about)
    facts: dict[str, Any] = {"out": str(options.out), **about}
    lines = [f"{options.out}: {options.model} in integers, for noise sigma {options.sigma}"]
    if judged is not None:
        from ..evaluation import loss

        pictures, labels = judged
        before = _votes(options, network, pictures, normalize=normalize, precision=options.precision)
        found = loss(before, _votes(options, integers, pictures), labels)
        facts["loss"] = vars(found)
        lines.append(f"single votes, {found.copies} of each of {found.images} images: {found}")
    if options.as_json:
        display.print_json(facts)
    else:
        display.show("\n".join(lines))
    display.written(options.out)


def _trained(options: QuantizeOptions) -> tuple[nn.Module, Normalization | None, str]:
    """The trained network, its normalisation, and the SHA-256 of its file."""
    from .. import models
    from .prepare import fill, normalization, trained_weights

    make, weights = models.maker(options.model), trained_weights(options)
    if weights.integers is not None:
        raise ValueError(f"weights is {options.weights}, a network in integers already")
    known = options.classes or weights.num_classes or weights.rows or None
    network = make(known).eval()
    found = fill(network, weights, options, known)
    normalize, certain = normalization(options, weights, found, network)
    if not certain:
        raise ValueError(f"normalize is not given, and nothing tells it; pass --normalize ({FORM}) or none")
    return network, normalize, weights.sha256


def _images(options: QuantizeOptions, argument: str, spec: str, most: int | None) -> tuple[Tensor, list[int]]:
    """Images uint8 of a data set, evenly from all of it, and their labels."""
    import torch

    from .. import data

    source = data.load(spec, "test" if argument == "data" else "train", options.resize, options.crop)
    count = min(most or len(source), len(source))
    pairs = [source[number * len(source) // count] for number in range(count)]
    if len(pairs) < 2:
        raise ValueError(f"{argument} is {spec!r} with {len(pairs)} images; it takes at least 2")
    if len({image.shape for image, _ in pairs}) > 1:
        raise ValueError(f"{argument} is {spec!r} with images of several sizes: pass --resize and --crop")
    return torch.stack([image for image, _ in pairs]), [label for _, label in pairs]


def _votes(options: QuantizeOptions, base: nn.Module, images: Tensor, **how: Any) -> Tensor:
    from ..smoothing import SmoothedClassifier

    smoothed = SmoothedClassifier(base, options.sigma, seed=options.seed, runner="auto", **how)
    return smoothed.votes(images, options.copies)

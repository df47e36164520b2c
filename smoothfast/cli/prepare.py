"""Preparation of what commands compute with: weights, data, networks, the smoothed classifier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from .. import data, models
from ..checks import at_most
from ..data.labelled import classes_of
from ..engine import Engine, Job
from ..images import checked_images
from ..procedures import Count
from ..runners.choice import installed, seconds
from ..runs.certify import chosen
from ..smoothing import SmoothedClassifier
from ..specs import names_code
from ..streams import Stream
from ..text import one_line
from ..weights import DEMO, Weights, read_weights
from . import display
from .options import MOST_CLASSES, ModelOptions, SmoothedOptions

TOLD = 20  # names of classes, at most


@dataclass(frozen=True)
class Prepared:
    """A smoothed classifier and the images that are put through it.

    Attributes:
        smoothed: the classifier.
        source: the data set.
        indices: which images of it.
        about: what the record of a run says of these.
    """

    smoothed: SmoothedClassifier
    source: data.Labelled
    indices: list[int]
    about: dict[str, Any]

    @cached_property
    def first(self) -> Tensor:
        """The first of the images, [1, C, H, W], which all others are like."""
        return checked_images(self.source[self.indices[0]][0][None])

    @property
    def classes(self) -> list[str]:
        """The names of the classes; none where the data do not tell them."""
        return list(classes_of(self.source))

    def require_readable(self) -> None:
        """Raises ValueError where a file of the images cannot be read or is of another size, before a long run."""
        with display.console().status("looking at the images"):
            data.require_readable(self.source, self.indices)


def prepare(
    options: SmoothedOptions, sigma: float, seed: int, noise: str | None = None, device: str | None = None
) -> Prepared:
    """Loads weights, data and network, and smooths it.

    Args:
        options: of the command.
        sigma: of the noise on images.
        seed: of all noise.
        noise: the law of it; by the images if not given.
        device: that of this process, where there are several; else as the options say.

    Raises:
        ValueError: something that is named cannot be loaded, or does not fit the rest.
    """
    weights = trained_weights(options)
    source = data.load(options.data, "test", options.resize, options.crop)
    if not len(source):
        raise ValueError(f"data is {options.data!r}, which holds no images")
    indices = chosen(len(source), options.skip, options.limit)
    num_classes = number_of_classes(options, weights, source)
    if names_code(options.data):
        source = data.Within(source, options.data, num_classes)
    network = models.load(options.model, num_classes)
    fill(network, weights, options, num_classes)
    smoothed = SmoothedClassifier(
        moved(network.eval(), device or options.device), sigma, num_classes, noise=noise, seed=seed,
        normalize=weights.normalize if options.normalize is None else options.statistics,
        precision=options.precision, max_batch=options.batch, runner=options.runner,
    )  # fmt: skip
    about = {
        "data": options.data, "model": options.model, "weights": weights.sha256, "sigma": smoothed.sigma.tolist(),
        "normalize": smoothed.normalize, "seed": seed, "skip": options.skip, "max": options.limit, **options.sides,
    }  # fmt: skip
    return Prepared(smoothed, source, indices, about)


def trained_weights(options: ModelOptions) -> Weights:
    """Reads the weights of a file; the embedded ones of resnet20, and none for a model of the user's, if not given."""
    if options.weights is None and options.model != "resnet20":
        return Weights({})
    return read_weights(options.weights or DEMO)


def number_of_classes(options: ModelOptions, weights: Weights, source: data.Labelled) -> int:
    """Takes the number of classes from the command line, else from the weights file, else from the data set."""
    told = classes_of(source)
    known = options.classes or weights.num_classes or len(told)
    if not known:
        raise ValueError("classes is not given, and neither the weights nor the data tell it; pass --classes")
    if known == 1 and told:
        raise ValueError(f"the data have one class alone, {one_line(told[0])!r:.50}; pass --classes")
    at_most(MOST_CLASSES, classes=known)  # also where a file tells it
    return known


def tell_classes(source: data.Labelled, num_classes: int) -> None:
    """Tells the classes of the data where they are known, as a warning where they are more or fewer than those of the
    network: their labels may be of others."""
    names = classes_of(source)
    if names and len(names) != num_classes:
        display.tell(
            f"warning: the data have {len(names):,} classes and the network {num_classes:,}; labels are the places of "
            f"the former: {listed(names)}", style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    elif names:
        display.tell(f"classes: {listed(names)}", highlight=False, soft_wrap=True)


def listed(names: Sequence[str]) -> str:
    """The first names of classes, each with its label."""
    more = f", … {len(names) - 1} {one_line(names[-1]):.40}" if len(names) > TOLD else ""
    return ", ".join(f"{label} {one_line(name):.40}" for label, name in enumerate(names[:TOLD])) + more


def fill(network: nn.Module, weights: Weights, options: ModelOptions, num_classes: int) -> None:
    """Loads weights into a network, if there are any.

    Raises:
        ValueError: they do not fit; says so where the number of classes is that of the data.
    """
    try:
        if weights.tensors:
            weights.load_into(network)
    except ValueError as error:
        if options.classes or weights.num_classes:
            raise
        raise ValueError(
            f"{error}; the {num_classes:,} classes of the model are those of the data: if the weights are of more or "
            "fewer, pass --classes"
        ) from error


def moved(network: nn.Module, device: str) -> nn.Module:
    """Moves a network to a device that users name."""
    try:
        return network.to(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, which cannot be used: {error}") from error


def described(smoothed: SmoothedClassifier, engine: Engine, image: Tensor, passes: int) -> str:
    """Says how the base classifier is run, and what so many forward passes were expected to take by each runner."""
    function = engine.function
    normalization = "none" if smoothed.normalize is None else smoothed.normalize
    how = f"{function.runner} base classifier, precision {function.precision}, normalisation {normalization}"
    if smoothed.runner != "auto" or function.device.type != "cpu":
        return how
    workload, cores = engine.function.adapted.workload, len(engine.lanes)
    expected = ", ".join(
        f"{runner} {seconds(runner, workload, passes, function.precision, cores):,.0f} s"
        for runner in installed(workload, function.precision)
    )
    return f"{how}\nexpected for {passes:,} forward passes: {expected}"


def seconds_per_sample(engine: Engine, images: Tensor) -> float:
    """Measures 8 micro-batches after one to warm up, of samples that no certificate uses."""
    rows = engine.function.micro_batch
    list(engine.run([Job(images[0], 0, Count(rows, stream=Stream.TRAIN))]))
    started = time.perf_counter()
    list(engine.run([Job(images[0], 0, Count(8 * rows, stream=Stream.TRAIN))]))
    return (time.perf_counter() - started) / (8 * rows)

"""Preparation of what commands compute with: weights, data, networks, the smoothed classifier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .. import data, launch, models
from ..checks import at_most, told
from ..data.labelled import classes_of
from ..engine import Adapter, Engine, Job
from ..evaluation import accuracy, base_votes
from ..images import checked_images
from ..layouts import DEVIATIONS, MEANS, Fitted, statistics_by
from ..normalization import FORM, Normalization, text_of
from ..pretrained import transformers_statistics
from ..procedures import Count
from ..runners.choice import installed, seconds
from ..runs.certify import chosen
from ..smoothing import SmoothedClassifier
from ..specs import names_code, tells_its_classes
from ..streams import Stream
from ..text import counted, duration, one_line
from ..weights import DEMO, Weights, read_weights
from . import display
from .options import MOST_CLASSES, ModelOptions, SmoothedOptions

TOLD = 20  # names of classes, at most
PEEK, PEEKED_PIXELS = 50, 250_000  # images that base classifiers are judged by before a run, and pixels in all
UNTOLD = (  # that is a warning where it may be right, and an error where it cannot
    "says how images were normalised; pass --normalize as in training ({form}; none says that there is nothing to do)"
)


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
    options: SmoothedOptions,
    sigma: float,
    seed: int,
    noise: str | None = None,
    device: str | None = None,
    taken: str = "evenly",
) -> Prepared:
    """Loads weights, data and network, and smooths it.

    Args:
        options: of the command.
        sigma: of the noise on images.
        seed: of all noise.
        noise: the law of it; by the images if not given.
        device: that of this process, where there are several; else as the options say.
        taken: how the images are, where there are more than are asked for (`runs.certify.TAKEN`).

    Raises:
        ValueError: something that is named cannot be loaded, or does not fit the rest.
    """
    make = models.maker(options.model)  # of the user's code, the first thing that can be wrong
    weights = trained_weights(options)
    integers = weights.integers
    if integers is not None and options.normalize not in (None, "none"):
        raise ValueError(f"normalize is {options.normalize!r}; a network in integers has its own within")
    if integers is not None and options.precision not in ("auto", "int8"):
        raise ValueError(f"precision is {options.precision!r}; a network in integers is for int8, or auto")
    source = data.load(options.data, "test", options.resize, options.crop)
    if not len(source):
        raise ValueError(f"data is {options.data!r}, which holds no images")
    indices = chosen(len(source), options.skip, options.limit, taken)
    known = number_of_classes(options, weights, source)
    network = moved(integers or make(known).eval(), device or options.device)
    found = None if integers else fill(network, weights, options, known)
    first = checked_images(source[indices[0]][0][None])
    num_classes = settled_classes(options, network, known, tuple(first.shape[1:]))
    if names_code(options.data):
        source = data.Within(source, options.data, num_classes)
    if not weights.tensors and names_code(options.model) and launch.leads():
        display.tell(f"no --weights: the network is as {options.model} makes it", soft_wrap=True)
    normalize, certain = (None, True) if integers else normalization(options, weights, found, network)
    if integers and launch.leads() and weights.about.get("sigma") not in (None, str(sigma)):
        display.tell(
            f"warning: {options.weights} was quantised for sigma {weights.about['sigma']:.50}; this run has {sigma}",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    smoothed = SmoothedClassifier(
        network, sigma, num_classes, noise=noise, seed=seed, normalize=normalize, precision=options.precision,
        max_batch=options.batch, runner=options.runner,
    )  # fmt: skip
    if not certain and launch.leads():
        display.tell(f"warning: {_doubt(options, smoothed, source, indices)}", style="yellow", soft_wrap=True)
    about = {
        "data": options.data, "model": options.model, "weights": weights.sha256, "sigma": smoothed.sigma.tolist(),
        "normalize": smoothed.normalize, "seed": seed, "skip": options.skip, "max": options.limit, **options.sides,
    }  # fmt: skip
    if options.limit is not None and taken != "first":
        about["taken"] = taken
    return Prepared(smoothed, source, indices, about)


def trained_weights(options: ModelOptions) -> Weights:
    """Reads the weights of a file; the embedded ones of resnet20, and none for a model of the user's, if not given."""
    if options.weights is None and options.model != "resnet20":
        return Weights({})
    return read_weights(options.weights or DEMO)


def number_of_classes(options: ModelOptions, weights: Weights, source: data.Labelled) -> int | None:
    """Takes the number of classes from the command line, else from the weights file, else from the data set; None where
    none of these tells."""
    told = classes_of(source)
    known = options.classes or weights.num_classes or weights.rows or len(told)
    if known == 1 and told:
        raise ValueError(f"the data have one class alone, {one_line(told[0])!r:.50}; pass --classes")
    at_most(MOST_CLASSES, classes=known)  # also where a file tells it
    return known or None


def settled_classes(options: ModelOptions, network: nn.Module, known: int | None, shape: tuple[int, ...]) -> int:
    """The number of classes: that which the model returns, where it is not one that was built for it.

    Raises:
        ValueError: it is not the one that was given.
    """
    if known is not None and not tells_its_classes(options.model):
        return known
    try:
        found = Adapter()(network, shape, "fp32").num_classes
    except Exception as error:  # of the user's code, which sees an image for the first time
        raise ValueError(f"model is {options.model!r}, which fails on images {shape}: {told(error)}") from error
    if options.classes not in (None, found):
        raise ValueError(f"classes is {options.classes}, and the model returns {found}")
    return found


def normalization(
    options: ModelOptions, weights: Weights, found: Fitted | None, network: nn.Module
) -> tuple[Normalization | None, bool]:
    """Mean and deviation by channel, and whether that is certain: somebody told them, or the network has its own.

    Raises:
        ValueError: the weights stood behind a layer that the network has not, and nobody tells which.
    """
    if options.normalize is not None:
        return options.statistics, True
    if "normalize" in weights.settings:
        return weights.normalize, True
    if options.model.startswith("hf:") and options.weights is None:
        statistics = transformers_statistics(options.model.removeprefix("hf:"))
        return statistics, statistics is not None
    if found is None or not found.behind:
        return None, any(name.rpartition(".")[2] in MEANS + DEVIATIONS for name in network.state_dict())
    statistics = found.statistics or statistics_by(weights.architecture)
    if statistics is None:
        untold = UNTOLD.format(form=FORM)
        raise ValueError(f"in {options.weights} a layer stands in front of the network, and nothing {untold}")
    why = "the layer in front of the network" if found.statistics else f"arch {weights.architecture!r}"
    if launch.leads():
        display.tell(f"normalisation {text_of(statistics)}, by {why} in {options.weights}")
    return statistics, True


def _doubt(options: ModelOptions, smoothed: SmoothedClassifier, source: data.Labelled, indices: list[int]) -> str:
    """Says that nobody told the normalisation, and how right the base classifier is without noise."""
    whose = options.model if options.weights is None else options.weights
    said = f"nothing in {whose} {UNTOLD.format(form=FORM)}."
    first = source[indices[0]][0]
    count = max(1, min(PEEK, PEEKED_PIXELS // first.shape[-1] // first.shape[-2]))
    pairs = [source[index] for index in indices[:count]]
    like = [(image, label) for image, label in pairs if image.shape == first.shape and label >= 0]
    if not like:
        return said
    images, labels = zip(*like, strict=True)
    right = accuracy(base_votes(smoothed, torch.stack(images)), labels)
    return (
        f"{said} Without it, and without noise, the base classifier is right on {right.correct} of the first "
        f"{right.count} images ({100 * right.share:.1f} %; chance {100 / smoothed.num_classes:.1f} %)"
    )


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


def fill(network: nn.Module, weights: Weights, options: ModelOptions, known: int | None) -> Fitted | None:
    """Loads weights into a network, if there are any.

    Raises:
        ValueError: they do not fit; says so where the number of classes is that of the data.
    """
    try:
        return weights.fill(network) if weights.tensors else None
    except ValueError as error:
        if options.classes or weights.num_classes or weights.rows or not known:
            raise
        raise ValueError(
            f"{error}; the {known:,} classes of the model are those of the data: if the weights are of more or fewer, "
            "pass --classes"
        ) from error


def moved(network: nn.Module, device: str) -> nn.Module:
    """Moves a network to a device that users name."""
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        return network.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(f"device is {device!r}, which cannot be used: {said:.200}") from error


@dataclass(frozen=True)
class Ahead:
    """The forward passes of a run.

    Attributes:
        images: how many.
        samples: of each, in the mean.
        done: images that a run before has done.
        sure: whether each takes so many, and it is no guess.
        processes: that share them.
    """

    images: int
    samples: int
    done: int = 0
    sure: bool = True
    processes: int = 1

    @property
    def passes(self) -> int:
        """The number of passes, those of a run before among them: a runner is chosen by all."""
        return self.images * self.samples

    def __str__(self) -> str:
        left = "" if not self.done else f" that {'is' if self.images - self.done == 1 else 'are'} left"
        about = "" if self.sure else "about "
        return f"{counted(self.images - self.done, 'image')}{left}, of {about}{counted(self.samples, 'sample')} each"


def described(smoothed: SmoothedClassifier, engine: Engine, ahead: Ahead) -> str:
    """Says how the base classifier is run, what the passes ahead are expected to take by each runner, and why this one
    was chosen."""
    function = engine.function
    normalization = "none" if smoothed.normalize is None else smoothed.normalize
    how = f"{function.runner} base classifier, precision {function.precision}, normalisation {normalization}"
    if function.device.type != "cpu":
        return how
    workload, cores = function.adapted.workload, len(engine.lanes) * ahead.processes
    passes = (ahead.images - ahead.done) * ahead.samples
    known = installed(workload, function.precision)
    shown = known if smoothed.runner == "auto" else [name for name in known if name == function.runner]
    if not shown:
        return how
    expected = ", ".join(
        f"{runner} {duration(seconds(runner, workload, passes, function.precision, cores))}" for runner in shown
    )
    return f"{how}\nexpected for {ahead}: {expected}; {_why(smoothed, engine, ahead)}"


def _why(smoothed: SmoothedClassifier, engine: Engine, ahead: Ahead) -> str:
    """The reason for which a runner was chosen."""
    runner = engine.function.runner
    if smoothed.runner != "auto":
        return f"{runner} is asked for"
    first = engine.function.candidates(ahead.passes)[0]
    return f"{runner} takes least for all of the run" if runner == first else f"{first} declined, {runner} is next"


def seconds_per_sample(engine: Engine, images: Tensor) -> float:
    """Measures 8 micro-batches after one to warm up, of samples that no certificate uses."""
    rows = engine.function.micro_batch
    list(engine.run([Job(images[0], 0, Count(rows, stream=Stream.TRAIN))]))
    started = time.perf_counter()
    list(engine.run([Job(images[0], 0, Count(8 * rows, stream=Stream.TRAIN))]))
    return (time.perf_counter() - started) / (8 * rows)

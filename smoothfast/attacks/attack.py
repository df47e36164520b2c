"""The base of all attacks: the model, the classes to go away from or to, noisy samples and their counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from .. import names, ops
from ..checks import at_least, choice, in_pixel_units, seed_in_range
from ..engine import Adapter, BaseFunction, Gradients, default_micro_batch
from ..engine.blocks import BLOCK
from ..images import UNIT, Bounds, by_channel, checked_bounds, checked_ids, checked_labels, pixels
from ..introductions import brief, introduction, parameters
from ..layers import draws_noise
from ..losses import Loss, cross_entropy
from ..modules import as_module, device_of
from ..normalization import Normalization, checked_normalization
from ..ops.laws import float_law
from ..ops.philox import uniforms
from ..runners.choice import CORES, RunnerCache
from ..smoothing import SmoothedClassifier, SoftClassifier
from ..streams import MAX_SAMPLE_ID, Stream
from ..untraced import untraced


class Options(TypedDict, total=False):
    """Options that every attack takes by keyword, beside its own arguments.

    Attributes:
        sigma: noise on an image, in [0, 1] pixel units. If not given, that of a `SmoothedClassifier`, else none; 0 for
            the base classifier of a `SmoothedClassifier` without noise.
        seed: of all noise of the attack, 0 .. 2**64 - 1. Defences draw other samples, also with the same seed.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the hardware multiplies in it. If not given, that of a
            `SmoothedClassifier`, else "auto".
        max_batch: rows per forward and backward pass; bounds memory whatever `samples` is. If not given, by image size,
            and in eager mode no more than there are for 2 cores.
        runner: "eager", "compiled", "openvino", or "auto": what takes least for one call of the attack
            (`runners.choice`).
        replicas_per_forward: for models that draw noise of their own once in a forward pass: how many samples of an
            image share it. 1 draws anew for each sample; images beside each other share it still.
        bounds: (low, high) of images that lie in another range than 0 .. 1; None: in none. Those of a
            `SmoothedClassifier` if it is one.
    """

    sigma: float | Sequence[float] | None
    seed: int
    precision: str | None
    max_batch: int | None
    runner: str
    replicas_per_forward: int | None
    bounds: Sequence[float] | None


ROOM = 2**24  # numbers that a repetition has for the samples of an image: of PGD, steps times samples are in use
REPETITIONS = (MAX_SAMPLE_ID + 1) // ROOM


def introduced(model: nn.Module) -> str:
    """The text of a model that is attacked: the call that makes a smoothed classifier, the class of another."""
    return repr(model) if isinstance(model, SmoothedClassifier) else brief(model)


Targets = Callable[[Gradients, Tensor, Tensor, Tensor], Tensor]
"""The classes to be reached, of an engine, images, labels and image ids."""


@untraced("__call__")
class Attack(ABC):
    """An attack on a model: `adversarial = attack(images, labels)`.

    Args:
        model: a `SmoothedClassifier`, of which the base classifier is attacked under its noise, or any module or
            function from images [N, C, ...] to logits [N, K], as a `SmoothedClassifier` takes them. It runs in eval
            mode and is left in the mode it was in; its parameters get no gradients.
        samples: noisy copies, or passes of a model that draws noise itself, behind each gradient or loss.

    The others are described in `Options`.

    Attributes:
        repetition: which one the next call is, 0 .. 65535; 0 unless set. Noise, random starts and random targets of
            different repetitions are independent, and one gives the same results again. Training counts epochs by it.
        gradients: sample gradients that the last call took, over all images: backward passes of one noisy copy.
        forwards: noisy copies that it sent through the base classifier, those of the gradients included.
    """

    loss: Loss = staticmethod(cross_entropy)
    columns = 1  # of classes, that the loss takes
    average = "loss"
    needs: tuple[str, ...] = ("backward",)  # how it asks, see `Gradients.outcomes`
    passes_per_image = 1  # of `samples` samples each: what the choice of a runner is made by
    repetition = 0

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        *,
        samples: int = 1,
        sigma: float | Sequence[float] | None = None,
        seed: int = 0,
        precision: str | None = None,
        max_batch: int | None = None,
        runner: str = "auto",
        replicas_per_forward: int | None = None,
        bounds: Sequence[float] | None = UNIT,
    ) -> None:
        choice("runner", runner, names.RUNNERS)
        if isinstance(model, SoftClassifier):
            raise ValueError("model is a SoftClassifier, which is for other packages; give the SmoothedClassifier")
        seed_in_range(seed)
        at_least(1, samples=samples, max_batch=max_batch, replicas_per_forward=replicas_per_forward)
        self.model = model = as_module(model, "model")
        self.samples, self.seed = samples, seed
        self.max_batch, self.runner = max_batch, runner
        self.replicas_per_forward = replicas_per_forward
        self.base: nn.Module = model
        self.normalize: Normalization | None = None
        self.clip, self.bounds = False, checked_bounds(bounds)
        if isinstance(model, SmoothedClassifier):
            if self.bounds not in (UNIT, model.bounds):
                raise ValueError(f"bounds is {bounds}; those of the SmoothedClassifier are {model.bounds}")
            self.base, self.normalize, self.clip, self.bounds = model.base, model.normalize, model.clip, model.bounds
            sigma = tuple(model.sigma.tolist()) if sigma is None else sigma
            precision = precision or model.precision
        self.precision = precision or "auto"
        self.law = float_law(0.0 if sigma is None else sigma)
        self.gradients = self.forwards = 0
        self._takes_normalized = False
        self._targets: Targets | None = None
        self._engines: RunnerCache[BaseFunction, Gradients] = RunnerCache()
        self._adapter = Adapter()

    @torch.inference_mode(False)
    def __call__(
        self, images: Tensor, labels: Sequence[int] | Tensor, image_ids: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Adversarial images float32 [N, C, ...] in their range, or normalised as `set_normalization_used` says.

        Args:
            images: uint8 (0..255) or float (0..1, or `bounds`) [N, C, ...].
            labels: int [N], the true classes; in the mode targeted by label, the classes to be reached.
            image_ids: [N], the numbers that noise is drawn under; 0..N-1 if not given.

        Raises:
            ValueError: an argument is out of its range.
        """
        images = self._pixels(images)
        self._adapter.look_again()
        ids = torch.tensor(checked_ids(image_ids, len(images)), dtype=torch.int64, device=images.device)
        if not len(images):
            return images
        engine = self.engine(images, len(images))
        engine.refresh()
        return self._normalized(self.craft(engine, images, self._classes(labels, engine, len(images)), ids))

    def craft(self, engine: Gradients, images: Tensor, labels: Tensor, image_ids: Tensor) -> Tensor:
        """Adversarial images as of a call, by an engine that the caller keeps: for training, where an eager one sees
        the weights of the moment, and need not be made anew as long as the code of the model stays the same.

        Args:
            engine: of this attack, see `engine`.
            images: float32 [N, C, ...] in [0, 1]. This and the others, on the device of the model, are not checked.
            labels, image_ids: int64 [N].
        """
        engine.forwards = engine.backwards = 0
        engine.origin = self.origin
        if self._targets is not None:
            labels = self._classes(self._targets(engine, images, labels, image_ids), engine, len(images))
        adversarial = self._attack(engine, images, labels, image_ids)
        self.gradients, self.forwards = engine.backwards, engine.forwards
        return adversarial

    @property
    def draw(self) -> int:
        """The name of `repetition` in version 0.1."""
        return self.repetition

    @draw.setter
    def draw(self, repetition: int) -> None:
        """Sets `repetition`."""
        self.repetition = repetition

    @property
    def origin(self) -> int:
        """The number of the first sample of this repetition."""
        if not 0 <= index(self.repetition) < REPETITIONS:
            raise ValueError(f"repetition is {self.repetition}; it must lie in 0 .. {REPETITIONS - 1}")
        return self.repetition * ROOM

    @abstractmethod
    def _attack(self, engine: Gradients, images: Tensor, classes: Tensor, ids: Tensor) -> Tensor:
        """Adversarial images of images [N, C, ...], away from or towards classes [N]."""

    @property
    def known_classes(self) -> int | None:
        """The classes of a `SmoothedClassifier`, as far as it knows them; None of other models."""
        return self.model.known_classes if isinstance(self.model, SmoothedClassifier) else None

    @property
    def range(self) -> Bounds:
        """The range of images, infinite where they have none."""
        return self.bounds or (-math.inf, math.inf)

    @property
    def sign(self) -> int:
        """Direction in which the attack goes along the gradients of the loss: 1 is up, -1 down to a target."""
        return 1 if self._targets is None else -1

    def _require_within_range(self, **lengths: float) -> None:
        """Raises ValueError where a length in Linf is larger than the range of pixels; by name."""
        for name, length in lengths.items():
            if self.bounds == UNIT:
                in_pixel_units(name, length, 1.0)

    def _directed(self, classes: Tensor) -> Tensor:
        """Classes and directions int64 [N, 2], as `losses.capped_margin` takes them."""
        return torch.stack([classes, torch.full_like(classes, self.sign)], 1)

    # ---- modes, named as in torchattacks ---------------------------------------------------------------------------

    def set_mode_default(self) -> None:
        """Makes the attack go away from the true label."""
        self._targets = None

    def set_mode_targeted_by_label(self) -> None:
        """Makes the attack go towards `labels`."""
        self._targets = lambda engine, images, labels, ids: labels

    def set_mode_targeted_by_function(self, target_map_function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Makes the attack go towards the classes that a function makes of images and labels."""
        self._targets = lambda engine, images, labels, ids: target_map_function(images, labels)

    def set_mode_targeted_random(self) -> None:
        """Makes the attack go towards a class other than the label, all equally likely; a function of seed and image
        id."""
        self._targets = self._random_targets

    def set_mode_targeted_least_likely(self, kth_min: int = 1) -> None:
        """Makes the attack go towards the class with the smallest mean logit over the samples (the second smallest, …),
        never the label."""
        at_least(1, kth_min=kth_min)
        self._targets = partial(self._least_likely, kth_min)

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Makes images come and go normalised, for a model that takes them so; eps stays in [0, 1] pixel units."""
        if isinstance(self.model, SmoothedClassifier):
            raise ValueError(
                "the model is a SmoothedClassifier, which takes images in [0, 1] and has its own normalize"
            )
        self.normalize = checked_normalization((mean, std), self.bounds == UNIT)
        ops.affine(self.normalize, len(mean), torch.float32)  # checks them
        self._takes_normalized = True

    def _random_targets(self, engine: Gradients, images: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        samples = torch.full_like(ids, MAX_SAMPLE_ID - self.repetition)
        drawn = uniforms(1, self.seed, ids, samples, Stream.ATTACK_START)[:, 0]
        others = engine.num_classes - 1
        return (labels + 1 + ((drawn.double() + 1) / 2 * others).long()) % engine.num_classes

    def _least_likely(self, kth_min: int, engine: Gradients, images: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        if kth_min >= engine.num_classes:
            raise ValueError(f"kth_min is {kth_min}; the model has {engine.num_classes} classes, one of them the label")
        classes = labels[:, None].expand(-1, self.columns)  # of no account: the loss is not looked at
        logits = engine.outcomes(images, classes, ids, 0, self.samples).logits
        logits.scatter_(1, labels[:, None], torch.inf)
        return logits.argsort(1)[:, kth_min - 1]

    def __repr__(self) -> str:
        """The call that makes this attack, but for the base classifier, of which there is the class alone."""
        return introduction(self, introduced(self.model), self._told())

    def _told(self) -> dict[str, Any]:
        """The settings that the attack was made with, by name; not those that it has of the model."""
        told = {name: vars(self)[name] for name in parameters(type(self)) if name in vars(self) and name != "model"}
        sigmas: tuple[float, ...] = tuple(self.law.sigma)
        usual: dict[str, Any] = {"precision": "auto", "sigma": (0.0,), "bounds": UNIT}
        if isinstance(self.model, SmoothedClassifier):
            usual = {"precision": self.model.precision, "sigma": tuple(self.model.sigma.tolist())}
            usual["bounds"] = self.model.bounds
        told["sigma"] = sigmas
        told = {name: value for name, value in told.items() if name not in usual or value != usual[name]}
        return told | ({"sigma": sigmas[0]} if "sigma" in told and len(sigmas) == 1 else {})

    def __getstate__(self) -> dict[str, Any]:
        """The attributes but for the engines, which are made anew where they are needed."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_engines", "_adapter")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        former = {"draw": "repetition", "draws": "passes_per_image"}  # names of version 0.1
        self.__dict__.update({former.get(name, name): value for name, value in state.items() if name != "_kept"})
        self.__dict__.setdefault("bounds", UNIT)  # it had none in version 0.1
        self._engines, self._adapter = RunnerCache(), Adapter()

    # ---- what goes in and out --------------------------------------------------------------------------------------

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert self.normalize is not None
        mean, std = (by_channel(values, images) for values in self.normalize)
        return mean, std

    def _pixels(self, images: Tensor) -> Tensor:
        """Images float32 in their range, on the device of the model."""
        if self._takes_normalized:
            mean, std = self._statistics(images)
            images = images * std + mean
            if self.bounds is not None:
                images = images.clamp(*self.bounds)  # rounding may have left the range
        return pixels(images, self.bounds).to(device_of(self.base))

    def _normalized(self, adversarial: Tensor) -> Tensor:
        if not self._takes_normalized:
            return adversarial
        mean, std = self._statistics(adversarial)
        return (adversarial - mean) / std

    def _classes(self, labels: Sequence[int] | Tensor, engine: Gradients, count: int) -> Tensor:
        checked = checked_labels(labels, count, engine.num_classes)
        return torch.tensor(checked, dtype=torch.int64, device=engine.function.device)

    # ---- the engine ------------------------------------------------------------------------------------------------

    def engine(self, images: Tensor, count: int) -> Gradients:
        """The engine for images [N, C, ...] of this shape, by the runner that takes least, and by the next where it
        declines the model.

        Args:
            count: images that are to come, in however many calls; runner "auto" chooses by them.
        """
        others = self.loss, self.average, self.replicas_per_forward
        return self._engines.first_accepted(self.functions(images, count), self._new_engine, *others)

    def functions(self, images: Tensor, count: int) -> list[BaseFunction]:
        """The base classifier for images of this shape by each runner to be tried, the preferred one first."""
        if self.runner != "auto":
            return [self._function(images, count, self.runner)]
        return [self._function(images, count, runner) for runner in self._candidates(images, count)]

    def _candidates(self, images: Tensor, count: int) -> list[str]:
        if self.replicas_per_forward is not None:
            return ["eager"]  # a model that draws noise itself is no fixed graph
        passes = count * self.passes_per_image * self.samples * (1 + ("backward" in self.needs))
        return self._function(images, count, "eager").candidates(passes)

    def _function(self, images: Tensor, count: int, runner: str) -> BaseFunction:
        return BaseFunction.resolved(
            self.base, self.law, images.shape[1:], normalize=self.normalize, clip=self.clip, precision=self.precision,
            runner=runner, micro_batch=self._micro_batch(images, count, runner), seed=self.seed,
            num_classes=self.known_classes, adapter=self._adapter, gradient="backward" in self.needs,
        )  # fmt: skip

    def _new_engine(self, function: BaseFunction) -> Gradients:
        engine = Gradients(function, self.loss, self.average, self.replicas_per_forward)
        if function.runner != "eager":  # which declines nothing, and prepares when it is asked
            for how in self.needs:
                engine.prepare(how, self.columns)
        return engine

    def _micro_batch(self, images: Tensor, count: int, runner: str) -> int | None:
        """Rows of a micro-batch. Where no shape is compiled in, nor asked for, they are no more than each of `CORES`
        cores has to do at a time."""
        together = 1 if draws_noise(self.base) else self.replicas_per_forward
        if together is None and (runner != "eager" or self.max_batch is not None):
            return self.max_batch
        device = device_of(self.base)
        usual = self.max_batch or default_micro_batch(images.shape[1:], device)
        rows = self._points_at_once(count) * min(together or self.samples, self.samples)
        lanes = CORES if device.type == "cpu" else 1
        return min(usual, rows, BLOCK * -(-rows // (lanes * BLOCK)))

    def _points_at_once(self, images: int) -> int:
        """Points that the engine is asked about in one call, of so many images."""
        return images

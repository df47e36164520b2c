"""What all attacks share: the model, the classes to go away from or to, noisy samples and their counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from .. import ops
from ..costs import AUTO, CORES, candidates, measure
from ..engine import default_micro_batch, resolve_precision
from ..layers import draws_noise
from ..losses import Loss, cross_entropy
from ..noise import MAX_SAMPLE_ID, Stream, float_law, stream_key, uniforms
from ..packing import BLOCK
from ..passes import Passes
from ..runners import Kept, device_of, fingerprint
from ..smoothing import SmoothedClassifier, checked_ids, checked_labels, pixels
from ..soft import SoftClassifier
from ..specs import at_least, choice


class Options(TypedDict, total=False):
    """What every attack takes by keyword, beside its own arguments.

    Attributes:
        sigma: noise on an image, in [0, 1] pixel units. If not given, that of a `SmoothedClassifier`, else none; 0 for
            the base classifier of a `SmoothedClassifier` without noise.
        seed: of all noise of the attack, 0 .. 2**64 - 1. Defences draw other samples, also with the same seed.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the hardware multiplies in it. If not given, that of a
            `SmoothedClassifier`, else "auto".
        max_batch: rows per forward and backward pass; bounds memory whatever `samples` is. If not given, by image size,
            and in eager mode no more than there are for 2 cores.
        runner: "eager", "compiled", "openvino", or "auto": what takes least for one call of the attack (`costs`).
        replicas_per_forward: for models that draw noise of their own once in a forward pass: how many samples of an
            image share it. 1 draws anew for each sample; images beside each other share it still.
    """

    sigma: float | Sequence[float] | None
    seed: int
    precision: str | None
    max_batch: int | None
    runner: str
    replicas_per_forward: int | None


ROOM = 2**24  # numbers that a draw has for the samples of an image: of PGD, steps times samples are in use
DRAWS = (MAX_SAMPLE_ID + 1) // ROOM

Targets = Callable[[Passes, Tensor, Tensor, Tensor], Tensor]  # of passes, images, labels and image ids


class Attack(ABC):
    """An attack on a model: `adversarial = attack(images, labels)`.

    Args:
        model: a `SmoothedClassifier`, of which the base classifier is attacked under its noise, or any module from
            images [N, C, H, W] in [0, 1] to logits [N, K]. It runs in eval mode and is left in the mode it was in; its
            parameters get no gradients.
        samples: noisy copies, or passes of a model that draws noise itself, behind each gradient or loss.

    The others are described in `Options`.

    Attributes:
        draw: which repetition the next call is, 0 .. 65535; 0 unless set. Noise, random starts and random targets of
            different draws are independent, and one draw repeats itself. Training counts epochs by it.
        gradients: sample gradients that the last call took, over all images: backward passes of one noisy copy.
        forwards: noisy copies that it sent through the base classifier, those of the gradients included.
    """

    loss: Loss = staticmethod(cross_entropy)
    columns = 1  # of classes, that the loss takes
    average = "loss"
    needs: tuple[str, ...] = ("backward",)  # kinds of passes, see `Passes.outcomes`
    draws = 1  # of samples, by an image: what the choice of a runner is made by
    draw = 0

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: int = 1,
        sigma: float | Sequence[float] | None = None,
        seed: int = 0,
        precision: str | None = None,
        max_batch: int | None = None,
        runner: str = "auto",
        replicas_per_forward: int | None = None,
    ) -> None:
        choice("runner", runner, AUTO)
        if isinstance(model, SoftClassifier):
            raise ValueError("model is a SoftClassifier, which is for other packages; give the SmoothedClassifier")
        stream_key(index(seed), Stream.ATTACK)  # checks it
        at_least(1, samples=samples, max_batch=max_batch, replicas_per_forward=replicas_per_forward)
        self.model, self.samples, self.seed = model, samples, seed
        self.max_batch, self.runner = max_batch, runner
        self.replicas_per_forward = replicas_per_forward
        self.base: nn.Module = model
        self.normalize: ops.Statistics | None = None
        self.clip = False
        if isinstance(model, SmoothedClassifier):
            self.base, self.normalize, self.clip = model.base, model.normalize, model.clip
            sigma = tuple(model.sigma.tolist()) if sigma is None else sigma
            precision = precision or model.precision
        self.precision = precision or "auto"
        self.law = float_law(0.0 if sigma is None else sigma)
        self.gradients = self.forwards = 0
        self._takes_normalized = False
        self._targets: Targets | None = None
        self._kept = Kept[Passes]()

    def __call__(
        self, images: Tensor, labels: Sequence[int] | Tensor, image_ids: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Adversarial images float32 [N, C, H, W] in [0, 1], or normalised as `set_normalization_used` says.

        Args:
            images: uint8 (0..255) or float (0..1) [N, C, H, W].
            labels: int [N], the true classes; in the mode targeted by label, the classes to be reached.
            image_ids: [N], the numbers that noise is drawn under; 0..N-1 if not given.

        Raises:
            ValueError: an argument is out of its range.
        """
        images = self._pixels(images)
        ids = torch.tensor(checked_ids(image_ids, len(images)), dtype=torch.int64, device=images.device)
        if not len(images):
            return images
        passes = self.passes(images, len(images))
        return self._normalized(self.craft(passes, images, self._classes(labels, passes, len(images)), ids))

    def craft(self, passes: Passes, images: Tensor, labels: Tensor, image_ids: Tensor) -> Tensor:
        """What a call returns, by passes that the caller keeps: for training, where eager passes see the weights of the
        moment, and need not be made anew as long as the code of the model stays the same.

        Args:
            passes: of this attack, see `passes`.
            images: float32 [N, C, H, W] in [0, 1]. This and the others, on the device of the model, are not checked.
            labels, image_ids: int64 [N].
        """
        passes.forwards = passes.backwards = 0
        passes.origin = self.origin
        if self._targets is not None:
            labels = self._classes(self._targets(passes, images, labels, image_ids), passes, len(images))
        adversarial = self._attack(passes, images, labels, image_ids)
        self.gradients, self.forwards = passes.backwards, passes.forwards
        return adversarial

    @property
    def origin(self) -> int:
        """The number of the first sample of this draw."""
        if not 0 <= index(self.draw) < DRAWS:
            raise ValueError(f"draw is {self.draw}; it must lie in 0 .. {DRAWS - 1}")
        return self.draw * ROOM

    @abstractmethod
    def _attack(self, passes: Passes, images: Tensor, classes: Tensor, ids: Tensor) -> Tensor:
        """Adversarial images of images [N, C, H, W], away from or towards classes [N]."""

    @property
    def sign(self) -> int:
        """Of the gradients of the loss that the attack goes along: up, or down to a target."""
        return 1 if self._targets is None else -1

    def _directed(self, classes: Tensor) -> Tensor:
        """What `losses.capped_margin` takes: int64 [N, 2], classes and directions."""
        return torch.stack([classes, torch.full_like(classes, self.sign)], 1)

    # ---- modes, named as in torchattacks ---------------------------------------------------------------------------

    def set_mode_default(self) -> None:
        """Away from the true label."""
        self._targets = None

    def set_mode_targeted_by_label(self) -> None:
        """`labels` are the classes to be reached."""
        self._targets = lambda passes, images, labels, ids: labels

    def set_mode_targeted_by_function(self, target_map_function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Towards the classes that a function makes of images and labels."""
        self._targets = lambda passes, images, labels, ids: target_map_function(images, labels)

    def set_mode_targeted_random(self) -> None:
        """Towards a class other than the label, all equally likely; a function of seed and image id."""
        self._targets = self._random_targets

    def set_mode_targeted_least_likely(self, kth_min: int = 1) -> None:
        """Towards the class with the smallest mean logit over the samples (the second smallest, …), never the label."""
        at_least(1, kth_min=kth_min)
        self._targets = partial(self._least_likely, kth_min)

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Images come and go normalised, for a model that takes them so; eps stays in [0, 1] pixel units."""
        if isinstance(self.model, SmoothedClassifier):
            raise ValueError(
                "the model is a SmoothedClassifier, which takes images in [0, 1] and has its own normalize"
            )
        ops.affine((mean, std), len(mean), torch.float32)  # checks them
        self.normalize, self._takes_normalized = (tuple(mean), tuple(std)), True

    def _random_targets(self, passes: Passes, images: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        draws = uniforms(1, self.seed, ids, torch.full_like(ids, MAX_SAMPLE_ID - self.draw), Stream.ATTACK_START)[:, 0]
        others = passes.num_classes - 1
        return (labels + 1 + ((draws.double() + 1) / 2 * others).long()) % passes.num_classes

    def _least_likely(self, kth_min: int, passes: Passes, images: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        if kth_min >= passes.num_classes:
            raise ValueError(f"kth_min is {kth_min}; the model has {passes.num_classes} classes, one of them the label")
        classes = labels[:, None].expand(-1, self.columns)  # of no account: the loss is not looked at
        logits = passes.outcomes(images, classes, ids, 0, self.samples).logits
        logits.scatter_(1, labels[:, None], torch.inf)
        return logits.argsort(1)[:, kth_min - 1]

    # ---- what goes in and out --------------------------------------------------------------------------------------

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert self.normalize is not None
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in self.normalize)
        return mean, std

    def _pixels(self, images: Tensor) -> Tensor:
        """float32 in [0, 1], on the device of the model."""
        if self._takes_normalized:
            mean, std = self._statistics(images)
            images = (images * std + mean).clamp(0, 1)  # rounding may have left the range
        return pixels(images.to(device_of(self.base)))

    def _normalized(self, adversarial: Tensor) -> Tensor:
        if not self._takes_normalized:
            return adversarial
        mean, std = self._statistics(adversarial)
        return (adversarial - mean) / std

    def _classes(self, labels: Sequence[int] | Tensor, passes: Passes, count: int) -> Tensor:
        checked = checked_labels(labels, count, passes.num_classes)
        return torch.tensor(checked, dtype=torch.int64, device=passes.device)

    # ---- passes ----------------------------------------------------------------------------------------------------

    def passes(self, images: Tensor, count: int) -> Passes:
        """What the attack asks about images [N, C, H, W] of this shape: by the runner that takes least, and the next
        where it declines the model.

        Args:
            count: images that are to come, in however many calls; runner "auto" chooses by them.
        """
        return self._kept.first(
            self._candidates(images, count), partial(self._key, images, count), partial(self._build, images, count)
        )

    def _candidates(self, images: Tensor, count: int) -> list[str]:
        device = device_of(self.base)
        if self.runner != "auto":
            return [self.runner]
        if self.replicas_per_forward is not None:
            return ["eager"]  # a model that draws noise itself is no fixed graph
        network = measure(self.base, tuple(images.shape[1:]))
        passes = count * self.draws * self.samples * (1 + ("backward" in self.needs))
        return candidates(network, passes, resolve_precision(self.precision, device), device)

    def _key(self, images: Tensor, count: int, runner: str) -> Any:
        if runner == "eager":
            return object()  # made anew: code of the model may have changed, which nobody sees
        batch = self._micro_batch(images, count, runner)
        return fingerprint(self.base, runner), images.shape[1:], batch, self.normalize, self.loss, self.average

    def _build(self, images: Tensor, count: int, runner: str) -> Passes:
        channels, height, width = images.shape[1:]
        if len(self.law.sigma) not in (1, channels):
            raise ValueError(f"sigma has {len(self.law.sigma)} entries; the images have {channels} channels")
        passes = Passes(
            self.base, self.law, (channels, height, width), self.seed, self.loss, self.average, self.normalize,
            self.clip, self.precision, runner, self._micro_batch(images, count, runner), self.replicas_per_forward,
        )  # fmt: skip
        for how in self.needs:
            passes.prepare(how, self.columns)
        return passes

    def _micro_batch(self, images: Tensor, count: int, runner: str) -> int | None:
        """Where no shape is compiled in, nor asked for: no more than each of `CORES` cores has to do at a time."""
        together = 1 if draws_noise(self.base) else self.replicas_per_forward
        if together is None and (runner != "eager" or self.max_batch is not None):
            return self.max_batch
        device = device_of(self.base)
        usual = self.max_batch or default_micro_batch(images.shape[1:], device)
        rows = count * min(together or self.samples, self.samples)
        lanes = CORES if device.type == "cpu" else 1
        return min(usual, rows, BLOCK * -(-rows // (lanes * BLOCK)))

"""The function that is smoothed: a base classifier under noise, with every choice made that its logits depend on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..integers import IntegerResNet
from ..modules import device_of
from ..normalization import Normalization
from ..ops.laws import Law
from ..ops.philox import stream_key
from ..runners import Runner, make_runners, micro_batch_of
from ..runners.calibrated import Calibrated
from ..runners.choice import candidates, fingerprint
from ..runners.precision import DTYPES
from ..streams import Stream
from .adapter import Adapted, Adapter
from .noisy_network import NoisyNetwork


@dataclass(frozen=True, eq=False)
class BaseFunction:
    """A base classifier as one function of an image, its id and a sample's number, to logits: what runs, and how.

    The `meta` of a certificate, how a log says it was computed, and the keys of caches are written from it, and runners
    and replicas are made by it. `resolved` makes one from what users give.

    Attributes:
        adapted: the base classifier as a network, and what it takes.
        law: of the noise.
        shape: (C, ...) of the images.
        image_dtype: uint8 or float32.
        normalize: (mean, std) applied after the noise, or None.
        clip: clamp noisy images to their range after the noise.
        runner: "eager", "compiled" (torch.compile with frozen weights), "openvino" (CPU) or "fused" (CIFAR ResNets on
            CPUs and CUDA).
        micro_batch: rows per forward pass, of which each core of a CPU makes its own.
        seed: of all noise.
    """

    adapted: Adapted
    law: Law
    shape: tuple[int, ...]
    image_dtype: torch.dtype
    normalize: Normalization | None
    clip: bool
    runner: str
    micro_batch: int
    seed: int

    @classmethod
    def resolved(
        cls,
        base: nn.Module,
        law: Law,
        shape: Sequence[int],
        image_dtype: torch.dtype = torch.float32,
        *,
        normalize: Normalization | None = None,
        clip: bool = False,
        precision: str = "auto",
        runner: str = "eager",
        micro_batch: int | None = None,
        seed: int = 0,
        num_classes: int | None = None,
        adapter: Adapter | None = None,
        gradient: bool = False,
    ) -> BaseFunction:
        """The function that these arguments stand for here: "auto" precision and a micro-batch not given are chosen by
        the device of the base classifier and the size of the images.

        Args:
            base: base classifier, normalised images [B, C, ...] to logits [B, K].
            num_classes: K, if the caller knows it.
            adapter: of whoever makes functions of one base classifier again and again.
            gradient: whether gradients by images are wanted.

        Raises:
            ValueError: an argument is out of its range, or the base classifier returns no logits.
        """
        size, adapter = tuple(shape), adapter or Adapter()
        if len(law.sigma) not in (1, shape[0]):
            raise ValueError(f"sigma has {len(law.sigma)} entries; the images have {shape[0]} channels")
        if isinstance(base, IntegerResNet) and normalize is not None:
            raise ValueError(f"normalize is {normalize}; a network in integers has its normalisation within: pass None")
        if precision == "int8" and not isinstance(base, IntegerResNet):
            # That of integers is zero: gradients are those of the network that they are made of.
            precision = "auto" if gradient else precision
            base = base if gradient else adapter.quantised(base, size, law.sigma, normalize)
        found = adapter(base, size, precision, gradient)
        if isinstance(base, Calibrated) and found.network is not base:
            raise ValueError(f"precision is 'int8', for networks that return logits alone; here: {found.notes}")
        if num_classes not in (None, found.num_classes):
            raise ValueError(f"num_classes is {num_classes}; the base classifier returns logits of {found.num_classes}")
        rows = micro_batch or default_micro_batch(size, device_of(base))
        return cls(found, law, size, image_dtype, normalize, clip, runner, rows, seed)

    @property
    def base(self) -> nn.Module:
        """The base classifier: normalised images [B, C, ...] to logits [B, K]."""
        return self.adapted.network

    @property
    def precision(self) -> str:
        """The precision that is computed in: "fp32", "bf16" or "fp16" (autocast), or "int8"."""
        return self.adapted.precision

    @property
    def num_classes(self) -> int:
        """K of the base classifier."""
        return self.adapted.num_classes

    @cached_property
    def device(self) -> torch.device:
        """The device of the base classifier."""
        return device_of(self.base)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that is computed in."""
        return DTYPES[self.precision]

    @cached_property
    def constants(self) -> tuple[Law, Tensor, Tensor]:
        """The law, and scale and shift float32 [C], of `ops.noisy_replicas`, on the device."""
        normalize = None if isinstance(self.base, IntegerResNet) else self.normalize  # which has it within
        scale, shift = ops.affine(normalize, self.shape[0], self.image_dtype)
        return self.law.to(self.device), scale.to(self.device), shift.to(self.device)

    @property
    def deviation(self) -> float:
        """The distance, in total variation, of the noise on an image from the law that radii speak of."""
        return self.law.deviation(math.prod(self.shape))

    @property
    def about(self) -> dict[str, Any]:
        """The choices of a user, for records: sigma, normalize and seed."""
        return {"sigma": list(self.law.sigma), "normalize": self.normalize, "seed": self.seed}

    @property
    def meta(self) -> dict[str, Any]:
        """The choices that roundings depend on, for records."""
        return {
            "runner": self.runner,
            "precision": self.precision,
            "micro_batch": self.micro_batch,
            "device": self.device.type,
            "law": self.law.name,
            "clip": self.clip,
        } | ({"adapted": dict(self.adapted.notes)} if self.adapted.notes else {})

    def key(self) -> Any:
        """The key of caches: all that it is made of, but for code and attributes of a module, which nobody sees."""
        images = self.shape, self.num_classes, self.image_dtype, self.normalize, self.clip
        choices = self.law.name, self.law.sigma, self.precision, self.micro_batch, self.seed
        return fingerprint(self.base, self.runner), images, choices

    def candidates(self, passes: int) -> list[str]:
        """The runners to be tried for so many forward passes, the preferred one first. A network that computes in a
        dtype of its own runs as it is."""
        if "dtype" in self.adapted.notes:
            return ["eager"]
        return candidates(self.adapted.workload, passes, self.precision, self.device)

    def noisy(self, images: Tensor, rows: Iterable[Tensor], key: Tensor) -> ops.Noisy:
        """The arguments of `ops.noisy_replicas` but for the form of the replicas.

        Args:
            images: [S, C, ...] of the dtype of its images.
            rows: slots, image ids and sample ids, int64 [R] each.
            key: int64 [2], of seed and stream.
        """
        slots, image_ids, sample_ids = rows
        return images, slots, image_ids, sample_ids, key, *self.constants, self.clip

    def replicas(self, images: Tensor, rows: Iterable[Tensor], key: Tensor) -> Tensor:
        """Noisy, normalised copies [R, C, ...] as the base classifier takes them; arguments as of `noisy`."""
        return ops.noisy_replicas(*self.noisy(images, rows, key), self.dtype, self.adapted.layout)

    def examples(self, net: NoisyNetwork) -> tuple[Tensor, ...]:
        """A micro-batch of zeros, and what its network takes beside one."""
        replicas = micro_batch_of((self.micro_batch, *self.shape), self.dtype, self.device, self.adapted.layout)
        key = stream_key(self.seed, Stream.PREDICT, self.device)
        return replicas, *net.draw(key, replicas.new_zeros(1, dtype=torch.int64))

    def runners(self, network: nn.Module, examples: tuple[Tensor, ...], count: int) -> list[Runner]:
        """The base classifier, or its gradient, as `count` functions of a micro-batch; see `make_runners`."""
        return make_runners(network, self.runner, self.dtype, self.device, examples, count)


def default_micro_batch(shape: Sequence[int], device: torch.device) -> int:
    """The usual rows of a micro-batch. Images of CIFAR size: 64 for a lane of a CPU, 1024 on a GPU (not measured).
    Fewer of larger ones.

    Microseconds a sample with 16, 32, 64, 128 rows by OpenVINO in bf16, two lanes of an AMD EPYC (family 25): ResNet-20
    244, 217, 207, 200; ResNet-110 1,247, 1,213, 1,205. ResNet-50 at 224x224 with 2, 4, 8, 16: 19,200 to 19,500. Early
    stopping fills small micro-batches better.
    """
    rows = 64 if device.type == "cpu" else 1024
    return min(4 * rows, max(rows // 8, rows * 3072 // math.prod(shape)))

"""Keeps a micro-batch of replicas of fixed shape full from many images, runs the base classifier, tallies votes.

Many images are in flight at once. Each micro-batch takes rows of whatever draws are open, an image whose procedure has
decided leaves, the next one enters, and results come out in order. Since noise is a pure function of seed, image and
sample, and procedures see votes only when a draw is complete, nothing depends on this scheduling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch._inductor.config
from torch import Tensor, nn

from . import ops
from .noise import Law, Stream, stream_key
from .procedures import Decision, Draw, Procedure, Votes
from .specs import choice

RUNNERS = ("eager", "compiled")
PRECISIONS = ("auto", "fp32", "bf16")

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """One image [C, H, W], the number its noise is drawn under, and the procedure that decides on it."""

    image: Tensor
    image_id: int
    procedure: Procedure


@dataclass
class _Flight:
    """A job under way: its slot on the device, its open draw, and how many samples of it were handed out."""

    index: int
    slot: int
    job: Job
    draw: Draw
    taken: int = 0

    @property
    def left(self) -> int:
        return self.draw.count - self.taken


@dataclass
class _Rows:
    """What the rows of one micro-batch copy; the rest of it is padding."""

    stream: Stream
    parts: list[tuple[_Flight, int, int]] = field(default_factory=list)  # flight, first sample, count

    def tensors(self, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """slots, image ids and sample ids, int64 [size]; padding rows have slot -1."""
        table = np.full((3, size), -1, np.int64)
        row = 0
        for flight, first, count in self.parts:
            table[0, row : row + count] = flight.slot
            table[1, row : row + count] = flight.job.image_id
            table[2, row : row + count] = np.arange(first, first + count)
            row += count
        slots, image_ids, sample_ids = torch.from_numpy(table).to(device)
        return slots, image_ids, sample_ids


class Engine:
    """One fixed function from noisy images to votes, and the loop that feeds it.

    The choices that make up the function (runner, precision, micro-batch) are made here, before anything is sampled;
    `meta` records them.

    Args:
        base: base classifier, normalised images [B, C, H, W] to logits [B, K].
        law: noise law.
        shape: (C, H, W) of the images.
        image_dtype: uint8 or float32.
        num_classes: K; checked against what the base classifier returns.
        seed: of all noise.
        normalize: (mean, std) applied after the noise, or None.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 where the processor computes in it.
        micro_batch: rows per forward pass; None chooses by image size.
        runner: "eager", or "compiled" (torch.compile with frozen weights).
        clip: clamp noisy images to their range; then part of the function.

    Raises:
        ValueError: an argument is out of its range, or the base classifier does not return [B, num_classes].
    """

    def __init__(
        self,
        base: nn.Module,
        law: Law,
        shape: tuple[int, int, int],
        image_dtype: torch.dtype,
        num_classes: int,
        seed: int,
        normalize: ops.Statistics | None = None,
        precision: str = "auto",
        micro_batch: int | None = None,
        runner: str = "eager",
        clip: bool = False,
    ) -> None:
        self.base, self.shape, self.num_classes, self.seed, self.clip = base, shape, num_classes, seed, clip
        self.device = next((p.device for p in base.parameters()), torch.device("cpu"))
        self.micro_batch = micro_batch or default_micro_batch(shape)
        self.precision = resolve_precision(precision, self.device)
        self.dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        wrong = {p.dtype for p in base.parameters()} - {torch.float32}
        if wrong:
            raise ValueError(
                f"the base classifier has weights of {', '.join(map(str, wrong))}; keep them float32, and choose what "
                "is computed in by precision"
            )
        self.image_dtype = image_dtype
        self.law = law.to(self.device)
        self.scale, self.shift = (t.to(self.device) for t in ops.affine(normalize, shape[0], image_dtype))
        self.run_base = make_runner(base, runner, self.dtype, self.device)
        self.meta: dict[str, Any] = {
            "runner": runner,
            "precision": self.precision,
            "micro_batch": self.micro_batch,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "law": law.name,
            "clip": clip,
        }
        self.meta["row_function"] = self._check_base()

    @property
    def deviation(self) -> float:
        """Of the noise on an image from the law that radii speak of, in total variation."""
        return self.law.deviation(math.prod(self.shape))

    def run(self, jobs: Iterable[Job]) -> Iterator[Decision]:
        """Decides every job, in order, holding a micro-batch of images at most."""
        waiting = enumerate(jobs)
        images = torch.zeros((self.micro_batch, *self.shape), dtype=self.image_dtype, device=self.device)
        counts = torch.zeros((self.micro_batch, self.num_classes), dtype=torch.int64, device=self.device)
        invalid = torch.zeros(self.micro_batch, dtype=torch.int64, device=self.device)
        free = list(range(self.micro_batch))
        flights: list[_Flight] = []
        decided: dict[int, Decision] = {}
        next_out = 0
        while True:
            rows = self._fill(flights, free, waiting, images, len(decided))
            if rows is None:
                return
            slots, image_ids, sample_ids = rows.tensors(self.micro_batch, self.device)
            ops.tally(self._logits(images, slots, image_ids, sample_ids, rows.stream), slots, counts, invalid)
            drawn = [flight for flight, _, _ in rows.parts if not flight.left]
            for flight, votes in zip(drawn, _take([flight.slot for flight in drawn], counts, invalid), strict=True):
                answer = flight.job.procedure.update(votes)
                if isinstance(answer, Draw):
                    flight.draw, flight.taken = answer, 0
                else:
                    decided[flight.index] = answer
                    free.append(flight.slot)
                    flights.remove(flight)
            while next_out in decided:
                yield decided.pop(next_out)
                next_out += 1

    def _fill(
        self, flights: list[_Flight], free: list[int], jobs: Iterator[tuple[int, Job]], images: Tensor, held: int
    ) -> _Rows | None:
        """Rows for the next micro-batch: of the stream of the oldest flight whose stream can fill it; new images enter
        until one can. A micro-batch has one stream, since the stream is in the key of the noise. Once a micro-batch of
        results is held up by the oldest flight, that flight goes first, with padding if need be."""
        open_rows: dict[Stream, int] = {}
        for flight in flights:
            open_rows[flight.draw.stream] = open_rows.get(flight.draw.stream, 0) + flight.left
        while held < self.micro_batch:
            full = next((stream for stream, count in open_rows.items() if count >= self.micro_batch), None)
            entering = next(jobs, None) if full is None and free else None
            if entering is None:
                break
            index, job = entering
            slot = free.pop()
            images[slot] = job.image
            draw = job.procedure.begin()
            flights.append(_Flight(index, slot, job, draw))
            open_rows[draw.stream] = open_rows.get(draw.stream, 0) + draw.count
        else:
            full = None
        if not flights:
            return None
        rows = _Rows(full or flights[0].draw.stream)
        room = self.micro_batch
        for flight in flights:
            if flight.draw.stream is rows.stream and room:
                count = min(flight.left, room)
                rows.parts.append((flight, flight.draw.first + flight.taken, count))
                flight.taken += count
                room -= count
        return rows

    @torch.no_grad()
    def _logits(self, images: Tensor, slots: Tensor, image_ids: Tensor, sample_ids: Tensor, stream: Stream) -> Tensor:
        replicas = ops.noisy_replicas(
            images,
            slots,
            image_ids,
            sample_ids,
            stream_key(self.seed, stream, self.device),
            self.law,
            self.scale,
            self.shift,
            self.clip,
            self.dtype,
            torch.channels_last,
        )
        with evaluating(self.base):
            return self.run_base(replicas)

    def _check_base(self) -> bool:
        """Whether the logits of a row depend on that row alone: the same replicas in other places, and among other
        rows, must get the same votes from logits that are the same up to rounding. A first pass also compiles, and
        finds a wrong number of classes."""
        size = self.micro_batch
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (size, *self.shape), generator=generator)
        images = (images.to(torch.uint8) if self.image_dtype == torch.uint8 else images / 255).to(self.device)
        rows, order = torch.arange(size), torch.randperm(size, generator=generator)

        def logits(slots: Tensor, samples: Tensor) -> Tensor:
            slots, samples = slots.to(self.device), samples.to(self.device)
            return self._logits(images, slots, slots, samples, Stream.PREDICT)

        straight = logits(rows, rows)
        if not isinstance(straight, Tensor):
            raise ValueError(f"the base classifier returns {type(straight).__name__}; it must return logits [B, K]")
        if straight.shape != (size, self.num_classes):
            raise ValueError(
                f"num_classes is {self.num_classes}; the base classifier turns {size} images into "
                f"{tuple(straight.shape)}"
            )
        half = size // 2
        among_others = logits(rows, torch.where(rows < half, rows, rows + size))
        return self._same(straight[order.to(self.device)], logits(order, order)) and self._same(
            straight[:half], among_others[:half]
        )

    def _same(self, a: Tensor, b: Tensor) -> bool:
        a, b = a.float(), b.float()
        rounding = 2e-2 if self.dtype == torch.bfloat16 else 1e-4  # of the largest logit
        largest = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
        near = torch.allclose(a, b, rtol=0, atol=rounding * largest, equal_nan=True)
        return near and torch.equal(a.argmax(1), b.argmax(1))


def _take(slots: list[int], counts: Tensor, invalid: Tensor) -> Votes:
    """The votes [len(slots), K + 1] of some slots, which are set back to 0; they leave the device in one copy."""
    index = torch.tensor(slots, dtype=torch.int64, device=counts.device)
    votes = torch.cat([counts[index], invalid[index, None]], 1).cpu().numpy()
    counts[index], invalid[index] = 0, 0
    return votes


def make_runner(base: nn.Module, kind: str, dtype: torch.dtype, device: torch.device) -> Runner:
    """The base classifier as a function of one micro-batch."""
    choice("runner", kind, RUNNERS)
    network = frozen(base) if kind == "compiled" else base

    def run(replicas: Tensor) -> Tensor:
        # Autocast rather than converted weights: batch norms are folded into the convolutions in float32 first.
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return network(replicas)

    return run


def frozen(base: nn.Module) -> Runner:
    """The base classifier compiled for one shape, its present weights folded in as constants."""

    def call(replicas: Tensor) -> Tensor:
        return base(replicas)

    # Dynamo keeps compiled code by code object, and does not look at frozen weights when it takes it up again: an
    # engine needs a code object of its own. As options={"freezing": True} the setting comes too late to have effect.
    call.__code__ = call.__code__.replace(co_name=f"base_{id(base)}")
    compiled = torch.compile(call, dynamic=False)

    def network(replicas: Tensor) -> Tensor:
        with torch._inductor.config.patch(freezing=True):
            return compiled(replicas)

    return network


def default_micro_batch(shape: tuple[int, int, int]) -> int:
    """128 images of CIFAR size, fewer of larger ones: large enough for the cores, small enough for their caches."""
    elements = shape[0] * shape[1] * shape[2]
    return min(512, max(16, 128 * 3072 // elements))


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto" is bf16 where the hardware multiplies in it (AMX, AVX512-BF16, CUDA from Ampere on), else fp32."""
    choice("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and capable else "fp32"


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time being; afterwards every submodule is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True

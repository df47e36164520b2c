"""Keeps a micro-batch of replicas of fixed shape full from many images, runs the base classifier, tallies votes.

Many images are in flight at once. Each micro-batch takes rows of whatever draws are open, an image whose procedure has
decided leaves, the next one enters, and results come out in order. Since noise is a pure function of seed, image and
sample, and procedures see votes only when a draw is complete, nothing depends on this scheduling.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import ops
from .noise import Law, Stream, stream_key
from .procedures import Decision, Draw, Procedure
from .runners import evaluating, make_runner, strict_arithmetic
from .specs import choice

STAGED = 4  # micro-batches whose rows may be on their way to the device
AHEAD = 2  # micro-batches that a device is given before votes are waited for

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)
ROUNDING = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2.5e-3}  # of the largest logit, after the layers of a deep network


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

    def table(self, size: int) -> NDArray[np.int64]:
        """slots, image ids and sample ids, int64 [3, size]; padding rows have slot -1."""
        table = np.full((3, size), -1, np.int64)
        row = 0
        for flight, first, count in self.parts:
            table[0, row : row + count] = flight.slot
            table[1, row : row + count] = flight.job.image_id
            table[2, row : row + count] = np.arange(first, first + count)
            row += count
        return table


class _Transfer:
    """A host tensor (pinned, where there is a device) on its way to or from the device."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        apart = device.type != "cpu"
        self.host = torch.empty(tuple(shape), dtype=torch.int64, pin_memory=apart)
        self._device, self._done = device, torch.Event(device) if apart else None

    def started(self) -> None:
        if self._done is not None:
            self._done.record(torch.get_device_module(self._device).current_stream(self._device))

    def wait(self) -> Tensor:
        """The host tensor, once the device is through with it."""
        if self._done is not None:
            self._done.synchronize()
        return self.host


class _Board:
    """What micro-batches read and write: tensors that stay where they are, since a captured graph is bound to them.

    Attributes:
        images: [B, C, H, W], by slot.
        rows: int64 [3, B]: slot, image id and sample id of each row.
        key: int64 [2], seed and stream.
        counts: int64 [B, K], votes by slot and class.
        invalid: int64 [B], rows without a vote by slot.
    """

    def __init__(self, size: int, shape: Sequence[int], dtype: torch.dtype, classes: int, device: torch.device) -> None:
        self.images = torch.zeros((size, *shape), dtype=dtype, device=device)
        self._table = torch.zeros(3 * size + 2, dtype=torch.int64, device=device)
        self.rows, self.key = self._table[:-2].view(3, size), self._table[-2:]
        self.counts = torch.zeros((size, classes), dtype=torch.int64, device=device)
        self.invalid = torch.zeros(size, dtype=torch.int64, device=device)
        self._staged = deque(_Transfer(self._table.shape, device) for _ in range(STAGED))

    def write(self, rows: NDArray[np.int64] | Tensor, key: Tensor) -> None:
        """Sets rows and key in one transfer, which nothing waits for."""
        self._staged.rotate()
        staged = self._staged[0]
        host = staged.wait()
        host[:-2] = torch.as_tensor(rows).flatten()
        host[-2:] = key
        self._table.copy_(host, non_blocking=True)
        staged.started()

    def take(self, slots: list[int]) -> _Transfer:
        """The votes [len(slots), K + 1] of some slots, which are set back to 0; one transfer from the device."""
        index = sent(torch.tensor(slots, dtype=torch.int64), self.counts.device)
        votes = torch.cat([self.counts[index], self.invalid[index, None]], 1)
        self.counts[index], self.invalid[index] = 0, 0
        transfer = _Transfer(votes.shape, votes.device)
        transfer.host.copy_(votes, non_blocking=True)
        transfer.started()
        return transfer

    def clear(self) -> None:
        self.counts.zero_()
        self.invalid.zero_()


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
        precision: "fp32", "bf16" or "fp16" (autocast), or "auto": bf16 where the processor computes in it.
        micro_batch: rows per forward pass; None chooses by image size and device.
        runner: "eager", "compiled" (torch.compile with frozen weights) or "openvino" (CPU).
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
        self.device = next((t.device for t in chain(base.parameters(), base.buffers())), torch.device("cpu"))
        self.micro_batch = micro_batch or default_micro_batch(shape, self.device)
        self.precision = resolve_precision(precision, self.device)
        self.dtype = DTYPES[self.precision]
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
        self.ahead = 0 if self.device.type == "cpu" else AHEAD
        self._running = False
        row_function, graph = self._settle()
        self.meta: dict[str, Any] = {
            "runner": runner,
            "precision": self.precision,
            "micro_batch": self.micro_batch,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "law": law.name,
            "clip": clip,
            "row_function": row_function,
        }
        if self.device.type == "cuda":
            self.meta["graph"] = graph

    @property
    def deviation(self) -> float:
        """Of the noise on an image from the law that radii speak of, in total variation."""
        return self.law.deviation(math.prod(self.shape))

    def run(self, jobs: Iterable[Job]) -> Iterator[Decision]:
        """Decides every job, in order, holding a micro-batch of images at most.

        Raises:
            RuntimeError: another run of this engine has not ended.
        """
        if self._running:
            raise RuntimeError("this engine is in the middle of another run; end or close that one first")
        self._running = True
        self._board.clear()
        try:
            yield from self._run(enumerate(jobs))
        finally:
            self._running = False

    def _run(self, waiting: Iterator[tuple[int, Job]]) -> Iterator[Decision]:
        free = list(range(self.micro_batch))
        flights: list[_Flight] = []
        drawn: deque[tuple[list[_Flight], _Transfer]] = deque()  # flights whose votes are on their way
        decided: dict[int, Decision] = {}
        next_out = 0
        while True:
            rows = self._fill(flights, free, waiting, len(decided))
            if rows is None and not drawn:
                return
            if rows is not None:
                self._board.write(rows.table(self.micro_batch), self._keys[rows.stream])
                self._step()
                done = [flight for flight, _, _ in rows.parts if not flight.left]
                if done:
                    drawn.append((done, self._board.take([flight.slot for flight in done])))
            # The device has work before votes are waited for; when they come changes no result.
            while len(drawn) > (self.ahead if rows is not None else 0):
                for flight, answer in _answers(*drawn.popleft()):
                    if isinstance(answer, Draw):
                        flight.draw, flight.taken = answer, 0
                        continue
                    decided[flight.index] = answer
                    free.append(flight.slot)
                    flights.remove(flight)
                if rows is None:
                    break
            while next_out in decided:
                yield decided.pop(next_out)
                next_out += 1

    def _fill(
        self, flights: list[_Flight], free: list[int], jobs: Iterator[tuple[int, Job]], held: int
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
            self._board.images[slot] = sent(job.image, self.device)
            draw = job.procedure.begin()
            flights.append(_Flight(index, slot, job, draw))
            open_rows[draw.stream] = open_rows.get(draw.stream, 0) + draw.count
        else:
            full = None
        open_flights = [flight for flight in flights if flight.left]
        if not open_flights:
            return None
        rows = _Rows(full or open_flights[0].draw.stream)
        room = self.micro_batch
        for flight in open_flights:
            if flight.draw.stream is rows.stream and room:
                count = min(flight.left, room)
                rows.parts.append((flight, flight.draw.first + flight.taken, count))
                flight.taken += count
                room -= count
        return rows

    @torch.no_grad()
    def _forward(self) -> Tensor:
        """Logits of the rows on the board; their votes go to the board too."""
        board = self._board
        slots, image_ids, sample_ids = board.rows
        replicas = ops.noisy_replicas(
            board.images, slots, image_ids, sample_ids, board.key, self.law, self.scale, self.shift, self.clip,
            self.dtype, torch.channels_last,
        )  # fmt: skip
        with evaluating(self.base), strict_arithmetic(self.device):
            logits = self.run_base(replicas)
        self._check_shape(logits)
        ops.tally(logits, slots, board.counts, board.invalid)
        return logits

    def _settle(self) -> tuple[bool, str]:
        """Fixes the function: its micro-batch, halved until it fits into memory, and how it runs. Checks it."""
        self._keys = {stream: stream_key(self.seed, stream) for stream in Stream}
        while True:
            try:
                self._board = _Board(self.micro_batch, self.shape, self.image_dtype, self.num_classes, self.device)
                self._forward()  # also compiles, and finds a wrong number of classes
                self._step, graph = capture(self._forward, self.device)
                return self._check_base(), graph
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise
            self.micro_batch //= 2  # outside of the handler, which holds on to the tensors of the failed pass

    def _check_shape(self, logits: Any) -> None:
        if not isinstance(logits, Tensor):
            raise ValueError(f"the base classifier returns {type(logits).__name__}; it must return logits [B, K]")
        if logits.shape != (self.micro_batch, self.num_classes):
            raise ValueError(
                f"num_classes is {self.num_classes}; the base classifier turns {self.micro_batch} images into "
                f"{tuple(logits.shape)}"
            )

    def _check_base(self) -> bool:
        """Whether the logits of a row depend on that row alone: the same replicas in other places, and among other
        rows, must get the same votes from logits that are the same up to rounding."""
        size, images = self.micro_batch, self._board.images
        generator = torch.Generator().manual_seed(0)
        random = torch.randint(0, 256, images.shape, generator=generator)
        images.copy_(random if self.image_dtype == torch.uint8 else random / 255)
        rows, order = torch.arange(size), torch.randperm(size, generator=generator)

        def logits(slots: Tensor, samples: Tensor) -> Tensor:
            self._board.write(torch.stack([slots, slots, samples]), self._keys[Stream.PREDICT])
            return self._step().clone()

        half = size // 2
        straight, shuffled = logits(rows, rows), logits(order, order)
        among_others = logits(rows, torch.where(rows < half, rows, rows + size))
        return self._same(straight[order.to(self.device)], shuffled) and self._same(
            straight[:half], among_others[:half]
        )

    def _same(self, a: Tensor, b: Tensor) -> bool:
        a, b = a.float(), b.float()
        largest = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
        near = torch.allclose(a, b, rtol=0, atol=ROUNDING[self.precision] * largest, equal_nan=True)
        return near and torch.equal(a.argmax(1), b.argmax(1))


def _answers(flights: list[_Flight], votes: _Transfer) -> Iterator[tuple[_Flight, Draw | Decision]]:
    """What the procedures make of their votes."""
    for flight, counts in zip(flights, votes.wait().numpy(), strict=True):
        yield flight, flight.job.procedure.update(counts)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, which the host does not wait for."""
    if tensor.device.type == "cpu" and device.type != "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def capture(forward: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], Tensor], str]:
    """A function as one CUDA graph that is replayed; as it is where it cannot be captured, and why.

    Its inputs and outputs stay in place, the returned tensor included: clone what is to outlive the next call.
    """
    if device.type != "cuda":
        return forward, f"none on {device.type}"
    broke: RuntimeError | None = None
    try:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # which makes its device the current one
            forward()  # what libraries set up at a first call must not be captured
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    logits = forward()
                except RuntimeError as error:
                    broke = error  # what ends the capture complains too, and would hide it
                    raise
        torch.cuda.current_stream(device).wait_stream(stream)
    except RuntimeError as error:
        broke = broke or error
        if isinstance(broke, torch.OutOfMemoryError):
            raise broke from None
        return forward, f"not captured: {str(broke).splitlines()[0]}"

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay, "captured"


def default_micro_batch(shape: tuple[int, int, int], device: torch.device) -> int:
    """Images of CIFAR size: 128 on a CPU, enough for its cores and small enough for their caches; 1024 on a GPU (not
    measured). Fewer of larger ones."""
    rows = 128 if device.type == "cpu" else 1024
    return min(4 * rows, max(rows // 8, rows * 3072 // math.prod(shape)))


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto" is bf16 where the hardware multiplies in it (AMX, AVX512-BF16, CUDA from Ampere on), else fp32."""
    choice("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and capable else "fp32"

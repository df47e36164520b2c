"""Keeps micro-batches of replicas of fixed shape full from many images, runs the base classifier, tallies votes.

Many images are in flight at once. Each micro-batch takes rows of whatever draws are open, an image whose procedure has
decided leaves, the next one enters, and results come out in order. Since noise is a pure function of seed, image and
sample, and procedures see votes only when a draw is complete, nothing depends on this scheduling.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import ops
from .fused import Fused
from .lanes import DEPTH, Board, Lane, Transfer, capture, idle, make_lanes, sent
from .noise import Law, Stream, stream_key
from .noisy_network import NoisyNetwork
from .procedures import Decision, Draw, Procedure, Votes
from .runners import device_of, evaluating, make_runners, micro_batch_of, strict_arithmetic
from .specs import choice
from .voting import PREDICTION, Voting

SLOTS = 4  # images in flight at most, in micro-batches of all lanes: images that need few samples fill them too

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)
ROUNDING = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2.5e-3}  # of the largest logit, after the layers of a deep network


@dataclass(frozen=True)
class Job:
    """One image [C, H, W], the number its noise is drawn under, and the procedure that decides on it."""

    image: Tensor
    image_id: int
    procedure: Procedure


@dataclass(eq=False)
class _Flight:
    """A job under way: its slot, its open draw, how many samples of it were handed out, and to which lanes."""

    index: int
    slot: int
    job: Job
    draw: Draw
    taken: int = 0
    lanes: set[Lane] = field(default_factory=set)

    @property
    def left(self) -> int:
        return self.draw.count - self.taken


_Kin = tuple[Stream, int]  # of rows that may share a micro-batch


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


@dataclass(eq=False)
class _Drawn:
    """Flights whose draws were handed out whole; votes [flights, V K + 1] are on their way, a part from each lane."""

    flights: list[_Flight]
    parts: list[tuple[Lane, Future[Transfer]]]

    def arrived(self) -> bool:
        return all(part.done() and part.result().arrived() for _, part in self.parts)

    def imminent(self) -> bool:
        """Whether the lanes have computed them, and they are only to be fetched."""
        return not any(lane.load() for lane, _ in self.parts)

    def wait(self) -> None:
        for _, part in self.parts:
            part.result().wait()

    def answers(self) -> Iterator[tuple[_Flight, Draw | Decision]]:
        """What the procedures make of their votes."""
        votes: Votes = np.sum([part.result().wait().numpy() for _, part in self.parts], axis=0)
        for lane, _ in self.parts:
            lane.load()  # raises what kept it from voting
        for flight, counts in zip(self.flights, votes, strict=True):
            yield flight, flight.job.procedure.update(counts)


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
        micro_batch: rows per forward pass, of which each core of a CPU makes its own; None chooses by image size and
            device.
        runner: "eager", "compiled" (torch.compile with frozen weights), "openvino" (CPU) or "fused" (CIFAR ResNets in
            bf16 on some CPUs).
        clip: clamp noisy images to their range; then part of the function.
        votings: voting rules, V of them, of which each counts every pass. Procedures are handed [V K + 1]: counts by
            rule and class in units of the rule, then the rows without a vote. Those of `procedures` that test or bound
            anything take votes of "prediction" alone.

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
        votings: Sequence[Voting] = (PREDICTION,),
    ) -> None:
        self.base, self.shape, self.num_classes, self.seed, self.clip = base, shape, num_classes, seed, clip
        self.device = device_of(base)
        self.micro_batch = micro_batch or default_micro_batch(shape, self.device)
        self.precision = resolve_precision(precision, self.device)
        self.dtype, self.runner = DTYPES[self.precision], runner
        wrong = {p.dtype for p in base.parameters()} - {torch.float32}
        if wrong:
            raise ValueError(
                f"the base classifier has weights of {', '.join(map(str, wrong))}; keep them float32, and choose what "
                "is computed in by precision"
            )
        self.image_dtype = image_dtype
        self.net = NoisyNetwork(base)
        self.law = law.to(self.device)
        self.votings = [voting.to(self.device) for voting in votings]
        self.scale, self.shift = (t.to(self.device) for t in ops.affine(normalize, shape[0], image_dtype))
        self._running = False
        self.lanes = make_lanes(self.device)
        row_function, graph = self._settle()
        self.meta: dict[str, Any] = {
            "runner": runner,
            "precision": self.precision,
            "micro_batch": self.micro_batch,
            "device": self.device.type,
            "law": law.name,
            "clip": clip,
            "row_function": row_function,
        }
        if self.device.type == "cuda":
            self.meta["graph"] = graph
        if isinstance(self.lanes[0].run_base, Fused):
            self.meta["processor"] = self.lanes[0].run_base.processor  # each rounds in an order of its own

    @property
    def deviation(self) -> float:
        """Of the noise on an image from the law that radii speak of, in total variation."""
        return self.law.deviation(math.prod(self.shape))

    @property
    def slots(self) -> int:
        """Images in flight at most."""
        return SLOTS * self.micro_batch * len(self.lanes)

    def run(self, jobs: Iterable[Job]) -> Iterator[Decision]:
        """Decides every job, in order, with a bounded number of images in memory.

        The base classifier is in eval mode until the last decision, or until this iterator is closed.

        Raises:
            RuntimeError: another run of this engine has not ended.
        """
        if self._running:
            raise RuntimeError("this engine is in the middle of another run; end or close that one first")
        self._running = True
        for lane in self.lanes:
            lane.board.clear()
        try:
            if self.runner == "eager":  # made anew, since nobody can see whether code or attributes of the base changed
                self.net = NoisyNetwork(self.base)
            with evaluating(self.net.network):
                if self.runner == "eager":
                    self._set_runners()
                yield from self._run(enumerate(jobs))
        finally:
            for lane in self.lanes:
                lane.finish()
            self._running = False

    def _run(self, waiting: Iterator[tuple[int, Job]]) -> Iterator[Decision]:
        free = list(range(self.slots))
        flights: list[_Flight] = []
        drawn: list[_Drawn] = []
        decided: dict[int, Decision] = {}
        next_out = 0
        while True:
            lane = idle(self.lanes)
            arrived = [one for one in drawn if one.arrived()]
            for flight, answer in chain.from_iterable(one.answers() for one in arrived):
                if isinstance(answer, Draw):
                    flight.draw, flight.taken, flight.lanes = answer, 0, set()
                    continue
                decided[flight.index] = answer
                free.append(flight.slot)
                flights.remove(flight)
            drawn = [one for one in drawn if one not in arrived]
            while next_out in decided:
                yield decided.pop(next_out)
                next_out += 1
            # Votes on their way will ask for more rows. Where they take long, an idle lane computes what there is.
            pad = not drawn or not (lane.load() or any(one.imminent() for one in drawn))
            rows = self._fill(flights, free, waiting, len(decided), pad)
            if rows is not None:
                drawn += self._hand_out(lane, rows)
            elif not drawn:
                return
            if rows is None or len(drawn) > DEPTH * len(self.lanes):
                wait_for_any(drawn)

    def _fill(
        self, flights: list[_Flight], free: list[int], jobs: Iterator[tuple[int, Job]], held: int, pad: bool
    ) -> _Rows | None:
        """Rows for the next micro-batch, all of a kin: that of the oldest flight whose kin can fill it. New images
        enter until one can. If none does, and only if `pad`, the kin with most rows. Once as many results as there are
        slots are held up by the oldest flight, that one goes first.
        """
        open_rows: Counter[_Kin] = Counter()
        for flight in flights:
            open_rows[self._kin(flight)] += self._open(flight)
        full = None
        while held < self.slots:
            full = next((kin for kin, count in open_rows.items() if count >= self.micro_batch), None)
            entering = next(jobs, None) if full is None and free else None
            if entering is None:
                break
            index, job = entering
            slot = free.pop()
            self._images[slot] = sent(job.image, self.device)
            flights.append(_Flight(index, slot, job, job.procedure.begin()))
            open_rows[self._kin(flights[-1])] += self._open(flights[-1])
        open_flights = [flight for flight in flights if flight.left]
        if not open_flights or (full is None and not pad):
            return None
        most = max(open_rows, key=open_rows.__getitem__) if held < self.slots else self._kin(open_flights[0])
        chosen = full or most
        rows = _Rows(chosen[0])
        room = self.micro_batch
        for flight in open_flights:
            if room and self._kin(flight) == chosen:
                count = min(self._open(flight), room)
                rows.parts.append((flight, flight.draw.first + flight.taken, count))
                flight.taken += count
                room -= count
        return rows

    def _kin(self, flight: _Flight) -> _Kin:
        """What the next rows of a flight must share with others in a micro-batch: the stream, which is in the key of
        the noise, and the number of the sample where the base classifier has noise of its own."""
        return flight.draw.stream, flight.draw.first + flight.taken if self.net.noisy else 0

    def _open(self, flight: _Flight) -> int:
        """Rows that a flight can give to a micro-batch."""
        return min(flight.left, 1) if self.net.noisy else flight.left

    def _hand_out(self, lane: Lane, rows: _Rows) -> list[_Drawn]:
        """Gives a micro-batch to a lane, and asks for the votes of the draws that it completes."""
        lane.start(rows.table(self.micro_batch), self._keys[rows.stream])
        done = []
        for flight, _, _ in rows.parts:
            flight.lanes.add(lane)
            if not flight.left:
                done.append(flight)
        if not done:
            return []
        slots = [flight.slot for flight in done]
        having = [lane for lane in self.lanes if any(lane in flight.lanes for flight in done)]
        return [_Drawn(done, [(lane, lane.call(lane.board.take, slots)) for lane in having])]

    @torch.no_grad()
    def _forward(self, lane: Lane) -> Tensor:
        """Logits of the rows on a lane's board; their votes go to the board too."""
        board, run = lane.board, lane.run_base
        slots, image_ids, sample_ids = board.rows
        noisy = (
            self._images, slots, image_ids, sample_ids, board.key, self.law, self.scale, self.shift, self.clip
        )  # fmt: skip
        drawn = self.net.draw(board.key, sample_ids[:1])
        votes = list(zip(self.votings, board.counts, board.invalid, strict=True))
        if isinstance(run, Fused):
            self._check_shape((self.micro_batch, run.classes))
            logits = run.votes(noisy, drawn, *votes.pop(0))
        else:
            replicas = ops.noisy_replicas(*noisy, self.dtype, torch.channels_last)
            with strict_arithmetic(self.device):
                logits = run(replicas, *drawn)
            self._check_logits(logits)
        for voting, counts, invalid in votes:
            ops.tally(logits, slots, counts, invalid, voting)
        return logits

    def _settle(self) -> tuple[bool, str]:
        """Fixes the function: its micro-batch, halved until it fits into memory, and how it runs. Checks it."""
        self._keys = {stream: stream_key(self.seed, stream) for stream in Stream}
        while True:
            try:
                with (
                    evaluating(self.net.network),
                    torch.inference_mode(False),
                ):  # whose tensors other threads cannot write
                    graph = self._prepare()
                    return self._check_base(), graph
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise
            self.micro_batch //= 2  # outside of the handler, which holds on to the tensors of the failed pass

    def _prepare(self) -> str:
        """Boards, runners, and a pass of each lane, which finds a wrong number of classes; how the passes are made."""
        self._images = torch.zeros((self.slots, *self.shape), dtype=self.image_dtype, device=self.device)
        for lane in self.lanes:
            lane.board = Board(self.micro_batch, self.slots, self.num_classes, self.device, len(self.votings))
        self._set_runners()
        for lane in self.lanes:
            forward = partial(self._forward, lane)
            lane.call(forward).result()
            lane.step, graph = lane.call(capture, forward, self.device).result()
        return graph

    def _set_runners(self) -> None:
        """Made by a lane, for the one core that it has."""
        replicas = micro_batch_of((self.micro_batch, *self.shape), self.dtype, self.device)
        examples = (replicas, *self.net.draw(self._keys[Stream.PREDICT], replicas.new_zeros(1, dtype=torch.int64)))
        made = self.lanes[0].call(
            make_runners, self.net.network, self.runner, self.dtype, self.device, examples, len(self.lanes)
        )
        for lane, run_base in zip(self.lanes, made.result(), strict=True):
            lane.run_base = run_base

    def _check_logits(self, logits: Any) -> None:
        if not isinstance(logits, Tensor):
            raise ValueError(f"the base classifier returns {type(logits).__name__}; it must return logits [B, K]")
        self._check_shape(tuple(logits.shape))

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if shape != (self.micro_batch, self.num_classes):
            raise ValueError(
                f"num_classes is {self.num_classes}; the base classifier turns {self.micro_batch} images into {shape}"
            )

    def _check_base(self) -> bool:
        """Whether the logits of a row depend on that row alone: the same replicas in other places, and among other
        rows, must get the same votes from logits that are the same up to rounding."""
        size, images = self.micro_batch, self._images[: 2 * self.micro_batch]
        generator = torch.Generator().manual_seed(0)
        random = torch.randint(0, 256, images.shape, generator=generator)
        images.copy_(random if self.image_dtype == torch.uint8 else random / 255)
        rows, order = torch.arange(size), torch.randperm(size, generator=generator)
        half = size // 2
        straight, shuffled = self._logits(rows), self._logits(order)
        among_others = self._logits(torch.where(rows < half, rows, rows + size))
        return self._same(straight[order.to(self.device)], shuffled) and self._same(
            straight[:half], among_others[:half]
        )

    def _logits(self, slots: Tensor) -> Tensor:
        """Logits of a micro-batch of samples of stream PREDICT, all of one number, of the images in these slots, whose
        ids are their slots."""
        lane = self.lanes[0]

        def compute() -> Tensor:
            lane.board.write(torch.stack([slots, slots, torch.zeros_like(slots)]), self._keys[Stream.PREDICT])
            return lane.step().clone()

        return lane.call(compute).result()

    def _same(self, a: Tensor, b: Tensor) -> bool:
        a, b = a.float(), b.float()
        largest = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
        near = torch.allclose(a, b, rtol=0, atol=ROUNDING[self.precision] * largest, equal_nan=True)
        return near and torch.equal(a.argmax(1), b.argmax(1))


def wait_for_any(drawn: list[_Drawn]) -> None:
    """Waits until a part of some votes has come; where all are on their way from a device, for the oldest."""
    coming = [part for one in drawn for _, part in one.parts if not part.done()]
    if coming:
        wait(coming, return_when=FIRST_COMPLETED)
    else:
        drawn[0].wait()


def default_micro_batch(shape: Sequence[int], device: torch.device) -> int:
    """Images of CIFAR size: 64 for a lane of a CPU, 1024 on a GPU (not measured). Fewer of larger ones.

    Microseconds a sample with 16, 32, 64, 128 rows by OpenVINO in bf16, two lanes of an AMD EPYC (family 25): ResNet-20
    244, 217, 207, 200; ResNet-110 1,247, 1,213, 1,205. ResNet-50 at 224x224 with 2, 4, 8, 16: 19,200 to 19,500. Early
    stopping fills small micro-batches better.
    """
    rows = 64 if device.type == "cpu" else 1024
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

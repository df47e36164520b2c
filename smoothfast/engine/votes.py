"""The loop from noisy images to votes: micro-batches kept full from many images, the base classifier, the tally."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from ..modules import evaluating
from ..ops.philox import stream_key
from ..procedures import Decision
from ..runners import Runner
from ..runners.fused import Fused
from ..runners.precision import strict_arithmetic
from ..streams import Stream
from ..voting import PREDICTION, Voting
from .buffers import LaneBuffers, sent
from .function import BaseFunction
from .graphs import Step, capture
from .lanes import DEPTH, Lane, idle, make_lanes
from .noisy_network import NoisyNetwork
from .schedule import Job, PendingVotes, Rows, Schedule, wait_for_any

SLOTS = 4  # images in flight at most, in micro-batches of all lanes: images that need few samples fill them too

ROUNDING = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2.5e-3}  # of the largest logit, after the layers of a deep network


class VoteLane(Lane):
    """A lane with what its micro-batches take.

    Attributes:
        buffers: what they read and write.
        run_base: the base classifier as this lane runs it.
        step: computes the micro-batch that is in the buffers, and returns its logits.
    """

    buffers: LaneBuffers
    run_base: Runner
    step: Step

    def compute(self, rows: NDArray[np.int64] | Tensor, key: Tensor) -> Tensor:
        """Logits of a micro-batch; its votes go to the buffers."""
        self.buffers.write(rows, key)
        return self.step()


class Engine:
    """The loop that feeds one fixed function with the samples that procedures ask for, and counts their votes.

    The choices that make up the function are settled here, before anything is sampled; `meta` records them.

    Args:
        function: what runs. Its micro-batch is halved until it fits into memory.
        num_classes: K; checked against what the base classifier returns.
        votings: voting rules, V of them, of which each counts every pass. Procedures are handed [V K + 1]: counts by
            rule and class in units of the rule, then the rows without a vote. Those of `procedures` that test or bound
            anything take votes of "prediction" alone.

    Attributes:
        function: as it was settled.
        meta: what it is and how it runs, for records.

    Raises:
        ValueError: the base classifier does not return [B, num_classes], or has weights of another dtype than float32.
        DeclinedError: the runner cannot take the base classifier.
    """

    def __init__(self, function: BaseFunction, num_classes: int, votings: Sequence[Voting] = (PREDICTION,)) -> None:
        wrong = {p.dtype for p in function.base.parameters()} - {torch.float32}
        if wrong:
            raise ValueError(
                f"the base classifier has weights of {', '.join(map(str, wrong))}; keep them float32, and choose what "
                "is computed in by precision"
            )
        self.function, self.num_classes = function, num_classes
        self._asked, self._asked_key = function, function.key()
        self.votings = [voting.to(function.device) for voting in votings]
        self.net = NoisyNetwork(function.base)
        self.lanes = make_lanes(function.device, VoteLane)
        self._keys = {stream: stream_key(function.seed, stream) for stream in Stream}
        self._running = False
        row_function, graph = self._settle()
        self.meta: dict[str, Any] = self.function.meta | {"row_function": row_function}
        if function.device.type == "cuda":
            self.meta["graph"] = graph
        if isinstance(self.lanes[0].run_base, Fused):
            self.meta["processor"] = self.lanes[0].run_base.processor  # each rounds in an order of its own

    @property
    def sound(self) -> bool:
        """Whether radii from its votes hold in the arithmetic actually used (docs/soundness.md)."""
        return self.function.law.name == "lattice" and bool(self.meta["row_function"]) and self.unchanged()

    def unchanged(self) -> bool:
        """Whether the function is what it was made of: a base classifier that changes itself is no function."""
        return bool(self._asked.key() == self._asked_key)

    @property
    def slots(self) -> int:
        """Images in flight at most."""
        return SLOTS * self.function.micro_batch * len(self.lanes)

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
            lane.buffers.clear()
        eager = self.function.runner == "eager"
        try:
            if eager:  # made anew, since nobody can see whether code or attributes of the base changed
                self.net = NoisyNetwork(self.function.base)
            with evaluating(self.net.network):
                if eager:
                    self._set_runners()
                yield from self._run(jobs)
        finally:
            for lane in self.lanes:
                lane.finish()
            self._running = False

    def _run(self, jobs: Iterable[Job]) -> Iterator[Decision]:
        schedule = Schedule(jobs, self.slots, self.function.micro_batch, self.net.noisy, self._place)
        pending: list[PendingVotes] = []
        while True:
            lane = idle(self.lanes)
            arrived = [votes for votes in pending if votes.arrived()]
            for votes in arrived:
                schedule.answer(votes)
            pending = [votes for votes in pending if votes not in arrived]
            yield from schedule.decisions()
            # Votes on their way will ask for more rows. Where they take long, an idle lane computes what there is.
            pad = not pending or not (lane.load() or any(votes.imminent() for votes in pending))
            rows = schedule.next_rows(pad)
            if rows is not None:
                pending += self._hand_out(lane, rows)
            elif not pending:
                return
            if rows is None or len(pending) > DEPTH * len(self.lanes):
                wait_for_any(pending)

    def _place(self, slot: int, image: Tensor) -> None:
        self._images[slot] = sent(image, self.function.device)

    def _hand_out(self, lane: VoteLane, rows: Rows) -> list[PendingVotes]:
        """Gives a micro-batch to a lane, and asks for the votes of the draws that it completes."""
        lane.start(lane.compute, rows.table(self.function.micro_batch), self._keys[rows.stream])
        done = rows.completed(lane)
        if not done:
            return []
        slots = [flight.slot for flight in done]
        having = [lane for lane in self.lanes if any(lane in flight.lanes for flight in done)]
        return [PendingVotes(done, [(lane, lane.call(lane.buffers.take, slots)) for lane in having])]

    @torch.no_grad()
    def _forward(self, lane: VoteLane) -> Tensor:
        """Logits of the rows in a lane's buffers; their votes go to the buffers too."""
        buffers, run, function = lane.buffers, lane.run_base, self.function
        slots, _, sample_ids = buffers.rows
        drawn = self.net.draw(buffers.key, sample_ids[:1])
        votes = list(zip(self.votings, buffers.counts, buffers.invalid, strict=True))
        if isinstance(run, Fused):
            self._check_shape((function.micro_batch, run.classes))
            noisy = function.noisy(self._images, buffers.rows, buffers.key)
            logits = run.votes(noisy, drawn, *votes.pop(0))
        else:
            replicas = function.replicas(self._images, buffers.rows, buffers.key)
            with strict_arithmetic(function.device):
                logits = run(replicas, *drawn)
            self._check_logits(logits)
        for voting, counts, invalid in votes:
            ops.tally(logits, slots, counts, invalid, voting)
        return logits

    # ---- what is settled before anything is sampled ------------------------------------------------------------------

    def _settle(self) -> tuple[bool, str]:
        """Fixes the function: its micro-batch, halved until it fits into memory, and how it runs. Checks it."""
        while True:
            try:
                with (
                    evaluating(self.net.network),
                    torch.inference_mode(False),
                ):  # whose tensors other threads cannot write
                    graph = self._prepare()
                    return self._is_row_function(), graph
            except torch.OutOfMemoryError:
                if self.function.micro_batch == 1:
                    raise
            # Outside of the handler, which holds on to the tensors of the failed pass.
            self.function = replace(self.function, micro_batch=self.function.micro_batch // 2)

    def _prepare(self) -> str:
        """Buffers, runners, and a pass of each lane, which finds a wrong number of classes; how the passes are made."""
        function = self.function
        self._images = torch.zeros((self.slots, *function.shape), dtype=function.image_dtype, device=function.device)
        for lane in self.lanes:
            lane.buffers = LaneBuffers(
                function.micro_batch, self.slots, self.num_classes, function.device, len(self.votings)
            )
        self._set_runners()
        for lane in self.lanes:
            forward = partial(self._forward, lane)
            lane.call(forward).result()
            lane.step, graph = lane.call(capture, forward, function.device).result()
        return graph

    def _set_runners(self) -> None:
        """Makes the runners in a lane, for the one core that it has."""
        examples = self.function.examples(self.net)
        made = self.lanes[0].call(self.function.runners, self.net.network, examples, len(self.lanes))
        for lane, run_base in zip(self.lanes, made.result(), strict=True):
            lane.run_base = run_base

    def _check_logits(self, logits: Any) -> None:
        if not isinstance(logits, Tensor):
            raise ValueError(f"the base classifier returns {type(logits).__name__}; it must return logits [B, K]")
        self._check_shape(tuple(logits.shape))

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        rows = self.function.micro_batch
        if shape != (rows, self.num_classes):
            raise ValueError(f"num_classes is {self.num_classes}; the base classifier turns {rows} images into {shape}")

    def _is_row_function(self) -> bool:
        """Whether the logits of a row depend on that row alone: the same replicas in other places, and among other
        rows, must get the same votes from logits that are the same up to rounding."""
        size, images = self.function.micro_batch, self._images[: 2 * self.function.micro_batch]
        generator = torch.Generator().manual_seed(0)
        random = torch.randint(0, 256, images.shape, generator=generator)
        images.copy_(random if self.function.image_dtype == torch.uint8 else random / 255)
        rows, order = torch.arange(size), torch.randperm(size, generator=generator)
        half = size // 2
        straight, shuffled = self._logits(rows), self._logits(order)
        among_others = self._logits(torch.where(rows < half, rows, rows + size))
        return self._same(straight[order.to(self.function.device)], shuffled) and self._same(
            straight[:half], among_others[:half]
        )

    def _logits(self, slots: Tensor) -> Tensor:
        """Logits of a micro-batch of samples of stream PREDICT, all of one number, of the images in these slots, whose
        ids are their slots."""
        lane = self.lanes[0]
        rows = torch.stack([slots, slots, torch.zeros_like(slots)])
        return lane.call(lambda: lane.compute(rows, self._keys[Stream.PREDICT]).clone()).result()

    def _same(self, a: Tensor, b: Tensor) -> bool:
        a, b = a.float(), b.float()
        largest = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
        near = torch.allclose(a, b, rtol=0, atol=ROUNDING[self.function.precision] * largest, equal_nan=True)
        return near and torch.equal(a.argmax(1), b.argmax(1))

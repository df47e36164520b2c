"""The loop from noisy images to votes: micro-batches kept full from many images, the base classifier, the tally."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from ..modules import evaluating, weights_sha256
from ..ops.philox import stream_key
from ..procedures import Decision
from ..runners import Runner
from ..runners.fused import FromImages, Fused
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

# Of the largest logit, after the layers of a deep network.
ROUNDING = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2.5e-3, "int8": 0.0}
NO, ROUNDED, EXACT = AGREEMENTS = ("no", "up to rounding", "bit for bit")
"""Degrees to which the logits of a row depend on that row alone, the worst first."""


def is_looked_at(number: int) -> bool:
    """Tells whether a micro-batch is one of those of which rows are computed twice: the first, 4th, 16th, 64th, …"""
    return number.bit_count() == 1 and number.bit_length() % 2 == 1


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

    def logits(self, rows: NDArray[np.int64] | Tensor, key: Tensor) -> Tensor:
        """Logits of a micro-batch without votes, in a tensor of their own."""
        with self.buffers.kept():
            return self.compute(rows, key).clone()


class Engine:
    """The loop that feeds one fixed function with the samples that procedures ask for, and counts their votes.

    The choices that make up the function are settled here, before anything is sampled; `meta` records them.

    Args:
        function: what runs. Its micro-batch is halved until it fits into memory.
        votings: voting rules, V of them, of which each counts every pass. Procedures are handed [V K + 1]: counts by
            rule and class in units of the rule, then the rows without a vote. Those of `procedures` that test or bound
            anything take votes of "prediction" alone.

    Attributes:
        function: as it was settled.
        choices: what it is and how it runs, for records.

    Raises:
        ValueError: the base classifier does not return [B, K] for a micro-batch.
        DeclinedError: the runner cannot take the base classifier.
    """

    def __init__(self, function: BaseFunction, votings: Sequence[Voting] = (PREDICTION,)) -> None:
        self.function, self.num_classes = function, function.num_classes
        self._asked, self._asked_key = function, function.key()
        self.votings = [voting.to(function.device) for voting in votings]
        self.net = NoisyNetwork(function.base)
        self.lanes = make_lanes(function.device, VoteLane)
        self._keys = {stream: stream_key(function.seed, stream) for stream in Stream}
        self._running = False
        self._handed_out = 0
        agreement, graph = self._settle()
        self._agreements = {agreement}  # of all looks, to which lanes add theirs
        self.choices: dict[str, Any] = self.function.meta | {"weights_sha256": weights_sha256(function.base)}
        if function.device.type == "cuda":
            self.choices["graph"] = graph
        if isinstance(self.lanes[0].run_base, Fused):
            self.choices["arithmetic"] = self.lanes[0].run_base.arithmetic  # each rounds in its own way

    @property
    def meta(self) -> dict[str, Any]:
        """The choices, and as "row_function" how far the logits of a row were seen to depend on it alone: one of
        `AGREEMENTS`."""
        return self.choices | {"row_function": min(self._agreements, key=AGREEMENTS.index)}

    @property
    def sound(self) -> bool:
        """Whether radii from its votes hold in the arithmetic actually used (docs/soundness.md)."""
        return self.function.law.name == "lattice" and self._agreements == {EXACT} and self.unchanged()

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
        try:
            for lane in self.lanes:
                lane.buffers.clear()
            eager = self.function.runner == "eager"
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
        table, key = rows.table(self.function.micro_batch), self._keys[rows.stream]
        self._handed_out += 1
        lane.start(partial(self._look_closer, lane) if is_looked_at(self._handed_out) else lane.compute, table, key)
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
        if isinstance(run, FromImages):
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

    def _settle(self) -> tuple[str, str]:
        """Fixes the function: its micro-batch, halved until it fits into memory, and how it runs. Checks it."""
        while True:
            try:
                with (
                    evaluating(self.net.network),
                    torch.inference_mode(False),
                ):  # whose tensors other threads cannot write
                    graph = self._prepare()
                    return self._row_agreement(), graph
            except torch.OutOfMemoryError:
                if self.function.micro_batch == 1:
                    raise
            # Outside of the handler, which holds on to the tensors of the failed pass.
            self.function = replace(self.function, micro_batch=self.function.micro_batch // 2)

    def _prepare(self) -> str:
        """Buffers, runners, and a pass of each lane, which finds a wrong number of classes; how the passes are made."""
        function = self.function
        # Beyond the slots stand a black and a white image, which rows of images in flight are tested beside.
        self._extremes = _, white = self.slots, self.slots + 1
        size = (self.slots + 2, *function.shape)
        self._images = torch.zeros(size, dtype=function.image_dtype, device=function.device)
        self._images[white] = 255 if function.image_dtype == torch.uint8 else 1
        for lane in self.lanes:
            lane.buffers = LaneBuffers(
                function.micro_batch, self.slots + 2, self.num_classes, function.device, len(self.votings)
            )
        self._set_runners()
        for lane in self.lanes:
            forward = partial(self._forward, lane)
            lane.result(forward)
            lane.step, graph = lane.result(capture, forward, function.device)
        return graph

    def _set_runners(self) -> None:
        """Makes the runners in a lane, for the one core that it has."""
        examples = self.function.examples(self.net)
        made = self.lanes[0].result(self.function.runners, self.net.network, examples, len(self.lanes))
        for lane, run_base in zip(self.lanes, made, strict=True):
            lane.run_base = run_base

    def _check_logits(self, logits: Any) -> None:
        if not isinstance(logits, Tensor):
            raise ValueError(f"the base classifier returns {type(logits).__name__}; it must return logits [B, K]")
        self._check_shape(tuple(logits.shape))

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        rows = self.function.micro_batch
        if shape != (rows, self.num_classes):
            raise ValueError(f"num_classes is {self.num_classes}; the base classifier turns {rows} images into {shape}")

    # ---- whether the logits of a row depend on that row alone --------------------------------------------------------

    def _row_agreement(self) -> str:
        """The degree to which rows have the same logits in other places and among other rows: an image of noise, the
        black one and the white one, each under the noise of every row, among their like and among the others.

        A scale taken from the batch is another in a batch of black images alone, or of white ones; images of noise all
        have the same maximum.
        """
        size, generator = self.function.micro_batch, torch.Generator().manual_seed(0)
        random = torch.randint(0, 256, self._images[:size].shape, generator=generator)
        self._images[:size].copy_(random if self.function.image_dtype == torch.uint8 else random / 255)
        rows, lanes = torch.arange(size), cycle(self.lanes)
        kinds = [rows, *(torch.full_like(rows, slot) for slot in self._extremes)]
        alone = torch.stack([self._logits(next(lanes), slots, rows) for slots in kinds])
        found = []
        for turn in range(len(kinds)):
            kind, places = (rows + turn) % len(kinds), torch.randperm(size, generator=generator)
            mixed = self._logits(next(lanes), torch.stack(kinds)[kind, rows][places], rows[places])
            found.append(self._agreement_of(mixed, alone[kind, rows][places]))
        return min(found, key=AGREEMENTS.index)

    def _logits(self, lane: VoteLane, slots: Tensor, image_ids: Tensor) -> Tensor:
        """Logits of a micro-batch of samples of stream PREDICT, all of number 0, on the CPU."""
        table = torch.stack([slots, image_ids, torch.zeros_like(slots)])
        logits: Tensor = lane.result(lane.logits, table, self._keys[Stream.PREDICT])
        return logits.cpu()

    def _look_closer(self, lane: VoteLane, table: NDArray[np.int64], key: Tensor) -> None:
        """Computes a micro-batch, then every second row again, in another place, between black and white images."""
        rows, alone = torch.from_numpy(table), lane.compute(table, key).cpu().clone()
        kept = torch.arange(0, rows.shape[1], 2)
        places = rows.shape[1] - 1 - kept
        others = torch.where(rows < 0, rows[:, :1], rows).flip(1)  # padding takes the numbers of the first row
        others[0] = torch.tensor(self._extremes).repeat(len(kept) + 1)[: rows.shape[1]]
        others[0, places] = rows[0, kept]
        self._agreements.add(self._agreement_of(lane.logits(others, key).cpu()[places], alone[kept]))

    def _agreement_of(self, a: Tensor, b: Tensor) -> str:
        if torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)):
            return EXACT
        a, b = a.float(), b.float()
        largest = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
        near = torch.allclose(a, b, rtol=0, atol=ROUNDING[self.function.precision] * largest, equal_nan=True)
        return ROUNDED if near and torch.equal(a.argmax(1), b.argmax(1)) else NO

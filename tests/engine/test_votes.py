"""The engine against a plain loop over images and samples, and its independence of how the rows are packed."""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.classifiers import Pixels
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import ops
from smoothfast.engine import BaseFunction, Engine, Job, default_micro_batch
from smoothfast.engine.graphs import capture
from smoothfast.modules import evaluating
from smoothfast.noise import Law, Stream, gaussian_law, lattice_law, stream_key
from smoothfast.normalization import Normalization
from smoothfast.procedures import (
    ABSTAIN,
    Count,
    Decision,
    Draw,
    FixedCertify,
    FixedPredict,
    GridCertify,
    Procedure,
    SequentialCertify,
    SequentialPredict,
    ToleranceCertify,
    Votes,
)
from smoothfast.runners.precision import DTYPES, resolve_precision

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, CLASSES, SEED = (3, 4, 4), 5, 2**40 + 7
IMAGES = torch.randint(0, 256, (6, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STATISTICS = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


class Scripted:
    """Asks for a list of draws; the counts of its decision are the votes of each."""

    def __init__(self, *draws: Draw) -> None:
        self.draws, self.votes = draws, []

    def begin(self) -> Draw:
        return self.draws[0]

    def update(self, votes: Votes) -> Draw | Decision:
        self.votes.append(votes)
        done = len(self.votes)
        if done < len(self.draws):
            return self.draws[done]
        return Decision(0, np.stack(self.votes), 0, sum(draw.count for draw in self.draws), "predicted")


# Draws of the images in turn: long and short ones, of several streams, with sample ids that pass 2^32.
SCRIPTS = [
    (Draw(Stream.SELECT, 0, 5), Draw(Stream.ESTIMATE, 0, 301), Draw(Stream.ESTIMATE, 301, 2)),
    (Draw(Stream.PREDICT, 2**32 - 3, 7),),
    (Draw(Stream.SELECT, 3, 1), Draw(Stream.PREDICT, 0, 1), Draw(Stream.SELECT, 4, 40)),
    (Draw(Stream.ESTIMATE, 2**40 - 9, 9), Draw(Stream.SELECT, 0, 64)),
    (Draw(Stream.PREDICT, 0, 128),),
    tuple(Draw(Stream.ESTIMATE, 10 * i, i + 1) for i in range(12)),
]
IDS = [3, 0, 2**44 - 1, 2**32 + 1, 4, 3]  # the last has the noise of the first


def make(base: nn.Module | None = None, law: Law | None = None, micro_batch: int | None = 16, **options: Any) -> Engine:
    options = {"image_dtype": torch.uint8, "precision": "fp32"} | options
    function = BaseFunction.resolved(
        (base or Pixels(CLASSES)).eval(), law or lattice_law(0.3), SHAPE, seed=SEED, micro_batch=micro_batch, **options
    )
    return Engine(function)


def jobs(order: list[int], images: Tensor = IMAGES) -> Iterator[Job]:
    return (Job(images[i], IDS[i], Scripted(*SCRIPTS[i])) for i in order)


def votes(engine: Engine, order: list[int] | None = None) -> list[list[list[int]]]:
    return [decision.counts.tolist() for decision in engine.run(jobs(order or list(range(len(IMAGES)))))]


def plain_votes(
    image: Tensor, image_id: int, draw: Draw, law: Law, normalize: Normalization | None, clip: bool
) -> list[int]:
    """The votes of one draw, one replica at a time."""
    counts = [0] * (CLASSES + 1)
    for sample in range(draw.first, draw.first + draw.count):
        ids = (torch.tensor([number]) for number in (0, image_id, sample))
        key, affine = stream_key(SEED, draw.stream), ops.affine(normalize, SHAPE[0], image.dtype)
        logits = Pixels(CLASSES)(ops.noisy_replicas(image[None], *ids, key, law, *affine, clip))
        counts[int(logits.argmax())] += 1
    return counts


@pytest.mark.parametrize(
    ("dtype", "law", "normalize", "clip"),
    [
        (torch.uint8, lattice_law(0.3), None, False),
        (torch.uint8, lattice_law([0.1, 0.3, 0.5]), STATISTICS, True),
        (torch.uint8, gaussian_law(0.3, levels=255), STATISTICS, False),
        (torch.float32, gaussian_law(0.3), None, True),
    ],
    ids=["lattice", "lattice normalised clipped", "gaussian on uint8", "gaussian clipped"],
)
def test_votes_are_those_of_a_plain_loop(
    dtype: torch.dtype, law: Law, normalize: Normalization | None, clip: bool
) -> None:
    images = IMAGES if dtype == torch.uint8 else IMAGES / 255
    engine = make(law=law, image_dtype=dtype, normalize=normalize, clip=clip)
    decisions = engine.run(jobs(list(range(len(images))), images))
    for image, image_id, script, decision in zip(images, IDS, SCRIPTS, decisions, strict=True):
        expected = [plain_votes(image, image_id, draw, law, normalize, clip) for draw in script]
        assert decision.counts.tolist() == expected


@pytest.fixture(scope="module")
def expected() -> list[list[list[int]]]:
    return votes(make())


@pytest.mark.parametrize("micro_batch", [1, 7, 64, 128])
def test_votes_do_not_depend_on_the_micro_batch(micro_batch: int, expected: list[list[list[int]]]) -> None:
    assert votes(make(micro_batch=micro_batch)) == expected


def test_votes_do_not_depend_on_company_or_order(expected: list[list[list[int]]]) -> None:
    engine, order = make(), [4, 2, 5, 0, 3, 1]
    assert [votes(engine, [i])[0] for i in range(len(IMAGES))] == expected
    assert votes(engine, order) == [expected[i] for i in order]


def test_votes_do_not_depend_on_threads(expected: list[list[list[int]]]) -> None:
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        engine = make()
        assert len(engine.lanes) == threads
        assert votes(engine) == votes(engine) == expected
        assert torch.get_num_threads() == threads


def test_rows_of_padding_do_not_vote() -> None:
    streams = (Stream.SELECT, Stream.ESTIMATE, Stream.PREDICT, Stream.TRAIN)  # each a micro-batch of one row
    decisions = make(micro_batch=4).run(Job(IMAGES[0], 0, Count(1, stream=stream)) for stream in streams)
    assert [(decision.counts.sum(), decision.invalid) for decision in decisions] == [(1, 0)] * 4


def test_images_are_taken_as_they_are_needed() -> None:
    taken, images = 0, 10_000

    def stream() -> Iterator[Job]:
        nonlocal taken
        for index in range(images):
            taken += 1
            yield Job(IMAGES[index % 6], index, Count(1 + index % 5))

    engine = make(micro_batch=64)
    for done, decision in enumerate(engine.run(stream())):
        assert decision.samples == 1 + done % 5  # in order
        assert taken - done <= engine.slots == 256
    assert done == images - 1


def test_a_slow_image_holds_up_a_bounded_number_of_results() -> None:
    def stream() -> Iterator[Job]:
        for index in range(500):
            taken.append(index)
            # The first asks for a stream of its own; each of the others fills a micro-batch alone.
            yield Job(IMAGES[0], index, Count(4) if index else Count(1, stream=Stream.SELECT))

    taken: list[int] = []
    engine = make(micro_batch=4)
    next(engine.run(stream()))
    assert len(taken) <= 2 * engine.slots == 32


def test_decisions_come_in_order_whatever_they_take() -> None:
    samples = [500, 1, 3, 70, 1, 200]
    decisions = make().run(Job(image, i, Count(n)) for i, (image, n) in enumerate(zip(IMAGES, samples, strict=True)))
    assert [decision.samples for decision in decisions] == samples


def test_no_images() -> None:
    assert list(make().run([])) == []


def test_rows_without_a_finite_logit_are_counted_apart() -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), CLASSES), math.nan)

    class SometimesUndecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :CLASSES].where(x[:, 2, 3, 3:] < 0.5, math.inf)

    (decision,) = make(Undecided()).run([Job(IMAGES[0], 0, FixedCertify(10, 100, 0.001, 0.3, "multiclass"))])
    assert (decision.label, decision.radius, decision.invalid, decision.samples) == (ABSTAIN, 0.0, 10, 10)
    draws = [Draw(Stream.PREDICT, 0, 200)] * 2
    decisions = make(SometimesUndecided()).run(Job(IMAGES[0], 0, Scripted(*draws)) for _ in range(40))
    (seen,) = {tuple(votes) for decision in decisions for votes in decision.counts.tolist()}
    assert 0 < seen[-1] < sum(seen) == 200


@pytest.mark.parametrize(
    ("flatten", "outputs", "message"),
    [(2, 16, "turns 2 images into (2, 3, 16)"), (1, 1, "one logit z"), (0, 4, "turns 2 images into (4,)")],
)
def test_logits_of_another_shape_are_named(flatten: int, outputs: int, message: str) -> None:
    base = nn.Sequential(nn.Flatten(flatten), nn.LazyLinear(outputs))
    base(torch.zeros(2, *SHAPE))
    with pytest.raises(ValueError, match=re.escape(message)):
        make(base)


class Growing(nn.Module):
    """A base classifier with as many classes as rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), len(x))


def test_logits_of_other_classes_than_at_first_are_named() -> None:
    with pytest.raises(ValueError, match=r"num_classes is 2; the base classifier turns 16 images into \(16, 16\)"):
        make(Growing())


# ---- procedures that stop early --------------------------------------------------------------------------------------

CERTIFY = (20, 600, 0.001, 0.3, "multiclass")
MIX: list[Callable[[], Procedure]] = [
    lambda: SequentialPredict(300, 0.001),
    lambda: SequentialCertify(*CERTIFY, radius=0.05),
    lambda: ToleranceCertify(20, 1100, *CERTIFY[2:], tolerance=0.5),
    lambda: FixedCertify(*CERTIFY),
    lambda: Count(37),
    lambda: SequentialCertify(*CERTIFY, radius=0.1, label=2),
    lambda: SequentialCertify(*CERTIFY[:-1], "cohen", radius=0.05),
    lambda: GridCertify(*CERTIFY, radii=(0.05, 0.1, 0.2)),
    lambda: FixedPredict(50, 0.001),
    lambda: ToleranceCertify(20, 1100, *CERTIFY[2:], tolerance=0.1, label=0, u=0.4),
]


def clear_images(count: int) -> Tensor:
    """Of class i % CLASSES, which gets about 97 % of the votes at sigma 0.3."""
    images = torch.zeros(count, SHAPE[0] * SHAPE[1] * SHAPE[2], dtype=torch.uint8)
    images[torch.arange(count), torch.arange(count) % CLASSES] = 255
    return images.view(-1, *SHAPE)


MIXED = torch.cat([IMAGES, clear_images(6), IMAGES.flip(3)])  # clear votes and close ones


def mixed_jobs(order: list[int]) -> Iterator[Job]:
    return (Job(MIXED[i], 1000 + i, MIX[i % len(MIX)]()) for i in order)


def told(decisions: Iterator[Decision]) -> list[dict[str, Any]]:
    return [vars(decision) | {"counts": decision.counts.tolist()} for decision in decisions]


@pytest.fixture(scope="module")
def mixed() -> list[dict[str, Any]]:
    """The decision of each job of the mix, run alone."""
    engine = make()
    return [told(engine.run(mixed_jobs([i])))[0] for i in range(len(MIXED))]


def test_the_mix_has_every_outcome(mixed: list[dict[str, Any]]) -> None:
    assert {decision["outcome"] for decision in mixed} == {"predicted", "certified", "not certified", "undecided"}
    assert len({decision["samples"] for decision in mixed}) > 10


@pytest.mark.parametrize("micro_batch", [3, 16, 57, 512])
def test_a_mix_of_procedures_decides_as_each_alone(micro_batch: int, mixed: list[dict[str, Any]]) -> None:
    engine, every = make(micro_batch=micro_batch), list(range(len(MIXED)))
    assert told(engine.run(mixed_jobs(every))) == mixed
    shuffled = np.random.default_rng(micro_batch).permutation(len(MIXED)).tolist()
    assert told(engine.run(mixed_jobs(shuffled))) == [mixed[i] for i in shuffled]


class Watch:
    """Counts forward passes, rows handed to the noise, rows of padding among them, and transfers of votes."""

    def __init__(self, engine: Engine, patch: pytest.MonkeyPatch) -> None:
        self.forwards = self.rows = self.padding = self.transfers = 0
        (lane,) = engine.lanes
        noisy_replicas, take = ops.noisy_replicas, lane.buffers.take

        def replicas(images: Tensor, slots: Tensor, *arguments: Any) -> Tensor:
            assert self.transfers <= self.forwards  # before this pass, at most one each
            self.forwards += 1
            self.rows += len(slots)
            self.padding += int((slots == -1).sum())
            return noisy_replicas(images, slots, *arguments)

        def taken(slots: list[int]) -> Any:
            self.transfers += 1
            return take(slots)

        patch.setattr("smoothfast.ops.noisy_replicas", replicas)
        patch.setattr("smoothfast.engine.votes.is_looked_at", lambda number: False)  # a few passes more
        patch.setattr(lane.buffers, "take", taken)


@pytest.mark.parametrize(("micro_batch", "most"), [(64, 0.03), (128, 0.06)])
def test_little_is_padding_while_many_images_are_in_flight(
    micro_batch: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, engine = clear_images(300), make(micro_batch=micro_batch)
    watch = Watch(engine, monkeypatch)
    jobs = (Job(image, i, SequentialCertify(100, 100_000, *CERTIFY[2:], radius=0.3)) for i, image in enumerate(images))
    decisions = list(engine.run(jobs))
    assert {decision.outcome for decision in decisions} == {"certified"}
    assert watch.rows == watch.forwards * micro_batch
    assert watch.rows - watch.padding == sum(decision.samples for decision in decisions)
    assert watch.padding <= most * watch.rows
    assert watch.transfers <= watch.forwards


def test_images_that_fell_out_of_step_share_micro_batches_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that select by 20 rows and then look ten times at 3: 12 micro-batches of 16 each if they were alone."""
    draws = (Draw(Stream.SELECT, 0, 20), *(Draw(Stream.ESTIMATE, 3 * i, 3) for i in range(10)))
    engine = make()
    watch = Watch(engine, monkeypatch)
    assert len(list(engine.run(Job(IMAGES[i], i, Scripted(*draws)) for i in range(2)))) == 2
    assert watch.forwards <= 16


def test_votes_leave_the_device_once_per_micro_batch(
    monkeypatch: pytest.MonkeyPatch, mixed: list[dict[str, Any]]
) -> None:
    engine = make(micro_batch=64)
    watch = Watch(engine, monkeypatch)
    assert told(engine.run(mixed_jobs(list(range(len(MIXED)))))) == mixed
    assert watch.rows - watch.padding == sum(decision["samples"] for decision in mixed)
    assert watch.transfers <= watch.forwards


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("micro_batch", [16, 64])
def test_answers_do_not_depend_on_how_much_a_lane_is_given(
    depth: int, micro_batch: int, monkeypatch: pytest.MonkeyPatch, mixed: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr("smoothfast.engine.votes.DEPTH", depth)
    monkeypatch.setattr("smoothfast.engine.lanes.DEPTH", depth)
    assert told(make(micro_batch=micro_batch).run(mixed_jobs(list(range(len(MIXED)))))) == mixed


def test_one_run_at_a_time(mixed: list[dict[str, Any]]) -> None:
    engine, jobs = make(), mixed_jobs(list(range(len(MIXED))))
    begun = engine.run(jobs)
    next(begun)
    with pytest.raises(RuntimeError, match="in the middle of another run"):
        next(engine.run(jobs))
    begun.close()  # leaves votes behind, which must not count
    assert told(engine.run(mixed_jobs(list(range(len(MIXED)))))) == mixed


# ---- memory, graphs --------------------------------------------------------------------------------------------------


class Small(Pixels):
    """Runs out of memory beyond so many rows."""

    def __init__(self, most: int) -> None:
        super().__init__(CLASSES)
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"{len(x)} rows")
        return super().forward(x)


def test_the_micro_batch_is_halved_until_it_fits() -> None:
    engine = make(Small(20), micro_batch=64)
    assert engine.function.micro_batch == engine.meta["micro_batch"] == 16
    with pytest.raises(torch.OutOfMemoryError, match="2 rows"):
        make(Small(0), micro_batch=64)


def test_memory_that_runs_out_later_is_an_error() -> None:
    base = Small(64)
    engine = make(base, micro_batch=64)
    base.most = 10
    with pytest.raises(torch.OutOfMemoryError, match="64 rows"):
        list(engine.run(mixed_jobs([0])))


class Graph:
    """A CUDA graph as its users see it: it runs what was captured, on the same tensors."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Where torch.cuda has been replaced by what captures nothing: the graphs that were made."""
    made: list[Graph] = []

    def graph() -> Graph:
        made.append(Graph())
        return made[-1]

    @contextmanager
    def capturing(graph: Graph, stream: Any, capture_error_mode: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            raise RuntimeError("the capture was invalidated") from None  # as ends a real one, whatever broke it

    for name, instead in {
        "Stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
        "current_stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": graph,
        "graph": capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, instead)
    return made


def test_a_captured_function_is_replayed_and_not_called(graphs: list[Graph]) -> None:
    calls: list[Tensor] = []

    def forward() -> Tensor:
        calls.append(torch.zeros(3))
        return calls[-1]

    step, how = capture(forward, torch.device("cuda"))
    assert how == "captured"
    assert len(calls) == 2  # to warm up, and to be captured
    assert step() is step() is calls[-1]
    assert (len(calls), graphs[0].replays) == (2, 2)


def test_what_cannot_be_captured_runs_as_it_is(graphs: list[Graph]) -> None:
    def forward() -> Tensor:
        if graphs:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return torch.zeros(3)

    step, how = capture(forward, torch.device("cuda"))
    assert step is forward
    assert how == "not captured: operation not permitted when stream is capturing"
    assert capture(forward, torch.device("cpu")) == (forward, "none on cpu")


def test_out_of_memory_in_a_capture_is_not_swallowed(graphs: list[Graph]) -> None:
    """The engine halves its micro-batch."""

    def forward() -> Tensor:
        if graphs:
            raise torch.OutOfMemoryError("128 rows")
        return torch.zeros(3)

    with pytest.raises(torch.OutOfMemoryError, match="128 rows"):
        capture(forward, torch.device("cuda"))


STRICT = """
import os, sys, torch
from smoothfast.runners.precision import CUDNN, MATMUL, strict_arithmetic

def state():
    new = [part.fp32_precision for part in (MATMUL, CUDNN.conv, CUDNN.rnn) if hasattr(part, "fp32_precision")]
    return CUDNN.deterministic, CUDNN.benchmark, old(lambda: MATMUL.allow_tf32), old(lambda: CUDNN.allow_tf32), new

def old(setting):
    try:
        return setting()
    except RuntimeError:
        return "mixed"

def check(asked):
    exec(asked)
    before = state()
    with strict_arithmetic(torch.device("cpu")):
        assert state() == before
    with strict_arithmetic(torch.device("cuda")):
        *flags, new = state()
        assert flags == [True, False, False, False] and set(new) <= {"ieee"}, (asked, flags, new)
    assert state() == before, (asked, before, state())

for asked in sys.argv[1:]:
    child = os.fork()  # torch keeps what was said under old and under new names
    if not child:
        check(asked)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, asked
"""


def test_float32_is_not_tf32_while_the_base_runs_on_cuda() -> None:
    """Whatever was asked for before, which is so again afterwards."""
    asked = [
        "",
        "MATMUL.allow_tf32 = True",
        "torch.set_float32_matmul_precision('medium')",
        "CUDNN.benchmark, CUDNN.allow_tf32 = True, False",
    ]
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # since torch 2.9
        asked += [f"{part}.fp32_precision = 'tf32'" for part in ("MATMUL", "CUDNN.rnn", "torch.backends")]
        asked.append("CUDNN.conv.fp32_precision = 'ieee'")
    subprocess.run([sys.executable, "-c", STRICT, *asked], check=True)


# ---- whether a row is judged alone -----------------------------------------------------------------------------------


class MinusMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)).flatten(1)[:, :CLASSES]


class Confident(nn.Module):
    """Depends on its batch, but on most images says the same class in every batch."""

    def forward(self, x: Tensor) -> Tensor:
        return MinusMean()(x) + 5 * torch.eye(CLASSES)[2]


class BatchStatistics(nn.Module):
    """A batch norm that is in train mode for good."""

    def forward(self, x: Tensor) -> Tensor:
        return Pixels(CLASSES)(F.batch_norm(x.flatten(1), None, None, training=True))


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Pixels(CLASSES)(F.dropout(x, 0.5, training=True))


@pytest.mark.parametrize("base", [MinusMean(), BatchStatistics(), AlwaysDropout(), Confident()])
def test_a_base_that_looks_beyond_its_row_is_found_out(base: nn.Module) -> None:
    with torch.random.fork_rng():
        assert make(base).meta["row_function"] == "no"


@pytest.mark.parametrize("micro_batch", [1, 2, 64])
def test_a_base_that_keeps_to_its_row_is_not_accused(micro_batch: int) -> None:
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(16, 5))
    assert make(base, micro_batch=micro_batch).meta["row_function"] == "bit for bit"


# ---- modes -----------------------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """Notes the modes of its parts at every call, and fails at the calls from `limit` on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.linear = nn.BatchNorm2d(3), nn.Dropout(), nn.Linear(48, CLASSES)
        self.seen: set[bool] = set()
        self.calls, self.limit = 0, math.inf

    def forward(self, x: Tensor) -> Tensor:
        self.seen |= {part.training for part in self.modules()} | {torch.is_grad_enabled()}
        self.calls += 1
        if self.calls > self.limit:
            raise RuntimeError("out of memory")
        return self.linear(self.dropout(self.norm(x)).flatten(1))


@pytest.fixture
def watched() -> tuple[Engine, Watched]:
    base = Watched()
    engine = make(base)
    base.norm.train()
    return engine, base


def modes(base: nn.Module) -> list[bool]:
    return [part.training for part in base.modules()]


def test_every_part_runs_in_eval_mode_and_is_put_back(watched: tuple[Engine, Watched]) -> None:
    engine, base = watched
    before, weights = modes(base), {name: value.clone() for name, value in base.state_dict().items()}
    assert True in before
    assert False in before
    assert len(list(engine.run(jobs([0, 1])))) == 2
    assert base.seen == {False}
    assert modes(base) == before
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())
    list(islice(engine.run(jobs([0, 1])), 1))  # given up halfway
    assert modes(base) == before


def test_modes_are_put_back_after_a_failure(watched: tuple[Engine, Watched]) -> None:
    engine, base = watched
    before, base.limit = modes(base), base.calls + 2
    with pytest.raises(RuntimeError, match="out of memory"):
        list(engine.run(jobs([0])))
    assert modes(base) == before
    with pytest.raises(KeyboardInterrupt), evaluating(base):
        raise KeyboardInterrupt
    assert modes(base) == before


def test_the_caller_keeps_its_gradients_between_results() -> None:
    decisions = make().run(jobs([0, 1]))
    next(decisions)
    enabled = torch.is_grad_enabled()
    decisions.close()
    assert enabled


# ---- the choices that make up the function ---------------------------------------------------------------------------


def test_meta_records_the_function() -> None:
    assert make(micro_batch=None, clip=True).meta == {
        "runner": "eager", "precision": "fp32", "micro_batch": 256, "device": "cpu", "law": "lattice", "clip": True,
        "row_function": "bit for bit", "weights_sha256": hashlib.sha256().hexdigest(),
    }  # fmt: skip


def test_precision() -> None:
    class Dtypes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x.flatten(1))
            seen.update(x=x.dtype, out=out.dtype, weight=self.weight.dtype)
            return out

    cpu = torch.device("cpu")
    for precision in ("fp32", "bf16", "fp16"):
        dtype = DTYPES[precision]
        seen: dict[str, torch.dtype] = {}
        assert make(Dtypes(48, CLASSES), precision=precision).meta["precision"] == precision
        assert seen == {"x": dtype, "out": dtype, "weight": torch.float32}
        assert resolve_precision(precision, cpu) == precision
    assert make(precision="auto").meta["precision"] == resolve_precision("auto", cpu) in ("fp32", "bf16")
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    with pytest.raises(ValueError, match="precision is 'int4'; it must be one of auto, fp32, bf16, fp16"):
        make(precision="int4")


def test_the_micro_batch_shrinks_with_the_image() -> None:
    sizes = {(3, 32, 32): 64, (3, 224, 224): 8, (1, 28, 28): 250, (3, 8, 8): 256, (3, 64, 64): 16}
    assert {shape: default_micro_batch(shape, torch.device("cpu")) for shape in sizes} == sizes
    assert default_micro_batch((3, 224, 224), torch.device("cuda")) == 128

"""On a CUDA device, against the CPU: bits, streams, graphs, memory, the engine. `make test ARGS="-m gpu"` runs it."""

from __future__ import annotations

import gc
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import (
    DTYPES,
    KINDS,
    NETWORKS,
    PASSES,
    ROWS,
    SHAPES,
    VOTINGS,
    arguments,
    attack,
    gradients,
    network,
    tied,
    votes,
)
from torch import Tensor, nn
from torch.nn import functional as F

import smoothfast as sf
from smoothfast import ops
from smoothfast.names import PRECISIONS
from smoothfast.noise import Stream, stream_key

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = "cuda"
WRITTEN = {"tally": (2, 3), "attack_step": (0,)}  # arguments of the ops that return nothing
SLEEP = 100_000_000  # cycles, some 50 ms: longer than what is enqueued meanwhile takes

Case = tuple[Any, ...]


@pytest.fixture(params=["compiled", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    live = ops.backends()[DEVICE]
    if request.param == "compiled" and not live.startswith("compiled"):
        pytest.skip(f"CUDA is served by {live}")
    if request.param == "triton" and not find_spec("triton"):
        pytest.skip("triton is not installed")
    return request.param


def op(name: str, backend: str = "compiled") -> Callable[..., Tensor | None]:
    """Under "compiled", what serves the device; tests of compiled kernels are skipped where that is something else."""
    if backend == "triton":
        return getattr(import_module(f"smoothfast.kernels.{name}"), name)
    return getattr(torch.ops.smoothfast, name)


# ---- arguments on the device, as they come and in memory that does not suit ------------------------------------------


def aligned(tensor: Tensor) -> Tensor:
    return tensor


def misaligned(tensor: Tensor) -> Tensor:
    """One element further on, in memory that is aligned."""
    return tensor.new_empty(tensor.numel() + 1).as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


def strided(tensor: Tensor) -> Tensor:
    return tensor.new_empty((*tensor.shape, 2))[..., 0].copy_(tensor)


VIEWS = (aligned, misaligned, strided)


def placed(case: Case, view: Callable[[Tensor], Tensor] = aligned, device: str = DEVICE) -> list[Any]:
    """A copy of its own of every tensor."""

    def place(part: Any) -> Any:
        if isinstance(part, Tensor):
            return view(part.to(device, copy=True))
        return [place(inner) for inner in part] if isinstance(part, tuple) else part

    return [place(part) for part in case]


def results(name: str, function: Callable[..., Tensor | None], placed: list[Any]) -> list[Tensor]:
    returned = function(*placed)
    return [placed[i] for i in WRITTEN[name]] if returned is None else [returned]


def bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().cpu().contiguous().view(integers[tensor.element_size()])


def check_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert torch.equal(bits(one), bits(other))


def on_cpu(name: str, case: Case) -> list[Tensor]:
    return results(name, op(name), placed(case, device="cpu"))


def check(name: str, backend: str, case: Case) -> None:
    """Against the backend of the CPU."""
    expected = on_cpu(name, case)
    for view in VIEWS:
        found = results(name, op(name, backend), placed(case, view))
        check_equal(found, expected)
        assert {tensor.device.type for tensor in found} == {DEVICE}
        assert name in WRITTEN or found[0].stride() == expected[0].stride()


@cache
def inputs(name: str) -> list[Case]:
    """Four cases of an op, small and odd."""
    return {
        "noisy_replicas": lambda: [
            arguments((3, 32, 32), channels_last=True, clip=True),
            arguments((3, 5, 7), "gaussian", torch.uint8, torch.float16, channels_last=True),
            arguments((4, 8, 8), "gaussian", torch.float32, torch.float32, per_channel=True),
            tied(arguments((3, 40, 40))),
        ],
        "tally": lambda: [
            votes(70, 101, dtype, 0, voting) for voting, dtype in zip(VOTINGS, (torch.float64, *DTYPES), strict=True)
        ],
        "replica_sum": lambda: [
            gradients(shape, 29, dtype, channels_last)
            for shape, dtype, channels_last in zip(SHAPES, (*DTYPES, torch.float32), (False, True) * 2, strict=False)
        ],
        "attack_step": lambda: [attack(shape, norm, 0.03) for shape in SHAPES[:2] for norm in ("linf", "l2")],
        "perturb_weights": lambda: [
            network(layers, rank, dtype)
            for layers, rank, dtype in zip((*NETWORKS, (900, 60)), (64, 0, 5, 1), (*DTYPES, DTYPES[0]), strict=True)
        ],
    }[name]()


every_op = pytest.mark.parametrize("name", ops.OPS)

# ---- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_noisy_replicas(shape: tuple[int, int, int], backend: str) -> None:
    forms = product(KINDS, DTYPES, (False, True))
    for turn, (kind, dtype, channels_last) in enumerate(forms, SHAPES.index(shape)):
        check("noisy_replicas", backend, arguments(shape, *kind, dtype, channels_last, turn % 2 == 0, turn % 5 < 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_noisy_replicas_at_their_limits(dtype: torch.dtype, channels_last: bool, backend: str) -> None:
    """No rows; words that tie; more rows than a grid has blocks; large images."""
    check("noisy_replicas", backend, arguments((3, 8, 8), dtype=dtype, channels_last=channels_last, rows=ROWS[:0]))
    check("noisy_replicas", backend, tied(arguments((3, 8, 8), dtype=dtype, channels_last=channels_last)))
    for shape, count in (((3, 8, 8), 9_000), ((3, 224, 224), 20)):
        rows = torch.stack([torch.arange(count) % 4 - 1, torch.arange(count) * 2**28, torch.arange(count) * 2**26], 1)
        for kind in KINDS:
            check("noisy_replicas", backend, arguments(shape, *kind, dtype, channels_last, rows=rows))


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize("classes", [1, 2, 10, 33, 1000, 5000])
def test_tally(classes: int, dtype: torch.dtype, backend: str) -> None:
    for rows, voting in product((0, 1, 13, 3000), VOTINGS):
        check("tally", backend, votes(rows, classes, dtype, voting=voting))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 224, 224)])
def test_replica_sum(shape: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    for rows, channels_last in product((0, 1, 50), (False, True)):
        check("replica_sum", backend, gradients(shape, rows, dtype, channels_last))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 224, 224), (3, 0, 7)])
def test_attack_step(shape: tuple[int, int, int], norm: str, backend: str) -> None:
    for eps in (0.0, 1e-40, 0.03, 0.5) if math.prod(shape) else ():
        check("attack_step", backend, attack(shape, norm, eps))
    nothing = torch.zeros(2, *shape)[:, :, :0]
    check("attack_step", backend, (nothing, nothing, nothing, norm, 0.1, 0.1, 0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [*NETWORKS, (4000, 1, 17, 300)])
def test_perturb_weights(layers: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    """No passes; ranks of all four words of a block; more tiles than a grid has blocks for."""
    check("perturb_weights", backend, network(layers, 5, dtype, PASSES[:0]))
    for rank in (0, 1, 5, 20, 64):
        check("perturb_weights", backend, network(layers, rank, dtype))
    check("perturb_weights", backend, network(layers, 2, dtype, torch.arange(100) * 2**33 + 2**32 - 50))


@every_op
def test_twenty_times_the_same_bits(name: str, backend: str) -> None:
    for case in inputs(name):
        first = results(name, op(name, backend), placed(case))
        for _ in range(19):
            check_equal(results(name, op(name, backend), placed(case)), first)


# ---- PyTorch's view of the ops, whatever serves them -----------------------------------------------------------------


@every_op
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_opcheck(name: str) -> None:
    for case in inputs(name):
        torch.library.opcheck(op(name).default, placed(case))
    if name == "noisy_replicas":
        images, *rest = placed(inputs(name)[2])
        torch.library.opcheck(op(name).default, (images.requires_grad_(), *rest))
    if name == "perturb_weights":
        *leaves, tiles, passes, key, dtype = placed(inputs(name)[2])
        torch.library.opcheck(op(name).default, (*(t.requires_grad_() for t in leaves), tiles, passes, key, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradient(dtype: torch.dtype, channels_last: bool) -> None:
    rows = torch.stack([torch.arange(40) % 4 - 1, torch.arange(40), torch.arange(40)], 1)
    for shape in SHAPES:
        case = arguments(shape, "gaussian", torch.float32, dtype, channels_last, rows=rows)
        slope = torch.randn(40, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)

        def gradient(device: str, case: Case = case, slope: Tensor = slope) -> Tensor:
            images, *rest = placed(case, device=device)
            replicas = op("noisy_replicas")(images.requires_grad_(), *rest)
            return torch.autograd.grad(replicas, images, slope.to(device))[0]

        check_equal([gradient(DEVICE)], [gradient("cpu")])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_weights(dtype: torch.dtype) -> None:
    """Sums over passes and tiles have another order."""
    case = network(NETWORKS[2], 5, dtype)
    slope = torch.randn(len(PASSES), len(case[0]), 64, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradients(device: str) -> tuple[Tensor, ...]:
        *leaves, tiles, passes, key, _ = placed(case, device=device)
        leaves = [part.requires_grad_() for part in leaves]
        perturbed = op("perturb_weights")(*leaves, tiles, passes, key, dtype)
        return torch.autograd.grad(perturbed, leaves, slope.to(device))

    for found, expected in zip(gradients(DEVICE), gradients("cpu"), strict=True):
        torch.testing.assert_close(found.cpu(), expected)


def smoothed(case: list[Any], counts: Tensor, invalid: Tensor) -> Tensor:
    replicas = op("noisy_replicas")(*case)
    logits = replicas.flatten(1)[:, :4] * 2
    op("tally")(logits.detach(), case[1], counts, invalid)
    return logits


@pytest.mark.skipif(find_spec("triton") is None, reason="torch.compile needs triton, which is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind: tuple[str, torch.dtype]) -> None:
    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        case, counts = placed(arguments((3, 5, 7), *kind)), torch.zeros(3, 4, dtype=torch.int64, device=DEVICE)
        invalid = torch.zeros_like(counts[:, 0])
        images = case[0].requires_grad_(case[0].is_floating_point())
        logits = function(case, counts, invalid)
        return [logits, counts, invalid, *(torch.autograd.grad(logits.sum(), images) if images.requires_grad else ())]

    torch._dynamo.reset()
    check_equal(run(torch.compile(smoothed, fullgraph=True)), run(smoothed))


MISTAKES = {
    # op: the number of an argument, what becomes of it, and what is said of it
    "noisy_replicas": [
        (0, lambda t: t.char(), "images must be uint8 or float32"),
        (0, lambda t: t[0], r"images must be \[S, C, H, W\]"),
        (0, lambda t: t / 255, "the lattice law needs uint8 images"),
        (1, lambda t: t.cpu(), "all must be on one device"),
        (1, lambda t: t.int(), "slots must be int64"),
        (2, lambda t: t[1:], r"image_ids must be int64 \[5\]"),
        (3, lambda t: t.double(), r"sample_ids must be int64 \[5\]"),
        (4, lambda t: t[:1], r"key must be int64 \[2\]"),
        (4, lambda t: t.cpu(), "all must be on one device"),
        (6, lambda t: t[:1], "table must come from"),
        (6, lambda t: [part.cpu() for part in t], "all must be on one device"),
        (7, lambda t: t.double(), r"scale must be float32 \[3\]"),
        (8, lambda t: t[:2], r"shift must be float32 \[3\]"),
        (10, lambda t: torch.float64, "dtype must be float32, bfloat16 or float16"),
    ],
    "tally": [
        (0, lambda t: t.long(), r"logits must be floating \[R, K\]"),
        (0, lambda t: t.to(torch.float8_e5m2), "logits must be float"),
        (1, lambda t: t.cpu(), "all must be on one device"),
        (1, lambda t: t[1:], r"slots must be int64 \[70\]"),
        (2, lambda t: t.int(), "counts must be int64"),
        (3, lambda t: t[1:], r"invalid must be int64 \[4\]"),
        (3, lambda t: t.cpu(), "all must be on one device"),
    ],
    "replica_sum": [
        (0, lambda t: t.double(), "gradients must be float32, bfloat16 or float16"),
        (1, lambda t: t[1:], r"slots must be int64 \[29\]"),
        (2, lambda t: t.cpu(), "all must be on one device"),
        (2, lambda t: t[1:], "scale must be float32"),
    ],
    "attack_step": [
        (0, lambda t: t.double(), "adversarial must be float32"),
        (1, lambda t: t[1:], "images must be float32"),
        (2, lambda t: t.half(), "gradients must be float32"),
        (2, lambda t: t.cpu(), "all must be on one device"),
        (4, lambda t: -1.0, "alpha must be at least 0"),
    ],
    "perturb_weights": [
        (0, lambda t: t.half(), r"weights must be float32 \[T, 64\]"),
        (1, lambda t: t[1:], "scales must be float32"),
        (1, lambda t: t.cpu(), "all must be on one device"),
        (2, lambda t: t[:, 1:], "factors must be float32"),
        (2, lambda t: t.repeat(2, 1, 1), "factors have rank 128; at most 64 is possible"),
        (3, lambda t: t[0], "tiles must be int64"),
        (3, lambda t: t.cpu(), "all must be on one device"),
        (4, lambda t: t.int(), r"passes must be int64 \[P\]"),
        (5, lambda t: t.cpu(), "all must be on one device"),
        (6, lambda t: torch.float64, "dtype must be float32, bfloat16 or float16"),
    ],
}


@every_op
def test_mistakes_are_named(name: str, backend: str) -> None:
    for number, spoil, message in MISTAKES[name]:
        case = placed(inputs(name)[0])
        case[number] = spoil(case[number])
        with pytest.raises(RuntimeError, match=f"{name}: .*(?:{message})"):
            op(name, backend)(*case)


# ---- streams, graphs, other devices ----------------------------------------------------------------------------------


@every_op
def test_work_runs_on_the_current_stream(name: str, backend: str) -> None:
    """It sees what was written before it there, after a long sleep."""
    for case in inputs(name):
        results(name, op(name, backend), placed(case))  # Triton compiles
        right, expected = placed(case), on_cpu(name, case)
        late = [torch.zeros_like(part) if isinstance(part, Tensor) else part for part in right]
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(SLEEP)
            for part, value in zip(late, right, strict=True):
                if isinstance(part, Tensor):
                    part.copy_(value)
            found = results(name, op(name, backend), late)
        side.synchronize()
        check_equal(found, expected)


@every_op
def test_four_streams_at_once(name: str, backend: str) -> None:
    cases, expected = inputs(name), [on_cpu(name, case) for case in inputs(name)]
    streams = [torch.cuda.Stream() for _ in cases]
    for case in cases:
        results(name, op(name, backend), placed(case))
    copies = [[placed(case) for case in cases] for _ in range(10)]
    torch.cuda._sleep(SLEEP)  # they all begin when it ends
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    found = []
    for each in copies:
        for stream, case in zip(streams, each, strict=True):
            with torch.cuda.stream(stream):
                found.append(results(name, op(name, backend), case))
    torch.cuda.synchronize()
    for number, result in enumerate(found):
        check_equal(result, expected[number % len(cases)])


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_op
def test_nothing_waits_for_the_device(name: str, backend: str) -> None:
    for case in inputs(name):
        results(name, op(name, backend), placed(case))
        again = placed(case)
        with no_waiting():
            results(name, op(name, backend), again)


def test_a_graph_is_replayed_with_other_rows(backend: str) -> None:
    base = Exact().to(DEVICE)
    images, slots, image_ids, sample_ids, key, *rest = placed(arguments(SHAPE, dtype=torch.float32))
    counts = torch.zeros(3, CLASSES, dtype=torch.int64, device=DEVICE)
    invalid = torch.zeros_like(counts[:, 0])

    @torch.no_grad()
    def forward() -> Tensor:
        logits = base(op("noisy_replicas", backend)(images, slots, image_ids, sample_ids, key, *rest))
        op("tally", backend)(logits, slots, counts, invalid)
        return logits

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward()
    seen = set()
    for turn in range(6):
        slots.copy_(torch.tensor([turn % 3, -1, 2, turn % 2, 1]))
        image_ids.copy_(torch.arange(5) * 2**30 + turn)
        sample_ids.copy_(torch.arange(5) + turn * 2**30)
        key.copy_(stream_key(2**40 + turn, Stream(turn % 2 + 1)))
        counts.zero_()
        graph.replay()
        replayed = [captured.clone(), counts.clone(), invalid.clone()]
        counts.zero_()
        check_equal(replayed, [forward(), counts, invalid])
        seen.add(str(captured.tolist()))
    assert len(seen) == 6


two_devices = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="there is one CUDA device")


@two_devices
@every_op
def test_another_device_than_the_current_one(name: str, backend: str) -> None:
    for case in inputs(name):
        found = results(name, op(name, backend), placed(case, device="cuda:1"))
        assert torch.cuda.current_device() == 0
        assert {tensor.device.index for tensor in found} == {1}
        check_equal(found, on_cpu(name, case))


# ---- the engine ------------------------------------------------------------------------------------------------------

SHAPE, CLASSES = (3, 8, 8), 10
IMAGES = torch.randint(0, 256, (12, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
METHODS: dict[str, dict[str, Any]] = {
    "fixed": {}, "sequential": {"radius": 0.1}, "tolerance": {"tolerance": 0.2}, "grid": {"radii": (0.05, 0.1)},
}  # fmt: skip


class Exact(nn.Module):
    """Integer logits of integer pixels: whatever the order of sums, they are exact in float32, and are not in TF32."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randint(-3, 4, (CLASSES, math.prod(SHAPE)), generator=torch.Generator().manual_seed(4))
        self.weight = nn.Parameter(weight.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(5 * (x.float() * 255).round().flatten(1), self.weight)


class Asks(Exact):
    """Cannot be captured: the host looks at a value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum().item() < math.inf else x


class Strict(Exact):
    def forward(self, x: Tensor) -> Tensor:
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
        return super().forward(x)


class Greedy(Exact):
    """Takes 8 MiB a row."""

    def forward(self, x: Tensor) -> Tensor:
        torch.empty(len(x) << 23, dtype=torch.uint8, device=x.device)
        return super().forward(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.convolution, self.norm, self.linear = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Linear(1152, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.norm(self.convolution(x))).flatten(1))


def classifier(base: nn.Module | None = None, device: str = DEVICE, **options: Any) -> sf.SmoothedClassifier:
    options = {"precision": "fp32", "max_batch": 64} | options
    return sf.SmoothedClassifier((base or Exact()).to(device).eval(), 0.25, CLASSES, **options)


def told(certificate: sf.Certificate) -> dict[str, Any]:
    names = ("labels", "radii", "p_lower", "p_upper", "counts", "invalid", "samples")
    return {name: getattr(certificate, name).tolist() for name in names} | {"decisions": certificate.decisions}


@cache
def expected_votes() -> Tensor:
    return classifier(device="cpu").votes(IMAGES, 300)


@pytest.mark.parametrize("images", [IMAGES, IMAGES / 255], ids=["uint8", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_certificates_are_those_of_the_cpu(method: str, images: Tensor) -> None:
    found, expected = (
        classifier(device=device).certify(images, 100, 3000, method=method, **METHODS[method])
        for device in (DEVICE, "cpu")
    )
    assert told(found) == told(expected)
    assert found.meta["graph"] == "captured"
    assert found.meta["row_function"] == "bit for bit"
    assert found.sound == expected.sound == (images.dtype == torch.uint8)
    assert 0 < expected.decisions.count("certified") < len(IMAGES)


@pytest.mark.parametrize("voting", [*VOTINGS, (1, 0.5)])
def test_scores_by_every_rule_are_those_of_the_cpu(voting: Any) -> None:
    smooth = classifier(voting=voting)
    assert torch.equal(smooth.scores(IMAGES, 300), classifier(device="cpu", voting=voting).scores(IMAGES, 300))
    assert smooth.engine(IMAGES).meta["graph"] == "captured"


@pytest.mark.parametrize("max_batch", [64, 100, 256])
def test_votes_do_not_depend_on_the_micro_batch(max_batch: int) -> None:
    smooth = classifier(max_batch=max_batch)
    assert torch.equal(smooth.votes(IMAGES.to(DEVICE), 300), expected_votes())
    assert smooth.engine(IMAGES).meta["micro_batch"] == max_batch


def test_votes_on_another_stream() -> None:
    smooth = classifier()
    smooth.votes(IMAGES[:2], 70)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(smooth.votes(IMAGES, 300), expected_votes())


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    before = torch.cuda.current_stream()
    smooth = classifier(Asks())
    assert torch.equal(smooth.votes(IMAGES, 300), expected_votes())
    how = smooth.engine(IMAGES).meta["graph"]
    assert how.startswith("not captured: ")
    assert len(how) > len("not captured: ")
    # The failure leaves nothing behind.
    assert torch.cuda.current_stream() == before
    torch.cuda.empty_cache()
    torch.rand(3, device=DEVICE)
    assert classifier().engine(IMAGES).meta["graph"] == "captured"


def test_the_micro_batch_is_halved_until_it_fits() -> None:
    torch.zeros(8, 8, device=DEVICE) @ torch.zeros(8, 8, device=DEVICE)  # libraries take their share before
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
    try:
        smooth = classifier(Greedy())
        assert torch.equal(smooth.votes(IMAGES, 300), expected_votes())
        meta = smooth.engine(IMAGES).meta
        assert 4 <= meta["micro_batch"] < 64
        assert meta["graph"] == "captured"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name not in ("auto", "int8")])
@pytest.mark.parametrize("runner", ["eager", "compiled"])
def test_precisions_and_runners(precision: str, runner: str) -> None:
    if runner == "compiled" and not find_spec("triton"):
        pytest.skip("torch.compile needs triton, which is not installed")
    smooth = classifier(Net(), precision=precision, runner=runner)
    found = smooth.votes(IMAGES, 300)
    assert torch.equal(found, smooth.votes(IMAGES, 300))
    assert found.sum(1).tolist() == [300] * len(IMAGES)
    meta = smooth.engine(IMAGES).meta
    assert (meta["precision"], meta["graph"], meta["row_function"]) == (precision, "captured", "bit for bit")
    plain = classifier(Net(), device="cpu").votes(IMAGES, 300)
    assert (found - plain).abs().sum() / 2 < 0.05 * plain.sum()  # close calls may differ


@pytest.mark.skipif(find_spec("triton") is None, reason="torch.compile needs triton, which is not installed")
def test_the_compiled_base_votes_as_the_eager_one() -> None:
    assert torch.equal(classifier(runner="compiled").votes(IMAGES, 300), expected_votes())


def test_float32_is_not_tf32() -> None:
    expected, matmul = expected_votes(), torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    try:
        assert torch.equal(classifier(Strict()).votes(IMAGES, 300), expected)
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


def test_an_engine_made_under_autocast_outlives_it() -> None:
    """A graph must not read weights that autocast has cast, kept, and then given back."""
    expected = classifier(Net(), precision="bf16").votes(IMAGES, 300)
    smooth = classifier(Net(), precision="bf16")
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(smooth.votes(IMAGES, 300), expected)
    weights = [p for _ in range(20) for p in smooth.base.parameters()]
    overwriting = [torch.full_like(p, math.nan, dtype=torch.bfloat16) for p in weights]
    assert torch.equal(smooth.votes(IMAGES, 300), expected)
    assert len(overwriting) == len(weights)


def test_a_micro_batch_waits_for_nothing() -> None:
    engine = classifier().engine(IMAGES)
    (lane,) = engine.lanes
    rows, key = torch.zeros(3, engine.function.micro_batch, dtype=torch.int64), stream_key(0, Stream.PREDICT)
    for settings in (nullcontext(), no_waiting()):  # what happens at a first call only may wait
        lane.buffers.clear()
        with settings:
            lane.buffers.write(rows, key)
            lane.step()
            transfer = lane.buffers.take([0, 1])
        assert transfer.wait().sum(1).tolist() == [engine.function.micro_batch, 0]


def test_memory_does_not_grow_with_the_samples() -> None:
    smooth = classifier()
    smooth.certify(IMAGES, 100, 1000)
    peaks = []
    for n in (1000, 10_000):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        smooth.certify(IMAGES, 100, n)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.05 * peaks[0]


@pytest.mark.parametrize("max_batch", [None, 24])
def test_the_soft_classifier_and_its_gradients_are_those_of_the_cpu(max_batch: int | None) -> None:
    """As far as TF32 lets them: convolutions run as torch is set up."""
    found = []
    for device in ("cpu", DEVICE):
        images = (IMAGES / 255).to(device).requires_grad_()
        scores = classifier(Net(), device).differentiable(8, max_batch)(images)
        assert scores.device == images.device
        (gradient,) = torch.autograd.grad(scores[:, 0].sum(), images)
        found.append((scores.detach().cpu(), gradient.cpu()))
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, rtol=0.01, atol=0.003)


@pytest.mark.parametrize("runner", ["eager", "compiled"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_are_those_of_the_cpu(norm: str, runner: str) -> None:
    """But for pixels whose gradient is so small that rounding turns its sign."""
    labels = torch.arange(12) % CLASSES
    found = []
    for device, by in (("cpu", "eager"), (DEVICE, runner)):
        attack = sf.attacks.EPGD(classifier(Net(), device), 0.1, steps=3, samples=5, norm=norm, runner=by)
        found.append(attack(IMAGES, labels))
        assert (attack.gradients, attack.forwards) == (180, 180)
    assert found[1].device.type == DEVICE
    assert ((found[0] - found[1].cpu()).abs() < 1e-3).float().mean() > 0.99


@pytest.mark.parametrize("name", ["SmoothAdvPGD", "MultiTargetedPGD", "DDN", "CW", "NAttack", "Square"])
def test_every_attack_runs_on_the_device(name: str) -> None:
    few = {"Square": {"queries": 3}, "NAttack": {"steps": 2, "population": 4}}.get(name, {"steps": 2})
    attack = getattr(sf.attacks, name)(classifier(Net()), samples=3, **few)
    attack.set_mode_default()
    found = attack(IMAGES[:4], torch.arange(4))
    assert found.device.type == DEVICE
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_the_memory_of_an_attack_does_not_grow_with_the_samples() -> None:
    peaks = []
    for samples in (64, 1024):
        attack = sf.attacks.EPGD(classifier(Net()), steps=1, samples=samples)
        attack(IMAGES, torch.arange(12) % CLASSES)
        torch.cuda.reset_peak_memory_stats()
        attack(IMAGES, torch.arange(12) % CLASSES)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.05 * peaks[0]


@two_devices
def test_the_engine_on_another_device_than_the_current_one() -> None:
    smooth = classifier(device="cuda:1")
    assert torch.equal(smooth.votes(IMAGES, 300), expected_votes())
    assert smooth.engine(IMAGES).meta["graph"] == "captured"
    assert torch.cuda.current_device() == 0


# ---- compute-sanitizer -----------------------------------------------------------------------------------------------


def sanitizer() -> str | None:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    folders = [str(home / "bin"), str(home / "compute-sanitizer"), os.environ.get("PATH", "")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def all_ops() -> None:
    """What is run under the sanitizer."""
    for name in ops.OPS:
        for case in inputs(name):
            check(name, "compiled", case)
    print("all ops were run by", ops.backends()[DEVICE])


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str, backend: str) -> None:
    program = sanitizer()
    if program is None:
        pytest.skip("compute-sanitizer is neither on PATH nor under CUDA_HOME")
    here = Path(__file__).parent
    paths = [here, here / "ptx", here.parent, here.parent / "ops", *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "SMOOTHFAST_BACKEND": {"compiled": "cuda"}.get(backend, backend),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # else a tensor's neighbours are not out of bounds
    }
    options = ["--tool", tool, "--error-exitcode", "99", "--report-api-errors", "no"]
    command = [program, *options, sys.executable, "-c", "import test_gpu; test_gpu.all_ops()"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"all ops were run by {backend}" in done.stdout

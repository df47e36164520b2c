"""Every way to run the base classifier gives its logits, row by row, and what it cannot run it refuses."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from threading import Lock
from typing import Any

import pytest
import torch
from helpers.classifiers import Pixels
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import models
from smoothfast.engine import BaseFunction, Engine, Job
from smoothfast.noise import lattice_law
from smoothfast.procedures import Count
from smoothfast.runners import RUNNERS, make_runners
from smoothfast.runners.choice import measure
from smoothfast.runners.fused import arithmetics

SHAPE, CLASSES = (3, 4, 4), 5
IMAGES = torch.randint(0, 256, (6, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
frozen_runners = pytest.mark.parametrize(
    "runner", [pytest.param("compiled", marks=needs_compiler), pytest.param("openvino", marks=needs_openvino)]
)


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolution, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.norm(self.convolution(x))).flatten(1))


def make(base: nn.Module, **options: Any) -> Engine:
    options = {"precision": "fp32", "micro_batch": 16} | options
    return Engine(BaseFunction.resolved(base.eval(), lattice_law(0.3), SHAPE, torch.uint8, seed=7, **options))


def votes(engine: Engine) -> list[list[int]]:
    return [d.counts.tolist() for d in engine.run(Job(image, i, Count(50)) for i, image in enumerate(IMAGES))]


@frozen_runners
def test_votes_are_those_of_the_eager_base(runner: str) -> None:
    """Also after another network of the same architecture, and after its weights changed."""

    def check(base: nn.Module) -> list[list[int]]:
        other, eager = make(base, runner=runner), make(base)
        assert other.meta == eager.meta | {"runner": runner}
        found = votes(eager)
        assert votes(other) == found
        return found

    first, second = Net(0), Net(1)
    seen = [check(first), check(second)]
    with torch.no_grad():
        first.linear.weight.neg_()
    seen.append(check(first))
    assert len({str(found) for found in seen}) == 3


@frozen_runners
def test_weights_are_frozen_in(runner: str) -> None:
    base = Net(2)
    engine = make(base, runner=runner)
    before = votes(engine)
    with torch.no_grad():
        base.linear.weight.neg_()
    assert votes(engine) == before


def run(kind: str, base: nn.Module, replicas: Tensor) -> Tensor:
    """Logits of one micro-batch, which is of the precision that is computed in."""
    (runner,) = make_runners(base, kind, replicas.dtype, CPU, (replicas,), 1)
    with torch.no_grad():
        return runner(replicas)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("runner", "dtype", "rows", "channels", "size"),
    [
        pytest.param("compiled", torch.float32, 6, 3, 32, marks=needs_compiler),
        pytest.param("compiled", torch.bfloat16, 7, 1, 17, marks=needs_compiler),
        pytest.param("openvino", torch.bfloat16, 6, 3, 32, marks=needs_openvino),
        pytest.param("openvino", torch.float32, 7, 1, 17, marks=needs_openvino),
    ],
)
def test_frozen_runners_are_as_exact_as_torch(
    runner: str, dtype: torch.dtype, rows: int, channels: int, size: int
) -> None:
    """No worse than twice the error of PyTorch in the same precision. Each runner meets each precision and shape."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = models.ResNet(8).eval()
        base.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        for norm in (m for m in base.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2.0)
        replicas = torch.randn(rows, channels, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    found, plain = (run(kind, base, replicas).double() for kind in (runner, "eager"))
    with torch.no_grad():
        exact = base.double()(replicas.double())
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()


def micro_batch() -> Tensor:
    return torch.randn(16, *SHAPE).contiguous(memory_format=torch.channels_last)


@frozen_runners
def test_a_later_micro_batch_leaves_logits_as_they_are(runner: str) -> None:
    one, other = make_runners(Net(3).eval(), runner, torch.float32, CPU, (torch.zeros_like(micro_batch()),), 2)
    first, second = micro_batch(), micro_batch()
    with torch.no_grad():
        logits = one(first)
        kept = logits.clone()
        assert not torch.equal(one(second), kept)
        assert torch.equal(logits, kept)
        assert torch.equal(one(first.clone(memory_format=torch.preserve_format)), kept)  # in other memory
        assert torch.equal(other(first), kept)


@needs_openvino
def test_autocast_around_does_not_become_part_of_the_network() -> None:
    replicas = micro_batch()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run("openvino", Net(4).eval(), replicas)
    assert torch.equal(inside, run("openvino", Net(4).eval(), replicas))


# ---- several lanes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kind", RUNNERS)
def test_lanes_give_the_votes_of_one(kind: str) -> None:
    if kind == "openvino":
        pytest.importorskip("openvino")
    if kind == "fused" and not arithmetics():
        pytest.skip("smoothfast._C is absent")
    base = models.ResNet(8).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)

    def counts() -> list[list[int]]:
        function = BaseFunction.resolved(
            base, lattice_law(0.3), (3, 32, 32), torch.uint8, seed=7, precision="fp32", runner=kind
        )
        engine = Engine(function)
        assert len(engine.lanes) == torch.get_num_threads()
        return [d.counts.tolist() for d in engine.run(Job(image, i, Count(100)) for i, image in enumerate(images))]

    found = counts()
    torch.set_num_threads(1)
    assert counts() == found


class Remembers(nn.Module):
    """Keeps its input on itself for a later layer, and waits in between for the other lanes to come along."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        time.sleep(0.001)
        return self.scale * self.weight * self.kept.flatten(1)[:, :CLASSES]


class Locked(Remembers):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock()


@pytest.mark.usefixtures("two_threads")
def test_lanes_do_not_share_what_a_module_keeps_on_itself() -> None:
    expected = votes(make(Pixels(CLASSES)))
    assert votes(make(Remembers())) == expected
    with pytest.warns(UserWarning, match="the base classifier cannot be copied, and so keeps one core busy: cannot"):
        engine = make(Locked())
    with pytest.warns(UserWarning, match="cannot be copied"):
        assert votes(engine) == expected


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "prepare", [torch.jit.script, partial(torch.compile, backend="eager")], ids=["script", "compile"]
)
def test_a_base_that_torch_has_prepared(prepare: Callable[[nn.Module], nn.Module]) -> None:
    expected = votes(make(Net(6)))
    assert votes(make(prepare(Net(6).eval()))) == expected
    assert measure(prepare(Net(6).eval()), SHAPE).layers == 3


@pytest.mark.usefixtures("two_threads")
def test_every_lane_sees_new_weights_and_attributes() -> None:
    base = Remembers()
    engine = make(base)
    before = votes(engine)
    base.scale = -1.0
    turned = votes(engine)
    assert turned != before
    with torch.no_grad():
        base.weight.neg_()
    assert votes(engine) == before


@pytest.mark.usefixtures("two_threads")
def test_what_a_lane_raises_reaches_the_caller() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if fails:
                raise ArithmeticError("it broke")
            return x.flatten(1)[:, :CLASSES]

    fails = False
    engine = make(Fails())
    expected = votes(engine)
    fails = True
    with pytest.raises(ArithmeticError, match="it broke"):
        votes(engine)
    fails = False
    assert votes(engine) == expected


@pytest.mark.usefixtures("two_threads")
def test_inside_inference_mode_and_autocast() -> None:
    expected = votes(make(Net(5)))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        engine = make(Net(5))
        assert votes(engine) == expected
    assert votes(engine) == expected


# ---- refusals --------------------------------------------------------------------------------------------------------


class Asks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :CLASSES] if x.sum().item() > 0 else x.flatten(1)[:, -CLASSES:]


@needs_openvino
def test_what_openvino_cannot_take() -> None:
    with pytest.raises(ValueError, match="runner is 'openvino', which does not take this base classifier: "):
        make(Asks(), runner="openvino")
    with pytest.raises(ValueError, match=r"which computes in fp32 or bf16, not in torch\.float16"):
        make(Net(0), runner="openvino", precision="fp16")
    with pytest.raises(ValueError, match="runner is 'openvino', which runs on CPUs; the base classifier is on meta"):
        make_runners(Net(0), "openvino", torch.float32, torch.device("meta"), (torch.zeros(16, *SHAPE),), 1)


def test_openvino_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smoothfast.runners.openvino.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"which is not installed: pip install smoothfast\[openvino\]"):
        make(Net(0), runner="openvino")


def test_runners() -> None:
    with pytest.raises(ValueError, match=f"runner is 'fast'; it must be one of {', '.join(RUNNERS)}"):
        make(Net(0), runner="fast")

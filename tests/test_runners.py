"""Every way to run the base classifier gives its logits, row by row, and what it cannot run it refuses."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import models, runners
from smoothfast.engine import Engine, Job
from smoothfast.noise import lattice_law
from smoothfast.procedures import Count
from smoothfast.runners import RUNNERS, make_runner

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
    return Engine(base.eval(), lattice_law(0.3), SHAPE, torch.uint8, CLASSES, 7, **options)


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


@needs_openvino
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "channels", "size", "threads"), [(6, 3, 32, 1), (6, 3, 17, 2), (7, 1, 16, 2)])
def test_openvino_is_as_exact_as_torch(dtype: torch.dtype, rows: int, channels: int, size: int, threads: int) -> None:
    """No worse than twice the error of PyTorch in the same precision; rows that threads do not divide; one channel."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = models.resnet20().eval()
        base.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        for norm in (m for m in base.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2.0)
        replicas = torch.randn(rows, channels, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            found, plain = (make_runner(base, kind, dtype, CPU)(replicas).double() for kind in ("openvino", "eager"))
            exact = base.double()(replicas.double())
    finally:
        torch.set_num_threads(before)
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()


@needs_openvino
def test_openvino_reads_replicas_where_they_are_and_keeps_no_logits() -> None:
    """A second micro-batch, in other memory, changes nothing of the logits of the first."""
    runner = make_runner(Net(3).eval(), "openvino", torch.float32, CPU)
    first, second = (torch.randn(16, *SHAPE).contiguous(memory_format=torch.channels_last) for _ in range(2))
    logits = runner(first)
    kept = logits.clone()
    assert not torch.equal(runner(second), kept)
    assert torch.equal(logits, kept)
    assert torch.equal(runner(first.clone(memory_format=torch.preserve_format)), kept)


@needs_openvino
def test_autocast_around_does_not_become_part_of_the_network() -> None:
    replicas = torch.randn(16, *SHAPE).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        inside = make_runner(Net(4).eval(), "openvino", torch.float32, CPU)(replicas)
    assert torch.equal(inside, make_runner(Net(4).eval(), "openvino", torch.float32, CPU)(replicas))


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
        make_runner(Net(0), "openvino", torch.float32, torch.device("meta"))


def test_openvino_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"which is not installed: pip install smoothfast\[openvino\]"):
        make(Net(0), runner="openvino")


def test_runners() -> None:
    with pytest.raises(ValueError, match=f"runner is 'fast'; it must be one of {', '.join(RUNNERS)}"):
        make(Net(0), runner="fast")

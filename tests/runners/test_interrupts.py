"""Runners whose making is interrupted, or asked for by several threads at once: nothing is left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

import smoothfast as sf
from smoothfast import runners
from smoothfast.runners.declined import declined

IMAGES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()


def smoothed(base: nn.Module, runner: str) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(base, 0.25, 3, precision="fp32", runner=runner, max_batch=16)


def interrupt() -> None:
    """Does what Ctrl-C does: the main thread gets it, whichever is at work."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_a_lane_is_waited_for(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would go on making a runner beside whatever comes next."""
    left: list[str] = []

    def make(base: nn.Module, *others: Any) -> Any:
        try:
            if not left:
                interrupt()
                time.sleep(0.2)
        finally:
            left.append("made")
        return [base] * others[-1]

    monkeypatch.setitem(runners.RUNNERS, "compiled", make)
    classifier = smoothed(network(), "compiled")
    with pytest.raises(KeyboardInterrupt):
        classifier.votes(IMAGES, 32)
    assert left == ["made"]
    assert torch.get_num_threads() == threads
    assert classifier.votes(IMAGES, 32).sum() == 64


def test_an_interrupted_export(threads: int) -> None:
    """The network of the user is whole, and the runner is made at the next call."""
    pytest.importorskip("openvino")
    left = [interrupt]

    def at_export(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(inputs[0], FakeTensor) and left:
            left.pop()()

    base = network()
    base.register_forward_pre_hook(at_export)
    classifier = smoothed(base, "openvino")
    with pytest.raises(KeyboardInterrupt):
        classifier.votes(IMAGES, 32)
    assert left == []
    assert not any(isinstance(tensor, FakeTensor) for tensor in base.parameters())
    assert torch.equal(classifier.votes(IMAGES, 32), smoothed(base, "eager").votes(IMAGES, 32))


def test_a_decline_that_an_interrupt_caused_is_none() -> None:
    """Compilers raise their own errors instead, with what was raised as a cause or in words."""
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as cause:
            raise RuntimeError("the compiler failed") from cause
    except RuntimeError as found:
        error = found
    for each in (error, RuntimeError("Exception from frontend: KeyboardInterrupt: <EMPTY MESSAGE>")):
        with pytest.raises(KeyboardInterrupt):
            declined("openvino", each)
    assert "does not take" in str(declined("openvino", RuntimeError("no such operation")))


def test_threads_make_runners_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, seen = threading.Lock(), []

    def make(base: nn.Module, *others: Any) -> Any:
        seen.append(at_work.acquire(blocking=False))
        time.sleep(0.02)
        at_work.release()
        return [base] * others[-1]

    monkeypatch.setitem(runners.RUNNERS, "compiled", make)
    bases = [network() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda base: smoothed(base, "compiled").votes(IMAGES, 32), bases))
    assert seen == [True] * 4


def test_two_threads_with_a_classifier_each_of_one_network() -> None:
    """One exports the network while the other runs it."""
    pytest.importorskip("openvino")
    base = network()
    expected = smoothed(base, "eager").votes(IMAGES, 32)
    with ThreadPoolExecutor(4) as pool:
        kinds = ["openvino", "eager"] * 2
        found = list(pool.map(lambda kind: smoothed(base, kind).votes(IMAGES, 32), kinds))
    assert all(torch.equal(votes, expected) for votes in found)

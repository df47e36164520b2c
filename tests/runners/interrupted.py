"""Interrupts while a runner is made; run by test_interrupts.py in a process of its own, which they might end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.linear_smoothed import IMAGES, network, smoothed
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from smoothfast import runners


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def python_handles_interrupts() -> Iterator[None]:
    """As in a shell: a job in the background has them ignored, and packages put handlers of their own."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


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

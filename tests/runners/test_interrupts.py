"""Runners whose making is interrupted, or asked for by several threads at once: nothing is left behind."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.linear_smoothed import IMAGES, network, smoothed
from torch import nn

from smoothfast import runners
from smoothfast.runners.declined import declined


def test_interrupts() -> None:
    path = Path(__file__).with_name("interrupted.py")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=240, start_new_session=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert re.search("[24] passed", result.stdout), result.stdout  # two where OpenVINO is missing


def test_an_interrupt_after_runners_of_openvino_are_gone() -> None:
    """It is still an interrupt, and no fault of the process."""
    pytest.importorskip("openvino")
    lines = [
        "import gc, os, signal",
        "from helpers.linear_smoothed import IMAGES, network, smoothed",
        "kept = [smoothed(network(), 'openvino') for _ in range(2)]",
        "for classifier in kept: classifier.votes(IMAGES, 32)",
        "del classifier, kept[0]",
        "gc.collect()",
        "del kept[0]",
        "gc.collect()",
        "signal.signal(signal.SIGINT, lambda *_: print('interrupted'))",
        "os.kill(os.getpid(), signal.SIGINT)",
    ]
    words = [sys.executable, "-c", "\n".join(lines)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[1])
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr


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

"""Memory after many calls is what it was after some: nothing is kept of a call, of a run, or of an answer."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from helpers.classifiers import Pixels, embedded
from helpers.odd_calls import called, fused_calls

from smoothfast import SmoothedClassifier
from smoothfast.models import CIFAR10_STATISTICS
from smoothfast.names import VOTINGS
from smoothfast.runners.fused import arithmetics

STATM = Path("/proc/self/statm")
ALLOWED = 2 << 20  # bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("extension", "one_thread"),
    pytest.mark.skipif(not STATM.is_file(), reason="tells memory as Linux does"),
]


def resident() -> int:
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(call: Callable[[], Any], times: int) -> int:
    """Bytes by which memory grows in so many calls, after a tenth of them."""
    for _ in range(times // 10):
        call()
    before = resident()
    for _ in range(times):
        call()
    return resident() - before


CALLS: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    **{
        f"noisy_replicas {kind[0]} {form}": ("noisy_replicas", lambda kind=kind, form=form: cases.arguments(
            (3, 5, 7), *kind, channels_last=form
        ))
        for kind in cases.KINDS[:2] for form in (False, True)
    },
    **{
        f"tally {voting}": ("tally", lambda voting=voting: cases.votes(13, 10, torch.bfloat16, voting=voting))
        for voting in VOTINGS
    },
    "replica_sum": ("replica_sum", lambda: cases.gradients((3, 5, 7), 9, torch.bfloat16, True)),
    "attack_step linf": ("attack_step", lambda: cases.attack((3, 5, 7), "linf", 0.03)),
    "attack_step l2": ("attack_step", lambda: cases.attack((3, 5, 7), "l2", 0.03)),
    "perturb_weights": ("perturb_weights", lambda: cases.network((3,), 5, torch.bfloat16)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_ops(name: str) -> None:
    op, arguments = CALLS[name][0], CALLS[name][1]()
    assert growth(lambda: called(op, arguments), 100_000) <= ALLOWED


def test_errors_of_ops() -> None:
    arguments = list(cases.votes(13, 10, torch.float32))
    arguments[1] = arguments[1] + 9

    def refused() -> None:
        with pytest.raises(RuntimeError, match="slots"):
            torch.ops.smoothfast.tally(*arguments)

    assert growth(refused, 20_000) <= ALLOWED


@pytest.mark.skipif(not arithmetics(), reason="smoothfast._C is not built")
def test_fused_networks() -> None:
    chosen = {
        (name, arguments[-1 if name != "fused_votes" else -3]): (name, arguments)
        for name, arguments in fused_calls()
        if name == "fused_votes" or len(arguments[0]) == 1
    }
    for name, arguments in chosen.values():
        assert growth(lambda name=name, arguments=arguments: called(name, arguments), 1_000) <= ALLOWED, name


@pytest.fixture(params=[1, 2], ids=["one lane", "two lanes"])
def lanes(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)  # the fixture one_thread sets it back
    return request.param


def test_answers_of_a_kept_classifier(lanes: int) -> None:
    model = SmoothedClassifier(Pixels().eval(), 0.3, 5, max_batch=16, runner="eager", precision="fp32")
    images = torch.arange(2 * 48).remainder(251).to(torch.uint8).view(2, 3, 4, 4)
    assert growth(lambda: model.predict(images, 100), 1_000) <= ALLOWED
    assert growth(lambda: model.certify(images, 16, 100), 300) <= ALLOWED


def test_answers_of_a_network(lanes: int) -> None:
    model = SmoothedClassifier(embedded(), 0.25, 10, normalize=CIFAR10_STATISTICS, max_batch=16, runner="eager")
    images = torch.arange(3 * 32 * 32).remainder(251).to(torch.uint8).view(1, 3, 32, 32)
    assert growth(lambda: model.votes(images, 16), 300) <= ALLOWED


def test_engines_that_are_made_anew() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)

    def made() -> None:
        model = SmoothedClassifier(Pixels().eval(), 0.3, 5, max_batch=16, runner="eager", precision="fp32")
        model.votes(images, 16)

    assert growth(made, 300) <= ALLOWED

"""torch.compile around what is here, and around what it is given: the same results, and no engine is traced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smoothfast as sf
from smoothfast.attacks import PGD

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()


def smoothed(base: nn.Module, **options: Any) -> sf.SmoothedClassifier:
    options = {"samples": 8, "runner": "eager", "precision": "fp32", "deterministic": True} | options
    return sf.SmoothedClassifier(base, 0.25, 5, **options)


class Backend:
    """A compiler that compiles nothing, and counts how often and of how many operations it is asked to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, graph: Any, _: Any) -> Any:
        self.sizes.append(len(graph.graph.nodes))
        return graph.forward


@pytest.mark.parametrize("voting", ["prediction", "soft"])
def test_a_compiled_classifier(voting: str) -> None:
    model, backend = smoothed(network(), voting=voting), Backend()
    compiled = torch.compile(model, backend=backend)
    for images in (IMAGES, IMAGES[:1]):
        assert torch.equal(compiled(images), model(images))
    assert backend.sizes == []


def test_what_stands_around_is_compiled() -> None:
    model, backend = smoothed(network(), voting="soft"), Backend()

    def loss(images: Tensor) -> Tensor:
        return model((images * 2 / 2).sin()).exp().square().sum()

    images = IMAGES.clone().requires_grad_()
    torch.compile(loss, backend=backend)(images).backward()
    found, images.grad = images.grad, None
    loss(images).backward()
    assert torch.equal(found, images.grad)
    assert len(backend.sizes) == 2  # before the classifier, and after


def test_a_soft_classifier_and_an_attack_within_compiled_functions() -> None:
    model, backend = smoothed(network()), Backend()
    attack = PGD(model, 0.1, steps=2, runner="eager")
    assert torch.equal(torch.compile(model.differentiable(4), backend=backend)(IMAGES), model.differentiable(4)(IMAGES))
    call = torch.compile(lambda images, labels: attack(images, labels), backend=backend)
    assert torch.equal(call(IMAGES, torch.tensor([0, 1])), attack(IMAGES, torch.tensor([0, 1])))
    assert backend.sizes == []


def test_a_base_that_is_compiled() -> None:
    """It is run as the module that was compiled, of which weights and hooks are live."""
    base, backend = network(), Backend()
    model, attacked = (
        smoothed(torch.compile(base, backend=backend)),
        PGD(torch.compile(base, backend=backend), 0.1, steps=2),
    )
    plain = smoothed(network())
    assert torch.equal(model(IMAGES), plain(IMAGES))
    attacked(IMAGES, [0, 1])
    assert torch.equal(
        PGD(model, 0.1, steps=2, runner="eager")(IMAGES, [0, 1]), PGD(plain, 0.1, steps=2)(IMAGES, [0, 1])
    )
    assert backend.sizes == []
    assert model.state_dict().keys() == plain.state_dict().keys()
    called = []
    base.register_forward_hook(lambda *_: called.append(1))
    nn.init.zeros_(base[1].weight)
    nn.init.eye_(base[1].weight)
    model.votes(IMAGES, 8)
    assert called


def test_hooks_of_a_compiled_base_are_kept() -> None:
    compiled, called = torch.compile(network(), backend="eager"), []
    compiled.register_forward_hook(lambda *_: called.append(1))
    smoothed(compiled).votes(IMAGES, 8)
    assert called

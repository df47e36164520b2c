"""Which runner is chosen: by the work alone, among those that are installed, and the next where one declines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import smoothfast as sf
from smoothfast import models, runners
from smoothfast.runners import choice
from smoothfast.runners.choice import COSTS, Workload, candidates, measure, seconds
from smoothfast.runners.operations import operations

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what is found: packages, and a compiler of C++."""

    def found(*packages: str, compiler: bool = False) -> None:
        monkeypatch.setattr(choice, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(choice.shutil, "which", lambda name: "/bin/c++" if compiler else None)

    return found


def test_networks_are_measured() -> None:
    """Multiplications and additions of the convolutions, by hand: 40.6 million pairs for ResNet-20."""
    base = models.resnet20().train()
    network = measure(base, (3, 32, 32))
    assert network.operations == pytest.approx(2 * 40.55e6, rel=0.01)
    assert network.layers == 19 + 19 + 1  # convolutions, batch norms, the linear layer
    assert base.training
    assert measure(nn.Flatten(), (3, 4, 4)) == Workload(0, 0)


@pytest.fixture
def no_dynamo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo seems not to be loaded, so operations are counted without it."""
    monkeypatch.setattr("smoothfast.runners.operations.sys", SimpleNamespace(modules={}))


def test_a_network_whose_operations_cannot_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> float:
        raise TypeError("a formula is missing")

    monkeypatch.setattr("smoothfast.runners.operations.operations", fails)
    with pytest.warns(UserWarning, match="cannot be counted, and so runner is 'eager': a formula is missing"):
        assert measure(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (3, 4, 4)) == Workload(0, 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_operations_are_those_that_torch_counts(mode: Callable[[], Any], no_dynamo: None) -> None:
    images = torch.zeros(2, 3, 32, 32)
    for network in (models.resnet20(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Linear(900, 5))):
        with mode():
            with FlopCounterMode(display=False) as counter:
                network(images)
            assert operations(network, images) == counter.get_total_flops() > 0


def test_operations_of_a_network_that_needs_dynamo(no_dynamo: None) -> None:
    class Either(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cond(images.sum() > 0, super().forward, torch.neg, (images.flatten(1),))

    assert operations(Either(48, 48).requires_grad_(False), torch.zeros(2, 3, 4, 4)) == 2 * 2 * 48 * 48


def test_small_work_is_not_worth_a_compiler(installed: Callable[..., None]) -> None:
    installed("openvino", compiler=True)
    resnet20 = Workload(81e6, 39)
    chosen = [candidates(resnet20, passes, "bf16", CPU) for passes in (0, 1_000, 100_000, 10**7)]
    assert chosen == [["eager"], ["eager"], ["openvino", "eager"], ["openvino", "compiled", "eager"]]
    assert candidates(Workload(8.1e9, 39), 1_000, "bf16", CPU)[0] == "openvino"  # a hundred times the work


def test_only_what_is_installed(installed: Callable[..., None]) -> None:
    resnet20, much = Workload(81e6, 39), 10**6
    installed(compiler=True)
    assert candidates(resnet20, much, "bf16", CPU) == ["compiled", "eager"]
    installed("openvino")
    assert candidates(resnet20, much, "bf16", CPU) == ["openvino", "eager"]
    assert candidates(resnet20, much, "fp16", CPU) == ["eager"]  # in which OpenVINO does not compute
    installed()
    assert candidates(resnet20, much, "bf16", CPU) == ["eager"]


def test_on_gpus(installed: Callable[..., None]) -> None:
    cuda, network = torch.device("cuda"), Workload(81e6, 39)
    installed("triton", "openvino", compiler=True)
    assert candidates(network, 10, "bf16", cuda) == ["eager"]
    assert candidates(network, choice.GPU_PASSES, "bf16", cuda) == ["compiled", "eager"]
    installed(compiler=True)
    assert candidates(network, choice.GPU_PASSES, "bf16", cuda) == ["eager"]


@pytest.mark.parametrize("runner", COSTS)
def test_seconds(runner: str) -> None:
    """Twice the cores halve the sampling, and leave what it takes to make ready as it is."""
    ready = seconds(runner, Workload(1e9, 10), 0, "bf16", 2)
    assert ready == COSTS[runner].ready + 10 * COSTS[runner].layer
    one, two = (seconds(runner, Workload(1e9, 10), 1000, "bf16", cores) - ready for cores in (1, 2))
    assert one == pytest.approx(2 * two)
    assert one == pytest.approx(1000 / COSTS[runner].speed["bf16"])


# ---- the choice of a smoothed classifier -----------------------------------------------------------------------------


@pytest.fixture
def preferred(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compiled, then eager, from 1,000 forward passes on; the passes that were asked about."""
    asked: list[int] = []

    def choose(network: Workload, passes: int, precision: str, device: torch.device) -> list[str]:
        asked.append(passes)
        return ["compiled", "eager"] if passes >= 1000 else ["eager"]

    monkeypatch.setattr("smoothfast.engine.function.candidates", choose)

    def make(network: nn.Module, dtype: torch.dtype, device: torch.device, examples: Any, count: int) -> list[Any]:
        return [network] * count

    monkeypatch.setitem(runners.RUNNERS, "compiled", make)
    return asked


def smoothed(base: nn.Module | None = None, **options: Any) -> sf.SmoothedClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = base or nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    return sf.SmoothedClassifier(base.eval(), 0.25, 3, precision="fp32", **options)


def test_the_samples_of_an_image_decide(preferred: list[int]) -> None:
    """Not how many images there are: what is decided on one does not depend on its company."""
    classifier = smoothed()
    assert classifier.certify(IMAGES, 100, 1000).meta["runner"] == "compiled"
    assert classifier.certify(IMAGES, 100, 899).meta["runner"] == "eager"
    classifier.predict(IMAGES, 1000)
    classifier.votes(IMAGES, 500)
    classifier(IMAGES)
    assert set(preferred) == {1100, 999, 1000, 500, 64}
    one, other = classifier.engine(IMAGES, 1000), classifier.engine(IMAGES, 10)
    assert (one.meta["runner"], other.meta["runner"]) == ("compiled", "eager")
    assert classifier.engine(IMAGES, 1000) is one  # both are kept
    assert classifier.engine(IMAGES, 10) is other


def test_a_runner_that_is_asked_for_is_taken(preferred: list[int]) -> None:
    assert smoothed(runner="eager").certify(IMAGES, 100, 1000).meta["runner"] == "eager"
    assert smoothed(runner="compiled").certify(IMAGES, 100, 20).meta["runner"] == "compiled"
    assert preferred == []


def test_the_next_runner_takes_the_place_of_one_that_declines(
    preferred: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def declines(network: Any, *others: Any) -> Any:
        calls.append(network)
        raise runners.DeclinedError("runner is 'compiled', which does not take this base classifier: no reason")

    calls: list[Any] = []
    monkeypatch.setitem(runners.RUNNERS, "compiled", declines)
    classifier = smoothed()
    for _ in range(2):
        with pytest.warns(UserWarning, match="does not take this base classifier: no reason; the next runner") as seen:
            classifier.votes(IMAGES, 1000)
        assert [warning.filename for warning in seen] == [__file__]
    with pytest.warns(UserWarning, match="the next runner takes its place"):
        certificate = classifier.certify(IMAGES, 100, 1000)
    assert certificate.meta["runner"] == "eager"
    assert certificate.sound
    assert len(calls) == 1  # it is not asked again
    with pytest.raises(ValueError, match="does not take this base classifier: no reason"):
        smoothed(runner="compiled").certify(IMAGES, 100, 20)

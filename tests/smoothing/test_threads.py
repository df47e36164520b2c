"""One smoothed classifier in many threads at once and in forks: the results of one thread, and nothing hangs."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.classifiers import Pixels
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smoothfast import Smooth, SmoothedClassifier

THREADS, PATIENCE = 4, 60  # seconds
IMAGES = torch.arange(12 * 3 * 4 * 4).remainder(251).to(torch.uint8).view(12, 3, 4, 4)
ANSWERS: dict[str, Callable[[SmoothedClassifier, Tensor, list[int]], Tensor]] = {
    "votes": lambda model, images, ids: model.votes(images, 40, ids),
    "predict": lambda model, images, ids: model.predict(images, 200, method="sequential", image_ids=ids).counts,
    "certify": lambda model, images, ids: torch.as_tensor(model.certify(images, 16, 200, image_ids=ids).radii),
    "scores": lambda model, images, ids: model.scores(images, 20, ids),
}

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@contextmanager
def lanes(threads: int) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(former)


@pytest.fixture(params=[1, 2], ids=["one lane", "two lanes"])
def model(request: pytest.FixtureRequest) -> Iterator[SmoothedClassifier]:
    with lanes(request.param):
        yield made()


def made(**options: Any) -> SmoothedClassifier:
    return SmoothedClassifier(
        Pixels().eval(), 0.3, 5, samples=8, max_batch=16, runner="eager", precision="fp32", **options
    )


def answer(model: SmoothedClassifier, number: int) -> Tensor:
    """The answer to one of many questions, about an image or two."""
    at, kind = number % 11, list(ANSWERS)[number % len(ANSWERS)]
    return ANSWERS[kind](model, IMAGES[at : at + 1 + number % 2], list(range(at, at + 1 + number % 2)))


def test_many_threads_get_what_one_gets(model: SmoothedClassifier) -> None:
    numbers = list(range(24))
    expected = [answer(made(), number) for number in numbers]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda number: answer(model, number), numbers, timeout=PATIENCE))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_forward_draws_new_samples_in_every_thread(model: SmoothedClassifier) -> None:
    """In whatever order threads come: they draw the samples that as many calls of one thread do, each once."""
    alone = made()
    expected = [alone(IMAGES) for _ in range(20)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda _: model(IMAGES), range(20), timeout=PATIENCE))
    left = list(found)
    for scores in expected:
        left.pop(next(i for i, other in enumerate(left) if torch.equal(other, scores)))
    assert left == []


def test_soft_voting_in_many_threads() -> None:
    """With a base classifier in train mode, which is in eval mode while any thread is in a pass."""
    base = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(48, 5))
    options: dict[str, Any] = {"voting": "soft", "deterministic": True, "precision": "fp32", "runner": "eager"}
    shared = SmoothedClassifier(base.train(), 0.3, 5, samples=8, max_batch=16, **options)
    images = (IMAGES / 255).requires_grad_()
    expected = shared(images)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda _: shared(images), range(20), timeout=PATIENCE))
    assert all(torch.equal(scores, expected) for scores in found)
    assert base.training


def test_cohens_api_in_many_threads() -> None:
    alone, shared = (Smooth(Pixels().eval(), 5, 0.3) for _ in range(2))
    images = IMAGES / 255
    expected = [alone.certify(images[3], 16, 100, 0.001, 16) for _ in range(12)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda _: shared.certify(images[3], 16, 100, 0.001, 16), range(12), timeout=PATIENCE))
    assert sorted(found) == sorted(expected)


def test_a_thread_that_fails_lets_the_others_go_on(model: SmoothedClassifier) -> None:
    with pytest.raises(ValueError, match="n is"):
        model.predict(IMAGES[:1], 1)
    with pytest.raises(RuntimeError):
        model.votes(torch.zeros(1, 3, 4, 4, dtype=torch.uint8, device="meta"), 8)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(answer, model, 0).result(PATIENCE).sum() == 40


def test_copies_and_pickles_have_turns_of_their_own() -> None:
    model = made()
    expected = answer(model, 0)
    with model.turns.taken(), ThreadPoolExecutor(1) as pool:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(pool.submit(answer, other, 0).result(PATIENCE), expected)


# ---- forks -----------------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system starts no process by fork"
)


def forked(call: Callable[[], Any]) -> Any:
    """What a call gives in a fork of this process, as soon as it is there."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(call()), daemon=True)
    child.start()
    child.join(PATIENCE)
    hung = child.is_alive()
    child.kill()
    assert not hung, "the fork hangs"
    assert child.exitcode == 0
    return queue.get()


@needs_fork
def test_a_fork_computes_what_its_parent_does(model: SmoothedClassifier) -> None:
    expected = [answer(model, number).tolist() for number in range(4)]
    assert forked(lambda: [answer(model, number).tolist() for number in range(4)]) == expected
    assert [answer(model, number).tolist() for number in range(4)] == expected


@needs_fork
def test_a_fork_of_a_process_that_has_used_openmp(model: SmoothedClassifier) -> None:
    """Images so large that torch shares out the work of clearing them: a fork lacks the threads for that."""
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    expected = model.votes(images, 40)
    assert torch.zeros(10**6).add_(1).sum() == 10**6
    assert forked(lambda: model.votes(images, 40).tolist()) == expected.tolist()


@needs_fork
def test_a_fork_in_the_middle_of_another_threads_run(model: SmoothedClassifier) -> None:
    expected = answer(model, 0)
    entered, leave = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        entered.set()
        leave.wait(PATIENCE)

    def ask() -> Any:
        leave.set()
        return answer(model, 0).tolist()

    model.base.register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(answer, model, 0)
        assert entered.wait(PATIENCE)
        try:
            assert forked(ask) == expected.tolist()
        finally:
            leave.set()
        assert torch.equal(running.result(PATIENCE), expected)


class Predicted(Dataset[Tensor]):
    """Images with their votes, as workers of a DataLoader make them."""

    def __init__(self, model: SmoothedClassifier) -> None:
        self.model = model

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Tensor:
        return self.model.votes(IMAGES[index : index + 1], 40, [index])[0]


@needs_fork
def test_workers_of_a_data_loader(model: SmoothedClassifier) -> None:
    expected = model.votes(IMAGES, 40)
    loader = DataLoader(Predicted(model), batch_size=3, num_workers=2, multiprocessing_context="fork", timeout=PATIENCE)
    assert torch.equal(torch.cat(list(loader)), expected)

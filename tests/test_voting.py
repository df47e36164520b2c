"""Classifiers by every voting rule: scores by hand, gradients by autograd in float64, and what they refuse."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smoothfast as sf
from smoothfast import ops
from smoothfast.engine import BaseFunction, Engine, Job
from smoothfast.noise import Stream, gaussian_law, lattice_law, stream_key
from smoothfast.procedures import Total
from smoothfast.voting import LOGIT, PREDICTION, SOFT, log_scores, voting_rule

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, SEED, SIGMA = 5, 11, 0.3
PIXELS = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES = PIXELS / 255
RULES = ["prediction", "weighted", "soft", "logit", (2, 1)]
by_rule = pytest.mark.parametrize("voting", RULES, ids=str)
by_mean = pytest.mark.parametrize("voting", ["soft", "logit"])


def network() -> nn.Module:
    """Smooth in its inputs and its parameters; probabilities of all sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, CLASSES))
        nn.init.normal_(base[-1].weight, std=0.5)
        return base.eval()


class Pixels(nn.Module):
    """Logits that are pixels: exact in whatever batch, often tied, some of them not finite."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :CLASSES].clone()
        logits[x[:, 2, 3, 3] > 0.5, 1] = math.nan
        return logits


def make(base: nn.Module | None = None, voting: Any = "soft", **options: Any) -> sf.SmoothedClassifier:
    options = {"seed": SEED, "precision": "fp32", "samples": 12, "max_batch": 32, "runner": "eager"} | options
    return sf.SmoothedClassifier(base or network(), SIGMA, CLASSES, voting=voting, **options)


def sampled(
    base: Callable[[Tensor], Tensor], images: Tensor, samples: range, stream: Stream, ids: Tensor | None = None
) -> Tensor:
    """Logits [samples, N, K], of one sample of all images after the other."""
    law = lattice_law(SIGMA) if images.dtype == torch.uint8 else gaussian_law(SIGMA)
    rows, key = torch.arange(len(images)), stream_key(SEED, stream)
    affine = ops.affine(None, 3, images.dtype)
    logits = []
    for sample in samples:
        numbers = torch.full_like(rows, sample)
        logits.append(base(ops.noisy_replicas(images, rows, rows if ids is None else ids, numbers, key, law, *affine)))
    return torch.stack(logits)


def given(logits: Tensor, voting: Any) -> Tensor:
    """What each sample gives each class, float64, by the definition of the rule."""
    logits = logits.double()
    if voting == "soft":
        return logits.softmax(-1)
    if voting == "logit":
        return logits
    weights = {"prediction": [1.0], "weighted": [0.5**rank for rank in range(CLASSES)]}.get(voting, voting)
    ranks = logits.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return torch.tensor([*weights, *[0.0] * CLASSES], dtype=torch.float64)[ranks]


def log_mean(logits: Tensor, voting: str) -> Tensor:
    """The log-scores by soft and logit voting, from logits [samples, N, K]."""
    mean = given(logits, voting).mean(0)
    return mean.log() if voting == "soft" else mean.log_softmax(-1)


# ---- forward ---------------------------------------------------------------------------------------------------------


@by_mean
@pytest.mark.parametrize("images", [PIXELS, IMAGES], ids=["uint8", "float"])
def test_forward_is_the_logarithm_of_a_mean_with_and_without_autograd(voting: str, images: Tensor) -> None:
    smoothed = make(voting=voting)
    for first in (0, 12):  # new samples at every call, the same in both ways
        with torch.no_grad():
            expected = log_mean(sampled(smoothed.base, images, range(first, first + 12), Stream.FORWARD), voting)
            plain = smoothed(images)
        smoothed._next_sample = first
        differentiable = smoothed(images)
        assert plain.dtype == differentiable.dtype == torch.float32
        assert differentiable.requires_grad
        assert not plain.requires_grad
        for found in (plain, differentiable):
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("voting", "weights"), [("weighted", 1.9375), ((2, 1), 1.5)], ids=str)
def test_forward_by_rank_is_the_logarithm_of_shares(voting: Any, weights: float) -> None:
    smoothed = make(Pixels().eval(), voting)
    sums = given(sampled(Pixels(), PIXELS, range(12), Stream.FORWARD).nan_to_num(math.inf), voting)
    broken = sampled(Pixels(), PIXELS, range(12), Stream.FORWARD).isnan().any(-1, keepdim=True)
    shares = sums.masked_fill(broken, 0).sum(0) / (2 if voting == (2, 1) else 1)
    expected = ((shares + 0.5) / (12 * weights + CLASSES / 2)).log().float()
    assert torch.equal(smoothed(PIXELS), expected)
    assert smoothed.samples == 12
    assert broken.any()


def test_a_scale_of_weights_changes_no_log_score() -> None:
    scores = [make(Pixels().eval(), voting)(PIXELS) for voting in ((2, 1), (1, 0.5), (3e-20, 1.5e-20), (2, 1, 0))]
    assert all(torch.equal(found, scores[0]) for found in scores)


@by_rule
def test_log_scores_are_finite_and_in_the_order_of_counts(voting: Any) -> None:
    rule = voting_rule(voting, 3)
    counts = torch.tensor([[0, 0, 0], [0, 7, 2**40], [2**33 - 1, 1, 0]])
    scores = log_scores(rule, counts, 1000)
    assert scores.isfinite().all()
    assert torch.equal(scores.argmax(1), counts.argmax(1))


@by_mean
def test_no_images(voting: str) -> None:
    smoothed = make(voting=voting)
    assert smoothed(IMAGES[:0]).shape == smoothed.scores(IMAGES[:0]).shape == (0, CLASSES)


def test_a_deterministic_forward_repeats_its_samples() -> None:
    smoothed = make(deterministic=True)
    assert torch.equal(smoothed(IMAGES), smoothed(IMAGES))


# ---- gradients -------------------------------------------------------------------------------------------------------


def gradients(scores: Callable[[Tensor], Tensor], base: nn.Module, images: Tensor) -> list[Tensor]:
    """Of an arbitrary function of the scores, by the images if these are float, and by the parameters."""
    leaf = images.clone().requires_grad_(images.is_floating_point())
    leaves = [*([leaf] if leaf.requires_grad else []), *base.parameters()]
    loss = (scores(leaf) * torch.linspace(-1, 2, CLASSES)).sum()
    return list(torch.autograd.grad(loss, leaves))


@by_mean
@pytest.mark.parametrize("images", [PIXELS, IMAGES], ids=["uint8", "float"])
@pytest.mark.parametrize("max_batch", [None, 4, 20], ids=["one pass", "a sample a pass", "passes of five samples"])
def test_gradients_are_those_of_the_formula(voting: str, images: Tensor, max_batch: int | None) -> None:
    smoothed = make(voting=voting, max_batch=max_batch)
    twin = copy.deepcopy(smoothed.base).double()

    def formula(leaf: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            noisy = sampled(lambda x: x, leaf, range(12), Stream.FORWARD).double()
        else:
            noise = sampled(lambda x: x, torch.zeros_like(images), range(12), Stream.FORWARD).double()
            noisy = leaf.double() + noise
        return log_mean(torch.stack([twin(x) for x in noisy]), voting)

    expected = gradients(formula, twin, images)
    for found, wanted in zip(gradients(smoothed, smoothed.base, images), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-3, atol=2e-5)


@by_mean
def test_images_alone_and_parameters_alone(voting: str) -> None:
    smoothed = make(voting=voting)
    both = gradients(smoothed, smoothed.base, IMAGES)
    smoothed.reset()
    smoothed.base.requires_grad_(False)
    leaf = IMAGES.clone().requires_grad_()
    (alone,) = torch.autograd.grad((smoothed(leaf) * torch.linspace(-1, 2, CLASSES)).sum(), leaf)
    torch.testing.assert_close(alone, both[0])
    smoothed.reset()
    assert not smoothed(IMAGES).requires_grad  # nothing asks for one: the engine answers


def test_the_clamp_passes_gradients() -> None:
    smoothed = make(clip=True)
    leaf = torch.zeros_like(IMAGES).requires_grad_()
    smoothed(leaf)[:, 0].sum().backward()
    assert leaf.grad.abs().gt(0).all()


def test_training_through_the_classifier_makes_it_better() -> None:
    smoothed, labels = make(deterministic=True), torch.arange(4)
    optimizer = torch.optim.SGD(smoothed.parameters(), lr=0.02)

    def loss() -> Tensor:
        return nn.functional.nll_loss(smoothed(IMAGES), labels)

    before = loss().item()
    for _ in range(8):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.9 * before
    with torch.no_grad():  # the engine sees the new weights
        assert loss().item() < 0.9 * before


@pytest.mark.parametrize("voting", ["weighted", (2, 1)], ids=str)
def test_votes_by_rank_have_no_gradient(voting: Any) -> None:
    scores = make(voting=voting)(IMAGES.clone().requires_grad_())
    with pytest.raises(
        ValueError, match=r"voting is 'weighted', and votes have no gradient: .* model.differentiable\(\)"
    ):
        scores.sum().backward()


@pytest.mark.parametrize(("voting", "mean"), [("logit", "logit"), ("soft", "soft"), ("weighted", "soft")])
def test_the_differentiable_form_averages_what_the_classifier_does(voting: str, mean: str) -> None:
    smoothed = make(voting=voting)
    expected = log_mean(sampled(smoothed.base, IMAGES, range(8), Stream.ATTACK), mean)
    torch.testing.assert_close(smoothed.differentiable()(IMAGES).double(), expected, rtol=0, atol=1e-5)


# ---- scores ----------------------------------------------------------------------------------------------------------


@by_rule
def test_scores_are_the_mean_of_what_samples_give(voting: Any) -> None:
    """And of samples that are broken nothing."""
    logits = sampled(Pixels(), PIXELS, range(100), Stream.PREDICT)
    broken = logits.isnan().any(-1, keepdim=True)
    assert 0 < broken.sum() < broken.numel()
    expected = given(logits.masked_fill(broken, 0), voting).masked_fill(broken, 0).mean(0)
    scores = make(Pixels().eval(), voting).scores(PIXELS, 100)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


@by_rule
def test_scores_depend_on_nothing_but_seed_ids_and_images(voting: Any) -> None:
    smoothed, ids = make(Pixels().eval(), voting), [7, 0, 2**40, 3]
    expected = smoothed.scores(PIXELS, 50, ids)
    smoothed(PIXELS)
    torch.manual_seed(1)
    assert torch.equal(smoothed.scores(PIXELS, 50, ids), expected)
    assert torch.equal(make(Pixels().eval(), voting, max_batch=7).scores(PIXELS, 50, ids), expected)
    order = [2, 0, 3]
    found = smoothed.scores(PIXELS[order], 50, [ids[i] for i in order])
    assert torch.equal(found, expected[order])
    for twin in (copy.deepcopy(smoothed), pickle.loads(pickle.dumps(smoothed))):
        assert torch.equal(twin.scores(PIXELS, 50, ids), expected)


def test_scores_by_votes_are_their_shares() -> None:
    smoothed = make(Pixels().eval(), "prediction")
    assert torch.equal(smoothed.scores(PIXELS, 64), smoothed.votes(PIXELS, 64) / 64)


@by_rule
def test_top_are_the_classes_in_the_order_of_their_scores(voting: Any) -> None:
    smoothed = make(Pixels().eval(), voting)
    scores, every = smoothed.scores(PIXELS, 9), smoothed.top(PIXELS, CLASSES, 9)
    ranked = scores.gather(1, every)
    falling, tied = ranked[:, :-1] > ranked[:, 1:], ranked[:, :-1] == ranked[:, 1:]
    assert (falling | (tied & (every[:, :-1] < every[:, 1:]))).all()
    assert torch.equal(smoothed.top(PIXELS, 2, 9), every[:, :2])
    assert tied.any() or voting in ("soft", "logit", "weighted")


def test_one_pass_serves_every_rule() -> None:
    """Votes by rule in their order, and broken rows once."""
    smoothed = make(Pixels().eval(), "prediction")
    engine = smoothed.engine(PIXELS)
    rules = [PREDICTION, SOFT, voting_rule("weighted", CLASSES), LOGIT]
    function = BaseFunction.resolved(
        Pixels().eval(), engine.function.law, (3, 6, 6), torch.uint8, precision="fp32", micro_batch=16, seed=SEED
    )
    several = Engine(function, rules)
    jobs = [Job(image, i, Total(50)) for i, image in enumerate(PIXELS)]
    decisions = list(several.run(jobs))
    for place, (rule, name) in enumerate(zip(rules, ("prediction", "soft", "weighted", "logit"), strict=True)):
        counts = torch.tensor([decision.counts[place * CLASSES :][:CLASSES].tolist() for decision in decisions])
        assert torch.equal(counts.double() * (rule.unit / 50), make(Pixels().eval(), name).scores(PIXELS, 50))
        if rule is PREDICTION:
            assert (counts.sum(1) + torch.tensor([decision.invalid for decision in decisions]) == 50).all()
    assert sum(decision.invalid for decision in decisions) > 0


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voting", RULES[1:], ids=str)
@pytest.mark.parametrize("method", ["votes", "predict", "certify"])
def test_tests_and_certificates_are_of_votes(voting: Any, method: str) -> None:
    name = voting if isinstance(voting, str) else "weighted"
    message = f"voting is '{name}', and {method} counts votes, as tests and certificates do: .* or take `scores`"
    with pytest.raises(ValueError, match=message):
        getattr(make(voting=voting), method)(IMAGES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make(voting="loud"),
            "voting is 'loud'; it must be one of prediction, weighted, soft, logit, or weights",
        ),
        (lambda: make(voting=[1] * 6), "voting has 6 weights; there are 5 classes"),
        (lambda: make(voting=[0.5, 1]), "none larger than the one before it"),
        (lambda: make().top(IMAGES, 0), "k is 0; it must be at least 1"),
        (lambda: make().top(IMAGES, 6), "k is 6; it must be at most 5, the classes"),
        (lambda: make().scores(IMAGES, 0), "samples is 0; it must be a whole number of at least 1"),
        (lambda: make().scores(IMAGES + 1), "float images must lie in 0 .. 1"),
        (lambda: make().scores(IMAGES, 10, [1]), "image_ids has 1 entries; there are 4 images"),
        (lambda: make(noise="lattice")(IMAGES), "noise is 'lattice', which needs uint8 images"),
    ],
)
def test_what_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()

"""SmoothedClassifier: what it returns, that it is a pure function where it says so, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from helpers.classifiers import Pixels
from torch import Tensor, nn

import smoothfast as sf
from smoothfast import ops
from smoothfast.engine import Job
from smoothfast.models import Normalize
from smoothfast.noise import Stream, gaussian_law, lattice_law, stream_key, uniform
from smoothfast.procedures import PILOT, Count, Decision, Draw, FixedCertify, certify_procedure, predict_procedure
from smoothfast.smoothing.classifier import LEAST_U
from smoothfast.statistics import certified_radius, share_bounds

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 5
IMAGES = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STATISTICS = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


class Blocks(nn.Module):
    """Logits that are sums of nine values each, exact in whatever batch: votes as clear as the image is."""

    def forward(self, x: Tensor) -> Tensor:
        return (255 * x).round().flatten(1)[:, : 9 * CLASSES].view(-1, CLASSES, 9).sum(2)


def blocks(*levels: float) -> Tensor:
    """Images for `Blocks`: number i is of class i % CLASSES, by so much that its radius is about 2.1 levels[i]."""
    images = torch.zeros(len(levels), 48, dtype=torch.uint8)
    for i, level in enumerate(levels):
        first = 9 * (i % CLASSES)
        images[i, first : first + 9] = round(255 * level)
    return images.view(-1, 3, 4, 4)


def linear(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)).eval()


def make(base: nn.Module | None = None, sigma: Any = 0.3, **options: Any) -> sf.SmoothedClassifier:
    options = {"num_classes": CLASSES, "precision": "fp32", "max_batch": 32} | options
    return sf.SmoothedClassifier(Pixels(CLASSES).eval() if base is None else base, sigma, **options)


@pytest.fixture
def smoothed() -> sf.SmoothedClassifier:
    return make()


def same(a: Any, b: Any) -> bool:
    """Whether two results agree in every tensor, and in their decisions."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    tensors = [(value, getattr(b, name)) for name, value in vars(a).items() if isinstance(value, Tensor)]
    return all(torch.equal(*pair) for pair in tensors) and outcomes(a) == outcomes(b)


def outcomes(result: Any) -> list[str]:
    """The decisions of a certificate; a prediction has none."""
    return getattr(result, "decisions", [])


# ---- forward ---------------------------------------------------------------------------------------------------------


def drawn(smoothed: sf.SmoothedClassifier, first: int, n: int) -> Tensor:
    """Votes of some samples of the stream of forward."""
    jobs = [Job(image, image_id, Count(n, first, Stream.FORWARD)) for image_id, image in enumerate(IMAGES)]
    return torch.tensor([decision.counts.tolist() for decision in smoothed.engine(IMAGES).run(jobs)])


def test_forward_gives_log_scores_of_the_votes(smoothed: sf.SmoothedClassifier) -> None:
    smoothed.samples = 37
    scores, votes = smoothed(IMAGES), drawn(smoothed, 0, 37)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    torch.testing.assert_close(scores, torch.log((votes + 0.5) / (37 + CLASSES / 2)))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(IMAGES)))
    assert torch.equal(scores.argmax(1), votes.argmax(1))


def test_forward_draws_new_samples_until_reset(smoothed: sf.SmoothedClassifier) -> None:
    calls = [smoothed(IMAGES) for _ in range(3)]
    new = [drawn(smoothed, 64 * i, 64) for i in range(3)]
    for scores, counts in zip(calls, new, strict=True):
        torch.testing.assert_close(scores, torch.log((counts + 0.5) / (64 + CLASSES / 2)))
    votes = smoothed.votes(IMAGES, samples=64)  # drawn from another stream: what calls have shown says nothing of it
    assert len({str(counts) for counts in [*new, votes]}) == 4
    smoothed.reset()
    assert torch.equal(smoothed(IMAGES), calls[0])


def test_a_deterministic_forward_repeats_its_samples() -> None:
    smoothed = make(deterministic=True)
    assert torch.equal(smoothed(IMAGES), smoothed(IMAGES))
    assert torch.equal(smoothed(IMAGES), make()(IMAGES))


def test_forward_takes_what_an_attack_makes_of_images(smoothed: sf.SmoothedClassifier) -> None:
    beyond = (IMAGES / 255 + 0.3).requires_grad_()
    assert smoothed(beyond).shape == (4, CLASSES)
    with pytest.raises(ValueError, match=r"must lie in 0 \.\. 1"):
        smoothed.votes(beyond)


# ---- pure functions --------------------------------------------------------------------------------------------------

# What the methods of CERTIFY take; n has several looks in each of those that stop early.
CERTIFY: dict[str, dict[str, Any]] = {
    "fixed": {"n0": 20, "n": 100},
    "sequential": {"n0": 20, "n": 400, "method": "sequential", "radius": 0.05},
    "sequential cohen": {"n0": 20, "n": 400, "method": "sequential", "radius": 0.05, "bound": "cohen"},
    "tolerance": {"n0": 20, "n": 1200, "method": "tolerance", "tolerance": 0.3},
    "grid": {"n0": 20, "n": 400, "method": "grid", "radii": (0.02, 0.05, 0.1), "bound": "cohen"},
    "randomized": {"n0": 20, "n": 100, "randomize": True},
    "randomized tolerance": {"n0": 20, "n": 1200, "method": "tolerance", "tolerance": 0.3, "randomize": True},
}
every_certify = pytest.mark.parametrize("settings", CERTIFY.values(), ids=CERTIFY)


def certify_by(settings: dict[str, Any]) -> Callable[..., Any]:
    return lambda smoothed, images, **ids: smoothed.certify(images, **settings, **ids)


def certify_known(method: str) -> Callable[..., Any]:
    return lambda smoothed, images, **ids: smoothed.certify(images, labels=[3] * len(images), **CERTIFY[method], **ids)


METHODS: dict[str, Callable[..., Any]] = {
    "votes": lambda smoothed, images, **ids: smoothed.votes(images, samples=100, **ids),
    "predict": lambda smoothed, images, **ids: smoothed.predict(images, n=100, **ids),
    "predict sequential": lambda smoothed, images, **ids: smoothed.predict(images, 400, method="sequential", **ids),
    **{f"certify {name}": certify_by(settings) for name, settings in CERTIFY.items()},
    "certify known labels": certify_known("fixed"),
    "certify known labels sequential": certify_known("sequential"),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def rows(result: Any, index: Tensor | slice) -> Any:
    """The result on some of the images."""
    if isinstance(result, Tensor):
        return result[index]
    changed = copy.copy(result)
    for name, value in vars(result).items():
        if isinstance(value, Tensor):
            object.__setattr__(changed, name, value[index])
    if outcomes(result):
        chosen = torch.arange(len(result.labels))[index]
        object.__setattr__(changed, "decisions", [result.decisions[i] for i in chosen])
    return changed


@every_method
def test_results_depend_on_seed_images_and_ids_alone(method: Callable[..., Any]) -> None:
    smoothed = make()
    first = method(smoothed, IMAGES)
    smoothed(IMAGES)
    method(smoothed, IMAGES.flip(0))
    assert same(method(smoothed, IMAGES), first)
    assert same(method(make(), IMAGES.contiguous(memory_format=torch.channels_last)), first)
    assert same(method(smoothed, IMAGES, image_ids=range(4)), first)
    order = torch.tensor([2, 0, 3, 1])
    assert same(method(smoothed, IMAGES[order], image_ids=order), rows(first, order))
    assert same(method(smoothed, IMAGES[:1]), rows(first, slice(1)))
    assert same(method(smoothed, IMAGES[1:], image_ids=np.arange(1, 4)), rows(first, slice(1, None)))
    assert not same(method(smoothed, IMAGES, image_ids=[4, 5, 6, 7]), first)
    assert not same(method(make(seed=1), IMAGES), first)
    assert not same(method(make(seed=2**64 - 1), IMAGES), first)


@every_method
def test_results_do_not_depend_on_how_images_are_passed(method: Callable[..., Any]) -> None:
    images = torch.cat([IMAGES, IMAGES.flip(0), IMAGES.flip(3)])
    whole = method(make(), images)
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    for size, order in ((1, shuffled[:6]), (5, shuffled), (12, shuffled)):
        for chunk in order.split(size):
            assert same(method(make(max_batch=7 * size), images[chunk], image_ids=chunk), rows(whole, chunk))


@every_method
def test_the_generator_of_torch_is_neither_read_nor_advanced(method: Callable[..., Any]) -> None:
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        first = method(make(), IMAGES)
        make()(IMAGES)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(123)
        assert same(method(make(), IMAGES), first)


def test_calls_do_not_depend_on_the_counter_of_forward(smoothed: sf.SmoothedClassifier) -> None:
    scores = smoothed(IMAGES)
    for method in METHODS.values():
        method(smoothed, IMAGES)
    second = smoothed(IMAGES)
    smoothed.reset()
    assert torch.equal(smoothed(IMAGES), scores)
    assert torch.equal(smoothed(IMAGES), second)


# ---- certificates ----------------------------------------------------------------------------------------------------


DEVIATION = 8.1e-11 * IMAGES[0].numel()  # of lattice noise


def plain_votes(image: Tensor, image_id: int, draw: Draw, sigma: float) -> np.ndarray:
    """The votes of one draw under lattice noise, the invalid rows (none) last."""
    samples = torch.arange(draw.first, draw.first + draw.count)
    ids = torch.zeros_like(samples), torch.full_like(samples, image_id), samples
    affine = ops.affine(None, 3, torch.uint8)
    replicas = ops.noisy_replicas(image[None], *ids, stream_key(0, draw.stream), lattice_law(sigma), *affine)
    return np.append(Pixels(CLASSES)(replicas).argmax(1).bincount(minlength=CLASSES).numpy(), 0)


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_certify_is_the_procedure_on_votes_counted_by_hand(bound: str) -> None:
    certificate = make(sigma=0.1).certify(IMAGES, n0=30, n=400, alpha=0.01, bound=bound, image_ids=[5, 0, 2, 2**44 - 1])
    for i, image_id in enumerate([5, 0, 2, 2**44 - 1]):
        procedure = FixedCertify(30, 400, 0.01, 0.1, bound, deviation=DEVIATION)
        for draw in (Draw(Stream.SELECT, 0, 30), Draw(Stream.ESTIMATE, 0, 400)):
            decision = procedure.update(plain_votes(IMAGES[i], image_id, draw, 0.1))
        found = {name: getattr(certificate, name)[i] for name in ("p_lower", "p_upper", "samples", "invalid")}
        assert found == {name: getattr(decision, name) for name in found}
        assert certificate.counts[i].tolist() == decision.counts.tolist()
        assert (certificate.labels[i], certificate.radii[i]) == (decision.label, decision.radius)
    assert {-1, 3} <= set(certificate.labels.tolist())
    assert (certificate.alpha, certificate.sigma, certificate.seed) == (0.01, 0.1, 0)


def by_hand(procedure: Any, image: Tensor, image_id: int, sigma: float) -> Decision:
    answer = procedure.begin()
    while isinstance(answer, Draw):
        answer = procedure.update(plain_votes(image, image_id, answer, sigma))
    return answer


@every_certify
def test_certify_by_any_method_is_the_procedure_on_votes_counted_by_hand(settings: dict[str, Any]) -> None:
    images = IMAGES.clone()
    images[1, 0, :2] = torch.tensor([[9, 200, 40, 9], [9, 9, 9, 9]])  # of class 1, clearly
    certificate = make(sigma=0.1).certify(images, image_ids=[5, 0, 2, 2**44 - 1], **settings)
    options = {"method": "fixed", "bound": "multiclass"} | settings
    randomize = options.pop("randomize", False)
    for i, image_id in enumerate([5, 0, 2, 2**44 - 1]):
        u = max(uniform(0, image_id), LEAST_U) if randomize else 1.0
        procedure = certify_procedure(alpha=0.001, sigma=0.1, u=u, deviation=DEVIATION, **options)
        decision = by_hand(procedure, images[i], image_id, 0.1)
        for name in ("p_lower", "p_upper", "samples", "invalid"):
            assert getattr(certificate, name)[i] == getattr(decision, name)
        assert certificate.counts[i].tolist() == decision.counts.tolist()
        assert (certificate.labels[i], certificate.radii[i]) == (decision.label, decision.radius)
        assert certificate.decisions[i] == decision.outcome
    assert certificate.labels[1] == 1
    assert len(set(certificate.decisions)) > 1


def test_sequential_predict_is_the_procedure_on_the_first_votes(smoothed: sf.SmoothedClassifier) -> None:
    prediction = smoothed.predict(IMAGES, n=400, alpha=0.01, method="sequential")
    for i, image in enumerate(IMAGES):
        decision = by_hand(predict_procedure("sequential", 400, 0.01), image, i, 0.3)
        assert (prediction.labels[i], prediction.samples[i]) == (decision.label, decision.samples)
        assert prediction.p_values[i] == decision.p_value
        first = smoothed.votes(image[None], samples=decision.samples, image_ids=[i])
        assert torch.equal(prediction.counts[i], first[0])
    decided = prediction.p_values <= 0.01
    assert torch.equal(prediction.labels != sf.ABSTAIN, decided)
    assert torch.equal(prediction.labels[decided], prediction.counts.argmax(1)[decided])


def test_predict_is_the_test_of_the_two_largest_counts(smoothed: sf.SmoothedClassifier) -> None:
    prediction = smoothed.predict(IMAGES, n=300, alpha=0.01)
    assert torch.equal(prediction.counts, smoothed.votes(IMAGES, samples=300))
    assert prediction.samples.tolist() == [300] * 4
    decided = prediction.p_values <= 0.01
    assert torch.equal(prediction.labels, prediction.counts.argmax(1).where(decided, torch.tensor(sf.ABSTAIN)))
    assert prediction.p_values.dtype == torch.float64


def test_radii_are_rounded_down(smoothed: sf.SmoothedClassifier) -> None:
    certificate = make(sigma=0.1).certify(IMAGES, n0=20, n=1000)
    assert certificate.radii.dtype == certificate.p_lower.dtype == certificate.p_upper.dtype == torch.float64
    assert (certificate.radii > 0).sum() > 1
    with mp.workprec(200):
        for radius, low, high in zip(certificate.radii, certificate.p_lower, certificate.p_upper, strict=True):
            low, high = (mp.sqrt(2) * mp.erfinv(2 * mp.mpf(p.item()) - 1) for p in (low, high))
            exact = max(mp.mpf(0.1) / 2 * (low - high), 0)
            assert exact * (1 - mp.mpf(1e-13)) <= radius.item() <= exact


def test_a_certificate_under_noise_of_several_sigmas_uses_the_smallest() -> None:
    certificate = make(sigma=[0.2, 0.1, 0.4]).certify(IMAGES, n0=20, n=200)
    assert certificate.sigma == 0.1
    assert certificate.meta["sigma"] == [0.2, 0.1, 0.4]
    radii = certified_radius(certificate.p_lower.numpy(), certificate.p_upper.numpy(), 0.1)
    assert certificate.radii.tolist() == radii.tolist()


@every_certify
def test_every_method_uses_the_smallest_sigma(settings: dict[str, Any]) -> None:
    certificate = make(Blocks().eval(), [0.2, 0.1, 0.4]).certify(blocks(0.6, 0.3, 0), **settings)
    assert certificate.sigma == 0.1
    assert "certified" in certificate.decisions
    radii = torch.from_numpy(certified_radius(certificate.p_lower.numpy(), certificate.p_upper.numpy(), 0.1))
    certified = certificate.labels != sf.ABSTAIN
    torch.testing.assert_close(certificate.radii[certified], radii[certified], rtol=1e-9, atol=0)
    largest = float(certified_radius(*share_bounds(100, 0, 100, 0.001, "multiclass"), 0.1))
    shown = math.floor(largest * 1e4) / 1e4
    with pytest.raises(ValueError, match=re.escape(f"below {shown}, what n=100 unanimous votes certify")):
        make(Blocks().eval(), [0.2, 0.1, 0.4]).certify(blocks(1), n=100, method="sequential", radius=largest)


class Neighbour(Pixels):
    """Votes for the row before it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.roll(1, 0))


@pytest.mark.parametrize(
    ("images", "options", "law", "sound"),
    [
        (IMAGES, {}, "lattice", True),
        (IMAGES, {"clip": True}, "lattice", True),
        (IMAGES, {"noise": "gaussian"}, "gaussian", False),
        (IMAGES / 255, {}, "gaussian", False),
        (IMAGES, {"base": Neighbour().eval()}, "lattice", False),
    ],
    ids=["uint8", "clipped", "gaussian on uint8", "float", "not a function of the row"],
)
def test_sound_is_lattice_noise_on_a_function_of_the_row(
    images: Tensor, options: dict[str, Any], law: str, sound: bool
) -> None:
    certificate = make(**options).certify(images, n0=5, n=20)
    assert certificate.meta["law"] == law
    assert certificate.sound is sound


def test_certificates_allow_for_the_noise_that_lies_elsewhere() -> None:
    for images, expected in ((IMAGES, DEVIATION), (IMAGES / 255, 0.0)):
        smoothed = make(sigma=0.1)
        certificate = smoothed.certify(images, n0=30, n=1000, bound="cohen")
        assert smoothed.engine(images).function.deviation == expected
        own = certificate.counts.max(1).values[certificate.labels >= 0].numpy()
        plain, _ = share_bounds(own, 0, 1000, 0.001, "cohen")
        found = certificate.p_lower[certificate.labels >= 0].numpy()
        assert len(found) > 1
        np.testing.assert_allclose(plain - found, expected, rtol=1e-6)
        assert (found < plain).all() if expected else (found == plain).all()


class Restless(Pixels):
    """Notes in a buffer that it was called."""

    def __init__(self) -> None:
        super().__init__(CLASSES)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_network_that_changes_under_way_gets_no_sound_certificate() -> None:
    certificate = make(Restless().eval()).certify(IMAGES, n0=5, n=20)
    assert certificate.meta["row_function"] == "bit for bit"
    assert certificate.sound is False


def test_the_function_is_tested_anew_when_the_network_is_changed() -> None:
    def before(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0].roll(1, 0)

    smoothed = make(nn.Sequential(Pixels(CLASSES)).eval())
    changes: dict[str, Callable[[], Any]] = {
        "hook before": lambda: smoothed.base[0].register_forward_pre_hook(before),
        "hook after": lambda: smoothed.base[0].register_forward_hook(lambda module, inputs, out: out.roll(1, 0)),
        "submodule": lambda: smoothed.base.__setitem__(0, Neighbour().eval()),
    }
    for change in changes.values():
        smoothed.base = nn.Sequential(Pixels(CLASSES)).eval()
        assert smoothed.certify(IMAGES, n0=5, n=20).sound
        change()
        assert not smoothed.certify(IMAGES, n0=5, n=20).sound


def replay(base: nn.Module, meta: dict[str, Any], *more: str) -> sf.Certificate:
    """The certificate that `meta` describes, `more` of its entries being options of the classifier."""
    options = {name: meta[name] for name in ("seed", "precision", "runner", "clip", *more)}
    smoothed = make(base, meta["sigma"], noise=meta["law"], max_batch=meta["micro_batch"], **options)
    settings = (
        "n0",
        "n",
        "alpha",
        "method",
        "bound",
        "image_ids",
        "radius",
        "tolerance",
        "labels",
        "randomize",
        "radii",
        "beta",
    )
    return smoothed.certify(IMAGES, **{name: meta[name] for name in settings})


@pytest.mark.parametrize(
    "settings",
    [
        *CERTIFY.values(),
        {"bound": "cohen"},
        {"labels": [4, 0, 1, 1]},
        {"method": "sequential", "radius": 0.01, "labels": torch.tensor([4, 0, 1, 1]), "n": 300},
    ],
    ids=[*CERTIFY, "cohen", "known labels", "known labels sequential"],
)
def test_meta_is_enough_to_replay(settings: dict[str, Any]) -> None:
    options = {"seed": 9, "clip": True, "noise": "gaussian", "max_batch": 17}
    settings = {"n0": 7, "n": 90, "alpha": 0.02} | settings
    certificate = make(linear(), [0.2, 0.3, 0.4], **options).certify(IMAGES, **settings)
    again = replay(linear(), certificate.meta)
    assert same(again, certificate)
    assert again.meta == certificate.meta


def test_meta_holds_normalisation_and_image_ids() -> None:
    certificate = make(linear(), normalize=STATISTICS).certify(IMAGES, 7, 90, image_ids=[3, 2, 1, 0])
    assert same(replay(linear(), certificate.meta, "normalize"), certificate)
    assert list(certificate.meta["image_ids"]) == [3, 2, 1, 0]


def test_no_images(smoothed: sf.SmoothedClassifier) -> None:
    none = IMAGES[:0]
    assert smoothed(none).shape == smoothed.votes(none).shape == (0, CLASSES)
    prediction, certificate = smoothed.predict(none), smoothed.certify(none)
    for result in (prediction, certificate):
        assert result.counts.shape == (0, CLASSES)
        assert result.labels.shape == result.samples.shape == (0,)
        assert result.labels.dtype == result.counts.dtype == torch.int64
    assert certificate.radii.dtype == torch.float64
    with pytest.raises(ValueError, match="n is 10"):
        smoothed.certify(none, n=10)
    with pytest.raises(ValueError, match="radius is None"):
        smoothed.certify(none, method="sequential")


@every_method
def test_no_images_by_any_method(method: Callable[..., Any]) -> None:
    none, some = method(make(), IMAGES[:0]), method(make(), IMAGES)
    assert same(none, rows(some, slice(0)) if not outcomes(some) else none)
    if isinstance(none, Tensor):
        assert none.shape == (0, CLASSES)
    else:
        tensors = {name: value for name, value in vars(some).items() if isinstance(value, Tensor)}
        for name, value in tensors.items():
            assert getattr(none, name).dtype == value.dtype
            assert getattr(none, name).shape == (0, *value.shape[1:])
        assert outcomes(none) == []


# ---- methods that stop early, known labels, randomized bounds --------------------------------------------------------

LEVELS = (1, 0.4, 0.3, 0.05, 0.02)  # of radius 2.1, 0.84, 0.63, 0.1 and 0.04 under `Blocks`
WORDS = {"certified", "not certified", "undecided"}


@pytest.fixture
def clear() -> sf.SmoothedClassifier:
    return make(Blocks().eval(), max_batch=64)


def check_consistent(certificate: sf.Certificate) -> None:
    """Decisions, labels, radii, bounds, counts and samples tell the same."""
    n0, n, method, labels = (certificate.meta[name] for name in ("n0", "n", "method", "labels"))
    apart = (n0 if labels is None else 0) + (PILOT if method == "tolerance" else 0)
    certified = certificate.labels != sf.ABSTAIN
    assert set(certificate.decisions) <= WORDS
    assert [word == "certified" for word in certificate.decisions] == certified.tolist()
    assert (certificate.radii[~certified] == 0).all()
    assert (certificate.p_lower > certificate.p_upper)[certified].all()
    assert torch.equal(certificate.counts.sum(1) + certificate.invalid + apart, certificate.samples)
    assert (certificate.samples <= apart + n).all()
    if method == "sequential":
        assert set(certificate.radii[certified].tolist()) <= {certificate.meta["radius"]}
    elif method == "grid":
        assert set(certificate.radii[certified].tolist()) <= set(certificate.meta["radii"])
    else:
        assert (certificate.radii[certified] > 0).all()
        assert "not certified" not in certificate.decisions


@every_certify
@pytest.mark.parametrize("labels", [None, [0, 0, 2, 3, 4, 0, 0]], ids=["selected", "known"])
def test_decisions_are_consistent(
    clear: sf.SmoothedClassifier, settings: dict[str, Any], labels: list[int] | None
) -> None:
    certificate = clear.certify(blocks(*LEVELS, 0, 0.03), labels=labels, **settings)
    check_consistent(certificate)
    assert certificate.decisions[0] == "certified"
    assert certificate.decisions[5] != "certified"
    if settings.get("method", "fixed") == "fixed":
        assert len(set(certificate.samples.tolist())) == 1
    else:
        assert len(set(certificate.samples.tolist())) > 1


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
@pytest.mark.parametrize("radius", [0.15, 0.3])
def test_sequential_answers_as_fixed_on_clear_images(clear: sf.SmoothedClassifier, bound: str, radius: float) -> None:
    images = blocks(*LEVELS, *LEVELS)
    fixed = clear.certify(images, n0=50, n=2000, bound=bound)
    sequential = clear.certify(images, n0=50, n=2000, bound=bound, method="sequential", radius=radius)
    reached = fixed.radii >= radius
    assert reached.tolist() == [True, True, True, False, False] * 2
    assert torch.equal(sequential.labels, fixed.labels.where(reached, torch.tensor(sf.ABSTAIN)))
    assert sequential.radii.tolist() == [radius if yes else 0 for yes in reached]
    assert sequential.decisions == ["certified" if yes else "not certified" for yes in reached]
    assert sequential.samples.max() < 1000
    assert sequential.samples.double().mean() < 400


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_a_grid_answers_as_fixed_on_clear_images(clear: sf.SmoothedClassifier, bound: str) -> None:
    images, radii = blocks(*LEVELS, *LEVELS), [0, 0.15, 0.3]
    fixed = clear.certify(images, n0=50, n=2000, bound=bound)
    found = clear.certify(images, n0=50, n=2000, bound=bound, method="grid", radii=radii)
    reached = [max((r for r in radii if radius >= r), default=0) for radius in fixed.radii.tolist()]
    assert set(reached) == {0, 0.3}
    assert found.radii.tolist() == reached
    assert torch.equal(found.labels, fixed.labels)
    assert [word == "certified" for word in found.decisions] == [word == "certified" for word in fixed.decisions]
    assert found.samples.double().mean() < 1000


def test_a_grid_certifies_a_class_without_a_radius(clear: sf.SmoothedClassifier) -> None:
    """At radius 0: the class is the prediction of the smoothed classifier."""
    certificate = clear.certify(blocks(0.3, 0), n0=50, n=2000, method="grid", radii=[0, 0.62])
    assert certificate.labels.tolist() == [0, sf.ABSTAIN]
    assert certificate.radii.tolist() == [0, 0]
    assert certificate.p_lower[0] > certificate.p_upper[0]
    assert certificate.decisions[0] == "certified"


def test_sequential_says_undecided_when_samples_run_out(clear: sf.SmoothedClassifier) -> None:
    certificate = clear.certify(blocks(0.3), n0=50, n=1000, method="sequential", radius=0.58)
    assert (certificate.decisions, certificate.labels.tolist()) == (["undecided"], [sf.ABSTAIN])
    assert (certificate.samples.tolist(), certificate.radii.tolist()) == ([1050], [0.0])


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_the_largest_radius_asked_for_takes_all_samples(clear: sf.SmoothedClassifier, bound: str) -> None:
    largest = float(certified_radius(*share_bounds(200, 0, 200, 0.001, bound), 0.3))
    radius = largest * (1 - 1e-6)
    certificate = clear.certify(blocks(1), n0=50, n=200, bound=bound, method="sequential", radius=radius)
    assert (certificate.decisions, certificate.radii.tolist()) == (["certified"], [radius])
    assert certificate.samples.tolist() == [250]
    assert certificate.radii <= clear.certify(blocks(1), n0=50, n=200, bound=bound).radii


@pytest.mark.parametrize("n", [11, 16, 19, 20])
def test_sequential_certifies_with_few_samples(clear: sf.SmoothedClassifier, n: int) -> None:
    certificate = clear.certify(blocks(1, 0), n0=50, n=n, method="sequential", radius=0.01)
    assert certificate.decisions[0] == "certified"
    assert certificate.decisions[1] != "certified"
    assert (certificate.samples <= 50 + n).all()


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_tolerance_stays_within_its_distance_of_fixed(clear: sf.SmoothedClassifier, bound: str) -> None:
    images = blocks(*LEVELS, *LEVELS)
    fixed = clear.certify(images, n0=50, n=4000, bound=bound)
    for tolerance in (0.02, 0.2, 1.0):
        early = clear.certify(images, n0=50, n=4000, bound=bound, method="tolerance", tolerance=tolerance)
        assert (early.radii >= fixed.radii - tolerance * 0.3).all()
        assert (early.samples <= fixed.samples + PILOT).all()
        if tolerance < 1:
            assert early.labels[:3].tolist() == early.labels[5:8].tolist() == [0, 1, 2]
        else:
            assert early.samples.double().mean() < 0.5 * 4050


def test_sequential_predict_answers_as_fixed_on_clear_images(clear: sf.SmoothedClassifier) -> None:
    images = blocks(1, 0.4, 0.3, 0.1, 0.1, 0)
    fixed, early = clear.predict(images, n=2000), clear.predict(images, n=2000, method="sequential")
    assert torch.equal(fixed.labels, early.labels)
    assert early.labels.tolist() == [0, 1, 2, 3, 4, sf.ABSTAIN]
    assert torch.equal(early.counts.sum(1), early.samples)
    assert early.samples.min() == 16
    assert early.samples.max() == 2000
    assert len(set(early.samples.tolist())) > 2


# Known labels.


@pytest.mark.parametrize("name", ["fixed", "sequential", "sequential cohen", "grid", "randomized"])
def test_known_labels_draw_no_selection_samples(clear: sf.SmoothedClassifier, name: str) -> None:
    images, settings = blocks(1, 0.4, 0.3), CERTIFY[name]
    selected, known = clear.certify(images, **settings), clear.certify(images, labels=range(3), **settings)
    assert known.samples.tolist() == (selected.samples - 20).tolist()
    # The samples that estimate are the same, and so is all that follows from them.
    for field in ("labels", "radii", "p_lower", "p_upper", "counts", "invalid"):
        assert torch.equal(getattr(known, field), getattr(selected, field))
    assert known.decisions == selected.decisions == ["certified"] * 3


@every_certify
def test_known_labels_make_n0_meaningless(clear: sf.SmoothedClassifier, settings: dict[str, Any]) -> None:
    images = blocks(1, 0.4, 0.3, 0.05)
    few, many, none = (clear.certify(images, labels=range(4), **settings | {"n0": n0}) for n0 in (5, 500, 0))
    assert same(few, many)
    assert same(few, none)


@pytest.mark.parametrize(
    ("name", "decision"),
    [("fixed", "undecided"), ("tolerance", "undecided"), ("sequential", "not certified"), ("grid", "not certified")],
)
def test_a_known_label_that_the_network_does_not_prefer(clear: sf.SmoothedClassifier, name: str, decision: str) -> None:
    certificate = clear.certify(blocks(1, 1, 1), labels=[0, 0, 4], **CERTIFY[name])
    assert certificate.decisions == ["certified", decision, decision]
    assert certificate.labels.tolist() == [0, sf.ABSTAIN, sf.ABSTAIN]
    assert certificate.radii[1:].tolist() == certificate.p_lower[1:].tolist() == [0, 0]
    assert certificate.counts.argmax(1).tolist() == [0, 1, 2]


def test_known_labels_of_several_kinds(clear: sf.SmoothedClassifier) -> None:
    images = blocks(1, 0.4, 0.3)
    expected = clear.certify(images, n=100, labels=[0, 1, 1])
    for labels in (torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1], dtype=torch.uint8), np.array([0, 1, 1]), (0, 1, 1)):
        again = clear.certify(images, n=100, labels=labels)
        assert same(again, expected)
        assert again.meta == expected.meta
    order = torch.tensor([2, 0, 1])
    assert same(
        clear.certify(images[order], n=100, labels=torch.tensor([0, 1, 1])[order], image_ids=order),
        rows(expected, order),
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "labels has 2 entries; there are 4 images"),
        (torch.zeros(5, dtype=torch.long), "labels has 5 entries; there are 4 images"),
        ([], "labels has 0 entries; there are 4 images"),
        ([0, 1, 2, 5], "labels holds 5; labels must lie in 0 .. 4"),
        (torch.tensor([0, 1, -1, 2]), "labels holds -1; labels must lie in 0 .. 4"),
    ],
)
def test_labels_that_are_none(smoothed: sf.SmoothedClassifier, labels: Any, message: str) -> None:
    for settings in CERTIFY.values():
        with pytest.raises(ValueError, match=re.escape(message)):
            smoothed.certify(IMAGES, labels=labels, **settings)


@pytest.mark.parametrize("labels", [[0.0, 0.5, 2.0, 3.0], torch.tensor([0.0, 1.5, 2.0, 3.0])])
def test_fractions_are_no_labels(smoothed: sf.SmoothedClassifier, labels: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        smoothed.certify(IMAGES, n=100, labels=labels)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), CLASSES), float("nan"))


def test_images_without_a_class_are_told() -> None:
    broken, soft = make(Broken().eval()), make(Broken().eval(), voting="soft")
    for call in (broken, soft, broken.predict, broken.votes):
        with pytest.warns(UserWarning, match="no noisy copy of 4 of 4 images has finite logits"):
            call(IMAGES)


@every_certify
def test_rows_without_a_class_certify_nothing(settings: dict[str, Any]) -> None:
    broken = make(Broken().eval())
    selected, known = broken.certify(IMAGES, **settings), broken.certify(IMAGES, labels=[0] * 4, **settings)
    for certificate in (selected, known):
        assert certificate.labels.tolist() == [sf.ABSTAIN] * 4
        assert not certificate.counts.any()
        assert (certificate.radii == 0).all()
    apart = PILOT if settings.get("method") == "tolerance" else 0
    assert selected.decisions == ["undecided"] * 4
    assert selected.samples.tolist() == selected.invalid.tolist() == [20 + apart] * 4
    assert torch.equal(known.invalid + apart, known.samples)
    denied = "not certified" if settings.get("method") in ("sequential", "grid") else "undecided"
    assert known.decisions == [denied] * 4


# Randomized bounds.


@pytest.mark.parametrize("settings", [{}, {"bound": "cohen"}, {"method": "tolerance", "tolerance": 0.1}])
def test_randomized_bounds_gain_little(clear: sf.SmoothedClassifier, settings: dict[str, Any]) -> None:
    images = blocks(*([0.3] * 10 + [0.2] * 10))  # of whose votes a twentieth or more go to other classes
    plain = clear.certify(images, n0=20, n=1000, **settings)
    randomized = clear.certify(images, n0=20, n=1000, randomize=True, **settings)
    assert torch.equal(randomized.counts, plain.counts)
    gain = (randomized.radii - plain.radii) / 0.3
    assert (gain >= 0).all()
    assert (gain > 0).sum() >= 10
    assert gain.max() < 0.05
    assert same(clear.certify(images, n0=20, n=1000, randomize=True, **settings), randomized)


def test_randomized_bounds_stay_below_those_of_one_more_vote(clear: sf.SmoothedClassifier) -> None:
    images = blocks(*([0.5, 0.3, 0.2, 0.1] * 3))
    plain = clear.certify(images, n0=20, n=200, bound="cohen")
    randomized = clear.certify(images, n0=20, n=200, bound="cohen", randomize=True)
    own = np.minimum(plain.counts.max(1).values.numpy() + 1, 200)
    more, _ = share_bounds(own, 0, 200, 0.001, "cohen")
    several = torch.from_numpy(own < 200)
    assert several.sum() > 4
    assert (randomized.p_lower <= torch.from_numpy(more))[several].all()
    assert (randomized.p_lower < 1).all()


def test_randomized_bounds_depend_on_seed_and_image_id(clear: sf.SmoothedClassifier) -> None:
    # All votes are for one class, so that nothing else differs from image to image.
    images = blocks(1).expand(6, -1, -1, -1)
    ids = [0, 1, 2, 2**32, 2**33, 2**44 - 1]
    plain = clear.certify(images, n=1000, image_ids=ids)
    first = clear.certify(images, n=1000, image_ids=ids, randomize=True)
    clear.seed = 1
    second = clear.certify(images, n=1000, image_ids=ids, randomize=True)
    assert plain.counts.max(1).values.tolist() == [1000] * 6
    assert len(set(plain.radii.tolist())) == 1
    drawn = [max(uniform(seed, image_id), LEAST_U) for seed in (0, 1) for image_id in ids]
    assert len(set(first.radii.tolist() + second.radii.tolist())) == len(set(drawn)) > 10
    for seed, certificate in ((0, first), (1, second)):
        for image_id, low in zip(ids, certificate.p_lower.tolist(), strict=True):
            u = max(uniform(seed, image_id), LEAST_U)
            assert low == share_bounds(1000, 0, 1000, 0.001, "multiclass", u, DEVIATION)[0]


def test_randomized_bounds_gain_at_most_what_the_docstring_says(clear: sf.SmoothedClassifier) -> None:
    """At n = 10,000 by 0.03 sigma in the median and up to 0.16 where the votes are unanimous."""
    images = blocks(1).expand(8, -1, -1, -1)
    plain, randomized = (clear.certify(images, n0=20, n=10_000, randomize=choice) for choice in (False, True))
    gain = (randomized.radii - plain.radii) / 0.3
    assert 0.01 < gain.median() < 0.1
    assert gain.max() < 0.16


# ---- inputs of several kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [IMAGES, IMAGES / 255], ids=["uint8", "float"])
def test_normalize_is_a_layer_in_front(images: Tensor) -> None:
    fused = make(linear(), normalize=STATISTICS).votes(images, samples=500)
    layered = make(nn.Sequential(Normalize(*STATISTICS), linear()).eval()).votes(images, samples=500)
    assert (fused - layered).abs().max() <= 2
    assert not torch.equal(fused, make(linear()).votes(images, samples=500))


def test_gaussian_noise_on_uint8_is_that_on_floats() -> None:
    on_uint8 = make(linear(), noise="gaussian").votes(IMAGES, samples=500)
    for images in (IMAGES / 255, (IMAGES / 255).double()):
        assert (on_uint8 - make(linear()).votes(images, samples=500)).abs().max() <= 2
    assert gaussian_law(0.3).name == make(noise="gaussian").certify(IMAGES, n=20).meta["law"]


def test_votes_of_floats_in_half_precision(smoothed: sf.SmoothedClassifier) -> None:
    images = (IMAGES / 255).half()
    assert torch.equal(smoothed.votes(images), smoothed.votes(images.float()))


# ---- a module --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [nn.Module.half, nn.Module.float, lambda m: m.to(torch.bfloat16), lambda m: m.to("cpu"), copy.deepcopy]
)
@pytest.mark.filterwarnings("ignore:the weights of the base classifier are")
@pytest.mark.parametrize("sigma", [0.3, [0.1, 0.2, 0.7]])
def test_sigma_stays_exact(change: Callable[[nn.Module], nn.Module], sigma: Any) -> None:
    changed = change(make(linear(), sigma))
    assert changed.sigma.dtype == torch.float64
    assert changed.sigma.tolist() == ([sigma] if isinstance(sigma, float) else sigma)
    assert "sigma" in dict(changed.named_buffers())


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        (nn.Module.half, "fp16"), (nn.Module.bfloat16, "bf16"), (lambda m: m.to(torch.float16), "fp16"),
        (lambda m: nn.Sequential(m).half(), "fp16"), (nn.Module.double, None), (lambda m: m.to("cpu"), None),
    ],
)  # fmt: skip
def test_a_change_of_dtype_says_what_to_do_instead(
    change: Callable[[nn.Module], nn.Module], precision: str | None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        change(make(linear()))
    assert [f"make the classifier with precision='{precision}'" in str(each.message) for each in caught] == (
        [] if precision is None else [True]
    )


@pytest.mark.filterwarnings("ignore:the weights of the base classifier are")
def test_votes_survive_a_change_of_dtype_and_back() -> None:
    smoothed = make(linear().to(torch.bfloat16).float())
    votes = smoothed.votes(IMAGES)
    assert torch.equal(smoothed.to(torch.bfloat16).float().votes(IMAGES), votes)


def test_state_dict_round_trip() -> None:
    source, target = make(linear(), 0.7), make(linear(1), 0.3)
    assert set(source.state_dict()) == {"sigma", "base.1.weight", "base.1.bias"}
    with pytest.warns(UserWarning, match=r"sigma is \[0.3\] and becomes \[0.7\] by this state_dict"):
        target.load_state_dict(source.state_dict())
    assert target.sigma.tolist() == [0.7]
    with pytest.warns(UserWarning, match=r"leave 0.sigma out of it"):
        nn.Sequential(make(linear(), 0.5)).load_state_dict(nn.Sequential(source).state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.load_state_dict(source.state_dict())
    assert torch.equal(target.votes(IMAGES), source.votes(IMAGES))


def test_a_checkpoint_of_the_base_alone_loads() -> None:
    smoothed = make(linear(1), 0.7)
    smoothed.load_state_dict(linear().state_dict())
    assert smoothed.sigma.tolist() == [0.7]
    assert torch.equal(smoothed.votes(IMAGES), make(linear(), 0.7).votes(IMAGES))
    with pytest.raises(RuntimeError, match=r"base\.1\.weight"):
        smoothed.load_state_dict({"2.weight": torch.zeros(1)})


def test_a_base_classifier_with_a_part_called_base_takes_its_own_checkpoint_and_that_of_the_whole() -> None:
    base = nn.ModuleDict({"base": linear(1)})
    saved, whole = nn.ModuleDict({"base": linear()}), make(base)
    whole.load_state_dict(saved.state_dict())
    assert torch.equal(base["base"][-1].weight, saved["base"][-1].weight)
    again = make(nn.ModuleDict({"base": linear(1)}))
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again.base["base"][-1].weight, saved["base"][-1].weight)


def test_copies_are_independent() -> None:
    smoothed = make(linear())
    votes = smoothed.votes(IMAGES)
    twin = copy.deepcopy(smoothed)
    with torch.no_grad():
        smoothed.base[1].weight.neg_()
    assert torch.equal(twin.votes(IMAGES), votes)
    assert [name for name, _ in twin.named_parameters()] == ["base.1.weight", "base.1.bias"]


def test_pickles_before_and_after_use(smoothed: sf.SmoothedClassifier) -> None:
    pickle.dumps(smoothed)
    votes = smoothed.votes(IMAGES)
    assert torch.equal(pickle.loads(pickle.dumps(smoothed)).votes(IMAGES), votes)


def test_weights_changed_in_place_count() -> None:
    smoothed = make(linear())
    before = smoothed.certify(IMAGES, n=100).counts
    engine = smoothed.engine(IMAGES)
    assert smoothed.engine(IMAGES) is engine
    with torch.no_grad():
        smoothed.base[1].weight.neg_()
    after = smoothed.certify(IMAGES, n=100).counts
    assert smoothed.engine(IMAGES) is not engine
    assert not torch.equal(after, before)
    assert torch.equal(after, make(copy.deepcopy(smoothed.base)).certify(IMAGES, n=100).counts)


def test_a_base_put_in_place_of_another_counts(smoothed: sf.SmoothedClassifier) -> None:
    class Negative(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    smoothed.votes(IMAGES)
    smoothed.base = Negative(CLASSES).eval()
    assert torch.equal(smoothed.votes(IMAGES), make(Negative(CLASSES).eval()).votes(IMAGES))


def test_changes_of_shape_dtype_and_sigma_count(smoothed: sf.SmoothedClassifier) -> None:
    for images in (IMAGES, IMAGES[:, :, :3], IMAGES / 255, IMAGES):
        assert torch.equal(smoothed.votes(images), make().votes(images))
    smoothed.sigma.fill_(0.05)
    assert torch.equal(smoothed.votes(IMAGES), make(sigma=0.05).votes(IMAGES))


@every_method
def test_a_base_in_train_mode_is_warned_about(method: Callable[..., Any]) -> None:
    base = nn.Sequential(nn.BatchNorm2d(3), linear())
    expected = method(make(base.eval()), IMAGES)
    smoothed = make(base.train())
    base[1].eval()
    with pytest.warns(UserWarning, match="train mode; it runs in eval mode") as seen:
        assert same(method(smoothed, IMAGES), expected)
    assert [warning.filename for warning in seen] == [__file__]  # points at the caller
    assert [part.training for part in base.modules()] == [True, True, False, False, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(method(make(base.eval()), IMAGES), expected)


# ---- what is refused -------------------------------------------------------------------------------------------------


def construction() -> Iterator[Any]:
    positive = "it must be finite and at least 1e-06, in [0, 1] pixel units"
    for sigma in (0, -0.25, float("nan"), float("inf"), [0.1, 0.0, 0.1]):
        yield {"sigma": sigma}, f"sigma is {sigma[1] if isinstance(sigma, list) else float(sigma)}; {positive}"
    for seed in (-1, 2**64):
        yield {"seed": seed}, f"seed is {seed}; it must lie in 0 .. 2**64 - 1"
    yield {"num_classes": 1}, "num_classes is 1; it must be at least 2"
    yield {"samples": 0}, "samples is 0; it must be at least 1"
    yield {"max_batch": 0}, "max_batch is 0; it must be at least 1"
    yield {"voting": "loud"}, "voting is 'loud'; it must be one of prediction"
    yield {"runner": "fast"}, "runner is 'fast'; it must be one of auto, eager, compiled, openvino"
    yield {"noise": "pink"}, "noise is 'pink'; it must be one of lattice, gaussian"


@pytest.mark.parametrize(("options", "message"), list(construction()))
def test_arguments_that_no_classifier_can_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 7}, "num_classes is 7; the base classifier returns logits of 5"),
        ({"precision": "int4"}, "precision is 'int4'; it must be one of auto, fp32, bf16"),
        ({"normalize": ([0.5] * 2, [0.2] * 2)}, "normalize has 2 means and 2 stds; the images have 3 channels"),
        ({"normalize": ([0.5] * 3, [0.2, 0, 0.2])}, "normalize has std [0.2, 0.0, 0.2]; every std must be positive"),
        ({"sigma": [0.1, 0.2]}, "sigma has 2 entries; the images have 3 channels"),
        ({"sigma": []}, "sigma is []"),
    ],
)
def test_arguments_that_do_not_fit_the_images_or_the_base(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options).votes(IMAGES)


NOT_FINITE = torch.full((1, 3, 4, 4), 0.5).index_fill(3, torch.tensor(2), float("nan"))


@every_method
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0, 0, 0], "images have shape (4,); they must be [N, C, H, W], or [N, ...] of any rank"),
        (IMAGES.long(), "images are torch.int64; they must be uint8 (0..255) or float (0..1)"),
        (IMAGES > 9, "images are torch.bool; they must be uint8 (0..255) or float (0..1)"),
        (IMAGES * 1.0, "images are float and range over 0 .. 254; float images must lie in 0 .. 1"),
        (IMAGES / 255 - 0.5, "images are float and range over -0.5 .. 0.4961; float images must lie in 0 .. 1"),
        (NOT_FINITE, "images hold values that are not finite (NaN or inf)"),
        (NOT_FINITE.nan_to_num(float("inf")), "images hold values that are not finite (NaN or inf)"),
        (torch.rand(1, 3, 0, 4), "images have shape (1, 3, 0, 4)"),
    ],
)
def test_images_that_are_none(images: Tensor, message: str, method: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        method(make(), images)


@every_method
def test_lattice_noise_needs_uint8(method: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="noise is 'lattice', which needs uint8 images"):
        method(make(noise="lattice"), IMAGES / 255)


@every_method
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1], "image_ids has 2 entries; there are 4 images"),
        ([0, 1, 2, -1], "image_ids holds -1; ids must lie in 0 .. 2**44 - 1"),
        (torch.tensor([0, 1, 2, 2**44]), f"image_ids holds {2**44}; ids must lie in 0 .. 2**44 - 1"),
    ],
)
def test_image_ids_that_are_none(ids: Any, message: str, method: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        method(make(), IMAGES, image_ids=ids)


@pytest.mark.parametrize("call", [lambda: make(seed=1.5), lambda: make().votes(IMAGES, image_ids=[0.1, 0.5, 1.9, 2.2])])
def test_fractions_are_no_numbers_of_noise(call: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 10}, "n is 10; it must be a whole number of at least 11; fewer always abstain at alpha=0.001"),
        ({"n": 12.0}, "n is 12.0; it must be a whole number"),
        ({"alpha": 0.0}, "alpha is 0; it must be"),
        ({"alpha": 1.0}, "alpha is 1; it must be"),
        ({"alpha": float("nan")}, "alpha is nan; it must be"),
        ({"method": "magic"}, "method is 'magic'; it must be one of fixed"),
    ],
)
def test_settings_of_predict_and_certify(
    smoothed: sf.SmoothedClassifier, options: dict[str, Any], message: str
) -> None:
    for method in (smoothed.predict, smoothed.certify):
        with pytest.raises(ValueError, match=re.escape(message)):
            method(IMAGES, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda smoothed: smoothed.certify(IMAGES, n0=0), "n0 is 0; it must be a whole number of at least 1"),
        (
            lambda smoothed: smoothed.certify(IMAGES, bound="best"),
            "bound is 'best'; it must be one of multiclass, cohen",
        ),
        (
            lambda smoothed: smoothed.votes(IMAGES, samples=0),
            "samples is 0; it must be a whole number of at least 1",
        ),
        (
            lambda smoothed: smoothed.predict(IMAGES, method="tolerance"),
            "method is 'tolerance'; it must be one of fixed, sequential",
        ),
        (
            lambda smoothed: smoothed.predict(IMAGES, n=10, method="sequential"),
            "n is 10; it must be a whole number of at least 11",
        ),
    ],
)
def test_settings_of_one_method(
    smoothed: sf.SmoothedClassifier, call: Callable[[sf.SmoothedClassifier], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(smoothed)


def early_stopping() -> Iterator[Any]:
    """Settings of certify by the methods that stop early, and what is said of them."""
    sequential, tolerance = {"method": "sequential"}, {"method": "tolerance"}
    yield sequential, "radius is None; method 'sequential' needs one"
    yield tolerance, "tolerance is None; method 'tolerance' needs one"
    for given in ({}, tolerance | {"tolerance": 0.1}):
        method = given.get("method", "fixed")
        yield given | {"radius": 0.1}, f"radius is 0.1; method '{method}' takes none; 'sequential' does"
    for given in ({}, sequential | {"radius": 0.1}):
        method = given.get("method", "fixed")
        yield given | {"tolerance": 0.1}, f"tolerance is 0.1; method '{method}' takes none; 'tolerance' does"
    for radius in (0, 0.0, -0.1, float("nan"), float("inf"), 5.0):
        wanted = f"radius is {radius}; it must be positive and below"
        yield sequential | {"radius": radius, "n": 100}, wanted
    for value in (0, 0.0, -0.1, float("nan"), float("inf")):
        yield tolerance | {"tolerance": value}, f"tolerance is {value}; it must be positive and finite"
    for given in (sequential | {"radius": 0.1}, tolerance | {"tolerance": 0.1}):
        yield given | {"n": 10}, "n is 10; it must be a whole number of at least 11"
        yield given | {"n": 100.0}, "n is 100.0; it must be a whole number"
        yield given | {"n0": 0}, "n0 is 0; it must be a whole number of at least 1"
        yield given | {"alpha": 0}, "alpha is 0; it must be"
        yield given | {"bound": "best"}, "bound is 'best'; it must be one of multiclass, cohen"
    yield sequential | {"radius": 0.1, "randomize": True}, "method 'sequential' has no randomized bounds"
    grid = {"method": "grid", "radii": (0, 0.1)}
    yield grid | {"randomize": True}, "method 'grid' has no randomized bounds"
    yield {"method": "grid"}, "radii is None; method 'grid' needs one"
    yield {"radii": [0]}, "radii is (0.0,); method 'fixed' takes none; 'grid' does"
    yield {"beta": 0.1}, "beta is 0.1; method 'fixed' takes none; 'grid' does"
    for radii in ((), (-0.1, 0), (0.1, 0.1), (0.2, 0.1), (0, float("nan")), (float("nan"),), (0, float("inf")), (0, 5)):
        yield grid | {"radii": radii}, f"radii is {tuple(map(float, radii))}; they must be at least 0, incre"
    for beta in (0, 1, float("nan")):
        yield grid | {"beta": beta}, f"beta is {beta}; it must be at least 1e-100 and below 1"


@pytest.mark.parametrize(("settings", "message"), list(early_stopping()))
@pytest.mark.parametrize("images", [IMAGES, IMAGES[:0]], ids=["images", "none"])
def test_settings_of_methods_that_stop_early(
    smoothed: sf.SmoothedClassifier, images: Tensor, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        smoothed.certify(images, **settings)


@pytest.mark.parametrize(("n", "bound"), [(11, "multiclass"), (100, "cohen"), (100_000, "multiclass")])
def test_a_radius_beyond_what_n_certifies_is_named(smoothed: sf.SmoothedClassifier, n: int, bound: str) -> None:
    largest = float(certified_radius(*share_bounds(n, 0, n, 0.001, bound), 0.3))
    shown = math.floor(largest * 1e4) / 1e4
    message = (
        f"radius is {largest}; it must be positive and below {shown}, what n={n} unanimous votes certify at "
        f"sigma=0.3, alpha=0.001, bound='{bound}'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        smoothed.certify(IMAGES, n=n, bound=bound, method="sequential", radius=largest)


def test_nothing_is_computed_before_settings_are_checked() -> None:
    class Untouchable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the base classifier ran")

    smoothed = make(Untouchable().eval())
    for call in (
        lambda: smoothed.certify(IMAGES, n=10),
        lambda: smoothed.predict(IMAGES, alpha=2),
        lambda: smoothed.votes(IMAGES, samples=0),
        lambda: smoothed.certify(IMAGES, image_ids=[0]),
        lambda: smoothed.certify(NOT_FINITE),
        lambda: smoothed.certify(IMAGES, labels=[0]),
        lambda: smoothed.certify(IMAGES, labels=[0, 1, 2, CLASSES]),
        lambda: smoothed.predict(IMAGES, n=10, method="sequential"),
        *(lambda settings=settings: smoothed.certify(IMAGES, **settings) for settings, _ in early_stopping()),
    ):
        with pytest.raises(ValueError, match=r"is|has|hold|are"):
            call()


# ---- what people have in the place of images, labels and numbers -----------------------------------------------------


def test_arrays_and_lists_are_images() -> None:
    wanted = make().votes(IMAGES, 50)
    for images in (IMAGES.numpy(), list(IMAGES), IMAGES.numpy()[::-1][::-1]):
        assert torch.equal(make().votes(images, 50), wanted)
    assert torch.equal(make()(IMAGES.numpy()), make()(IMAGES))
    assert torch.equal(make().votes((IMAGES / 255).double().numpy(), 50), make().votes(IMAGES / 255, 50))
    for images in (["cat.png"], [IMAGES[0], IMAGES[0, :1]], {"pixels": IMAGES}):
        with pytest.raises(ValueError, match=r"images is a .* that is no array of numbers"):
            make().votes(images)


def test_roundings_beyond_the_range_are_none() -> None:
    images = IMAGES / 255
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 1 + 2**-22, -(2.0**-24)
    assert torch.equal(make().votes(images, 50), make().votes(images.clamp(0, 1), 50))
    with pytest.raises(ValueError, match=r"range over 0 \.\. 1\.00001001; float images must lie in 0 \.\. 1"):
        make().votes(images.clamp(0, 1) * (1 + 1e-5) / images.max().clamp(max=1))


@pytest.mark.parametrize("images", [IMAGES.float(), (IMAGES / 255 - 0.5) / 0.25], ids=["0 .. 255", "normalised"])
def test_images_far_out_of_range_are_warned_of_once(images: Tensor) -> None:
    model = make()
    with pytest.warns(UserWarning, match=r"images are float and range over .*; float images must lie in 0 \.\. 1"):
        model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images)
        make()(IMAGES / 255 * 1.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 64}, "sigma is 64; it is at most 4 in [0, 1] pixel units: did you mean 64/255?"),
        ({"normalize": ((125, 123, 114), (62, 62, 66))}, "pixels lie in 0 .. 1: did you mean these numbers / 255?"),
        ({"normalize": 0.5}, "normalize is 0.5; it must be (mean, std)"),
        ({"normalize": ("grey", 1)}, "it must be (mean, std), of numbers by channel"),
    ],
)
def test_numbers_in_other_units_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


def test_one_mean_and_deviation_serve_all_channels() -> None:
    wanted = make(normalize=([0.4] * 3, [0.3] * 3)).votes(IMAGES, 50)
    for normalize in ((0.4, 0.3), ([0.4], [0.3]), (torch.full((3,), 0.4), np.full(3, 0.3)), "0.4,0.4,0.4/0.3,0.3,0.3"):
        assert torch.equal(make(normalize=normalize).votes(IMAGES, 50), wanted)


def test_whole_floats_are_labels() -> None:
    settings = {"n": 100, "n0": 20}
    wanted = make().certify(IMAGES, labels=[0, 1, 2, 3], **settings)
    for labels in ([0.0, 1.0, 2.0, 3.0], torch.arange(4.0), np.arange(4)):
        assert torch.equal(make().certify(IMAGES, labels=labels, **settings).radii, wanted.radii)

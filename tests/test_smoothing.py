"""SmoothedClassifier: what it returns, that it is a pure function where it says so, and what it refuses."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import smoothfast as sf
from smoothfast import ops
from smoothfast.models import Normalize
from smoothfast.noise import Stream, gaussian_law, lattice_law, stream_key
from smoothfast.procedures import Draw, FixedCertify
from smoothfast.statistics import certified_radius

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 5
IMAGES = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STATISTICS = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


class Pixels(nn.Module):
    """Logits that are pixels: exact in whatever batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :CLASSES]


def linear(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)).eval()


def make(base: nn.Module | None = None, sigma: Any = 0.3, **options: Any) -> sf.SmoothedClassifier:
    options = {"num_classes": CLASSES, "precision": "fp32", "max_batch": 32} | options
    return sf.SmoothedClassifier(Pixels().eval() if base is None else base, sigma, **options)


@pytest.fixture
def smoothed() -> sf.SmoothedClassifier:
    return make()


def same(a: Any, b: Any) -> bool:
    """Whether two results agree in every tensor."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return all(torch.equal(value, getattr(b, name)) for name, value in vars(a).items() if isinstance(value, Tensor))


# ---- forward ---------------------------------------------------------------------------------------------------------


def test_forward_gives_log_scores_of_the_votes(smoothed: sf.SmoothedClassifier) -> None:
    smoothed.samples = 37
    scores, votes = smoothed(IMAGES), smoothed.votes(IMAGES, samples=37)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    torch.testing.assert_close(scores, torch.log((votes + 0.5) / (37 + CLASSES / 2)))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(IMAGES)))
    assert torch.equal(scores.argmax(1), votes.argmax(1))


def test_forward_draws_new_samples_until_reset(smoothed: sf.SmoothedClassifier) -> None:
    calls = [smoothed(IMAGES) for _ in range(3)]
    votes = [smoothed.votes(IMAGES, samples=64 * (i + 1)) for i in range(3)]
    new = [votes[0], votes[1] - votes[0], votes[2] - votes[1]]
    for scores, counts in zip(calls, new, strict=True):
        torch.testing.assert_close(scores, torch.log((counts + 0.5) / (64 + CLASSES / 2)))
    assert len({str(counts) for counts in new}) == 3
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

METHODS: list[Callable[..., Any]] = [
    lambda smoothed, images, **ids: smoothed.votes(images, samples=100, **ids),
    lambda smoothed, images, **ids: smoothed.predict(images, n=100, **ids),
    lambda smoothed, images, **ids: smoothed.certify(images, n0=20, n=100, **ids),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=["votes", "predict", "certify"])


def rows(result: Any, index: Tensor | slice) -> Any:
    """The result on some of the images."""
    if isinstance(result, Tensor):
        return result[index]
    changed = copy.copy(result)
    for name, value in vars(result).items():
        if isinstance(value, Tensor):
            object.__setattr__(changed, name, value[index])
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
    for method in METHODS:
        method(smoothed, IMAGES)
    second = smoothed(IMAGES)
    smoothed.reset()
    assert torch.equal(smoothed(IMAGES), scores)
    assert torch.equal(smoothed(IMAGES), second)


# ---- certificates ----------------------------------------------------------------------------------------------------


def plain_votes(image: Tensor, image_id: int, draw: Draw, sigma: float) -> np.ndarray:
    """The votes of one draw under lattice noise, the invalid rows (none) last."""
    samples = torch.arange(draw.first, draw.first + draw.count)
    ids = torch.zeros_like(samples), torch.full_like(samples, image_id), samples
    affine = ops.affine(None, 3, torch.uint8)
    replicas = ops.noisy_replicas(image[None], *ids, stream_key(0, draw.stream), lattice_law(sigma), *affine)
    return np.append(Pixels()(replicas).argmax(1).bincount(minlength=CLASSES).numpy(), 0)


@pytest.mark.parametrize("bound", ["multiclass", "cohen"])
def test_certify_is_the_procedure_on_votes_counted_by_hand(bound: str) -> None:
    certificate = make(sigma=0.1).certify(IMAGES, n0=30, n=400, alpha=0.01, bound=bound, image_ids=[5, 0, 2, 2**44 - 1])
    for i, image_id in enumerate([5, 0, 2, 2**44 - 1]):
        procedure = FixedCertify(30, 400, 0.01, 0.1, bound)
        for draw in (Draw(Stream.SELECT, 0, 30), Draw(Stream.ESTIMATE, 0, 400)):
            decision = procedure.update(plain_votes(IMAGES[i], image_id, draw, 0.1))
        found = {name: getattr(certificate, name)[i] for name in ("p_lower", "p_upper", "samples", "invalid")}
        assert found == {name: getattr(decision, name) for name in found}
        assert certificate.counts[i].tolist() == decision.counts.tolist()
        assert (certificate.labels[i], certificate.radii[i]) == (decision.label, decision.radius)
    assert {-1, 3} <= set(certificate.labels.tolist())
    assert (certificate.alpha, certificate.sigma, certificate.seed) == (0.01, 0.1, 0)


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


def replay(base: nn.Module, meta: dict[str, Any], *more: str) -> sf.Certificate:
    """The certificate that `meta` describes, `more` of its entries being options of the classifier."""
    options = {name: meta[name] for name in ("seed", "precision", "runner", "clip", *more)}
    smoothed = make(base, meta["sigma"], noise=meta["law"], max_batch=meta["micro_batch"], **options)
    return smoothed.certify(
        IMAGES, **{name: meta[name] for name in ("n0", "n", "alpha", "method", "bound", "image_ids")}
    )


def test_meta_is_enough_to_replay() -> None:
    options = {"seed": 9, "clip": True, "noise": "gaussian", "max_batch": 17}
    certificate = make(linear(), [0.2, 0.3, 0.4], **options).certify(IMAGES, 7, 90, 0.02, bound="cohen")
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
@pytest.mark.parametrize("sigma", [0.3, [0.1, 0.2, 0.7]])
def test_sigma_stays_exact(change: Callable[[nn.Module], nn.Module], sigma: Any) -> None:
    changed = change(make(linear(), sigma))
    assert changed.sigma.dtype == torch.float64
    assert changed.sigma.tolist() == ([sigma] if isinstance(sigma, float) else sigma)
    assert "sigma" in dict(changed.named_buffers())


def test_votes_survive_a_change_of_dtype_and_back() -> None:
    smoothed = make(linear().to(torch.bfloat16).float())
    votes = smoothed.votes(IMAGES)
    assert torch.equal(smoothed.to(torch.bfloat16).float().votes(IMAGES), votes)


def test_state_dict_round_trip() -> None:
    source, target = make(linear(), 0.7), make(linear(1), 0.3)
    assert set(source.state_dict()) == {"sigma", "base.1.weight", "base.1.bias"}
    target.load_state_dict(source.state_dict())
    assert target.sigma.tolist() == [0.7]
    assert torch.equal(target.votes(IMAGES), source.votes(IMAGES))


def test_a_checkpoint_of_the_base_alone_loads() -> None:
    smoothed = make(linear(1), 0.7)
    smoothed.load_state_dict(linear().state_dict())
    assert smoothed.sigma.tolist() == [0.7]
    assert torch.equal(smoothed.votes(IMAGES), make(linear(), 0.7).votes(IMAGES))
    with pytest.raises(RuntimeError, match=r"base\.1\.weight"):
        smoothed.load_state_dict({"2.weight": torch.zeros(1)})


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
    smoothed.base = Negative().eval()
    assert torch.equal(smoothed.votes(IMAGES), make(Negative().eval()).votes(IMAGES))


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
    positive = "it must be positive and finite, in [0, 1] pixel units"
    for sigma in (0, -0.25, float("nan"), float("inf"), [0.1, 0.0, 0.1]):
        yield {"sigma": sigma}, f"sigma is {sigma}; {positive}"
    for seed in (-1, 2**64):
        yield {"seed": seed}, f"seed is {seed}; it must lie in 0 .. 2**64 - 1"
    yield {"num_classes": 1}, "num_classes is 1; it must be at least 2"
    yield {"samples": 0}, "samples is 0; it must be at least 1"
    yield {"max_batch": 0}, "max_batch is 0; it must be at least 1"
    yield {"voting": "loud"}, "voting is 'loud'; it must be one of prediction"
    yield {"noise": "pink"}, "noise is 'pink'; it must be one of lattice, gaussian"


@pytest.mark.parametrize(("options", "message"), list(construction()))
def test_arguments_that_no_classifier_can_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 7}, "num_classes is 7; the base classifier turns 32 images into (32, 5)"),
        ({"precision": "int8"}, "precision is 'int8'; it must be one of auto, fp32, bf16"),
        ({"runner": "fast"}, "runner is 'fast'; it must be one of eager, compiled"),
        ({"normalize": ([0.5], [0.2])}, "normalize has 1 means and 1 stds; the images have 3 channels"),
        ({"normalize": ([0.5] * 3, [0.2, 0, 0.2])}, "normalize has std [0.2, 0, 0.2]; every std must be positive"),
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
        (IMAGES[0], "images have shape (3, 4, 4); they must be [N, C, H, W]"),
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
    ],
)
def test_settings_of_one_method(
    smoothed: sf.SmoothedClassifier, call: Callable[[sf.SmoothedClassifier], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(smoothed)


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
    ):
        with pytest.raises(ValueError, match=r"is|has|hold"):
            call()

"""The differentiable form of a smoothed classifier: its values and gradients by hand, its samples, its memory; and what
votes say to those who ask for gradients."""

from __future__ import annotations

import copy
import math
import pickle
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import smoothfast as sf
from smoothfast.attacks import PGD
from smoothfast.noise import Stream, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 5
SEED = 7
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def network(*layers: nn.Module) -> nn.Module:
    """A convolution, whatever layers, and a linear one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Conv2d(3, 4, 3, 2)
        return nn.Sequential(head, *layers, nn.Tanh(), nn.Flatten(), nn.Linear(36, CLASSES)).eval()


def make(base: nn.Module | None = None, sigma: Any = 0.3, **options: Any) -> sf.SmoothedClassifier:
    options = {"seed": SEED, "precision": "fp32", "samples": 16} | options
    return sf.SmoothedClassifier(network() if base is None else base, sigma, CLASSES, **options)


@pytest.fixture
def smoothed() -> sf.SmoothedClassifier:
    return make()


def by_hand(base: nn.Module, images: Tensor, samples: range, sigma: list[float], normalize: bool, clip: bool) -> Tensor:
    """The logarithm of the mean probability, sample by sample; the clamp has the gradient of the identity."""
    probabilities = []
    for sample in samples:
        scale = torch.tensor(sigma).view(-1, 1, 1)
        noise = [gaussian((3, 8, 8), 1.0, SEED, i, [sample], Stream.ATTACK)[0] for i in range(len(images))]
        noisy = images + scale * torch.stack(noise)
        if clip:
            noisy = noisy + (noisy.clamp(0, 1) - noisy).detach()
        if normalize:
            noisy = (noisy - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
        probabilities.append(base(noisy).softmax(1))
    return torch.stack(probabilities).mean(0).log()


def gradients(module: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Of an arbitrary function of the scores."""
    images = images.clone().requires_grad_()
    weights = torch.linspace(-1, 2, CLASSES)
    (found,) = torch.autograd.grad((module(images) * weights).sum(), images)
    return found


# ---- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [None, 1, 9], ids=["one pass", "a sample a pass", "passes of two samples"])
@pytest.mark.parametrize("sigma", [[0.3], [0.1, 0.2, 0.7]])
@pytest.mark.parametrize(("normalize", "clip"), [(False, False), (True, False), (True, True)])
def test_it_is_the_logarithm_of_the_mean_probability(
    max_batch: int | None, sigma: list[float], normalize: bool, clip: bool
) -> None:
    base = network()
    smoothed = make(base, sigma, normalize=(MEAN, STD) if normalize else None, clip=clip)
    soft = smoothed.differentiable(5, max_batch)
    scores = soft(IMAGES)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, by_hand(base, IMAGES, range(5), sigma, normalize, clip), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(4))
    expected = gradients(lambda images: by_hand(base, images, range(5, 10), sigma, normalize, clip), IMAGES)
    torch.testing.assert_close(gradients(soft, IMAGES), expected, rtol=1e-4, atol=1e-6)


def test_uint8_and_half_images_are_the_same_images(smoothed: sf.SmoothedClassifier) -> None:
    pixels = (IMAGES * 255).to(torch.uint8)
    expected = smoothed.differentiable()(pixels / 255)
    assert torch.equal(smoothed.differentiable()(pixels), expected)
    found = smoothed.differentiable()((pixels / 255).double())
    torch.testing.assert_close(found, expected)
    half = IMAGES.half().requires_grad_()
    (gradient,) = torch.autograd.grad(smoothed.differentiable()(half).amax(1).sum(), half)
    assert gradient.dtype == torch.float16


def test_no_images(smoothed: sf.SmoothedClassifier) -> None:
    assert smoothed.differentiable()(IMAGES[:0]).shape == (0, CLASSES)


def test_it_is_as_precise_as_the_classifier(smoothed: sf.SmoothedClassifier) -> None:
    smoothed.precision = "bf16"
    rough = smoothed.differentiable()(IMAGES)
    smoothed.precision = "fp32"
    exact = smoothed.differentiable()(IMAGES)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05


def test_settings_of_the_classifier_count_at_each_call(smoothed: sf.SmoothedClassifier) -> None:
    soft = smoothed.differentiable()
    smoothed.sigma.fill_(0.05)
    smoothed.seed = 1
    assert torch.equal(soft(IMAGES), make(sigma=0.05, seed=1).differentiable()(IMAGES))
    with torch.no_grad():
        smoothed.base[-1].weight.neg_()
    soft.reset()
    assert torch.equal(soft(IMAGES), make(copy.deepcopy(smoothed.base), 0.05, seed=1).differentiable()(IMAGES))


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_calls_draw_new_samples_until_reset(smoothed: sf.SmoothedClassifier) -> None:
    soft = smoothed.differentiable(4)
    calls = [soft(IMAGES) for _ in range(3)]
    together = smoothed.differentiable(12)(IMAGES)
    torch.testing.assert_close(torch.stack(calls).logsumexp(0) - math.log(3), together)
    assert not torch.equal(calls[0], calls[1])
    assert not torch.equal(calls[1], calls[2])
    soft.reset()
    assert torch.equal(soft(IMAGES), calls[0])


def test_generators_are_neither_read_nor_advanced(smoothed: sf.SmoothedClassifier) -> None:
    found = []
    with torch.random.fork_rng():
        for seed in (0, 1):
            torch.manual_seed(seed)
            np.random.seed(seed)
            before = torch.get_rng_state(), np.random.get_state()[1].copy()
            found.append(gradients(smoothed.differentiable(5, 1), IMAGES))
            assert torch.equal(torch.get_rng_state(), before[0])
            assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(found[0], found[1])


def test_a_generator_set_back_brings_no_noise_back(smoothed: sf.SmoothedClassifier) -> None:
    """APGD sets it back for every batch."""
    soft, calls = smoothed.differentiable(4), []
    with torch.random.fork_rng():
        for _ in range(2):
            torch.manual_seed(0)
            calls.append(soft(IMAGES))
    assert not torch.equal(*calls)


class Restless(nn.Module):
    """Draws noise of its own, once in a pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape[1:])


def test_a_pass_that_is_computed_anew_has_the_same_noise_of_the_network() -> None:
    """Its values and its gradients are then those of one function: the derivative along a direction shows it."""
    soft = make(network(Restless())).differentiable(3, 1)
    step = 1e-2 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))

    def at(images: Tensor) -> Tensor:
        soft.reset()
        torch.manual_seed(0)
        return soft(images)[:, 0].sum()

    with torch.random.fork_rng():
        images = IMAGES.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(at(images), images)
        difference = (at(IMAGES + step) - at(IMAGES - step)) / 2
    torch.testing.assert_close((gradient * step).sum(), difference, rtol=0.02, atol=1e-5)


# ---- a guest in somebody's network -----------------------------------------------------------------------------------


def test_parameters_are_seen_and_get_no_gradients(smoothed: sf.SmoothedClassifier) -> None:
    soft = smoothed.differentiable(5, 1)
    assert {id(p) for p in soft.parameters()} == {id(p) for p in smoothed.base.parameters()}
    images = IMAGES.clone().requires_grad_()
    soft(images).amax(1).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in soft.parameters())


@pytest.mark.parametrize("max_batch", [None, 1])
def test_the_base_runs_in_eval_mode_and_keeps_its_own(max_batch: int | None) -> None:
    layers = nn.BatchNorm2d(4), nn.Dropout(0.5)
    base = network(*layers)
    expected = gradients(make(base).differentiable(4, max_batch), IMAGES)
    state = copy.deepcopy(base.state_dict())
    base.train()
    layers[1].eval()
    assert torch.equal(gradients(make(base).differentiable(4, max_batch), IMAGES), expected)
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert [part.training for part in base] == [True, True, False, True, True, True]


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_that_of_the_base(training: bool) -> None:
    """Packages that put back the mode that they found in the outermost module put it into all others."""
    smoothed = make(network().train(training))
    assert smoothed.training == smoothed.differentiable().training == training


def test_copies_and_pickles(smoothed: sf.SmoothedClassifier) -> None:
    soft = smoothed.differentiable()
    twins = copy.deepcopy(soft), pickle.loads(pickle.dumps(soft))
    scores = soft(IMAGES)
    for twin in twins:
        assert torch.equal(twin(IMAGES), scores)


@pytest.mark.parametrize("form", ["votes", "one pass", "several passes"])
def test_nothing_that_differentiates_runs_in_forward(form: str, smoothed: sf.SmoothedClassifier) -> None:
    """As `check_dynamic` of AutoAttack looks for it."""
    model = smoothed if form == "votes" else smoothed.differentiable(4, None if form == "one pass" else 1)
    called: list[str] = []
    model(IMAGES)  # the engine is made
    former = sys.gettrace()
    sys.settrace(lambda frame, event, _: called.append(frame.f_code.co_name))
    try:
        model(IMAGES.clone().requires_grad_())
    finally:
        sys.settrace(former)
    assert "forward" in called
    assert not {"grad", "backward", "_make_grads"} & set(called)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "max_batch", "largest"), [(4, 8, 8), (4, 11, 8), (4, 1, 4), (1, 8, 8)])
def test_a_pass_has_at_most_so_many_rows(images: int, max_batch: int, largest: int) -> None:
    smoothed, rows = make(max_batch=max_batch), []
    smoothed.base[0].register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    gradients(smoothed.differentiable(10), IMAGES[:images])
    assert max(rows) == largest
    assert (
        sum(rows[1:]) == 2 * 10 * images
    )  # after the first look at the base classifier; each pass once more for the gradients


def saved(samples: int) -> int:
    """Elements that are kept for the backward pass, storage by storage."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        images = IMAGES.clone().requires_grad_()
        scores = make().differentiable(samples, 4)(images)
    assert scores.requires_grad
    return sum(kept.values())


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_samples() -> None:
    few, many = saved(2), saved(32)
    assert many - few <= 30 * len(IMAGES) * CLASSES + 200  # the sums of each pass
    assert many < IMAGES[0].numel() * 32


# ---- votes have no gradient ------------------------------------------------------------------------------------------


def test_votes_of_images_that_require_a_gradient(smoothed: sf.SmoothedClassifier) -> None:
    scores = smoothed(IMAGES.clone().requires_grad_())
    smoothed.reset()
    plain = smoothed(IMAGES)
    assert torch.equal(scores, plain)
    assert scores.requires_grad
    assert not plain.requires_grad
    assert torch.equal(scores.argmax(1), plain.argmax(1))
    with torch.no_grad():
        assert not smoothed(IMAGES.clone().requires_grad_()).requires_grad
    scores[:, 0] = 0  # as torchattacks.Square writes into what it gets
    for method in (smoothed.votes, lambda images: smoothed.predict(images, n=20).counts):
        assert torch.equal(method(IMAGES.clone().requires_grad_()), method(IMAGES))


@pytest.mark.parametrize("penalty", [0.0, 1.0], ids=["votes alone", "and another term"])
def test_their_gradient_is_an_error_that_names_the_way(penalty: float, smoothed: sf.SmoothedClassifier) -> None:
    images = IMAGES.clone().requires_grad_()
    loss = smoothed(images).amax(1).sum() + penalty * images.sum()
    message = "voting is 'prediction', and votes have no gradient: .* model.differentiable()"
    with pytest.raises(ValueError, match=message):
        torch.autograd.grad(loss, images, retain_graph=True)
    with pytest.raises(ValueError, match=message):
        loss.backward()
    assert images.grad is None


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda smoothed: smoothed.differentiable(0), "samples is 0; it must be at least 1"),
        (lambda smoothed: smoothed.differentiable(8, 0), "max_batch is 0; it must be at least 1"),
        (lambda smoothed: smoothed.differentiable()(IMAGES[0]), "one image is [1, C, H, W]"),
        (lambda smoothed: smoothed.differentiable()(IMAGES.long()), "images are torch.int64; they must be uint8"),
        (lambda smoothed: smoothed.differentiable()(IMAGES / 0), "images hold values that are not finite"),
        (lambda smoothed: make(sigma=[0.1, 0.2]).differentiable()(IMAGES), "sigma has 2 entries; the images have 3"),
        (lambda smoothed: PGD(smoothed.differentiable()), "model is a SoftClassifier, which is for other packages"),
    ],
)
def test_what_is_refused(call: Callable[[Any], Any], message: str, smoothed: sf.SmoothedClassifier) -> None:
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
        call(smoothed)


@pytest.mark.parametrize("voting", ["prediction", "soft", "differentiable"])
def test_forward_mode_is_refused(voting: str) -> None:
    """The noise kernel has no tangents: they would be 0."""
    model = make(voting="soft" if voting == "soft" else "prediction")
    ask = model.differentiable(4) if voting == "differentiable" else model
    with pytest.raises(ValueError, match="tangent of forward-mode differentiation"):
        torch.func.jvp(ask, (IMAGES,), (IMAGES,))
    with forward_ad.dual_level(), pytest.raises(ValueError, match="take reverse mode"):
        ask(forward_ad.make_dual(IMAGES, IMAGES))

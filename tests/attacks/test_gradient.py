"""FGSM, PGD, EPGD, SmoothAdvPGD and MultiTargetedPGD where the optimum is known, and what they promise anywhere."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from smoothfast import SmoothedClassifier
from smoothfast.attacks import EPGD, FGSM, PGD, Attack, MultiTargetedPGD, SmoothAdvPGD
from smoothfast.losses import LOSSES

SHAPE = (2, 3, 4)
EPS = 8 / 255


class Linear(nn.Module):
    """Logits weights @ pixels + bias."""

    def __init__(self, weights: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.register_buffer("bias", torch.zeros(len(weights)) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weights.T + self.bias


class Bowls(nn.Module):
    """The logit of a class is minus the squared distance to its centre: analytic, and not linear in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([0.25, 0.75])[:, None].expand(2, math.prod(SHAPE)).clone())

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1)[:, None] - self.centres).square().sum(2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def linear() -> Linear:
    return Linear(random(3, math.prod(SHAPE), seed=2) - 0.5)


@pytest.fixture
def images() -> Tensor:
    """Some pixels so near to 0 and 1 that the range of pixels binds."""
    return (1.4 * random(6, *SHAPE, seed=1) - 0.2).clamp(0, 1)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])

ATTACKS: dict[str, Callable[..., Attack]] = {
    "FGSM": FGSM,
    "PGD": PGD,
    "EPGD": EPGD,
    "SmoothAdvPGD": SmoothAdvPGD,
    "MultiTargetedPGD": MultiTargetedPGD,
}
CLIMBERS = [PGD, EPGD, SmoothAdvPGD]


def two(linear: Linear) -> Linear:
    """Of two classes, whose logits differ by a linear function of the image: the optimum is at a corner."""
    return Linear(linear.weights.detach()[:2])


def uphill(model: Linear, labels: Tensor) -> Tensor:
    """The gradient of the margin of two classes [N, C, H, W]."""
    return (model.weights[1 - labels] - model.weights[labels]).detach().view(-1, *SHAPE)


def steep(attack: type[PGD], model: nn.Module, *arguments: Any, **options: Any) -> PGD:
    """In float32, with steps enough from one side of the ball to the other."""
    if attack is not FGSM:
        options = {"steps": 9} | options
    return attack(model, *arguments, precision="fp32", **options)


def smoothed(model: nn.Module, num_classes: int = 3) -> SmoothedClassifier:
    return SmoothedClassifier(model, 0.25, num_classes, samples=16)


# ---- optima ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("under_noise", [False, True])
@pytest.mark.parametrize("attack", [FGSM, *CLIMBERS])
def test_the_corner_of_the_box(linear: Linear, images: Tensor, attack: type[PGD], under_noise: bool) -> None:
    model = two(linear)
    found = steep(attack, smoothed(model, 2) if under_noise else model)(images, LABELS % 2)
    wanted = (images + EPS * uphill(model, LABELS % 2).sign()).clamp(0, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("attack", [FGSM, *CLIMBERS])
def test_the_point_of_the_ball(linear: Linear, attack: type[PGD]) -> None:
    model, images = two(linear), 0.5 + 0.1 * random(6, *SHAPE)
    found = steep(attack, model, 0.3, norm="l2", **({} if attack is FGSM else {"steps": 80}))(images, LABELS % 2)
    direction = uphill(model, LABELS % 2)
    wanted = images + 0.3 * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attack", CLIMBERS)
@pytest.mark.parametrize("under_noise", [False, True])
def test_away_from_the_centre_of_a_bowl(images: Tensor, attack: type[PGD], under_noise: bool) -> None:
    """Both logits are quadratic; their difference is linear, with the same derivative by every pixel."""
    model = smoothed(Bowls(), 2) if under_noise else Bowls()
    found = steep(attack, model)(images, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(found, (images + EPS).clamp(0, 1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("attack", [FGSM, *CLIMBERS])
def test_towards_a_target(linear: Linear, images: Tensor, attack: type[PGD]) -> None:
    one = steep(attack, two(linear))
    one.set_mode_targeted_by_label()
    found = one(images, LABELS % 2)
    wanted = (images - EPS * uphill(two(linear), LABELS % 2).sign()).clamp(0, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_climbs(linear: Linear, loss: str) -> None:
    images = 0.5 + 0.1 * random(6, *SHAPE)
    labels = linear(images).argmax(1)
    before, after = (LOSSES[loss](linear(x), labels) for x in (images, PGD(linear, loss=loss)(images, labels)))
    assert (after > before).all()


def best_margins(model: Linear, images: Tensor, eps: float) -> Tensor:
    """Of a linear classifier: for each other class the corner is known, and the best of them is the optimum."""
    found = []
    for image, label in zip(images, LABELS.tolist(), strict=True):
        corners = []
        for target in set(range(3)) - {label}:
            slope = (model.weights[target] - model.weights[label]).detach().view(SHAPE)
            logits = model((image + eps * slope.sign()).clamp(0, 1)[None])[0]
            corners.append(max(logits[other] for other in range(3) if other != label) - logits[label])
        found.append(max(corners))
    return torch.stack(found).detach()


def margins(model: nn.Module, images: Tensor) -> Tensor:
    return LOSSES["margin"](model(images), LABELS).detach()


def test_multi_targeted_reaches_the_largest_margin(linear: Linear, images: Tensor) -> None:
    found = steep(MultiTargetedPGD, linear, 0.2)(images, LABELS)
    torch.testing.assert_close(margins(linear, found), best_margins(linear, images, 0.2), rtol=0, atol=1e-5)
    one = margins(linear, steep(MultiTargetedPGD, linear, 0.2, targets=1)(images, LABELS))
    assert (one <= margins(linear, found) + 1e-6).all()


def test_gradient_free_goes_uphill_on_average(linear: Linear, images: Tensor) -> None:
    model = two(linear)
    one = SmoothAdvPGD(smoothed(model, 2), 0.1, samples=2_000, steps=4, gradient_free=True, norm="l2", precision="fp32")
    found = one(images, LABELS % 2)
    assert (one.gradients, one.forwards) == (0, 6 * 4 * 2_000)
    gained = ((found - images) * uphill(model, LABELS % 2)).sum((1, 2, 3))
    assert (gained > 0).all()
    assert gained.mean() > 0.4 * 0.1 * uphill(model, LABELS % 2)[0].norm()
    one.set_mode_targeted_by_label()
    gained = ((one(images, LABELS % 2) - images) * uphill(model, LABELS % 2)).sum((1, 2, 3))
    assert (gained < 0).all()


def test_a_pixel_without_gradient_stays(images: Tensor) -> None:
    """sign(0) is 0."""
    weights = torch.zeros(2, math.prod(SHAPE))
    weights[0, :5] = 1
    found = PGD(Linear(weights), random_start=False)(images, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(found.flatten(1)[:, 5:], images.flatten(1)[:, 5:])
    assert not torch.equal(found, images)


# ---- what holds anywhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(eps=st.floats(0, 1), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_nothing_leaves_the_ball_or_the_range(name: str, norm: str, eps: float, seed: int) -> None:
    images = (1.4 * random(3, *SHAPE, seed=seed % 1000) - 0.2).clamp(0, 1)
    model = Linear(random(3, math.prod(SHAPE), seed=3) - 0.5)
    options = {} if name == "FGSM" else {"steps": 2}
    found = ATTACKS[name](model, eps, norm=norm, seed=seed, **options)(images, LABELS[:3])
    assert found.min() >= 0
    assert found.max() <= 1
    shift = (found.double() - images.double()).flatten(1)
    distance = (
        shift.abs().amax(1)
        if norm == "linf"
        else torch.tensor([math.sqrt(math.fsum(x * x for x in row)) for row in shift.tolist()])
    )
    assert (distance <= eps).all()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_0_returns_the_input(linear: Linear, images: Tensor, name: str, norm: str) -> None:
    assert torch.equal(ATTACKS[name](linear, 0.0, norm=norm)(images, LABELS), images)
    assert torch.equal(ATTACKS[name](smoothed(linear), 0.0, norm=norm)(images, LABELS), images)


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_depends_on_what_is_beside_an_image(linear: Linear, images: Tensor, name: str) -> None:
    attack = ATTACKS[name](smoothed(linear), max_batch=8)
    together = attack(images, LABELS)
    order = torch.tensor([5, 0, 3])
    assert torch.equal(attack(images[order], LABELS[order], image_ids=order), together[order])
    assert torch.equal(attack(images, LABELS), together)


def test_seeds_ids_and_steps_draw_other_noise(linear: Linear, images: Tensor) -> None:
    model = smoothed(Bowls(), 2)
    labels = torch.zeros(6, dtype=torch.int64)

    def attacked(norm: str = "l2", ids: Tensor | None = None, **options: Any) -> Tensor:
        return EPGD(model, 0.1, samples=2, steps=1, norm=norm, **options)(images, labels, image_ids=ids)

    assert not torch.equal(attacked(), attacked(seed=1))
    assert not torch.equal(attacked(), attacked(ids=torch.arange(6) + 1))
    fixed = SmoothAdvPGD(model, 0.1, 0.0, 2, random_start=False, norm="l2")
    starts = [
        drawn_in(fixed, images, labels),
        drawn_in(SmoothAdvPGD(model, 0.1, 0.0, 2, random_start=False, fresh_noise=True), images, labels),
    ]
    assert starts == [[0, 0], [0, 8]]


def drawn_in(attack: PGD, images: Tensor, labels: Tensor) -> list[int]:
    """The first sample of each step."""
    found, inner = [], attack._gradients

    def gradients(*arguments: Any) -> Tensor:
        found.append(arguments[-1])
        return inner(*arguments)

    attack._gradients = gradients  # type: ignore[method-assign]
    attack(images, labels)
    return found


def test_samples_are_numbered_by_restart_and_step(linear: Linear, images: Tensor) -> None:
    assert drawn_in(EPGD(smoothed(linear), steps=3, samples=4, restarts=2), images, LABELS) == [0, 4, 8, 12, 16, 20]


def test_repetitions_have_samples_and_starts_of_their_own(linear: Linear, images: Tensor) -> None:
    under_noise = EPGD(smoothed(linear), 0.1, samples=2, steps=2, norm="l2", random_start=False)
    starts = [PGD(linear, 0.1, 0.0, norm=norm) for norm in ("linf", "l2")]
    for attack in (under_noise, *starts):
        results = []
        for attack.repetition in (0, 1, 2**16 - 1, 0):
            results.append(attack(images, LABELS))
        assert torch.equal(results[0], results[3])
        assert not any(torch.equal(*pair) for pair in combinations(results[:3], 2))


@pytest.mark.parametrize("draw", [-1, 2**16])
def test_a_repetition_out_of_range(linear: Linear, images: Tensor, draw: int) -> None:
    attack = PGD(linear)
    attack.repetition = draw
    with pytest.raises(ValueError, match=rf"repetition is {draw}; it must lie in 0 \.\. 65535"):
        attack(images, LABELS)


def test_engines_that_are_kept_see_the_weights_of_the_moment(linear: Linear, images: Tensor) -> None:
    attack = EPGD(smoothed(linear), 0.1, samples=2, steps=2, runner="eager")
    engine = attack.engine(images, 6)
    for seed in range(2):
        with torch.no_grad():
            linear.weights.copy_(random(*linear.weights.shape, seed=seed) - 0.5)
        assert torch.equal(attack.craft(engine, images, LABELS, torch.arange(6)), attack(images, LABELS))


def test_starts_are_anywhere_in_the_ball(linear: Linear) -> None:
    images = torch.full((400, *SHAPE), 0.5)
    labels = torch.zeros(400, dtype=torch.int64)
    elements = math.prod(SHAPE)
    box = PGD(linear, 0.1, 0.0, 1)(images, labels) - images
    assert box.abs().max() == pytest.approx(0.1, rel=1e-2)
    assert box.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    radii = (PGD(linear, 0.1, 0.0, 1, norm="l2")(images, labels) - images).flatten(1).norm(dim=1) / 0.1
    # Of a uniform point of the ball in d dimensions, radius^d is uniform.
    assert radii.pow(elements).mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 400))
    assert radii.max() <= 1


def test_restarts_keep_the_largest_loss(images: Tensor) -> None:
    """A ridge: which side a climb ends on depends on its start, and one side is higher."""

    class Ridge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            height = x.mean((1, 2, 3)) - 0.5
            return torch.stack([torch.zeros_like(height), torch.where(height > 0, 3 * height, -height)], 1)

    images, labels = torch.full((40, *SHAPE), 0.5), torch.zeros(40, dtype=torch.int64)
    found = [PGD(Ridge(), 0.1, restarts=restarts)(images, labels).mean((1, 2, 3)) for restarts in (1, 6)]
    high = [(means > 0.55).float().mean() for means in found]
    assert 0.2 < high[0] < 0.8
    assert high[1] > 0.9  # 6 starts on the lower side: 1 in 64


def test_legacy_accumulate_steps_along_the_sum_of_all_gradients(images: Tensor) -> None:
    """By hand, on a function whose gradient changes its sign on the way."""

    class Parabola(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            height = 20 * (x.flatten(1).sum(1) - 12.05).square()
            return torch.stack([height, torch.zeros_like(height)], 1)

    images, labels = torch.full((1, *SHAPE), 0.5), torch.zeros(1, dtype=torch.int64)
    for legacy in (False, True):
        found = PGD(Parabola(), 0.1, 0.01, 6, False, loss="margin", legacy_accumulate=legacy, precision="fp32")(
            images, labels
        )
        x, total = images.clone(), 0.0
        for _ in range(6):
            gradient = -40 * (x.sum() - 12.05)
            total = total + gradient if legacy else gradient
            x = (x + 0.01 * torch.as_tensor(total).sign()).clamp(0.4, 0.6)
        torch.testing.assert_close(found, x, rtol=0, atol=1e-6)
    plain = PGD(Parabola(), 0.1, 0.01, 6, False, loss="margin", precision="fp32")(images, labels)
    assert not torch.equal(plain, found)


def test_counts(linear: Linear, images: Tensor) -> None:
    for attack, gradients, forwards in (
        (FGSM(linear), 6, 6),
        (PGD(linear, steps=5), 30, 30),
        (PGD(linear, steps=5, restarts=2), 60, 72),
        (EPGD(smoothed(linear), steps=5, samples=3), 90, 90),
        (MultiTargetedPGD(linear, steps=5), 60, 60 + 6 + 12),
    ):
        for _ in range(2):
            attack(images, LABELS)
            assert (attack.gradients, attack.forwards) == (gradients, forwards)


# ---- the convention of torchattacks ----------------------------------------------------------------------------------


def test_uint8_images_and_none(linear: Linear) -> None:
    images = (255 * random(6, *SHAPE)).to(torch.uint8)
    found = PGD(linear)(images, LABELS)
    assert torch.equal(found, PGD(linear)(images / 255, LABELS.tolist()))
    assert found.dtype == torch.float32
    assert PGD(linear)(images[:0], LABELS[:0]).shape == (0, *SHAPE)


def test_the_model_is_left_as_it_was(linear: Linear, images: Tensor) -> None:
    linear.train()
    state = torch.get_rng_state()
    given = images.clone().requires_grad_()
    found = EPGD(linear)(given, LABELS)
    assert torch.equal(torch.get_rng_state(), state)
    assert linear.training
    assert linear.weights.requires_grad
    assert linear.weights.grad is None
    assert given.grad is None
    assert not found.requires_grad
    assert torch.equal(given, images)


def test_random_targets_are_other_classes(linear: Linear, images: Tensor) -> None:
    attack = PGD(linear, seed=3)
    attack.set_mode_targeted_random()
    many, labels = torch.full((600, *SHAPE), 0.5), torch.arange(600) % 3
    engine = attack.engine(many, 600)
    targets = attack._random_targets(engine, many, labels, torch.arange(600))
    shift = (targets - labels) % 3
    assert set(shift.tolist()) == {1, 2}
    assert abs(int((shift == 1).sum()) - 300) < 5 * math.sqrt(150)
    assert torch.equal(attack._random_targets(engine, many[:9], labels[:9], torch.arange(9)), targets[:9])
    attack.repetition = 1
    others = attack._random_targets(engine, many, labels, torch.arange(600))
    assert abs(int((others == targets).sum()) - 300) < 5 * math.sqrt(150)


def test_least_likely_targets(linear: Linear, images: Tensor) -> None:
    logits = linear(images).detach().scatter(1, LABELS[:, None], torch.inf)
    for kth_min in (1, 2):
        attack = PGD(linear, 0.3, precision="fp32")
        attack.set_mode_targeted_least_likely(kth_min)
        target = logits.argsort(1)[:, kth_min - 1]
        by_label = PGD(linear, 0.3, precision="fp32")
        by_label.set_mode_targeted_by_label()
        assert torch.equal(attack(images, LABELS), by_label(images, target))


def test_targets_by_function_and_back(linear: Linear, images: Tensor) -> None:
    attack, other = PGD(linear), PGD(linear)
    plain = attack(images, LABELS)
    attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 3)
    other.set_mode_targeted_by_label()
    assert torch.equal(attack(images, LABELS), other(images, (LABELS + 1) % 3))
    attack.set_mode_default()
    assert torch.equal(attack(images, LABELS), plain)


def test_normalised_images(linear: Linear, images: Tensor) -> None:
    mean, std = [0.4, 0.6], [0.2, 0.3]
    statistics = [torch.tensor(values).view(-1, 1, 1) for values in (mean, std)]

    class Inside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return linear((x - statistics[0]) / statistics[1])

    attack = PGD(linear, precision="fp32")
    attack.set_normalization_used(mean, std)
    found = attack((images - statistics[0]) / statistics[1], LABELS)
    wanted = PGD(Inside(), precision="fp32")(images, LABELS)
    torch.testing.assert_close(found * statistics[1] + statistics[0], wanted, rtol=0, atol=1e-6)


def test_a_smoothed_classifier_is_attacked_under_its_own_noise(linear: Linear, images: Tensor) -> None:
    options = {"normalize": ((0.5, 0.4), (0.2, 0.3)), "clip": True}
    model = SmoothedClassifier(linear, (0.1, 0.3), 3, **options)
    attack = EPGD(model)
    assert attack.law.sigma == (0.1, 0.3)
    assert (attack.normalize, attack.clip) == (options["normalize"], True)
    assert attack(images, LABELS).shape == images.shape
    assert EPGD(model, sigma=0.5).law.sigma == (0.5,)
    assert PGD(linear).law.sigma == (0.0,)


def test_models_that_draw_noise_themselves(linear: Linear, images: Tensor) -> None:
    class Noisy(nn.Module):
        """One draw of weights in each forward pass."""

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.generator, self.rows = two(linear), torch.Generator().manual_seed(0), []

        def __deepcopy__(self, memo: Any) -> Any:
            return self

        def forward(self, x: Tensor) -> Tensor:
            self.rows.append(len(x))
            noise = torch.randn(self.linear.weights.shape, generator=self.generator)
            return x.flatten(1) @ (self.linear.weights + 0.02 * noise).T

    model = Noisy()
    attack = steep(EPGD, model, samples=8, replicas_per_forward=1)
    found = attack(images, LABELS % 2)
    wanted = (images + EPS * uphill(two(linear), LABELS % 2).sign()).clamp(0, 1)
    assert (found - wanted).abs().median() < 1e-6
    assert max(model.rows[1:]) <= 6  # but for the two zeros that tell the number of classes


@pytest.mark.parametrize("runner", ["compiled", "openvino"])
def test_runners_agree(images: Tensor, runner: str) -> None:
    if runner == "openvino":
        pytest.importorskip("openvino")
    model = smoothed(Bowls(), 2)
    labels = torch.zeros(6, dtype=torch.int64)
    attack = EPGD(model, runner=runner, precision="fp32", samples=2)
    found = attack(images, labels)
    assert torch.equal(found, EPGD(model, runner="eager", precision="fp32", samples=2)(images, labels))
    with torch.no_grad():
        model.base.centres += torch.linspace(-0.5, 0.5, math.prod(SHAPE))  # weights that were frozen in
    torch.testing.assert_close(
        attack(images, labels),
        EPGD(model, runner="eager", precision="fp32", samples=2)(images, labels),
        rtol=0,
        atol=1e-6,
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"eps": -0.1}, "eps is -0.1"),
    ({"eps": math.nan}, "eps is nan"),
    ({"alpha": -1.0}, "alpha is -1.0"),
    ({"steps": 0}, "steps is 0"),
    ({"restarts": 0}, "restarts is 0"),
    ({"norm": "l1"}, "norm is 'l1'"),
    ({"loss": "mse"}, "loss is 'mse'"),
    ({"samples": 0}, "samples is 0"),
    ({"seed": -1}, "seed is -1"),
    ({"sigma": -0.5}, "sigma is -0.5"),
    ({"runner": "tensorrt"}, "runner is 'tensorrt'"),
    ({"max_batch": 0}, "max_batch is 0"),
    ({"replicas_per_forward": 0}, "replicas_per_forward is 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(linear: Linear, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(linear, **options)


def test_arguments_that_do_not_fit_together(linear: Linear, images: Tensor) -> None:
    with pytest.raises(ValueError, match="gradient_free is True, which needs noise"):
        SmoothAdvPGD(linear, gradient_free=True)
    with pytest.raises(ValueError, match="loss is 'dlr'; the average of probabilities"):
        SmoothAdvPGD(linear, loss="dlr")
    with pytest.raises(ValueError, match="loss is 'ce'; multi-targeted"):
        MultiTargetedPGD(linear, loss="ce")
    with pytest.raises(ValueError, match="targets is 0"):
        MultiTargetedPGD(linear, targets=0)
    with pytest.raises(ValueError, match="needs 3 classes; the model has 2"):
        PGD(two(linear), loss="dlr")(images, LABELS % 2)
    with pytest.raises(ValueError, match="sigma has 3 entries; the images have 2 channels"):
        PGD(linear, sigma=(0.1, 0.2, 0.3))(images, LABELS)
    attack = MultiTargetedPGD(linear)
    attack.set_mode_targeted_random()
    with pytest.raises(ValueError, match="the mode is targeted"):
        attack(images, LABELS)
    with pytest.raises(ValueError, match="kth_min is 0"):
        attack.set_mode_targeted_least_likely(0)
    attack = PGD(linear)
    attack.set_mode_targeted_least_likely(3)
    with pytest.raises(ValueError, match="kth_min is 3; the model has 3 classes"):
        attack(images, LABELS)
    with pytest.raises(ValueError, match="the model is a SmoothedClassifier"):
        PGD(smoothed(linear)).set_normalization_used([0.5], [0.5])


def test_bad_images_and_labels(linear: Linear, images: Tensor) -> None:
    attack = PGD(linear)
    for pixels, labels, message in (
        (images * 2, LABELS, r"float images must lie in 0 .. 1"),
        (images[0], LABELS, r"one image is \[1, C, H, W\]"),
        (images * torch.nan, LABELS, "not finite"),
        (images, LABELS[:5], "labels has 5 entries; there are 6 images"),
        (images, LABELS + 1, "labels holds 3; labels must lie in 0 .. 2"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(pixels, labels)


# ---- what a kept engine is made of -----------------------------------------------------------------------------------


class Headed(nn.Module):
    """A classifier of as many classes as it is told, which no weight shows."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.classes]


def test_an_eager_model_may_change_its_classes_between_calls() -> None:
    model = Headed().eval()
    attack = PGD(model, steps=1, runner="eager")
    images = random(4, *SHAPE)
    attack(images, [0, 1, 2, 0])
    model.classes = 5
    assert torch.equal(attack(images, [4, 1, 2, 0]), PGD(model, steps=1, runner="eager")(images, [4, 1, 2, 0]))


def test_an_engine_is_made_anew_where_samples_may_no_longer_share_a_pass() -> None:
    attack = EPGD(Linear(random(3, 24)), steps=1, samples=8, sigma=0.1, max_batch=8, runner="eager")
    together = attack.engine(random(2, *SHAPE), 2)
    attack.replicas_per_forward = 1
    apart = attack.engine(random(2, *SHAPE), 2)
    assert (together.replicas_per_forward, apart.replicas_per_forward) == (None, 1)


def test_an_attack_is_freed_with_its_engine() -> None:
    attack = PGD(Linear(random(3, 24)), steps=1, runner="eager")
    attack(random(2, *SHAPE), [0, 1])
    freed = weakref.ref(attack)
    del attack
    assert freed() is None


def test_a_repetition_has_its_former_name() -> None:
    attack = PGD(Linear(random(3, 24)))
    attack.draw = 7
    assert (attack.repetition, attack.draw) == (7, 7)

"""NAttack and Square: they get nearly as far as any attack on a linear classifier can, and stay in the ball."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.linear import Linear, check_modes, check_pure, greys, linear, pixels, predicted
from torch import Tensor, nn

import smoothfast as sf
from smoothfast.attacks import Attack, NAttack, Square, black_box
from smoothfast.noise import Stream, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 8 / 255

ATTACKS: dict[str, Callable[..., Attack]] = {
    "nattack": partial(NAttack, steps=30, population=60),
    "square": partial(Square, queries=300),
}
every = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)
# As far as they get does not matter to what results are a function of: a tenth of the passes show it.
SHORT: dict[str, Callable[..., Attack]] = {
    "nattack": partial(NAttack, steps=12, population=16),
    "square": partial(Square, queries=40),
}
short = pytest.mark.parametrize("make", SHORT.values(), ids=SHORT)


def smoothed(model: Linear, sigma: float = 0.25) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(model, sigma=sigma, num_classes=len(model.bias), precision="fp32")


def far(model: Linear) -> Linear:
    """With class 0 ahead by so much that no attack gets to another one."""
    return Linear(model.weight, model.bias + 1e4 * torch.eye(len(model.bias), dtype=torch.float64)[0])


def reach(model: Linear, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """By how much the margin can become smaller within the ball, where there are two classes: float64 [N]."""
    differences = model.weight[labels] - model.weight[1 - labels]
    best = (pixels(images) - eps * differences.sign().view_as(images).float()).clamp(0, 1)
    return model.margins(pixels(images), labels) - model.margins(best, labels)


# ---- how far they get ------------------------------------------------------------------------------------------------


@every
def test_all_that_can_be_turned_is(make: Callable[..., Attack]) -> None:
    model, images, eps = linear(), greys(24), 2 / 255
    labels = predicted(model, pixels(images))
    out = make(model, eps)(images, labels)
    margins, most = model.margins(pixels(images), labels), reach(model, images, labels, eps)
    turned = predicted(model, out) != labels
    assert turned[margins < 0.8 * most].all()
    assert not turned[margins > most].any()
    assert turned.any()
    assert not turned.all()


@pytest.mark.parametrize("make", [partial(NAttack, steps=60, population=100), partial(Square, queries=500)])
@pytest.mark.parametrize("noisy", [False, True])
def test_most_of_the_reach_is_used(make: Callable[..., Attack], noisy: bool) -> None:
    """With noise as well, though it moves the margin by far more than the attack does: members, and squares, are
    compared on the same samples."""
    model, images = far(linear()), greys(6)
    labels = torch.zeros(6, dtype=torch.int64)
    target: nn.Module = smoothed(model, 1.0) if noisy else model
    out = make(target, EPS)(images, labels)
    gained = model.margins(pixels(images), labels) - model.margins(out, labels)
    assert (gained >= 0.9 * reach(model, images, labels, EPS)).all()


@every
def test_votes_turn_with_the_samples(make: Callable[..., Attack]) -> None:
    """Until all samples agree; then those that the attack has not seen do, too."""
    model, images = linear(), greys(6, 0.01)
    labels = predicted(model, pixels(images))
    target = smoothed(model, 0.01)
    out = make(target, 2 * EPS, samples=8)(images, labels)
    counts = target.votes(out, 100)
    assert (counts.gather(1, labels[:, None]) < 20).all()


@every
def test_modes(make: Callable[..., Attack]) -> None:
    check_modes(make(linear(3), 0.1), greys(6), linear(3), 3)


# ---- the ball --------------------------------------------------------------------------------------------------------


@short
@pytest.mark.parametrize("eps", [1e-3, EPS, 0.3, 1.0])
def test_no_result_leaves_the_ball(make: Callable[..., Attack], eps: float) -> None:
    images = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)).mul(1.4).sub(0.2).clamp(0, 1)
    out = make(far(linear(3)), eps)(images, [0] * 4)
    assert float((out.double() - images.double()).abs().max()) <= eps
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert (out != images).flatten(1).any(1).all()


@short
@pytest.mark.parametrize("images", [greys(3), pixels(greys(3))], ids=["uint8", "float"])
def test_eps_0_returns_the_images(make: Callable[..., Attack], images: Tensor) -> None:
    out = make(linear(), 0)(images, [0, 1, 0])
    assert torch.equal(out, images if images.is_floating_point() else pixels(images))


# ---- a function of seed, image id and image --------------------------------------------------------------------------


@short
@pytest.mark.parametrize("noisy", [False, True])
def test_results_are_pure(make: Callable[..., Attack], noisy: bool) -> None:
    """Of images that need many steps, few, or none."""
    model, images = linear(3), torch.cat([greys(3), greys(2, 0.01)])
    labels = predicted(model, pixels(images))
    labels[2] = (labels[2] + 1) % 3
    options: dict[str, Any] = {"samples": 3} if noisy else {}
    target: nn.Module = smoothed(model) if noisy else model
    check_pure(make(target, EPS, **options), images, labels)


@short
def test_seed_and_image_id_choose_the_search(make: Callable[..., Attack]) -> None:
    model, images = far(linear(3)), greys(3)
    attack = make(model, EPS)
    out = attack(images, [0] * 3)
    assert not torch.equal(attack(images, [0] * 3, image_ids=[7, 8, 9]), out)
    assert not torch.equal(make(model, EPS, seed=1)(images, [0] * 3), out)


@short
def test_draws_search_anew(make: Callable[..., Attack]) -> None:
    model, images = linear(), greys(6)
    labels = predicted(model, pixels(images))
    attack = make(far(model), 2 / 255)
    results = []
    for attack.repetition in (0, 1, 0):
        results.append(attack(images, labels))
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])


@short
def test_micro_batches_do_not_show(make: Callable[..., Attack]) -> None:
    model, images = linear(3), greys(3)
    labels = predicted(model, pixels(images))
    outs = [make(smoothed(model), EPS, samples=8, max_batch=rows)(images, labels) for rows in (8, 64)]
    assert torch.equal(*outs)


# ---- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 3])
def test_counts(samples: int) -> None:
    model, images = far(linear(3)), greys(4)
    labels = [0, 0, 1, 0]  # the third is adversarial as it is
    attack: Attack = NAttack(model, EPS, 11, 20, samples)
    attack(images, labels)
    looks = 2  # at steps 0 and 10
    assert (attack.gradients, attack.forwards) == (0, samples * (3 * (11 * 20 + looks) + 1))
    attack = Square(model, EPS, 13, samples=samples)
    attack(images, labels)
    assert (attack.gradients, attack.forwards) == (0, samples * 2 * (3 * 13 + 1))


def test_arithmetic_is_fp32_if_not_said_otherwise() -> None:
    assert NAttack(linear()).precision == Square(linear()).precision == "fp32"
    assert Square(linear(), precision="bf16").precision == "bf16"


# ---- NAttack: its definition -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True])
def test_nattack_by_its_definition(targeted: bool) -> None:
    """Written out in float64, with the largest other class of each member and not of the first one; three classes, of
    which the members have now one and now another as the largest other one."""
    model, images, steps, population, deviation, lr = linear(3), greys(2, 0.01), 3, 40, 0.1, 0.02
    label = 1
    model.bias[label] += -100 if targeted else 100
    attack = NAttack(model, EPS, steps, population, search_sigma=deviation, lr=lr, seed=5)
    if targeted:
        attack.set_mode_targeted_by_label()
    out = attack(images, [label] * 2, image_ids=[3, 9])
    for image, image_id, found in zip(pixels(images).double(), (3, 9), out, strict=True):
        draw = partial(gaussian, image.shape, seed=5, image_id=image_id, stream=Stream.ATTACK_START)

        def point(numbers: Tensor, image: Tensor = image) -> Tensor:
            return (image + ((numbers.tanh() + 1) / 2 - image).clamp(-EPS, EPS)).clamp(0, 1)

        mean = torch.atanh((2 * image - 1) * (1 - 1e-6)) + draw(1e-3, sample_ids=[0])[0]
        rivals = set()
        for step in range(steps):
            members = range(1 + step * population, 1 + (step + 1) * population)
            noise = draw(deviation, sample_ids=members).double()
            logits = model(point(mean + noise))
            others = logits.double().scatter(1, torch.full((population, 1), label), -torch.inf)
            rivals |= set(others.argmax(1).tolist())
            rewards = others.amax(1) - logits[:, label]
            rewards = -rewards.clamp(min=0) if targeted else rewards.clamp(max=0)
            scores = (rewards - rewards.mean()) / rewards.std(correction=0)
            mean = mean + lr / (population * deviation) * (scores.view(-1, 1, 1, 1) * noise / deviation).sum(0)
        assert len(rivals) == 2
        torch.testing.assert_close(found.double(), point(mean), atol=2e-6, rtol=0)


def test_the_mean_stays_where_all_members_are_worth_the_same() -> None:
    model, images = Linear(torch.zeros(2, 48), torch.tensor([0.1, 0.0])), greys(2)
    outs = [NAttack(model, EPS, steps, 20)(images, [0, 0]) for steps in (1, 8)]
    assert torch.equal(*outs)
    assert outs[0].isfinite().all()


def test_members_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = far(linear(3)), greys(2)
    whole = NAttack(model, EPS, 4, 50)(images, [0, 0])
    monkeypatch.setattr(black_box, "CHUNK", 7 * 48)
    torch.testing.assert_close(NAttack(model, EPS, 4, 50)(images, [0, 0]), whole, atol=1e-6, rtol=0)


def test_members_of_one_image_fill_micro_batches() -> None:
    """However few images there are: one after the other they would take many times as long."""
    recorded = Recorded()
    NAttack(recorded, EPS, 1, 100)(torch.full((1, 3, 4, 4), 0.5), [0])
    assert len(recorded.seen) <= 8  # looks at what the model is and at the mean, and two halves


# ---- Square: its squares ---------------------------------------------------------------------------------------------


class Recorded(nn.Module):
    """Keeps what it has classified: class 0, always, by a margin that grows with the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        first = images.flatten(1)[:, :1]
        return torch.cat([10 + first, 0 * first], 1)


def test_stripes_first() -> None:
    recorded = Recorded()
    Square(recorded, EPS, 1, max_batch=10)(torch.full((5, 3, 6, 4), 0.5), [0] * 5)
    images, proposed = recorded.seen[-1].split(5)
    stripes = proposed - images
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    assert ((stripes.abs() - EPS).abs() < 1e-6).all()
    assert 0.2 < (stripes[:, :, 0] > 0).float().mean() < 0.8


def test_squares_have_one_sign_in_each_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(black_box, "HALVINGS", ())
    recorded = Recorded()
    Square(recorded, EPS, 2, 0.2, max_batch=80)(torch.full((40, 3, 9, 7), 0.5), [0] * 40)
    points, proposed = recorded.seen[-1].split(40)
    signs = torch.where(proposed != points, (proposed - 0.5).sign(), 0.0)  # of what is not so already
    assert ((signs.amax((2, 3)) - signs.amin((2, 3))) <= 1).all()
    where = (signs != 0).any(1)
    assert (where.any(2).sum(1) <= 4).all()  # round(sqrt(0.2 * 9 * 7)) = 4
    assert (where.any(1).sum(1) <= 4).all()
    assert (where.sum((1, 2)) == 16).any()
    assert (((proposed - 0.5).abs() - EPS).abs() < 1e-6)[where[:, None].expand_as(proposed)].all()


@pytest.mark.parametrize(
    ("query", "halvings"), [(1, 0), (5, 0), (6, 1), (25, 1), (26, 2), (500, 4), (501, 5), (4001, 9)]
)
def test_squares_become_smaller_as_published(query: int, halvings: int) -> None:
    share = 0.8 / 2**halvings
    attack = Square(linear(), queries=5000)
    assert attack._side(query, 224, 224) == round((share * 224 * 224) ** 0.5)
    assert attack._side(query, 3, 224) <= 3
    assert attack._side(4999, 4, 4) == 1


@pytest.mark.parametrize(("side", "size"), [(1, 5), (3, 5), (5, 5)])
def test_squares_are_anywhere_they_fit(side: int, size: int) -> None:
    places = torch.linspace(-1 + 2**-24, 1 - 2**-24, 1001, dtype=torch.float64).float()
    spans = black_box._span(places, side, size)
    assert (spans.sum(1) == side).all()
    begins = spans.float().argmax(1).bincount(minlength=size - side + 1)
    assert len(begins) == size - side + 1
    assert begins.min() >= 1001 // (size - side + 1) - 1


# ---- complaints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: NAttack(model, eps=-0.1), "eps is -0.1; it must be at least 0 and finite"),
        (lambda model: NAttack(model, steps=0), "steps is 0; it must be at least 1"),
        (lambda model: NAttack(model, population=0), "population is 0; it must be at least 1"),
        (lambda model: NAttack(model, samples=0), "samples is 0; it must be at least 1"),
        (lambda model: NAttack(model, search_sigma=0.0), "search_sigma is 0.0; it must be positive and finite"),
        (lambda model: NAttack(model, lr=-1.0), "lr is -1.0; it must be positive and finite"),
        (lambda model: Square(model, eps=float("nan")), "eps is nan; it must be at least 0 and finite"),
        (lambda model: Square(model, queries=0), "queries is 0; it must be at least 1"),
        (lambda model: Square(model, p_init=0.0), "p_init is 0.0; it must be positive and at most 1"),
        (lambda model: Square(model, p_init=1.5), "p_init is 1.5; it must be positive and at most 1"),
        (lambda model: Square(model, samples=0), "samples is 0; it must be at least 1"),
    ],
)
def test_bad_arguments(make: Callable[[nn.Module], Attack], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(linear())

"""Recipes on tiny images: each loss by a straightforward formula, and the attacks that they train against."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import SETTINGS, equal, trained, trainer
from torch import Tensor, nn

import smoothfast as sf
from smoothfast.models import CIFAR10_STATISTICS, Normalize
from smoothfast.noise import Stream, gaussian
from smoothfast.training import RECIPES, Settings, Trainer
from smoothfast.training.augment import mixtures
from smoothfast.training.recipes import Batch

pytestmark = pytest.mark.usefixtures("one_thread")

ATTACKED = [name for name, recipe in RECIPES.items() if recipe.attack is not None]
BASE = replace(SETTINGS, sigma=0.1, eps=16 / 255, steps=3, samples=4, train_samples=2, beta=5.0)


def settings(recipe: str, **others: Any) -> Settings:
    return replace(BASE, recipe=recipe, **others)


def reference(run: Trainer) -> nn.Module:
    """The model as it is now, for images in [0, 1]."""
    return nn.Sequential(Normalize(*CIFAR10_STATISTICS), deepcopy(run.model))


def loss_of(run: Trainer, batch: Batch) -> Tensor:
    loss, _ = RECIPES[run.settings.recipe].loss(run, batch)
    return loss


# ---- losses ----------------------------------------------------------------------------------------------------------


def entropies(probabilities: Tensor, labels: Tensor) -> Tensor:
    return -probabilities.gather(1, labels[:, None])[:, 0].log()


def divergences(clean: Tensor, adversarial: Tensor) -> Tensor:
    return (clean * (clean / adversarial).log()).sum(1)


def adversarial_loss(clean: Tensor, adversarial: Tensor, labels: Tensor, weight: float) -> Tensor:
    return (weight * entropies(adversarial, labels) + (1 - weight) * entropies(clean, labels)).mean()


def trades_loss(clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float) -> Tensor:
    return (entropies(clean, labels) + beta * divergences(clean, adversarial)).mean()


def mart_loss(clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float) -> Tensor:
    rows = range(len(labels))
    others = torch.stack([max(p for k, p in enumerate(adversarial[row]) if k != labels[row]) for row in rows])
    own = torch.stack([clean[row, labels[row]] for row in rows])
    bce = entropies(adversarial, labels) - (1 - others).log()
    return (bce + beta * divergences(clean, adversarial) * (1 - own)).mean()


FORMULAS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "adversarial": lambda *of: adversarial_loss(*of, 0.3),
    "epgd": lambda *of: adversarial_loss(*of, 0.3),
    "trades": lambda *of: trades_loss(*of, 5.0),
    "mart": lambda *of: mart_loss(*of, 5.0),
}


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("recipe", FORMULAS)
def test_losses_of_clean_and_adversarial_images(tmp_path: Path, recipe: str, sigma: float) -> None:
    run = trainer(tmp_path, settings(recipe, sigma=sigma, adversarial_weight=0.3))
    batch = run.batch(5)
    adversarial = run.attacked(batch)  # attacks have tests of their own
    parameters = list(run.model.parameters())
    model = reference(run).train()
    views = (batch.images / 255, adversarial)
    noise = [
        torch.cat([gaussian((3, 8, 8), sigma, 0, image, [2 + which], Stream.TRAIN) for image in batch.ids.tolist()])
        if sigma and which
        else torch.zeros_like(adversarial)
        for which in range(2)
    ]
    if sigma:  # of uint8 images it has the lattice law
        lattice = [sf.noise.lattice((3, 8, 8), sigma, 0, image, [2], Stream.TRAIN) for image in batch.ids.tolist()]
        noise[0] = torch.cat(lattice) / 255
    clean, attacked = (model(view + of).softmax(1) for view, of in zip(views, noise, strict=True))
    expected = FORMULAS[recipe](clean, attacked, batch.labels)
    loss = loss_of(run, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, list(model[1].parameters())), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    for found, wanted in zip(run.model.buffers(), model[1].buffers(), strict=True):  # batch norms saw both passes
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_smoothadv_trains_on_the_noise_of_its_attack(tmp_path: Path, copies: int) -> None:
    run = trainer(tmp_path, settings("smoothadv", train_samples=copies))
    batch = run.batch(5)  # of epoch 1
    adversarial = run.attacked(batch)
    model = reference(run).train()
    first = run.adversary.attack.origin
    rows = [
        image + gaussian((3, 8, 8), 0.1, 0, number, range(first, first + copies), Stream.ATTACK)
        for image, number in zip(adversarial, batch.ids.tolist(), strict=True)
    ]
    expected = entropies(model(torch.cat(rows)).softmax(1), batch.labels.repeat_interleave(copies)).mean()
    torch.testing.assert_close(loss_of(run, batch), expected, rtol=1e-4, atol=1e-5)


def noisy_pixels(batch: Batch, samples: range) -> Tensor:
    """Copies [B S, 3, 8, 8] of images in 0 .. 1 by lattice noise of training."""
    rows = [
        image + sf.noise.lattice((3, 8, 8), 0.1, 0, number, samples, Stream.TRAIN)
        for image, number in zip(batch.images, batch.ids.tolist(), strict=True)
    ]
    return torch.cat(rows) / 255


def consistency_loss(copies: Tensor, label: int) -> float:
    average = copies.mean(0)
    apart = sum(float((average * (average / copy).log()).sum()) for copy in copies) / len(copies)
    entropies = [-float(copy[label].log()) for copy in copies]
    return sum(entropies) / len(copies) + 5.0 * apart - 0.7 * float((average * average.log()).sum())


@pytest.mark.parametrize("copies", [1, 3])
def test_consistency(tmp_path: Path, copies: int) -> None:
    run = trainer(tmp_path, settings("consistency", train_samples=copies, entropy=0.7))
    batch = run.batch(5)  # of epoch 1
    rows = noisy_pixels(batch, range(copies, 2 * copies))
    probabilities = reference(run).train()(rows).softmax(1).unflatten(0, (-1, copies)).detach()
    wanted = [consistency_loss(of, label) for of, label in zip(probabilities, batch.labels.tolist(), strict=True)]
    assert loss_of(run, batch).item() == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)


def test_consistency_of_one_copy_is_the_cross_entropy(tmp_path: Path) -> None:
    runs = [
        trainer(tmp_path / recipe, settings(recipe, train_samples=1, entropy=0.0))
        for recipe in ("consistency", "gaussian")
    ]
    first, second = (loss_of(run, run.batch(0)) for run in runs)
    torch.testing.assert_close(first, second)


def test_stability(tmp_path: Path) -> None:
    run = trainer(tmp_path, settings("stability"))
    batch, model = run.batch(5), reference(run).train()
    clean = model(batch.images / 255).softmax(1)
    noisy = model(noisy_pixels(batch, range(3, 4))).softmax(1)
    expected = (entropies(clean, batch.labels) - 5.0 * (clean * noisy.log()).sum(1)).mean()
    torch.testing.assert_close(loss_of(run, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copies", [1, 2])
def test_smoothmix(tmp_path: Path, copies: int) -> None:
    run = trainer(tmp_path, settings("smoothmix", train_samples=copies, warmup=4))
    assert run.adversary is not None
    batch, model = run.batch(5), reference(run).train()
    images, adversarial = batch.images / 255, run.attacked(batch, 1.0)
    assert (adversarial - images).flatten(1).norm(dim=1).max() <= 3 * 0.2 + 1e-5
    first, share = run.adversary.attack.origin, mixtures(batch.ids, 1, 0).flatten().tolist()
    noise = [
        gaussian((3, 8, 8), 0.1, 0, number, range(first, first + copies), Stream.ATTACK)
        for number in batch.ids.tolist()
    ]
    mixed = [(1 - s) * a + s * b for s, a, b in zip(share, images, adversarial, strict=True)]
    on_images, on_mixed = (
        model(torch.cat([image + n for image, n in zip(of, noise, strict=True)])).softmax(1).unflatten(0, (-1, copies))
        for of in (images, mixed)
    )
    total = torch.tensor(0.0)
    for s, label, of, by_mixed in zip(share, batch.labels.tolist(), on_images, on_mixed, strict=True):
        average = of.mean(0)
        wanted = (1 - s) * average + s / 4
        apart = sum((wanted * (wanted / q).log()).sum() for q in by_mixed) / copies
        grown = 5.0 * (6 / 16 if average.argmax() == label else 0)  # the sixth of 4 epochs of 4 steps
        total = total - of[:, label].log().mean() + grown * apart
    torch.testing.assert_close(loss_of(run, batch), total / len(share), rtol=1e-4, atol=1e-5)


def test_mixtures_are_functions_of_seed_image_and_epoch() -> None:
    ids = torch.arange(4096)
    shares = mixtures(ids, 3, 1).flatten()
    assert 0 <= shares.min() < 0.001
    assert 0.499 < shares.max() <= 0.5
    assert shares.mean() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(mixtures(ids[17:18], 3, 1).flatten(), shares[17:18])
    assert not torch.equal(mixtures(ids, 4, 1).flatten(), shares)
    assert not torch.equal(mixtures(ids, 3, 2).flatten(), shares)


class Told:
    """A student that answers these logits [B, S, K]."""

    steps_per_epoch, adversary = 1, None

    def __init__(self, logits: Tensor, chosen: Settings) -> None:
        self.logits_of_copies, self.settings = logits.flatten(0, 1), replace(chosen, train_samples=logits.shape[1])

    def noisy(self, images: Tensor, *_: Any) -> Tensor:
        return images

    def forward(self, *_: Any) -> Tensor:
        return self.logits_of_copies

    def pass_number(self, *_: Any) -> int:
        return 0


def macer_loss(logits: Tensor, label: int, chosen: Settings) -> Tensor:
    """Of one image, [S, K] in float64."""
    sharp, normal = (chosen.sharpness * logits).softmax(1).mean(0), torch.distributions.Normal(0.0, 1.0)
    loss = -logits.softmax(1).mean(0)[label].log()
    first, second = sharp.sort(descending=True).values[:2]
    distance = normal.icdf(first) - normal.icdf(second)
    if sharp.argmax() == label and distance <= chosen.margin:
        loss = loss + chosen.beta * chosen.sigma / 2 * (chosen.margin - distance)
    return loss


FAR, NEAR = [[9.0, 0.0, 0.0], [9.0, 0.0, 0.0]], [[0.06, 0.0, 0.03], [-0.02, 0.0, 0.01]]


@pytest.mark.parametrize(
    ("logits", "label", "counts"),
    [(NEAR, 0, True), (NEAR, 1, False), (FAR, 0, False), (FAR, 1, False)],
    ids=["near", "near, of another class", "infinite", "infinite, of another class"],
)
@pytest.mark.parametrize("margin", [8.0, 1e-3])
def test_macer(logits: list[list[float]], label: int, counts: bool, margin: float) -> None:
    chosen = settings("macer", margin=margin)
    values = torch.tensor([logits, [[0.0, 0.04, 0.0]] * 2], dtype=torch.float64)
    batch = Batch(torch.zeros(2, 1), torch.tensor([label, 1]), torch.arange(2), 0)
    given, exact = values.float().requires_grad_(), values.clone().requires_grad_()
    loss, found = RECIPES["macer"].loss(Told(given, chosen), batch)
    expected = sum(macer_loss(of, label, chosen) for of, label in zip(exact, batch.labels.tolist(), strict=True)) / 2
    torch.testing.assert_close(loss, expected.float(), rtol=1e-4, atol=1e-5)
    (gradient,), (wanted,) = (torch.autograd.grad(of, at) for of, at in ((loss, given), (expected, exact)))
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-3, atol=1e-5)
    (of_entropy,) = torch.autograd.grad(-exact.softmax(2).mean(1)[0, label].log() / 2, exact)
    assert torch.allclose(gradient[0], of_entropy[0].float(), atol=1e-6) != (counts and margin > 1)
    assert found["accuracy"].shape == (2, 3)


def test_an_adversary_of_no_reach_leaves_the_loss_of_clean_images(tmp_path: Path) -> None:
    run = trainer(tmp_path, settings("adversarial", sigma=0.0, eps=0.0))
    batch = run.batch(0)
    model = reference(run).train()
    torch.testing.assert_close(
        loss_of(run, batch), entropies(model(batch.images / 255).softmax(1), batch.labels).mean()
    )


@pytest.mark.parametrize("recipe", ["adversarial", "trades"])
def test_clean_epochs_come_first(tmp_path: Path, recipe: str) -> None:
    run = trainer(tmp_path, settings(recipe, clean_epochs=1, epochs=2))
    asked: list[int] = []
    attacked = run.attacked
    run.attacked = lambda batch: asked.append(batch.step) or attacked(batch)  # type: ignore[method-assign]
    run.fit()
    assert asked == [4, 5, 6, 7]


# ---- attacks ---------------------------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> list[Any]:
    modes = [part.training for part in model.modules()]
    return [modes, [(p.requires_grad, p.grad is None) for p in model.parameters()]]


@pytest.mark.parametrize("recipe", ATTACKED)
def test_attacks_see_eval_mode_and_leave_the_model_as_it_was(tmp_path: Path, recipe: str) -> None:
    run = trainer(tmp_path, settings(recipe))
    run.model.train()
    run.model[1].eval()  # a batch norm that is not to learn
    before, weights = state_of(run.model), deepcopy(run.model.state_dict())
    seen: list[tuple[bool, bool]] = []
    run.model[5].register_forward_pre_hook(lambda part, _: seen.append((part.training, torch.is_grad_enabled())))
    adversarial = run.attacked(run.batch(0))
    assert len(seen) >= 3
    assert not any(training for training, _ in seen)
    assert state_of(run.model) == before
    assert equal(run.model.state_dict(), weights)
    assert not adversarial.requires_grad


@pytest.mark.parametrize("recipe", ATTACKED)
def test_attacks_stay_in_their_ball_and_raise_the_loss(tmp_path: Path, recipe: str) -> None:
    run = trainer(tmp_path, settings(recipe, sigma=0.02, epochs=1, samples=2))
    run.fit()
    model, batch = reference(run).eval(), run.batch(0)
    images, adversarial = batch.images / 255, run.attacked(batch)
    moved = (adversarial.double() - images.double()).flatten(1)
    assert moved.norm(2 if recipe == "smoothadv" else torch.inf, dim=1).max() <= run.settings.eps
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    clean, attacked = (entropies(model(of).softmax(1), batch.labels).mean() for of in (images, adversarial))
    assert attacked > clean


@pytest.mark.parametrize(
    ("recipe", "made"),
    [
        ("adversarial", lambda model: sf.attacks.PGD(model, 16 / 255, steps=3)),
        ("epgd", lambda model: sf.attacks.EPGD(model, 16 / 255, steps=3, samples=4, replicas_per_forward=1)),
        (
            "smoothadv",
            lambda model: sf.attacks.SmoothAdvPGD(
                model, 16 / 255, 32 / 255 / 3, 3, 4, False, norm="l2", replicas_per_forward=1
            ),
        ),
    ],
)
def test_attacks_are_those_of_the_package(
    tmp_path: Path, recipe: str, made: Callable[[sf.SmoothedClassifier], sf.attacks.PGD]
) -> None:
    run = trainer(tmp_path, settings(recipe))
    batch = run.batch(9)
    attack = made(sf.SmoothedClassifier(run.model, 0.1, 4, normalize=CIFAR10_STATISTICS, precision="fp32"))
    attack.runner, attack.repetition = "eager", 3  # that of epoch 2
    expected = attack(batch.images, batch.labels, batch.ids)
    assert torch.equal(run.attacked(batch), expected)


@pytest.mark.parametrize("recipe", ["trades", "mart"])
def test_attacks_from_next_to_the_image(tmp_path: Path, recipe: str) -> None:
    run = trainer(tmp_path, settings(recipe, sigma=0.0))
    model, batch, draw = reference(run).eval(), run.batch(0), 1
    images = batch.images / 255
    start = [gaussian((3, 8, 8), 0.001, 0, i, [draw << 24], Stream.ATTACK_START) for i in batch.ids.tolist()]
    adversarial = (images + torch.cat(start)).clamp(0, 1)
    clean = model(images).softmax(1).detach()
    for _ in range(3):
        adversarial.requires_grad_()
        prediction = model(adversarial).softmax(1)
        loss = divergences(clean, prediction) if recipe == "trades" else entropies(prediction, batch.labels)
        (gradient,) = torch.autograd.grad(loss.sum(), adversarial)
        stepped = adversarial.detach() + 4 / 255 * gradient.sign()
        adversarial = torch.clamp(stepped, images - 16 / 255, images + 16 / 255).clamp(0, 1)
    found = run.attacked(batch)
    assert ((found - adversarial).abs() < 1e-5).float().mean() > 0.99  # rounding may turn the sign of a small gradient


def test_every_epoch_has_draws_of_its_own(tmp_path: Path) -> None:
    run = trainer(tmp_path, settings("adversarial"))
    batch = run.batch(0)
    first, again, later = (run.attacked(replace(batch, step=step)) for step in (0, 1, 4))
    assert torch.equal(first, again)  # of the same epoch
    assert not torch.equal(first, later)
    order = torch.arange(15, -1, -1)
    turned = Batch(batch.images[order], batch.labels[order], batch.ids[order], 0)
    assert torch.equal(run.attacked(turned), first[order])


def test_the_ball_grows(tmp_path: Path) -> None:
    run = trainer(tmp_path, settings("adversarial", warmup=2))  # epochs of 4 steps
    batch = run.batch(0)
    reached = [(run.attacked(replace(batch, step=step)) - batch.images / 255).abs().max() for step in (0, 3, 7, 12)]
    assert reached == pytest.approx([share * 16 / 255 for share in (1 / 8, 1 / 2, 1, 1)], rel=1e-4)


@pytest.mark.parametrize("recipe", ATTACKED)
def test_a_run_is_a_function_of_its_seed(tmp_path: Path, recipe: str) -> None:
    chosen = settings(recipe, epochs=0.5, steps=1, samples=2)
    states = [trained(tmp_path / str(n), replace(chosen, seed=seed)) for n, seed in enumerate((0, 0, 1))]
    assert equal(*states[:2])
    assert not equal(*states[1:])


def test_passes_in_training_have_numbers_of_their_own(tmp_path: Path) -> None:
    run = trainer(tmp_path, settings("adversarial", validation=20))
    numbers: list[int] = []
    forward = run.forward
    run.forward = lambda images, number: numbers.append(number) or forward(images, number)  # type: ignore[method-assign]
    run.fit()
    steps, per_epoch = run.total, 2 * run.steps_per_epoch
    in_training = [n for n in numbers if n < 2 * steps]
    assert in_training == list(range(2 * steps))
    held_out = [n for n in numbers if n >= 2 * steps]
    assert len(held_out) == 2 * 2 * 2  # two epochs, two batches, clean and adversarial
    assert len(set(held_out)) == 4
    assert numbers[per_epoch] >= 2 * steps

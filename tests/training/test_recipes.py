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

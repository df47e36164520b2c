"""Smoothed classifiers in the hands of torchattacks, foolbox and ART, as their users call them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.classifiers import embedded
from torch import Tensor, nn

import smoothfast as sf
from smoothfast import attacks
from smoothfast.models import CIFAR10_STATISTICS, Normalize

pytestmark = pytest.mark.usefixtures("one_thread")
EPS, ALPHA = 8 / 255, 4 / 255
CLASSES = 10
NO_GRADIENT = r"votes have no gradient: .* model\.differentiable\(\)"


@pytest.fixture(scope="module")
def torchattacks() -> Any:
    return pytest.importorskip("torchattacks", reason="torchattacks is not installed (pip install smoothfast[peers])")


@pytest.fixture(scope="module")
def foolbox() -> Any:
    return pytest.importorskip("foolbox", reason="foolbox is not installed (pip install smoothfast[peers])")


@pytest.fixture(scope="module")
def art() -> Any:
    """The Adversarial Robustness Toolbox, with what is used of it."""
    reason = "adversarial-robustness-toolbox is not installed (pip install smoothfast[peers])"
    for module in ("art.attacks.evasion", "art.estimators.classification", "art.estimators.certification"):
        pytest.importorskip(module, reason=reason)
    return pytest.importorskip("art", reason=reason)


@pytest.fixture(scope="module")
def data() -> Any:
    return sf.data.demo()


@pytest.fixture(scope="module")
def images(data: Any) -> Tensor:
    return data.images[::50].float() / 255


@pytest.fixture(scope="module")
def labels(data: Any) -> Tensor:
    return data.labels[::50]


def smooth(base: nn.Module, sigma: float = 0.25, **options: Any) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(base, sigma, CLASSES, precision="fp32", runner="eager", **options)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    base = embedded()
    return base.eval()


@pytest.fixture
def smoothed(resnet: nn.Module) -> sf.SmoothedClassifier:
    return smooth(resnet, normalize=CIFAR10_STATISTICS)


def network(*layers: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*layers, nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(392, CLASSES)).eval()


@pytest.fixture
def small() -> sf.SmoothedClassifier:
    """Of a base that is fast and falls to every attack."""
    return smooth(network(), 0.02, samples=32)


@pytest.fixture
def answers(small: sf.SmoothedClassifier, images: Tensor) -> Tensor:
    """What it says of the images."""
    return small.votes(images, 500).argmax(1)


@pytest.fixture(autouse=True)
def generators() -> Iterator[None]:
    """The packages draw from the global generators, and set them."""
    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)
        yield
    np.random.set_state(state)


def check_falls(
    model: sf.SmoothedClassifier, adversarial: Tensor, images: Tensor, labels: Tensor, left: float = 0.6
) -> None:
    """Within ball and range, with a part of the votes for the labels left, by samples that no attack has seen."""
    assert adversarial.shape == images.shape
    assert (adversarial - images).abs().max() <= EPS + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    shares = [
        model.votes(batch, 100).gather(1, labels[:, None]).double().mean() / 100 for batch in (images, adversarial)
    ]
    assert shares[1] < left * shares[0]


# ---- torchattacks ----------------------------------------------------------------------------------------------------


def test_pgd_of_torchattacks_is_smoothadv(
    torchattacks: Any, smoothed: sf.SmoothedClassifier, images: Tensor, labels: Tensor
) -> None:
    """Both average probabilities over the same noise."""
    theirs = torchattacks.PGD(smoothed.differentiable(4), EPS, ALPHA, steps=3, random_start=False)(images, labels)
    options = {"random_start": False, "fresh_noise": True, "precision": "fp32", "runner": "eager"}
    ours = attacks.SmoothAdvPGD(smoothed, EPS, ALPHA, steps=3, samples=4, **options)(images, labels)
    check_falls(smoothed, theirs, images, labels)
    assert ((theirs - ours).abs() > 1e-6).float().mean() < 1e-3  # gradients that are zero but for rounding


def test_eotpgd_of_torchattacks_is_epgd(
    torchattacks: Any, smoothed: sf.SmoothedClassifier, images: Tensor, labels: Tensor
) -> None:
    """Both average losses over the same noise."""
    soft = smoothed.differentiable(samples=1)
    theirs = torchattacks.EOTPGD(soft, EPS, ALPHA, steps=3, eot_iter=4, random_start=False)(images, labels)
    options = {"random_start": False, "precision": "fp32", "runner": "eager"}
    ours = attacks.EPGD(smoothed, EPS, ALPHA, steps=3, samples=4, **options)(images, labels)
    check_falls(smoothed, theirs, images, labels)
    assert ((theirs - ours).abs() > 1e-6).float().mean() < 1e-3


@pytest.mark.parametrize("name", ["PGD", "EOTPGD", "PGDRS"])
def test_attacks_of_torchattacks_on_the_base(name: str, torchattacks: Any, images: Tensor) -> None:
    base = nn.Sequential(Normalize([0.5] * 3, [0.5] * 3), network()).eval()
    model = smooth(base, 0.02)
    answers = model.votes(images, 500).argmax(1)
    options = {"noise_sd": 0.02, "noise_batch_size": 8} if name == "PGDRS" else {}
    adversarial = getattr(torchattacks, name)(base, EPS, ALPHA, steps=5, **options)(images, answers)
    check_falls(model, adversarial, images, answers)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FGSM", {}),
        ("UPGD", {"steps": 3, "eot_iter": 2, "random_start": True}),
        ("APGD", {"steps": 3, "eot_iter": 2}),
        ("MIFGSM", {"steps": 3}),
        ("Square", {"n_queries": 300}),
    ],
)
def test_other_attacks_of_torchattacks_take_the_soft_classifier(
    name: str, options: dict[str, Any], torchattacks: Any, small: sf.SmoothedClassifier, images: Tensor, answers: Tensor
) -> None:
    attack = getattr(torchattacks, name)(small.differentiable(4), eps=EPS, **options)
    check_falls(small, attack(images, answers), images, answers, left=0.9)


def test_targets_of_torchattacks(torchattacks: Any, small: sf.SmoothedClassifier, images: Tensor) -> None:
    attack = torchattacks.PGD(small.differentiable(4), EPS, ALPHA, steps=5)
    attack.set_mode_targeted_by_label(quiet=True)
    reached = small.votes(attack(images, torch.full((4,), 3)), 200)[:, 3]
    assert (reached > small.votes(images, 200)[:, 3]).all()


@pytest.mark.parametrize("name", ["PGD", "EOTPGD", "APGD", "DeepFool"])
def test_gradient_attacks_of_torchattacks_on_votes_are_told(
    name: str, torchattacks: Any, small: sf.SmoothedClassifier, images: Tensor, answers: Tensor
) -> None:
    with pytest.raises(ValueError, match=NO_GRADIENT):
        getattr(torchattacks, name)(small, steps=1)(images, answers)


def test_attacks_of_torchattacks_without_gradients_take_votes(
    torchattacks: Any, small: sf.SmoothedClassifier, images: Tensor, answers: Tensor
) -> None:
    small.samples = 8
    check_falls(small, torchattacks.Square(small, eps=EPS, n_queries=300)(images, answers), images, answers, left=0.9)


# AutoAttack.


def test_autoattack_for_randomized_models(
    torchattacks: Any, small: sf.SmoothedClassifier, images: Tensor, answers: Tensor
) -> None:
    soft, calls = small.differentiable(2), []
    soft.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adversarial = torchattacks.AutoAttack(soft, eps=EPS, version="rand", seed=0)(images, answers)
    check_falls(small, adversarial, images, answers)
    # APGD classifies once; a start and 10 steps have 20 passes each; whether it succeeded is one pass more.
    assert len(calls) in (222, 2 * 222)


def test_what_the_checks_of_autoattack_look_for(small: sf.SmoothedClassifier, images: Tensor) -> None:
    """Whether outputs differ between calls, and whether they are probabilities."""
    for model in (small, small.differentiable(4)):
        outputs = torch.stack([model(images) for _ in range(5)])
        directions = outputs / outputs.norm(dim=2, keepdim=True)
        assert (directions[:1] - directions[1:]).norm(dim=2).max() > 1e-4
        assert outputs.max() <= 0
        assert not torch.allclose(outputs.sum(2), torch.ones(5, 4), atol=0.1)
        assert torch.allclose(outputs.exp().sum(2), torch.ones(5, 4))


class Noisy(nn.Module):
    """Noise as research code adds it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-4 * torch.randn_like(x)


def test_apgd_sets_the_generator_back_and_our_noise_goes_on(torchattacks: Any, images: Tensor) -> None:
    """In two runs with one seed, as for two batches, a model that draws from the global generator gets one noise."""
    naive, ours = network(Noisy()), smooth(network(), 1e-4).differentiable(1)
    for model, convolution, same in ((naive, naive[1], True), (ours, ours.smoothed.base[0], False)):
        seen: list[Tensor] = []
        convolution.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].detach().clone()))
        answers = model(images).argmax(1)
        starts = []
        for _ in range(2):
            seen.clear()
            torchattacks.APGD(model, eps=EPS, steps=1, seed=0)(images, answers)
            starts.append(seen[1])  # the first call comes before the seed
        assert torch.equal(*starts) == same


# ---- foolbox ---------------------------------------------------------------------------------------------------------


def test_foolbox_attacks_the_soft_classifier(
    foolbox: Any, smoothed: sf.SmoothedClassifier, images: Tensor, labels: Tensor
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = foolbox.PyTorchModel(smoothed.differentiable(4).eval(), bounds=(0, 1), device="cpu")
    _, adversarial, success = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=3)(model, images, labels, epsilons=EPS)
    check_falls(smoothed, adversarial, images, labels)
    assert success.dtype == torch.bool
    assert success.any()


def test_foolbox_evaluates_votes_and_is_told_that_they_have_no_gradient(
    foolbox: Any, small: sf.SmoothedClassifier, images: Tensor, answers: Tensor
) -> None:
    model = foolbox.PyTorchModel(small, bounds=(0, 1), device="cpu")
    assert foolbox.accuracy(model, images, answers) >= 0.5
    assert foolbox.accuracy(model, images.clone().requires_grad_(), answers) >= 0.5
    with pytest.raises(ValueError, match=NO_GRADIENT):
        foolbox.attacks.LinfPGD(steps=1)(model, images, answers, epsilons=EPS)


def test_expectation_over_transformation_of_foolbox_averages_log_scores(
    foolbox: Any, small: sf.SmoothedClassifier, images: Tensor, answers: Tensor
) -> None:
    soft = small.differentiable(2)
    wrapped = foolbox.models.ExpectationOverTransformationWrapper(
        foolbox.PyTorchModel(soft, bounds=(0, 1), device="cpu"), n_steps=3
    )
    found = wrapped(images)
    soft.reset()
    torch.testing.assert_close(found, sum(soft(images) for _ in range(3)) / 3)
    _, adversarial, _ = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=3)(wrapped, images, answers, epsilons=EPS)
    check_falls(small, adversarial, images, answers)


# ---- ART -------------------------------------------------------------------------------------------------------------


def classifier(art: Any, model: nn.Module) -> Any:
    return art.estimators.classification.PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=CLASSES, clip_values=(0, 1),
        device_type="cpu",
    )  # fmt: skip


def descent(art: Any, estimator: Any, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    attack = art.attacks.evasion.ProjectedGradientDescent(
        estimator, eps=EPS, eps_step=ALPHA, max_iter=steps, verbose=False
    )
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def test_art_attacks_the_soft_classifier(
    art: Any, smoothed: sf.SmoothedClassifier, images: Tensor, labels: Tensor
) -> None:
    adversarial = descent(art, classifier(art, smoothed.differentiable(4)), images, labels, 3)
    check_falls(smoothed, adversarial, images, labels)
    assert all(parameter.grad is None for parameter in smoothed.parameters())
    assert not smoothed.base.training


def test_art_evaluates_votes_and_is_told_that_they_have_no_gradient(
    art: Any, small: sf.SmoothedClassifier, images: Tensor, answers: Tensor
) -> None:
    estimator = classifier(art, small)
    expected = small(images)
    small.reset()
    np.testing.assert_array_equal(estimator.predict(images.numpy()), expected.numpy())
    with pytest.raises(ValueError, match=NO_GRADIENT):
        descent(art, estimator, images, answers, 1)


def test_attacks_of_art_on_its_own_smoothed_classifier_see_no_noise(art: Any, images: Tensor, answers: Tensor) -> None:
    """As docs/attacks.md says: the gradient is that of the base classifier."""
    module = pytest.importorskip("art.estimators.certification.randomized_smoothing")
    base = network()
    noisy = module.PyTorchRandomizedSmoothing(
        model=base, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=CLASSES, clip_values=(0, 1),
        device_type="cpu", scale=0.5,
    )  # fmt: skip
    assert torch.equal(descent(art, noisy, images, answers, 2), descent(art, classifier(art, base), images, answers, 2))


# ---- our attacks, called as those of torchattacks --------------------------------------------------------------------


@pytest.fixture
def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, CLASSES)).eval()


def other(images: Tensor, labels: Tensor) -> Tensor:
    return (labels + 3) % CLASSES


MODES: dict[str, Callable[[Any], None]] = {
    "default": lambda attack: attack.set_mode_default(),
    "by label": lambda attack: attack.set_mode_targeted_by_label(),
    "by function": lambda attack: attack.set_mode_targeted_by_function(other),
    "least likely": lambda attack: attack.set_mode_targeted_least_likely(),
    "second least likely": lambda attack: attack.set_mode_targeted_least_likely(2),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("normalized", [False, True])
def test_pgd_is_pgd_of_torchattacks(
    mode: Callable[[Any], None], normalized: bool, torchattacks: Any, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    theirs = torchattacks.PGD(linear, EPS, ALPHA, steps=6, random_start=False)
    ours = attacks.PGD(linear, EPS, ALPHA, steps=6, random_start=False, precision="fp32", runner="eager")
    if normalized:
        images = Normalize(*CIFAR10_STATISTICS)(images)
    for attack in (theirs, ours):
        mode(attack)
        if normalized:
            attack.set_normalization_used(*CIFAR10_STATISTICS)
    found, expected = ours(images, labels), theirs(images, labels)
    assert (found - images).abs().max() > EPS / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-6 if normalized else 1e-6)


@pytest.mark.parametrize("name", ["FGSM", "PGDL2"])
def test_others_are_those_of_torchattacks(
    name: str, torchattacks: Any, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    options = {"precision": "fp32", "runner": "eager"}
    if name == "FGSM":
        theirs, ours = torchattacks.FGSM(linear, EPS), attacks.FGSM(linear, EPS, **options)
    else:
        theirs = torchattacks.PGDL2(linear, 1.0, 0.2, steps=6, random_start=False)
        ours = attacks.PGD(linear, 1.0, 0.2, steps=6, random_start=False, norm="l2", **options)
    torch.testing.assert_close(ours(images, labels), theirs(images, labels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["PGD", "EPGD", "FGSM", "SmoothAdvPGD", "MultiTargetedPGD"])
def test_our_attacks_take_a_base_classifier(name: str, linear: nn.Module, images: Tensor) -> None:
    answers = linear(images).argmax(1)
    attack = getattr(attacks, name)(linear, eps=EPS)
    adversarial = attack(images, answers)
    assert (adversarial - images).abs().max() <= EPS + 1e-6
    assert (linear(adversarial).argmax(1) != answers).any()


def test_random_targets_are_other_classes(torchattacks: Any, linear: nn.Module, images: Tensor) -> None:
    for attack in (torchattacks.PGD(linear), attacks.PGD(linear)):
        attack.set_mode_targeted_random()
        before = linear(images)
        labels = before.argmax(1)
        assert (linear(attack(images, labels)) - before).gather(1, labels[:, None]).lt(0).all()


# ---- docs/attacks.md -------------------------------------------------------------------------------------------------


def test_the_examples_in_the_documentation(torchattacks: Any, foolbox: Any, art: Any) -> None:
    """As they stand there, one after the other, in one namespace."""
    text = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    section = text.partition("## Other packages on randomized models")[2]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(examples) >= 4
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "docs/attacks.md", "exec"), names)
    assert names["clean"] > 0.5
    assert len(names["robust"]) == 5
    assert max(names["robust"]) < names["clean"]

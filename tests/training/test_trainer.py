"""Training runs on tiny images: what they write, that a killed run resumes exactly, and what each step is made of."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import IMAGES, SETTINGS, TEST_IMAGES, State, equal, metrics_of, network, pixels, trained, trainer
from torch import Tensor, nn

import smoothfast as sf
from smoothfast import data, ops, training
from smoothfast.data import Images
from smoothfast.models import CIFAR10_STATISTICS, resnet20
from smoothfast.noise import Stream, lattice, lattice_law, stream_key
from smoothfast.torch_files import read_torch
from smoothfast.training import PRESETS, RECIPES, Settings, Trainer, crop_and_flip
from smoothfast.weights import read_weights


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """One thread, also for the runs that tests share: gradients of weights are added up in another order by two."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


# ---- what a run writes -----------------------------------------------------------------------------------------------


def test_a_run_writes_metrics_a_checkpoint_and_weights(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    run = trainer(str(out), test=TEST_IMAGES, metadata={"model": "tiny"})
    last = run.fit()
    assert {path.name for path in out.iterdir()} == {"metrics.jsonl", "checkpoint.pt", "model.safetensors"}

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[-1] == last
    assert all(line["loss"] > 0 and line["seconds"] >= 0 for line in lines)
    assert all(0 <= line[name] <= 1 for line in lines for name in ("train_accuracy", "test_accuracy"))

    weights = read_weights(out / "model.safetensors")
    assert equal(dict(weights.tensors), run.model.state_dict())
    assert weights.about["model"] == "tiny"
    assert weights.settings == json.loads(json.dumps(asdict(SETTINGS)))
    assert json.loads(weights.about["metrics"]) == last
    assert equal(torch.load(out / "checkpoint.pt", weights_only=True)["model"], run.model.state_dict())


def test_the_model_can_be_used_at_once_and_from_its_file(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit()
    fresh = network(seed=1)
    read_weights(tmp_path / "model.safetensors").load_into(fresh)
    images = torch.rand(5, 3, 8, 8)
    logits = fresh.eval()(images)
    assert logits.isfinite().all()
    torch.testing.assert_close(run.model.eval()(images), logits)
    assert all(p.requires_grad for p in run.model.parameters())
    smoothed = sf.SmoothedClassifier(run.model, sigma=0.25, num_classes=4, normalize=CIFAR10_STATISTICS)
    assert smoothed.votes(TEST_IMAGES.images[:2], samples=10).sum(1).tolist() == [10, 10]


def test_the_model_is_left_in_one_mode(tmp_path: Path) -> None:
    with_test, without = trainer(tmp_path / "a", test=TEST_IMAGES), trainer(tmp_path / "b")
    with_test.fit()
    without.fit()
    assert with_test.model.training == without.model.training


def test_a_run_is_a_function_of_model_data_and_seed(tmp_path: Path) -> None:
    once = trained(tmp_path / "once")
    assert equal(once, trained(tmp_path / "again"))
    assert equal(once, trained(tmp_path / "tested", test=TEST_IMAGES))  # which looks on only
    assert not equal(once, trained(tmp_path / "seed", replace(SETTINGS, seed=1)))
    assert not equal(once, network().state_dict())


def test_the_global_generator_is_neither_read_nor_advanced(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    once = trained(tmp_path / "once", test=TEST_IMAGES)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(trained(tmp_path / "again"), once)


def test_a_network_with_dropout_is_no_exception(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    once = trained(tmp_path / "once", model=network(dropout=0.5))
    advanced = not torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(trained(tmp_path / "again", model=network(dropout=0.5)), once)
    assert not advanced


def test_bf16_runs_on_fp32_weights(tmp_path: Path) -> None:
    state = trained(tmp_path / "bf16", replace(SETTINGS, precision="bf16"))
    assert all(value.dtype in (torch.float32, torch.int64) and value.isfinite().all() for value in state.values())
    reference = trained(tmp_path / "fp32")
    assert not equal(state, reference)
    torch.testing.assert_close(state["0.weight"], reference["0.weight"], rtol=0, atol=0.02)


# ---- killed and resumed ----------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill at this point."""


def killed(*_: Any) -> None:
    raise KilledError


def kill_at(epoch: int, step: int) -> Callable[[range], Iterator[int]]:
    """A progress display that ends the run before a step."""
    epochs = iter(range(100))

    def steps(of_epoch: range) -> Iterator[int]:
        now = next(epochs)
        for at in of_epoch:
            if (now, at) == (epoch, step):
                raise KilledError
            yield at

    return steps


LONG = replace(SETTINGS, epochs=3)
ADVERSARIAL = replace(LONG, recipe="adversarial", sigma=0.1, steps=2, validation=20, select="best")


def resumed(out: Path) -> State:
    """The end of a run that goes on with another network's object, whose own weights must not matter."""
    run = trainer(out, LONG, network(seed=9), test=TEST_IMAGES)
    run.fit(resume=True)
    return run.model.state_dict()


@pytest.fixture
def uninterrupted(tmp_path: Path) -> tuple[State, list[dict[str, float]]]:
    out = tmp_path / "uninterrupted"
    return trained(out, LONG, test=TEST_IMAGES), metrics_of(out)


@pytest.fixture(scope="module")
def adversarial_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, list[dict[str, float]]]:
    out = tmp_path_factory.mktemp("adversarial")
    return trained(out, ADVERSARIAL, model=network(dropout=0.5)), metrics_of(out)


@pytest.mark.parametrize(("epoch", "step"), [(1, 0), (1, 3), (2, 2)])
def test_a_run_killed_in_an_epoch_resumes_bit_for_bit(
    tmp_path: Path, uninterrupted: tuple[State, list[dict[str, float]]], epoch: int, step: int
) -> None:
    with pytest.raises(KilledError):
        trainer(tmp_path, LONG, test=TEST_IMAGES).fit(kill_at(epoch, step))
    assert not (tmp_path / "model.safetensors").exists()
    assert equal(resumed(tmp_path), uninterrupted[0])
    assert equal(dict(read_weights(tmp_path / "model.safetensors").tensors), uninterrupted[0])
    assert metrics_of(tmp_path) == uninterrupted[1]


@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 2), (2, 0)])
def test_a_run_resumes_bit_for_bit_at_the_step_of_its_checkpoint(
    tmp_path: Path, adversarial_run: tuple[State, list[dict[str, float]]], epoch: int, step: int
) -> None:
    with pytest.raises(KilledError):
        trainer(tmp_path, ADVERSARIAL, network(dropout=0.5), checkpoint_every=0).fit(kill_at(epoch, step))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3 * epoch + step
    left: list[int] = []

    def watched(steps: range) -> Iterator[int]:
        for at in steps:
            left.append(at)
            yield at

    run = trainer(tmp_path, ADVERSARIAL, network(seed=9, dropout=0.5))
    run.fit(watched, resume=True)
    assert len(left) == 9 - 3 * epoch - step
    assert equal(run.model.state_dict(), adversarial_run[0])
    assert metrics_of(tmp_path) == adversarial_run[1]


def test_a_run_may_be_killed_again_and_again(
    tmp_path: Path, uninterrupted: tuple[State, list[dict[str, float]]]
) -> None:
    for attempt in range(2):
        with pytest.raises(KilledError):
            trainer(tmp_path, LONG, test=TEST_IMAGES).fit(kill_at(1, 1), resume=attempt > 0)
    assert equal(resumed(tmp_path), uninterrupted[0])
    assert metrics_of(tmp_path) == uninterrupted[1]


def test_a_run_killed_while_a_checkpoint_is_written(
    tmp_path: Path, uninterrupted: tuple[State, list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KilledError):
        trainer(tmp_path, LONG, test=TEST_IMAGES).fit(kill_at(1, 0))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KilledError):
            resumed(tmp_path)
    assert equal(resumed(tmp_path), uninterrupted[0])
    assert metrics_of(tmp_path) == uninterrupted[1]


def test_a_run_killed_while_the_weights_are_written(
    tmp_path: Path, uninterrupted: tuple[State, list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training.checkpoints, "save_file", killed)
        with pytest.raises(KilledError):
            trained(tmp_path, LONG, test=TEST_IMAGES)
    resumed(tmp_path)
    assert equal(dict(read_weights(tmp_path / "model.safetensors").tensors), uninterrupted[0])
    assert metrics_of(tmp_path) == uninterrupted[1]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    state = trained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = trainer(tmp_path, model=network(seed=9))
    run.fit(resume=True)
    assert equal(run.model.state_dict(), state)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resuming_a_finished_run_returns_its_metrics(tmp_path: Path) -> None:
    last = trainer(tmp_path).fit()
    assert trainer(tmp_path).fit(resume=True) == last


@pytest.mark.parametrize(
    ("name", "other", "shown"),
    [
        ("sigma", 0.5, "0.25, is now 0.5"),
        ("normalize", None, r"\[\[0.4914, .*, is now null"),
        ("epochs", 3, "2, is now 3"),
        ("batch", 32, "16, is now 32"),
        ("schedule", "cosine", '"one-cycle", is now "cosine"'),
        ("learning_rate", 0.2, "0.1, is now 0.2"),
        ("initial", "abc", 'null, is now "abc"'),
        ("momentum", 0.8, "0.9, is now 0.8"),
        ("weight_decay", 0.0, "0.0005, is now 0.0"),
        ("precision", "bf16", '"fp32", is now "bf16"'),
        ("seed", 1, "0, is now 1"),
    ],
)
def test_other_settings_do_not_resume(tmp_path: Path, name: str, other: Any, shown: str) -> None:
    trained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"checkpoint\.pt was made with other settings: {name} was {shown}$"):
        trainer(tmp_path, replace(SETTINGS, **{name: other})).fit(resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("other", [{"data": "cifar100:/data"}, {"model": "resnet32"}])
def test_another_model_or_data_set_does_not_resume(tmp_path: Path, other: dict[str, str]) -> None:
    about = {"model": "resnet20", "data": "cifar10:/data"}
    trained(tmp_path, metadata=about)
    with pytest.raises(ValueError, match=r"checkpoint\.pt was made with other settings"):
        trainer(tmp_path, metadata=about | other).fit(resume=True)


@pytest.mark.parametrize(
    "lost",
    [
        "metrics.jsonl",
        "model.safetensors",
        "checkpoint.pt",
    ],
)
def test_what_is_left_of_a_run_is_left_alone(tmp_path: Path, lost: str) -> None:
    trained(tmp_path)
    (tmp_path / lost).unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=rf"{tmp_path}/\S+ exists: go on with it \(--resume\) or choose another"):
        trainer(tmp_path).fit()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


SPOILED: dict[str, dict[str, Any]] = {
    "a count that is a tensor": {"epoch": torch.ones(2)},
    "a count that is no integer": {"step": float("nan")},
    "more steps than there are": {"step": 99},
    "steps of another epoch": {"epoch": 2},
    "sums of an epoch that has not begun": {"sums": {"loss": 1.0}},
    "sums that are lists": {"sums": {"loss": [1.0]}},
    "seconds that are text": {"seconds": "1"},
    "metrics that are tensors": {"metrics": {"loss": torch.zeros(2)}},
    "a best epoch of nothing": {"best": {}},
    "a best epoch of another network": {"best": {"score": 1.0, "metrics": {}, "model": {"a": torch.zeros(1)}}},
    "settings within settings": {"settings": '{"epochs": ' + "[" * 400 + "]" * 400 + "}"},
    "momentum of another shape": {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}}},
    "momentum of no parameter": {"optimizer": {"state": {9: {"momentum_buffer": torch.zeros(2)}}}},
    "an optimizer of another kind": {"optimizer": {"state": {0: {"exp_avg": torch.zeros(8, 3, 3, 3)}}}},
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_checkpoint_that_no_run_wrote_is_refused(tmp_path: Path, what: str) -> None:
    trained(tmp_path, replace(SETTINGS, epochs=1))
    whole = read_torch(str(tmp_path / "checkpoint.pt"))
    torch.save(whole | SPOILED[what], tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is no checkpoint of this run \("):
        trainer(tmp_path, replace(SETTINGS, epochs=1)).fit(resume=True)


def test_the_optimizer_goes_on_as_the_settings_say(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    state = read_torch(tmp_path / "run" / "checkpoint.pt")
    state["optimizer"]["param_groups"] = [{"momentum": 99.0}]
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    run = trainer(tmp_path / "run")
    run.fit(resume=True)
    assert {group["momentum"] for group in run.optimizer.param_groups} == {SETTINGS.momentum}


def test_resuming_where_there_is_no_run_begins_one(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run")
    run.fit(resume=True)
    assert equal(run.model.state_dict(), trained(tmp_path / "other"))


# ---- held-out images, and the weights they select -------------------------------------------------------------------

HELD_OUT = replace(SETTINGS, validation=20)


def test_held_out_images_are_never_trained_on(tmp_path: Path) -> None:
    run = trainer(tmp_path, HELD_OUT)
    _, held_out = run.held_out["validation"]
    seen = {index for step in range(60) for index in run.batch(step).ids.tolist()}
    assert len(held_out) == 20
    assert seen | set(held_out.tolist()) == set(range(70))
    assert seen.isdisjoint(held_out.tolist())


def test_no_seed_moves_an_image_between_training_and_validation(tmp_path: Path) -> None:
    def held_out(settings: Settings) -> set[int]:
        return set(trainer(tmp_path, settings).held_out["validation"][1].tolist())

    assert held_out(HELD_OUT) == held_out(replace(HELD_OUT, seed=7))
    assert held_out(replace(HELD_OUT, validation=9)) < held_out(HELD_OUT)


def test_looking_at_held_out_images_changes_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(ADVERSARIAL, select="last")
    state = trained(tmp_path / "seen", settings, model=network(dropout=0.5), test=TEST_IMAGES)
    (seen, *_) = metrics_of(tmp_path / "seen")
    for held_out in ("validation", "test"):
        assert {f"{held_out}_accuracy", f"{held_out}_adversarial_accuracy"} < seen.keys()
    unseen = trainer(tmp_path / "unseen", settings, network(dropout=0.5))
    monkeypatch.setattr(unseen, "accuracies", lambda *_: {})
    unseen.fit()
    assert equal(unseen.model.state_dict(), state)


def test_accuracies_under_attack_are_those_of_its_first_draw(tmp_path: Path) -> None:
    run = trainer(tmp_path, replace(ADVERSARIAL, epochs=1))
    run.fit()
    ids = torch.arange(20)
    smoothed = sf.SmoothedClassifier(run.model, 0.1, 4, normalize=CIFAR10_STATISTICS, precision="fp32")
    attack = sf.attacks.PGD(smoothed, steps=2, runner="eager")
    adversarial = attack(TEST_IMAGES.images, TEST_IMAGES.labels)
    right = run.model(run.noisy(adversarial, ids, 1, Stream.PREDICT)).argmax(1) == TEST_IMAGES.labels
    assert run.accuracies(TEST_IMAGES, ids)["adversarial_accuracy"] == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize(("select", "epoch"), [("last", 4), ("best", 1), ("best-clean", 0), ("worst-clean", 3)])
def test_weights_are_those_of_the_epoch_selected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str, epoch: int
) -> None:
    clean, adversarial, states = [0.9, 0.8, 0.9, 0.4, 0.4], [0.1, 0.3, 0.2, 0.3, 0.1], []
    settings = replace(ADVERSARIAL, epochs=5, select=select)
    run = trainer(tmp_path, settings)

    def accuracies(*_: Any) -> dict[str, float]:
        states.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return {"accuracy": clean[run.epoch], "adversarial_accuracy": adversarial[run.epoch]}

    monkeypatch.setattr(run, "accuracies", accuracies)
    metrics = run.fit()
    assert metrics["epoch"] == epoch
    assert equal(dict(read_weights(tmp_path / "model.safetensors").tensors), states[epoch])
    assert equal(run.model.state_dict(), states[epoch])
    again = trainer(tmp_path, settings, network(seed=9))
    assert again.fit(resume=True) == metrics
    assert equal(again.model.state_dict(), states[epoch])


# ---- the parts of a step ---------------------------------------------------------------------------------------------


def of_hundred_steps(schedule: str, **options: Any) -> Callable[[int], float]:
    settings = replace(SETTINGS, epochs=10, schedule=schedule, learning_rate=0.4, **options)
    return lambda step: settings.learning_rate_at(step, 10)


def test_one_cycle_rises_for_30_percent_and_falls_to_zero() -> None:
    rate = of_hundred_steps("one-cycle")
    known = {0: 0, 15: 0.2, 30: 0.4, 65: 0.2, 99: 0.4 / 70, 100: 0}
    assert [rate(step) for step in known] == pytest.approx(list(known.values()))
    assert max(range(100), key=rate) == 30


def test_cosine_falls_from_the_start() -> None:
    rate = of_hundred_steps("cosine")
    assert [rate(step) for step in range(101)] == pytest.approx(
        [0.2 * (1 + math.cos(math.pi * step / 100)) for step in range(101)], abs=1e-7
    )


def test_multi_step_falls_after_its_milestones() -> None:
    rate = of_hundred_steps("multi-step", milestones=(2, 7.5), gamma=0.1)
    assert [rate(step) for step in (0, 19, 20, 74, 75, 99)] == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_every_step_has_its_learning_rate(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    rates = []

    def watched(steps: range) -> Iterator[int]:
        for step in steps:
            yield step
            rates.append({group["lr"] for group in run.optimizer.param_groups})

    run.fit(watched)
    assert rates == [{SETTINGS.learning_rate_at(step, 4)} for step in range(8)]


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, [2]), (1.6, [4, 2]), (0.01, [1])])
def test_a_run_may_end_within_an_epoch(tmp_path: Path, epochs: float, steps: list[int]) -> None:
    run, lengths = trainer(tmp_path, replace(SETTINGS, epochs=epochs)), []

    def watched(steps: range) -> range:
        lengths.append(len(steps))
        return steps

    run.fit(watched)
    assert lengths == steps
    assert [line["epoch"] for line in metrics_of(tmp_path)] == list(range(len(steps)))
    assert all(1.2 < line["loss"] < 2 for line in metrics_of(tmp_path))  # of 4 classes: a mean over these steps


def test_gradients_are_scaled_down_to_their_largest_norm(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=0.25, schedule="cosine", momentum=0, nesterov=False, weight_decay=0)
    start = list(network().parameters())

    def moved(name: str, clip_norm: float | None) -> list[Tensor]:
        run = trainer(tmp_path / name, replace(settings, clip_norm=clip_norm))
        run.fit()
        return [after - before for after, before in zip(run.model.parameters(), start, strict=True)]

    free, clipped, loose = moved("free", None), moved("clipped", 0.05), moved("loose", 1e3)
    length = torch.cat([part.flatten() for part in free]).norm()
    assert length > 0.05 * settings.learning_rate
    for one, other, same in zip(free, clipped, loose, strict=True):
        torch.testing.assert_close(other, one * 0.05 * settings.learning_rate / length, rtol=1e-3, atol=1e-6)
        assert torch.equal(one, same)


def test_only_matrices_and_kernels_decay(tmp_path: Path) -> None:
    decayed, plain = trainer(tmp_path).optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (SETTINGS.weight_decay, 0)
    assert {p.dim() for p in decayed["params"]} == {2, 4}
    assert {p.dim() for p in plain["params"]} == {1}


def test_a_step_is_nesterov_sgd_on_the_cross_entropy_of_noisy_images(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1, batch=70, schedule="cosine", weight_decay=0.0)
    run = trainer(tmp_path, settings)
    seen: list[Tensor] = []
    run.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    start = network()
    batch = run.batch(0)  # order and augmentation have tests of their own
    noisy = run.noisy(batch.images, batch.ids, 0)
    loss = nn.functional.cross_entropy(start(noisy), batch.labels)
    loss.backward()
    metrics = run.fit()
    torch.testing.assert_close(seen[0], noisy)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for moved, parameter in zip(run.model.parameters(), start.parameters(), strict=True):
        step = settings.learning_rate * (1 + settings.momentum) * parameter.grad  # the first one of Nesterov's
        torch.testing.assert_close(moved, parameter - step, rtol=1e-4, atol=1e-6)


def test_every_epoch_takes_whole_batches_in_an_order_of_its_own(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    orders = []
    for epoch in range(3):
        batches = [run.batch(4 * epoch + step) for step in range(4)]
        assert [len(batch.ids) for batch in batches] == [16] * 4
        orders.append(torch.cat([batch.ids for batch in batches]).tolist())
        assert len(set(orders[-1])) == 64
        assert all(torch.equal(batch.labels, IMAGES.labels[batch.ids]) for batch in batches)
    assert len({tuple(order) for order in orders}) == 3


def test_noise_is_that_of_the_image_and_the_sample(tmp_path: Path) -> None:
    run = trainer(tmp_path, replace(SETTINGS, seed=5))
    index = torch.tensor([7, 3, 60])
    noisy = run.noisy(IMAGES.images[index], index, 11)
    scale, shift = ops.affine(CIFAR10_STATISTICS, 3, torch.uint8)
    expected = ops.noisy_replicas(
        IMAGES.images,
        slots=index,
        image_ids=index,
        sample_ids=torch.full((3,), 11),
        key=stream_key(5, Stream.TRAIN),
        law=lattice_law(0.25),
        scale=scale,
        shift=shift,
    )
    assert torch.equal(noisy, expected)
    assert noisy.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(statistic).view(3, 1, 1) for statistic in CIFAR10_STATISTICS)
    for row, image in enumerate(index.tolist()):
        noise = lattice((3, 8, 8), 0.25, 5, image, [11], Stream.TRAIN)[0]
        torch.testing.assert_close(noisy[row], ((IMAGES.images[image] + noise) / 255 - mean) / std)


def test_accuracies_count_single_noisy_copies(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit()
    index = torch.arange(20)
    noisy = run.noisy(TEST_IMAGES.images, index, 0, Stream.PREDICT)
    right = run.model.eval()(noisy).argmax(1) == TEST_IMAGES.labels
    assert run.accuracies(TEST_IMAGES, index) == {"accuracy": pytest.approx(right.float().mean().item())}


def test_a_toy_problem_is_learned(tmp_path: Path) -> None:
    colours = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 200]], dtype=torch.uint8)
    labels = torch.arange(64) % 4
    problem = Images(colours[labels][:, :, None, None].repeat(1, 1, 8, 8), labels)
    run = Trainer(network(), problem, replace(SETTINGS, epochs=8), tmp_path, problem)
    last = run.fit()
    assert last["loss"] < metrics_of(tmp_path)[0]["loss"] / 2
    assert last["train_accuracy"] > 0.9
    assert last["test_accuracy"] > 0.9


# ---- augmentation ----------------------------------------------------------------------------------------------------


def crops(image: Tensor, padding: int) -> Iterator[tuple[int, int, bool, Tensor]]:
    """Everything that a random crop and flip may make of an image [C, H, W], pixel by pixel: the shift of its content
    down and to the right, whether it was mirrored after that, and the outcome."""
    _, height, width = image.shape
    for down in range(-padding, padding + 1):
        for right in range(-padding, padding + 1):
            out = torch.zeros_like(image)
            for y in range(max(0, down), min(height, height + down)):
                for x in range(max(0, right), min(width, width + right)):
                    out[:, y, x] = image[:, y - down, x - right]
            yield down, right, False, out
            yield down, right, True, out.flip(2)


@pytest.mark.parametrize(("shape", "padding"), [((3, 5, 7), 2), ((1, 4, 3), 1), ((3, 4, 4), 0)])
def test_every_image_is_shifted_and_mirrored_on_its_own(shape: tuple[int, int, int], padding: int) -> None:
    images = pixels(3, 8, *shape).clamp(min=1)
    made = crop_and_flip(images, torch.arange(8), 0, 0, padding)
    assert (made.dtype, made.shape) == (images.dtype, images.shape)
    for image, result in zip(images, made, strict=True):
        assert sum(torch.equal(result, outcome) for *_, outcome in crops(image, padding)) == 1


def test_all_shifts_and_both_sides_come_equally_often() -> None:
    image, count = pixels(4, 3, 9, 9).clamp(min=1), 16_200
    made = crop_and_flip(image.expand(count, -1, -1, -1), torch.arange(count), 0, 0)
    outcomes = {bytes(outcome.flatten().tolist()): 0 for *_, outcome in crops(image, 4)}
    assert len(outcomes) == 9 * 9 * 2
    for result in made.flatten(1).numpy():
        outcomes[result.tobytes()] += 1
    expected = count / len(outcomes)
    chi_squared = sum((seen - expected) ** 2 for seen in outcomes.values()) / expected
    assert chi_squared < 161 + 4 * math.sqrt(2 * 161)  # four standard deviations


def test_augmentation_is_a_function_of_seed_image_and_epoch() -> None:
    images, ids = pixels(5, 16, 3, 8, 8), 40 + torch.arange(16)
    made = crop_and_flip(images, ids, 2, 1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(crop_and_flip(images[order], ids[order], 2, 1), made[order])
    others = [crop_and_flip(images, ids, 3, 1), crop_and_flip(images, ids, 2, 2), crop_and_flip(images, ids + 16, 2, 1)]
    assert not any(torch.equal(other, made) for other in others)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("recipe", "magic", "recipe is 'magic'; it must be one of clean, gaussian, adversarial, trades"),
        ("schedule", "step", "schedule is 'step'; it must be one of one-cycle, cosine, multi-step"),
        ("precision", "fp8", "precision is 'fp8'; it must be one of fp32, bf16"),
        ("epochs", 0, "epochs is 0; it must be positive and finite"),
        ("batch", -1, "batch is -1; it must be at least 1"),
        ("learning_rate", math.nan, "learning_rate is nan; it must be positive"),
        ("sigma", 0, "sigma is 0; for recipe 'gaussian' it must be positive"),
        ("batch", 71, "batch is 71; there are only 70 images to train on"),
        ("select", "first", "select is 'first'; it must be one of last, best, best-clean, worst-clean"),
        ("select", "best-clean", "select is 'best-clean', which needs validation images; validation is 0"),
        ("schedule", "multi-step", r"milestones is \(\); schedule 'multi-step' needs some"),
        ("momentum", 0, "momentum is 0; nesterov needs some"),
        ("clip_norm", 0, "clip_norm is 0; it must be positive and finite"),
        ("adversarial_weight", 1.5, r"adversarial_weight is 1.5; it must lie in \[0, 1\]"),
        ("eps", -1, "eps is -1; it must be at least 0 and finite"),
        ("steps", 0, "steps is 0; it must be at least 1"),
        ("train_samples", 0, "train_samples is 0; it must be at least 1"),
        ("entropy", -1, "entropy is -1; it must be at least 0"),
        ("margin", 0, "margin is 0; it must be positive"),
        ("sharpness", math.inf, "sharpness is inf; it must be positive and finite"),
        ("recipe", "clean", "sigma is 0.25; for recipe 'clean' it must be 0: recipe 'gaussian' is the one with noise"),
        ("validation", -1, "validation is -1; it must be at least 0"),
        ("validation", 60, "batch is 16; there are only 10 images to train on"),
        ("normalize", ([0.5] * 2, [0.5] * 2), "normalize has 2 means and 2 stds; the images have 3 channels"),
        ("normalize", ([0.5] * 3, [0, 1, 1]), "normalize has std .*; every std must be positive"),
    ],
)
def test_bad_settings(tmp_path: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "run", replace(SETTINGS, **{name: value}))
    assert not (tmp_path / "run").exists()


def test_smoothadv_trains_on_copies_of_its_attack() -> None:
    with pytest.raises(ValueError, match="train_samples is 9; it must be at most samples, 8"):
        replace(SETTINGS, recipe="smoothadv", train_samples=9)


def test_adversarial_accuracy_selects_nothing_without_an_attack() -> None:
    with pytest.raises(
        ValueError, match="select is 'best', of recipes with an attack; for 'gaussian' it may be 'best-c"
    ):
        replace(HELD_OUT, select="best")


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_found_at_once(tmp_path: Path, seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed is {seed}; it must lie in 0"):
        trainer(tmp_path, replace(SETTINGS, seed=seed))


@pytest.mark.parametrize("seed", [2**40, 2**64 - 1])
def test_every_seed_of_the_noise_is_a_seed_of_the_run(tmp_path: Path, seed: int) -> None:
    trained(tmp_path, replace(SETTINGS, epochs=1, seed=seed))


# ---- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train(tmp_path: Path, name: str) -> None:
    """But for lengths, as they are."""
    preset = PRESETS[name]
    short = replace(preset, epochs=0.25, batch=16, validation=min(preset.validation, 6), steps=2, clean_epochs=0)
    metrics = trainer(tmp_path, short).fit()
    assert math.isfinite(metrics["loss"])
    assert ("train_adversarial_accuracy" in metrics) == (RECIPES[preset.recipe].attack is not None)


def test_every_recipe_has_a_quick_preset() -> None:
    assert {name: PRESETS[f"quick-{name}"].recipe for name in RECIPES} == {name: name for name in RECIPES}


# ---- real images -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resnet20_learns_real_images_under_noise(data_root: Path, tmp_path: Path) -> None:
    archive = data_root / "cifar10-jpeg.zip"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path, [name for name in file.namelist() if name.endswith(".jpg") and name[-8:-4] < "0500"])
    source = f"folder:{tmp_path / 'cifar10-jpeg'}"
    images, test = (data.in_memory(data.load(source, split)) for split in data.SPLITS)
    assert (len(images), len(test)) == (5000, 5000)
    settings = Settings(epochs=1, batch=64, learning_rate=0.2, normalize=CIFAR10_STATISTICS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet20()
    metrics = Trainer(model, images, settings, tmp_path / "run", test).fit()
    assert metrics["test_accuracy"] > 0.2  # by chance 0.1, give or take 0.004


# ---- noise in the network --------------------------------------------------------------------------------------------


def noisy() -> nn.Module:
    return sf.layers.inject_noise(network(), "cni", rank=2)


def test_noise_in_weights_is_learned_and_does_not_decay(tmp_path: Path) -> None:
    model = noisy()
    strengths = sf.layers.noise_parameters(model)
    before = [strength.detach().clone() for strength in strengths]
    run = trainer(tmp_path, model=model)
    (decayed, plain) = run.optimizer.param_groups
    assert not {id(p) for p in decayed["params"]} & {id(p) for p in strengths}
    assert {id(p) for p in strengths} < {id(p) for p in plain["params"]}
    run.fit()
    assert all(not torch.equal(strength, old) for strength, old in zip(strengths, before, strict=True))


def test_every_pass_of_a_run_draws_noise_of_its_own(tmp_path: Path) -> None:
    run = trainer(tmp_path, model=noisy())
    images = torch.rand(4, 3, 8, 8)
    run.model.eval()
    first, second, again = (run.forward(images, number) for number in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_the_strengths_of_noise_alone(tmp_path: Path) -> None:
    model = noisy()
    strengths = {id(strength) for strength in sf.layers.noise_parameters(model)}
    before = {name: (id(p) in strengths, p.detach().clone()) for name, p in model.named_parameters()}
    trainer(tmp_path, replace(SETTINGS, learn="noise", norms="running"), model=model).fit()
    for name, parameter in model.named_parameters():
        learned, old = before[name]
        assert torch.equal(parameter, old) != learned, name
    with pytest.raises(ValueError, match="learn is 'noise'; the model has no noise in it"):
        trainer(tmp_path / "plain", replace(SETTINGS, learn="noise"))


def test_running_statistics_stay_as_they_are(tmp_path: Path) -> None:
    model = noisy()
    statistics = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    assert statistics
    trainer(tmp_path, replace(SETTINGS, norms="running"), model=model).fit()
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers() if "running" in name)


def test_a_run_that_diverges_says_so_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 0, by step 4: .* clip_norm \(None\)"):
        trainer(tmp_path, replace(SETTINGS, learning_rate=1e30)).fit()
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "checkpoint.pt").exists()

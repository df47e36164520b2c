"""Sweeps: what is counted, against plain loops; that settings share noise and an attack; files, tables and pictures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.linear import SHAPE, Linear
from torch import Tensor
from typer.testing import CliRunner

from smoothfast.attacks import PGD
from smoothfast.cli.app import app
from smoothfast.layers import inject_noise
from smoothfast.noise import Stream
from smoothfast.procedures import Decision, Draw
from smoothfast.runs import plots
from smoothfast.runs.sweep import Ladder, Sweep
from smoothfast.runs.sweep_log import Setting, SettingAccuracy, read
from smoothfast.runs.sweep_tables import sweep_table
from smoothfast.smoothing import SmoothedClassifier

pytestmark = pytest.mark.usefixtures("one_thread")
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(30, *SHAPE, generator=GENERATOR)
LABELS = torch.randint(0, 4, (30,), generator=GENERATOR)
IDS = torch.arange(100, 130)


def model(sigma: float = 0.25) -> SmoothedClassifier:
    weight = torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    return SmoothedClassifier(Linear(weight, torch.zeros(4)), sigma, 4, seed=3, precision="fp32", runner="eager")


def plan(**options: Any) -> Sweep:
    given = {
        "model": model(), "sigmas": [0.0, 0.25], "votings": ["prediction", "soft"], "samples": [1, 4, 16],
        "attack": "pgd", "options": {"eps": 0.05, "steps": 2, "sigma": 0.0}, "seeds": [0, 1],
    }  # fmt: skip
    return Sweep(**(given | options))


def all_rows(sweep: Sweep, done: Collection[Setting] = ()) -> list[SettingAccuracy]:
    return [row for block in sweep.rows(IMAGES, LABELS, IDS, done) for row in block]


def test_a_ladder_takes_sums_of_the_first_samples() -> None:
    ladder = Ladder([1, 3, 8])
    assert ladder.begin() == Draw(Stream.PREDICT, 0, 1)
    assert ladder.update(np.array([1, 0, 0])) == Draw(Stream.PREDICT, 1, 2)
    assert ladder.update(np.array([1, 0, 1])) == Draw(Stream.PREDICT, 3, 5)
    decision = ladder.update(np.array([0, 5, 0]))
    assert isinstance(decision, Decision)
    assert decision.counts.tolist() == [[1, 0, 0], [2, 0, 1], [2, 5, 1]]
    assert (decision.samples, decision.invalid, ladder.most) == (8, 1, 8)


def test_rows_are_what_votes_and_scores_of_so_many_samples_say() -> None:
    rows = {(row.images, row.sigma, row.voting, row.samples): row for row in all_rows(plan()) if not row.seed}
    for samples in (1, 4, 16):
        votes = model().votes(IMAGES, samples, IDS)
        correct = int((votes.argmax(1) == LABELS).sum())
        assert rows["clean", 0.25, "prediction", samples].correct == correct
        soft = SmoothedClassifier(model().base, 0.25, 4, voting="soft", seed=3, precision="fp32", runner="eager")
        correct = int((soft.scores(IMAGES, samples, IDS).argmax(1) == LABELS).sum())
        assert rows["clean", 0.25, "soft", samples].correct == correct
    plain = int((model().base(IMAGES).argmax(1) == LABELS).sum())
    assert rows["clean", 0.0, "prediction", 1].correct == plain
    assert ("clean", 0.0, "prediction", 4) not in rows  # without any noise one sample tells all
    assert all(row.count == 30 for row in rows.values())


def test_classes_that_are_not_given_are_those_of_the_base_classifier() -> None:
    unknown = SmoothedClassifier(model().base, 0.25, seed=3, precision="fp32", runner="eager")
    assert all_rows(plan(model=unknown)) == all_rows(plan())


def test_an_attack_is_made_once_and_judged_by_all_settings() -> None:
    attack = PGD(model(), 0.05, steps=2, sigma=0.0, seed=1, runner="eager")
    adversarial = attack(IMAGES, LABELS, IDS)
    votes = model().votes(adversarial, 16, IDS)
    (row,) = [row for row in all_rows(plan()) if row.setting == ("pgd", 1, 0.25, "prediction", 16)]
    assert row.correct == int((votes.argmax(1) == LABELS).sum())


def test_rows_that_are_there_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is missing wherever it stands: the first and the last of a sigma, one amid them, a rule, a whole seed."""
    sweep = plan()
    whole = all_rows(sweep)
    assert [row.setting for row in whole] == sweep.settings
    missing = {
        row.setting
        for place, row in enumerate(whole)
        if place in (0, 4, 7) or row.seed == 1 or (row.images, row.sigma, row.voting) == ("pgd", 0.25, "soft")
    }
    judged: list[tuple[int, float]] = []
    right = Sweep._right

    def counted(self: Sweep, images: Tensor, labels: Tensor, ids: Tensor, block: list[Setting]) -> Any:
        judged.append((block[0].seed, block[0].sigma))
        return right(self, images, labels, ids, block)

    monkeypatch.setattr(Sweep, "_right", counted)
    rest = all_rows(sweep, set(sweep.settings) - missing)
    assert rest == [row for row in whole if row.setting in missing]
    assert judged == [(0, 0.0), (0, 0.25), (0, 0.25), (1, 0.0), (1, 0.25)]  # clean, clean, and then under attack
    assert all_rows(sweep, sweep.settings) == []


def test_networks_with_noise_of_their_own_are_sampled_without_noise_on_images() -> None:
    torch.manual_seed(0)
    base = inject_noise(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 4)))
    noisy = SmoothedClassifier(base.eval(), 0.25, 4, precision="fp32", runner="eager")
    rows = all_rows(plan(model=noisy, attack=None, sigmas=[0.0]))
    assert [row.samples for row in rows] == [1, 4, 16] * 2
    assert len({row.correct for row in rows}) > 1


def test_images_all_of_whose_samples_are_broken_are_wrong() -> None:
    broken = Linear(torch.full((4, 48), torch.nan), torch.zeros(4))
    labels = torch.zeros_like(LABELS)  # which an empty count would elect
    sweep = plan(model=SmoothedClassifier(broken, 0.25, 4, runner="eager"), attack=None, sigmas=[0.25])
    assert all(row.correct == 0 for block in sweep.rows(IMAGES, labels, IDS) for row in block)


ROW = SettingAccuracy("pgd", 0, 0.12, "soft", 4, 10, 40)


def test_the_table_has_means_and_deviations() -> None:
    rows = [ROW, replace(ROW, seed=1, correct=14), replace(ROW, images="clean", samples=1)]
    assert sweep_table(rows) == (
        "| images | sigma | voting |    1 |          4 |\n"
        "| ------ | ----: | -----: | ---: | ---------: |\n"
        "| pgd    |  0.12 |   soft |      | 30.0 ± 7.1 |\n"
        "| clean  |  0.12 |   soft | 25.0 |            |\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": [4, 1]}, r"samples is \[4, 1\]; they must rise"),
        ({"samples": []}, r"samples is \[\]"),
        ({"samples": [0, 1]}, "samples is 0; it must be at least 1"),
        ({"votings": ["most"]}, "voting is 'most'"),
        ({"sigmas": [-0.1]}, "sigmas is -0.1"),
        ({"sigmas": [0.1, 0.2, 0.1]}, r"sigmas is \[0.1, 0.2, 0.1\]; each must stand there once"),
        ({"votings": ["soft", "soft"]}, r"votings is \['soft', 'soft'\]; each must"),
    ],
)
def test_complaints(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**options)


def test_the_command_writes_rows_table_and_picture_and_goes_on(tmp_path: Path) -> None:
    out, picture = tmp_path / "rows.csv", tmp_path / "rows.png"
    arguments = [
        "sweep", "--max", "4", "--sigmas", "0,0.25", "--samples", "1,2", "--attack", "pgd", "--steps", "1",
        "--attack-seeds", "2", "--runner", "eager", "--out", str(out),
    ]  # fmt: skip
    first = CliRunner().invoke(app, [*arguments, "--plot", str(picture)])
    assert first.exit_code == 0, first.output
    assert "| pgd    |  0.25 | prediction |" in first.stdout
    assert picture.stat().st_size > 10_000
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 1 + 3 * (3 * 1 + 3 * 2)
    torn, holes = [*lines[:14], lines[14][:-9]], [*lines[:3], *lines[5:9], *lines[10:]]
    for left in (torn, holes):
        out.write_bytes(b"".join(left))
        again = CliRunner().invoke(app, arguments)
        assert again.exit_code == 0, again.output
        assert again.stdout == first.stdout
        assert out.read_bytes() == whole
    assert CliRunner().invoke(app, [*arguments, "--attack-seeds", "1"]).exit_code == 0
    assert out.read_bytes() == whole
    assert len(read(out)) == len(lines) - 1


def test_a_picture_of_few_rows(tmp_path: Path) -> None:
    plots.sweep([ROW, replace(ROW, images="clean")], tmp_path / "few.png")
    assert (tmp_path / "few.png").stat().st_size > 5_000

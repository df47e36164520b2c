"""Sweeps: what is counted, against plain loops; that settings share noise and an attack; files, tables and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear import SHAPE, Linear
from typer.testing import CliRunner

from smoothfast import plots, sweeps
from smoothfast.attacks import PGD
from smoothfast.cli import app
from smoothfast.layers import inject_noise
from smoothfast.noise import Stream
from smoothfast.procedures import Decision, Draw
from smoothfast.smoothing import SmoothedClassifier
from smoothfast.sweeps import Ladder, Row, Sweep

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


def all_rows(sweep: Sweep, done: list[Row] | None = None) -> list[Row]:
    return [row for block in sweep.rows(IMAGES, LABELS, IDS, done or []) for row in block]


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


def test_an_attack_is_made_once_and_judged_by_all_settings() -> None:
    attack = PGD(model(), 0.05, steps=2, sigma=0.0, seed=1, runner="eager")
    adversarial = attack(IMAGES, LABELS, IDS)
    votes = model().votes(adversarial, 16, IDS)
    (row,) = [row for row in all_rows(plan()) if key(row) == ("pgd", 1, 0.25, "prediction", 16)]
    assert row.correct == int((votes.argmax(1) == LABELS).sum())


def key(row: Row) -> tuple[str, int, float, str, int]:
    return row.images, row.seed, row.sigma, row.voting, row.samples


def test_rows_that_are_there_are_not_made_again() -> None:
    whole = all_rows(plan())
    done = [row for row in whole if row.images == "clean" or row.sigma == 0]
    rest = all_rows(plan(), done)
    assert sorted(map(key, rest)) == sorted(key(row) for row in whole if row not in done)
    assert set(done + rest) == set(whole)


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


ROW = Row("pgd", 0, 0.12, "soft", 4, 10, 40)


def test_files_hold_rows_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert sweeps.begin(path, {"eps": 0.1}) == []
    sweeps.write([ROW], path)
    sweeps.write([replace(ROW, seed=1)], path)
    assert sweeps.begin(path, {"eps": 0.1}) == [ROW, replace(ROW, seed=1)]
    with pytest.raises(ValueError, match=r"rows\.csv was made with other settings: eps was 0\.1, is now 0\.2"):
        sweeps.begin(path, {"eps": 0.2})
    (tmp_path / "rows.csv.json").unlink()
    with pytest.raises(FileExistsError, match=r"without rows\.csv\.json"):
        sweeps.begin(path, {"eps": 0.1})
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"has the columns \['a', 'b'\]"):
        sweeps.read(tmp_path / "other.csv")


def test_the_table_has_means_and_deviations() -> None:
    rows = [ROW, replace(ROW, seed=1, correct=14), replace(ROW, images="clean", samples=1)]
    assert sweeps.table(rows) == (
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
        ({"sigmas": [-0.1]}, "sigma is -0.1"),
    ],
)
def test_complaints(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**options)


def test_the_command_writes_rows_table_and_picture_and_goes_on(tmp_path: Path) -> None:
    out, picture = tmp_path / "rows.csv", tmp_path / "rows.png"
    arguments = [
        "sweep", "--max", "4", "--sigmas", "0,0.25", "--samples", "1,2", "--attack", "pgd", "--steps", "1",
        "--attack-seeds", "2", "--runner", "eager", "--out", str(out), "--plot", str(picture),
    ]  # fmt: skip
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "| pgd    |  0.25 | prediction |" in first.stdout
    assert picture.stat().st_size > 10_000
    rows = sweeps.read(out)
    assert len(rows) == 3 * (3 * 1 + 3 * 2)
    out.write_text("".join(out.read_text().splitlines(keepends=True)[: 1 + 9]))  # what a kill may leave
    again = CliRunner().invoke(app, arguments)
    assert again.stdout == first.stdout
    assert sorted(map(key, sweeps.read(out))) == sorted(map(key, rows))


def test_a_picture_of_few_rows(tmp_path: Path) -> None:
    plots.sweep([ROW, replace(ROW, images="clean")], tmp_path / "few.png")
    assert (tmp_path / "few.png").stat().st_size > 5_000

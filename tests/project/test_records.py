"""What docs/records.md says of the recorded logs, counted from the logs themselves."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from smoothfast.runs.logs import Log, read_log
from smoothfast.runs.tables import average_certified_radius, certified_accuracy, effort, named, render, summary
from smoothfast.statistics import certified_radius, share_bounds

ROOT = Path(__file__).parents[2]
RECORDS = (ROOT / "docs" / "records.md").read_text()
SIGMA, N = 0.25, 100_000


def record(name: str) -> Log:
    return read_log(ROOT / "benchmarks" / "results" / f"{name}.tsv")


@pytest.fixture(scope="module")
def fixed() -> Log:
    return record("demo-fixed")


def radii_of(log: Log, bound: str) -> np.ndarray:
    """Radii of the recorded counts, with the deviation of lattice noise on 3 x 32 x 32 elements."""
    bounds = share_bounds(log.nA, log.nB, N, 0.001, bound, deviation=8.1e-11 * 3072)
    return certified_radius(*bounds, SIGMA)


def test_recorded_radii_are_those_of_the_recorded_counts(fixed: Log) -> None:
    decided = fixed.predict >= 0
    np.testing.assert_array_equal(radii_of(fixed, "multiclass")[decided], fixed.radius[decided])
    assert (radii_of(fixed, "multiclass")[~decided] == 0).all()


def test_multiclass_bound_on_recorded_counts(fixed: Log) -> None:
    multiclass, cohen = radii_of(fixed, "multiclass"), radii_of(fixed, "cohen")
    assert (multiclass >= cohen - 0.004 * SIGMA).all()
    assert (multiclass - cohen)[fixed.correct].mean() > 0


@pytest.mark.parametrize("radius", [0.25, 0.5])
def test_sequential_method_agrees_with_the_fixed_one_up_to_undecided(fixed: Log, radius: float) -> None:
    log = record(f"demo-sequential-{radius}")
    np.testing.assert_array_equal(log.idx, fixed.idx)
    decided = log.decision != "undecided"
    holds = fixed.radius >= radius
    np.testing.assert_array_equal((log.decision == "certified")[decided], holds[decided])
    np.testing.assert_array_equal(log.predict[log.decision == "certified"], fixed.predict[log.decision == "certified"])
    assert fixed.samples.mean() > 23 * log.samples.mean()
    assert np.median(fixed.samples) > 200 * np.median(log.samples)


def rounded_down(log: Log) -> np.ndarray:
    """The largest radius of the grid that is certified, -1 where none is."""
    radii = np.array([0, 0.25, 0.5, 0.75])
    return np.where(log.predict >= 0, radii[np.searchsorted(radii, log.radius, "right") - 1], -1)


def test_grid_answers_as_fixed_n_but_near_a_radius() -> None:
    log, fixed = record("demo-integers-grid-10000"), record("demo-integers")
    np.testing.assert_array_equal(log.idx, fixed.idx)
    np.testing.assert_array_equal(log.predict, fixed.predict)
    other = rounded_down(log) != rounded_down(fixed)
    assert other.sum() == 6
    assert (log.radius <= rounded_down(fixed))[log.predict >= 0].all()
    assert (fixed.radius - rounded_down(fixed))[other].max() < 0.0095
    assert (log.samples == fixed.samples)[other].all()  # all of them were drawn
    assert 2.1 * log.samples.mean() < fixed.samples.mean()


def test_tolerance_method_keeps_its_tolerance(fixed: Log) -> None:
    log = record("demo-tolerance-0.05")
    np.testing.assert_array_equal(log.idx, fixed.idx)
    assert (log.radius >= fixed.radius - 0.05 * SIGMA).all()
    assert log.samples.mean() < 0.55 * fixed.samples.mean()


def test_sequential_predictions_agree_with_the_fixed_ones() -> None:
    log, fixed = record("demo-predict-sequential"), record("demo-predict-fixed")
    both = (log.predict >= 0) & (fixed.predict >= 0)
    np.testing.assert_array_equal(log.predict[both], fixed.predict[both])
    assert log.samples.mean() < fixed.samples.mean()


def assert_near(log: Log, single: Log, other_classes: int) -> None:
    """Within the interval of a share of 200 images, and image by image but for what lies at a threshold."""
    np.testing.assert_array_equal(log.idx, single.idx)
    for radius in (0.0, 0.25, 0.5, 0.75):
        share = certified_accuracy(single, radius)
        assert abs(certified_accuracy(log, radius) - share) <= 1.96 * (share * (1 - share) / 200) ** 0.5
    assert (log.predict != single.predict).sum() == other_classes


def test_fused_kernels_certify_what_float32_does() -> None:
    log, single = record("demo-fused-bf16"), record("demo-openvino-fp32")
    assert_near(log, single, other_classes=2)
    assert abs(log.radius - single.radius).max() < 0.0211


def test_integers_certify_what_float32_does() -> None:
    log, single = record("demo-integers"), record("demo-openvino-fp32")
    assert_near(log, single, other_classes=4)
    assert 0 < (log.radius - single.radius).mean() < 0.0015


def test_figures_in_the_records() -> None:
    """Every table row and every sentence on effort that the page quotes is what the logs give."""
    names = sorted(set(re.findall(r"^\| (demo-\S+) ", RECORDS, re.MULTILINE)))
    assert len(names) >= 2
    logs = named([record(name) for name in names])
    for line in render(summary(logs, [0, 0.25, 0.5, 0.75]), "markdown").splitlines()[2:]:
        assert " ".join(line.split()) in " ".join(RECORDS.split())
    for name in re.findall(r"^\| `(demo-\S+)` ", RECORDS, re.MULTILINE):
        assert effort(record(name)) in RECORDS
    assert certified_accuracy(record("demo-fixed"), 0.25) > 0
    assert average_certified_radius(record("demo-fixed")) > 0

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from smoothfast.runs.logs import Log, read_log
from smoothfast.runs.tables import (
    MOST_RADII,
    SHARES,
    abstention,
    asked_radii,
    average_certified_radius,
    beside_the_grid,
    certified_accuracy,
    certified_interval,
    described,
    effort,
    intervals,
    markdown,
    named,
    probabilities,
    render,
    shown_probabilities,
    summary,
)

CIFAR = "certify/cifar10/resnet110/noise_0.25/test/sigma_0.25"
IMAGENET = "certify/imagenet/resnet50/noise_0.25/test/sigma_0.25"


def make(name: str, label: list[int], predict: list[int], radius: list[float]) -> Log:
    labels, predictions = np.array(label, np.int64), np.array(predict, np.int64)
    return Log(
        path=Path(name),
        idx=np.arange(len(label)),
        label=labels,
        predict=predictions,
        radius=np.array(radius, np.float64),
        correct=labels == predictions,
        time=np.ones(len(label)),
    )


@pytest.fixture
def log() -> Log:
    # right and far, right and near, wrong, abstained
    return make("runs/a_b.tsv", [0, 1, 2, 3], [0, 1, 0, -1], [0.6, 0.25, 0.9, 0.0])


def test_figures(log: Log) -> None:
    radii = [0.0, 0.25, np.nextafter(0.25, 1), 0.6, 0.61, 5.0]
    assert certified_accuracy(log, radii).tolist() == [0.5, 0.5, 0.25, 0.25, 0.0, 0.0]
    assert certified_accuracy(log, 0.25) == 0.5
    assert average_certified_radius(log) == pytest.approx(0.85 / 4)
    assert abstention(log) == 0.25


def test_effort(log: Log) -> None:
    samples, decision = np.array([100, 200, 3000, 5100]), np.array(["certified", "certified", "undecided", "certified"])
    assert effort(replace(log, samples=samples, decision=decision)) == (
        "2,100 samples an image in the mean, 1,600 median: 3 certified, 1 undecided"
    )
    with pytest.raises(ValueError, match="has no columns samples and decision"):
        effort(log)


def test_a_log_without_images_has_no_figures() -> None:
    empty = make("empty.tsv", [], [], [])
    for figure in (abstention, average_certified_radius, lambda log: certified_accuracy(log, 0)):
        with pytest.raises(ValueError, match=r"empty\.tsv holds no images"):
            figure(empty)


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    expected = {
        "x/run.tsv": "x/run",
        "y/run.tsv": "y/run",
        "z/sigma_0.25": "sigma_0.25",
        "z/sigma_0.5": "sigma_0.5",
        "z/same": str(tmp_path / "z/same"),
        "z/same.tsv": str(tmp_path / "z/same.tsv"),
    }
    logs = [make(str(tmp_path / path), [0], [0], [0.0]) for path in expected]
    names = named(logs)
    assert list(names) == list(expected.values())
    assert list(names.values()) == logs
    with pytest.raises(ValueError, match=r"x/run\.tsv is given twice"):
        named([logs[0], logs[1], logs[0]])


def test_default_radii_reach_the_largest_in_the_logs(log: Log) -> None:
    table = summary({"a": log, "b": make("b", [1], [1], [0.1])})
    assert table.radii == (0.0, 0.25, 0.5, 0.75)
    assert table.rows[0].accuracy == (0.5, 0.5, 0.25, 0.0)
    assert table.rows[1].accuracy == (1.0, 0.0, 0.0, 0.0)
    assert table.rows[1].images == 1


def test_logs_of_a_grid_are_summed_up_at_its_radii(log: Log) -> None:
    grid = replace(log, settings={"method": "grid", "radii": [0, 0.2, 0.6]})
    single = replace(log, settings={"method": "sequential", "radius": 0.3})
    assert [asked_radii(each) for each in (log, grid, single)] == [None, (0, 0.2, 0.6), (0.3,)]
    assert summary({"a": grid, "b": log}).radii == (0, 0.2, 0.6)
    assert summary({"a": single}).radii == (0, 0.25, 0.5, 0.75)
    for settings in (
        {"method": "grid"},
        {"method": "grid", "radii": []},
        {"method": "grid", "radii": ["0", None, 10**400]},
    ):
        odd = replace(log, settings=settings)
        assert summary({"a": odd}).radii == (0, 0.25, 0.5, 0.75)
        assert beside_the_grid("a", odd, [0.1]) is None


def test_radii_beside_the_grid_are_told(log: Log) -> None:
    grid = replace(log, settings={"method": "grid", "radii": [0, 0.2, 0.6]})
    assert beside_the_grid("a", log, [0.1]) is None
    assert beside_the_grid("a", grid, [0, 0.6]) is None
    assert beside_the_grid("a", grid, [0, 0.25, 0.7]) == (
        "a was asked at 0, 0.2, 0.6 alone: at 0.25, 0.7 it counts what is certified at the next of these, or nothing"
    )


def test_what_is_shown_of_p_a(log: Log) -> None:
    bounds = np.array([0.9995, 0.7, 0.999, 0.45])
    shown = replace(log, p_lower=bounds, settings={"n": 10_000, "alpha": 0.001})  # the third is wrong
    assert shown_probabilities(shown) == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert shown_probabilities(log) is None
    assert shown_probabilities(replace(log, p_lower=np.zeros(4))) is None  # as predict writes it
    assert probabilities({"a": log}) == ""
    head, _, row = probabilities({"a": log, "b": shown}).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "right, and p_A at least", *map(str, SHARES), "n", "alpha",
    ]  # fmt: skip
    assert [cell.strip() for cell in row.strip("|").split("|")][-4:] == ["0.250", "0.250", "10,000", "0.001"]
    assert " | " in probabilities({"b": replace(shown, settings={"n": [1]})})


def test_intervals_are_exact(log: Log) -> None:
    low, high = certified_interval(log, [0.0, 0.5, 5.0])
    for place, correct in enumerate((2, 1, 0)):
        expected = binomtest(correct, 4).proportion_ci(0.95, "exact")
        assert (low[place], high[place]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert intervals({"a|b": log}, [0, 0.5]) == (
        "| 95 % intervals | radius | certified accuracy |  from |    to |\n"
        "| -------------- | -----: | -----------------: | ----: | ----: |\n"
        "| a\\|b           |      0 |              0.500 | 0.068 | 0.932 |\n"
        "| a\\|b           |    0.5 |              0.250 | 0.006 | 0.806 |\n"
    )
    with pytest.raises(ValueError, match=r"empty\.tsv holds no images"):
        certified_interval(make("empty.tsv", [], [], []), 0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (None, "4 images"),
        ({"sigma": [0.25], "n": 100_000, "method": "fixed"}, "sigma 0.25, n = 100,000, fixed, 4 images"),
        ({"sigma": 0.5, "n": 4_000, "method": "grid"}, "sigma 0.5, n ≤ 4,000, grid, 4 images"),
        ({"sigma": [0.1, 0.2], "n": "many", "method": "\x1b"}, "\\x1b, 4 images"),
        ({"sigma": {}, "n": [], "method": ["grid"]}, "4 images"),
    ],
)
def test_how_a_log_was_made_is_told(log: Log, settings: dict[str, Any] | None, told: str) -> None:
    assert described(replace(log, settings=settings)) == told


def test_markdown(log: Log) -> None:
    assert render(summary({"a|b": log}, [0, 0.5]), "markdown") == (
        "| log  |     0 |   0.5 |   ACR | abstain | images |\n"
        "| ---- | ----: | ----: | ----: | ------: | -----: |\n"
        "| a\\|b | 0.500 | 0.250 | 0.212 |   0.250 |      4 |\n"
    )


def test_latex(log: Log) -> None:
    assert render(summary({r"a_b~\$x": log}, [0, 0.5]), "latex").splitlines() == [
        r"\begin{tabular}{lrrrrr}",
        r"\hline",
        r"log & 0 & 0.5 & ACR & abstain & images \\",
        r"\hline",
        r"a\_b\textasciitilde{}\textbackslash{}\$x & 0.500 & 0.250 & 0.212 & 0.250 & 4 \\",
        r"\hline",
        r"\end{tabular}",
    ]


def test_csv_and_json_are_exact() -> None:
    log = make("third", [0, 0, 0], [0, 1, -1], [0.1, 0.0, 0.0])
    table = summary({'a, "b"': log}, [0, 0.05])
    head, row = csv.reader(render(table, "csv").splitlines())
    assert head == ["log", "0", "0.05", "ACR", "abstain", "images"]
    assert row[0] == 'a, "b"'
    assert [float(cell) for cell in row[1:]] == [1 / 3, 1 / 3, 0.1 / 3, 1 / 3, 3]
    assert json.loads(render(table, "json")) == {
        "radii": [0, 0.05],
        "rows": [
            {
                "log": 'a, "b"',
                "accuracy": [1 / 3, 1 / 3],
                "acr": 0.1 / 3,
                "abstain": 1 / 3,
                "images": 3,
            }
        ],
    }


def test_an_unknown_format_is_named(log: Log) -> None:
    with pytest.raises(ValueError, match="format is 'html', expected one of markdown, latex"):
        render(summary({"a": log}), "html")  # type: ignore[arg-type]


def test_published_tables(published_logs: Path) -> None:
    logs = named([read_log(published_logs / CIFAR), read_log(published_logs / IMAGENET)])
    assert list(logs) == [
        "resnet110/noise_0.25/test/sigma_0.25",
        "resnet50/noise_0.25/test/sigma_0.25",
    ]
    cifar, imagenet = summary(logs).rows
    assert [round(value, 3) for value in cifar.accuracy] == [0.748, 0.600, 0.428, 0.266]
    assert round(cifar.acr, 3) == 0.429
    assert round(cifar.abstain, 3) == 0.086
    assert cifar.images == 500
    assert round(imagenet.accuracy[0], 3) == 0.667
    assert round(imagenet.accuracy[2], 3) == 0.494
    assert round(imagenet.acr, 3) == 0.477
    assert round(imagenet.abstain, 3) == 0.089
    assert imagenet.images == 427


def test_published_predictions(published_logs: Path) -> None:
    log = read_log(published_logs / "predict/imagenet/N_1000")
    assert certified_accuracy(log, 0) == 0.680
    assert abstention(log) == 0.032
    assert summary({"N_1000": log}).radii == (0.0,)


# ---- narrow terminals ------------------------------------------------------------------------------------------------


def test_radii_that_nobody_asked_for_are_few() -> None:
    """Of a sigma of 64 there were 380 columns."""
    for largest, step in ((4.2, 0.25), (4.25, 0.5), (95.0, 8), (1e90, None)):
        radii = summary({"a": make("a", [1], [1], [largest])}).radii
        assert len(radii) <= MOST_RADII
        assert radii[-1] <= largest
        assert step is None or radii[1] == step


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    logs = {name: make(name, [1, 2], [1, 1], [3.9, 0]) for name in ("short", "/a/folder" * 30)}
    table = summary(logs)
    wide, narrow = (render(table, "markdown", limit) for limit in (None, width))
    assert max(map(len, narrow.splitlines())) <= width
    assert any(len(line) > 200 for line in wide.splitlines())
    blocks = [[line.strip("|\n").split("|") for line in block.splitlines()] for block in narrow.split("\n\n")]
    heads = [cell.strip() for block in blocks for cell in block[0][1:]]
    cells = [cell.strip() for block in blocks for cell in block[2][1:]]
    whole = [[cell.strip() for cell in line.strip("|").split("|")] for line in wide.splitlines()]
    assert (heads, cells) == (whole[0][1:], whole[2][1:])
    assert all(block[2][0].strip() == "short" for block in blocks)


def test_columns_that_tell_rows_apart_are_in_each_table() -> None:
    text = markdown(["images", "sigma", "1", "4"], [["clean", "0.25", "50.0", "60.0"]], 28, keys=2)
    assert [line.split()[1::2] for line in text.splitlines() if "clean" in line] == [
        ["clean", "0.25", "50.0"], ["clean", "0.25", "60.0"],
    ]  # fmt: skip

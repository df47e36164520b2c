"""smoothfast selftest: its table, its JSON, its status."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.toys import Run, check_error

from smoothfast.environment import environment
from smoothfast.selftest import Effort, effort, philox, rows, suite
from smoothfast.selftest.records import FAILED, PASSED, SKIPPED, Check, Finding

pytestmark = pytest.mark.usefixtures("one_thread")
FOUND = [
    Check("Noise", "lattice, scalar", lambda: Finding(PASSED, "0 of 9 elements differ", "0")),
    Check("Noise", "lattice, cuda", lambda: Finding(SKIPPED, "torch sees no GPU of kind cuda")),
    Check("Laws", "cells", lambda: Finding(PASSED, "smallest p of 8: 0.25 (mean)", "at least 1e-09", 8)),
]
BROKEN = Check("Laws", "tails", lambda: Finding(FAILED, "p 1e-12", "at least 1e-09", 1))


@pytest.fixture
def efforts(monkeypatch: pytest.MonkeyPatch) -> list[Effort]:
    """The efforts that checks are made with; the checks are three that need nothing."""
    asked: list[Effort] = []

    def three(chosen: Effort) -> list[Check]:
        asked.append(chosen)
        return FOUND

    monkeypatch.setattr("smoothfast.selftest.every_check", three)
    return asked


def test_a_table_by_subject(run: Run, efforts: list[Effort]) -> None:
    result = run("selftest")
    assert result.status == 0, result.err
    assert result.out.splitlines()[:5] == [
        "Noise",
        "  passed   lattice, scalar  0 of 9 elements differ [0]",
        "  skipped  lattice, cuda    torch sees no GPU of kind cuda",
        "Laws",
        "  passed   cells            smallest p of 8: 0.25 (mean) [at least 1e-09]",
    ]
    assert "2 passed, 0 failed, 1 skipped in 0 s; " in result.out
    assert result.out.endswith("probability 8.0e-09\n")
    assert result.err == ""  # no terminal, and no half minute
    assert run("selftest", "--quiet").err == ""


def test_what_fails_is_in_the_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smoothfast.selftest.every_check", lambda effort: [*FOUND, BROKEN])
    plain, structured = run("selftest"), run("selftest", "--json")
    assert (plain.status, structured.status) == (1, 1)
    assert "  failed   tails            p 1e-12 [at least 1e-09]\n2 passed, 1 failed, 1 skipped" in plain.out
    assert json.loads(structured.out)["failed"] == 1


def test_one_object(run: Run, efforts: list[Effort]) -> None:
    told: dict[str, Any] = json.loads(run("selftest", "--json", "--seed", "7").out)
    assert (told["passed"], told["failed"], told["skipped"]) == (2, 0, 1)
    assert (told["seed"], told["full"], told["false_alarm"]) == (7, False, 8e-9)
    assert told["environment"] == environment()
    assert [check["status"] for check in told["checks"]] == [PASSED, SKIPPED, PASSED]
    assert told["checks"][2].items() >= {"subject": "Laws", "name": "cells", "chances": 8}.items()


def test_the_effort_is_the_one_asked_for(run: Run, efforts: list[Effort]) -> None:
    run("selftest")
    run("selftest", "--full", "--seed", "3")
    assert efforts[0] == effort.QUICK
    assert (efforts[1].runs, efforts[1].seed) == (effort.FULL.runs, 3)
    check_error(run("selftest", "--seed=-1"), "seed is -1; it must lie in 0 .. 2**64 - 1")


def test_real_checks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "QUICK", Effort(elements=2, runners=("eager",)))
    monkeypatch.setattr(suite, "SUBJECTS", (philox, rows))
    result = run("selftest", "--json")
    told = json.loads(result.out)
    assert (result.status, told["failed"]) == (0, 0)
    assert {check["subject"] for check in told["checks"]} == {"Philox", "Rows"}

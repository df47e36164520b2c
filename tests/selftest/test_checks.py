"""The self test on a small scale: every check passes here, and what cannot run is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from smoothfast import environment, ops
from smoothfast.selftest import (
    FAILED,
    FULL,
    PASSED,
    QUICK,
    SKIPPED,
    Effort,
    Record,
    every_check,
    kernels,
    laws,
    levels,
    noise,
    philox,
    recorded,
    rows,
)
from smoothfast.selftest import backends as of_backends
from smoothfast.selftest.backends import INSTRUCTION_SETS, backends, missing
from smoothfast.selftest.definition import STREAMS, tied
from smoothfast.selftest.records import LEVEL, Check, by_chance, skipped
from smoothfast.selftest.suite import SUBJECTS
from smoothfast.streams import Stream

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Effort(elements=3, draws=2**17, pairs=2**13, runs=2_000, points=24, runners=("eager",))


@pytest.fixture(scope="module")
def made() -> list[Record]:
    """The records of all checks, 12 s of CPU time."""
    return [recorded(check) for check in every_check(SMALL)]


def test_every_check_passes_or_says_what_is_missing(made: list[Record]) -> None:
    assert [record for record in made if record.status not in (PASSED, SKIPPED)] == []
    assert all(record.found for record in made)
    assert all(record.limit for record in made if record.status == PASSED)
    assert {record.subject for record in made} == {subject.SUBJECT for subject in SUBJECTS}
    assert len({(record.subject, record.name) for record in made}) == len(made)


def test_every_backend_is_checked(made: list[Record]) -> None:
    names = [record.name for record in made if record.status == PASSED and record.subject == "Noise"]
    assert all(f"lattice, {backend.name}" in names for backend in backends())
    if ops.extension is not None:
        here = ops.extension.supported_instruction_sets()
        assert [backend.instruction_set for backend in backends()[1:]][: len(here)] == here


def test_chance_makes_it_fail_once_in_a_million_times(made: list[Record]) -> None:
    """Numbers of tests do not depend on the effort, but for the mistakes, which are none of chance."""
    assert 100 < sum(record.chances for record in made) < 1e-6 / LEVEL


def test_the_last_seed_passes() -> None:
    effort = replace(SMALL, seed=2**64 - 1)
    checks = [check for subject in (philox, noise, rows) for check in subject.checks(effort)]
    assert [record for record in map(recorded, checks) if record.status == FAILED] == []


def test_the_same_seed_finds_the_same() -> None:
    def found(seed: int) -> list[str]:
        checks = [check for check in laws.checks(replace(SMALL, seed=seed)) if check.name.startswith("gaussian")]
        return [recorded(check).found for check in checks]

    assert found(5) == found(5) != found(6)


def test_efforts() -> None:
    for name in ("elements", "draws", "pairs", "runs", "points"):
        assert getattr(FULL, name) > getattr(QUICK, name)
    assert set(FULL.runners) > set(QUICK.runners) > {"eager"}
    assert (FULL.mistakes, QUICK.mistakes) == (True, False)
    counted = [check.name for check in levels.checks(FULL) if check.name.startswith("twice the level is found out")]
    assert len(counted) >= 5
    assert set(counted).isdisjoint(check.name for check in levels.checks(QUICK))


def test_streams_of_the_contract_are_all_of_them() -> None:
    assert set(STREAMS) == {stream.name for stream in Stream} - {"REFINE", "WEIGHT", "ACTIVATION"}


def test_ties_are_ties() -> None:
    for sigma, seed, image, stream, found in noise.TIES:
        for sample, element in found:
            place = noise.Case(seed, image, sample, stream, sigma, (1, 1, 1)).place
            assert tied(place, element, sigma)
            assert not tied(place, element + 1, sigma)


# ---- what is missing -------------------------------------------------------------------------------------------------


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "extension", None)
    monkeypatch.setattr(ops, "backends", lambda: {"cpu": "reference (smoothfast._C is not built)"})
    assert [backend.name for backend in backends()] == ["reference"]
    assert missing()["compiled kernels"] == "smoothfast._C is not built"
    records = [recorded(check) for check in philox.checks(SMALL)]
    assert {record.status for record in records if record.name.endswith("reference")} == {PASSED}
    told = {record.name: record for record in records}["other words, compiled kernels"]
    assert (told.status, told.found) == (SKIPPED, "smoothfast._C is not built")
    assert kernels.equal_bits(SMALL).status == SKIPPED
    assert kernels.fused_precision("amx") == skipped("no kernels for amx: none live here")
    assert kernels.fused_votes(SMALL, "amx").status == SKIPPED


def test_an_instruction_set_that_is_missing(extension: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def supported_instruction_sets() -> list[str]:
            return ["scalar"]

    monkeypatch.setattr(ops, "extension", Old)
    assert missing()["avx512"] == "this processor lacks avx512"
    assert {check.name for check in philox.checks(SMALL)} >= {f"other words, {name}" for name in INSTRUCTION_SETS}


def test_gpus_are_checked_or_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU by the name of the CPU goes the way of one: to its device, and back."""
    absent = [name for name in ops.GPUS if not any(gpu["device"].startswith(name) for gpu in environment.devices())]
    assert all(missing()[name] == f"torch sees no GPU of kind {name}" for name in absent)
    monkeypatch.setattr(of_backends.environment, "devices", lambda: [{"device": "cpu:0"}])
    gpu = backends()[-1]
    assert gpu.device == "cpu:0"
    assert philox.published_answers(gpu).status == SKIPPED
    for act in (noise.lattice_elements, noise.gaussian_elements, noise.weight_elements, kernels.tallies, kernels.steps):
        assert act(SMALL, gpu).status == PASSED


def test_the_instruction_set_is_what_it_was(extension: Any) -> None:
    former = extension.instruction_set()
    for backend in backends():
        with backend.in_use():
            assert backend.instruction_set in (None, extension.instruction_set())
        assert extension.instruction_set() == former
        with pytest.raises(AttributeError):
            backend.returned("no_such_op")
        assert extension.instruction_set() == former


def test_openvino_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "find_spec", lambda name: None)
    records = [recorded(check) for check in rows.checks(replace(SMALL, runners=("openvino",)))]
    assert {(record.status, record.found) for record in records} == {(SKIPPED, "openvino is not installed")}


def test_a_runner_that_declines_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Declining:
        def __init__(self, *_: object, **__: object) -> None: ...

        def certify(self, *_: object, **__: object) -> None:
            raise rows.DeclinedError("there is no compiler")

    monkeypatch.setattr(rows, "SmoothedClassifier", Declining)
    finding = rows.found_out(SMALL, rows.HONEST, "compiled")
    assert finding == skipped("runner compiled declined: there is no compiler")


# ---- records ---------------------------------------------------------------------------------------------------------


def test_a_check_that_raises_has_failed() -> None:
    def act() -> None:
        raise RuntimeError("of\nmany lines")

    record = recorded(Check("Subject", "name", act))  # type: ignore[arg-type]
    assert record[:4] == ("Subject", "name", FAILED, "RuntimeError: of many lines")


def test_the_smallest_p_decides() -> None:
    assert by_chance({"a": 0.5, "b": 2e-9}).status == PASSED
    assert by_chance({"a": 0.5, "b": 9e-10})[:2] == (FAILED, "smallest p of 2: 9e-10 (b)")
    assert by_chance({"a": float("nan"), "b": 1e-10}).found == "smallest p of 2: nan (a)"
    assert by_chance({"a": float("nan")}).status == FAILED

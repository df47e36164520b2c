"""A log of certificates that is part of the repository: every machine computes its rows again, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from smoothfast import SmoothedClassifier, data
from smoothfast.integers import IntegerResNet
from smoothfast.procedures import FixedCertify
from smoothfast.runners import fused
from smoothfast.runs.certify import rows
from smoothfast.runs.logs import Log, read_log
from smoothfast.runs.replays import differences
from smoothfast.runs.shards import Whole
from smoothfast.specs import DEMO_INTEGERS
from smoothfast.weights import read_weights

LOG = Path(__file__).parents[2] / "benchmarks" / "results" / "demo-integers-1000.tsv"
ROWS = {
    "int8_amx": [0, 57, 101, 199],
    "int8_avx512_vnni": [0, 57, 101, 199],
    "int8_avx_vnni": [3, 57],
    "int8_avx2": [57],
}
SLOW = [57]  # 5 seconds a row in plain C++


@pytest.fixture(scope="module")
def log() -> Log:
    return read_log(LOG)


@pytest.fixture(scope="module")
def integers() -> IntegerResNet:
    network = read_weights(DEMO_INTEGERS).integers
    assert network is not None
    return network


def test_it_is_of_this_network(log: Log, integers: IntegerResNet) -> None:
    engine = SmoothedClassifier(integers, 0.25, runner="auto").engine(data.demo().images[:1], 1000)
    assert log.settings is not None
    assert (len(log.idx), log.settings["n"], log.settings["seed"]) == (200, 1000, 0)
    assert log.settings["weights_sha256"] == engine.meta["weights_sha256"]


@pytest.mark.parametrize("arithmetic", fused.PREFERRED["int8"])
def test_rows_are_the_same(log: Log, integers: IntegerResNet, arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if arithmetic not in fused.preferred("int8"):
        pytest.skip(f"this processor lacks {arithmetic}, or smoothfast._C is absent")
    monkeypatch.setattr(fused, "preferred", lambda *_: [arithmetic])
    engine = SmoothedClassifier(integers, 0.25, runner="fused").engine(data.demo().images[:1], 1000)
    found = rows(engine, data.demo(), ROWS.get(arithmetic, SLOW), procedure, Whole())
    assert [different for _, different in differences(log, found)] == [[]] * len(ROWS.get(arithmetic, SLOW))


def procedure(label: int, deviation: float) -> FixedCertify:
    return FixedCertify(100, 1000, 0.001, 0.25, "multiclass", deviation=deviation)

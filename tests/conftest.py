"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothfast import ops

collect_ignore = ["ptx"]  # modules that tests import; test_cuda.py runs the one that is a program


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real inputs, which is not part of the package."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("SMOOTHFAST_DATA", beside))
    if not root.is_dir():
        pytest.skip(f"no data at {root} (SMOOTHFAST_DATA names another folder)")
    return root


@pytest.fixture(scope="session")
def published_logs(data_root: Path) -> Path:
    """The logs published by Cohen et al. (2019)."""
    logs = data_root / "cohen-2019-logs"
    if not logs.is_dir():
        pytest.skip(f"the published logs are missing: {logs}")
    return logs


@pytest.fixture(scope="session")
def extension() -> Any:
    """The compiled module smoothfast._C."""
    if ops.extension is None:
        pytest.skip("smoothfast._C is not built, or SMOOTHFAST_BACKEND=reference switches it off")
    return ops.extension


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest, extension: Any) -> Iterator[str]:
    """Each instruction set that the processor has, in use while the test runs."""
    if request.param not in extension.supported_instruction_sets():
        pytest.skip(f"this processor lacks {request.param}")
    former = extension.instruction_set()
    extension.use_instruction_set(request.param)
    yield request.param
    extension.use_instruction_set(former)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests on many small tensors: on a busy machine, waiting for other threads makes them ten times slower."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)

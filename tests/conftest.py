"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from helpers.amx import EmulatedAmx, compiler_version
from torch import Tensor

from smoothfast import data, ops
from smoothfast.runners import fused

HERE = Path(__file__).parent
pytest_plugins = ["helpers.watchdog"]
collect_ignore = ["gpu/ptx"]  # modules that tests import; test_cuda.py runs the one that is a program

# A file keeps a core busy from its first test to its last: those that take longest begin, so that none ends alone.
LONGEST = ("gpu/test_triton_ptx", "gpu/test_cuda", "project/test_readme", "procedures/test_simulation")
LONGEST += ("runs/test_shards", "runners/test_runners", "gpu/test_cuda_on_cpu", "engine/test_gradients")
LONGEST += ("runners/test_fused", "gpu/test_triton", "attacks/test_gradient", "ops/test_registration")
LONGEST += ("attacks/test_black_box", "attacks/test_minimum_norm", "attacks/test_interop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(HERE).with_suffix("").as_posix(), len(LONGEST)))
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real inputs, which is not part of the package."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("SMOOTHFAST_DATA", beside))
    if not root.is_dir():
        pytest.skip(f"no data at {root} (SMOOTHFAST_DATA names another folder)")
    return root


@pytest.fixture(scope="session")
def cifar10(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> data.Images:
    """The 5,000 test images of CIFAR-10 (JPEG), class by class."""
    archive = data_root / "cifar10-jpeg.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} is missing")
    folder = tmp_path_factory.mktemp("cifar10")
    with ZipFile(archive) as packed:
        packed.extractall(folder, [name for name in packed.namelist() if "/test/" in name])
    source = data.load(f"folder:{folder / 'cifar10-jpeg'}")
    images, labels = zip(*(source[index] for index in range(len(source))), strict=True)
    return data.Images(torch.stack(images), torch.tensor(labels))


@pytest.fixture(scope="session")
def test_images(cifar10: data.Images) -> tuple[Tensor, Tensor]:
    """Every tenth of these, in 0 .. 1, and their labels."""
    return cifar10.images[::10] / 255, cifar10.labels[::10]


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


@pytest.fixture(scope="session")
def emulated_amx(tmp_path_factory: pytest.TempPathFactory) -> EmulatedAmx:
    """The fused kernels for AMX on this processor, whether it has AMX or not."""
    if "avx512_bf16" not in fused.arithmetics():
        pytest.skip("this processor lacks AVX512-BF16, or smoothfast._C is absent")
    if compiler_version() < 11:
        pytest.skip("emulating AMX needs g++ 11, the first that the kernels use it with")
    return EmulatedAmx(tmp_path_factory.mktemp("amx"))


@pytest.fixture(params=["amx", "winograd_bf16", "winograd_mixed", "winograd_fp32", "avx512_bf16"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each arithmetic of the fused kernels; AMX is emulated where it is lacking."""
    name: str = request.param
    if name not in fused.arithmetics():
        if name != "amx":
            pytest.skip(f"this processor lacks {name}, or smoothfast._C is absent")
        emulated = request.getfixturevalue("emulated_amx")
        for op in ("fused_logits", "fused_gradients"):
            monkeypatch.setattr(ops, op, getattr(emulated, op))
    return name


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests on many small tensors: on a busy machine, waiting for other threads makes them ten times slower."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)

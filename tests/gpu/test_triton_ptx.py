"""The PTX of the Triton kernels, executed on the CPU: against the CPU backend bit for bit.

The wrappers run as they are. Where they launch, Triton specialises and compiles as it would for a GPU, and `ptx_interp`
executes the result.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    DTYPES,
    KINDS,
    NETWORKS,
    PASSES,
    ROWS,
    SCHEDULES,
    VOTINGS,
    arguments,
    asked_for,
    attack,
    gradients,
    network,
    same,
    tied,
    votes,
)
from ptx_interp import Buffer, Memory, Module, PtxFault, Report
from torch import Tensor

from smoothfast import kernels

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.usefixtures("one_thread", "extension"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets, and compiles nothing"),
]
ARCHS = (80, 90)
KERNELS = 94  # are what the tests have compiled for each, or a few more
WRITTEN = {"out", "counts", "invalid", "adversarial"}  # names of parameters
cpu = torch.ops.smoothfast


@cache  # parsing takes as long as a launch
def module_of(ptx: str) -> Module:
    return Module(ptx)


@dataclass
class Device:
    """What Triton takes for its driver and its device: of one architecture; keeps count of what was executed."""

    arch: int
    schedule: dict[str, Any] = field(default_factory=dict)
    executed: dict[str, Counter[int]] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)

    def get_current_device(self) -> int:
        return self.arch  # under which kernels are kept

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", self.arch, 32)

    def launch(self, compile: Any, function: Any, *values: Any, grid: tuple[int, ...], **options: Any) -> None:
        """In the place of `JITFunction.run`, which is `compile`; raises on any finding."""
        kernel = compile(function, *values, grid=grid, **options | {"warmup": True})
        types, given, mem = kernel.src.signature, dict(zip(function.arg_names, values, strict=False)), Memory()
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        held = place(mem, tensors)
        given |= {name: held[key(part)].addr + part.data_ptr() - key(part) for name, part in tensors.items()}
        parameters = [given[name] for name in function.arg_names if types[name] != "constexpr"]
        module = module_of(kernel.asm["ptx"])
        (name,) = module.kernels
        shared, threads = kernel.metadata.shared, 32 * kernel.metadata.num_warps
        report = module.launch(name, grid, threads, [*parameters, 0, 0], mem, shared, uninit=True, **self.schedule)
        self.reports[kernel.hash] = report
        self.executed.setdefault(kernel.hash, Counter()).update(np.flatnonzero(report.counts).tolist())
        report.check()
        for part in tensors.values():
            bytes_of(part).copy_(torch.from_numpy(held[key(part)].get()))

    def not_executed(self) -> list[str]:
        """Instructions that no launch executed; of conditional branches only what follows is looked at."""
        missing = []
        for kernel, report in self.reports.items():
            where = [report.kernel.name + ": " + step.where() for step in report.kernel.code]
            missing += [line for i, line in enumerate(where) if not self.executed[kernel][i]]
        return [line for line in missing if not re.search(r"`@!?%p\d+ bra", line)]


def key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def bytes_of(tensor: Tensor) -> Tensor:
    """The whole memory that a tensor is a part of."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def place(mem: Memory, tensors: dict[str, Tensor]) -> dict[int, Buffer]:
    """Tensors in device memory, as much out of alignment as they are here; new ones hold garbage."""
    writable = {key(tensor) for name, tensor in tensors.items() if name in WRITTEN}
    held = {}
    for name, tensor in tensors.items():
        content = bytes_of(tensor).fill_(0xA5) if name == "out" else bytes_of(tensor)
        held[key(tensor)] = mem.alloc(content.numpy(), key(tensor) not in writable, key(tensor) % 16)
    return held


devices = {arch: Device(arch) for arch in ARCHS}


@pytest.fixture(scope="module", autouse=True)
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Kernels are launched on the device that is returned when it is called, which is made anew if so asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        function, driver = triton.runtime.jit.JITFunction, triton.runtime.driver
        compile = function.run

        def on(arch: int, turn: int = 0, new: bool = False) -> Device:
            device = Device(arch) if new else devices[arch]
            device.schedule = SCHEDULES[turn % len(SCHEDULES)]
            patch.setattr(driver, "_active", device)
            patch.setattr(function, "run", lambda *values, **options: device.launch(compile, *values, **options))
            return device

        yield on


def op(name: str, package: ModuleType = kernels) -> Any:
    return getattr(import_module(f"{package.__name__}.{name}"), name)


def shifted(tensor: Tensor) -> Tensor:
    """One element further on, in memory that is aligned."""
    moved = tensor.new_empty(tensor.numel() + 1)[1:].as_strided(tensor.shape, tensor.stride(), 1)
    return moved.copy_(tensor)


# ---- noisy_replicas --------------------------------------------------------------------------------------------------

# Planes of two programs that 16 divides and does not, and a small one for the same kernels.
SHAPES = ((2, 36, 36), (2, 33, 35), (3, 5, 7))
FORMS = [
    *((SHAPES[0], *kind, dtype, False) for kind, dtype in product(KINDS, DTYPES)),
    *((shape, *kind, dtype, False) for shape, kind, dtype in product(SHAPES[1:], KINDS[::2], DTYPES)),
    *((SHAPES[0], *KINDS[0], dtype, True) for dtype in DTYPES),
    *((SHAPES[1], *KINDS[2], dtype, True) for dtype in DTYPES),
]


def noise_case(shape: tuple[int, int, int], law: str, images: torch.dtype, *rest: Any) -> tuple[Any, ...]:
    """With the lattice law, some of the first elements of the first row tie."""
    pixels, *others = arguments(shape, law, images, *rest)
    return (pixels, *(tied((pixels[:, :1, :1], *others))[1:] if law == "lattice" else others))


def check_noise(case: tuple[Any, ...], images: Tensor, package: ModuleType = kernels) -> None:
    assert same(op("noisy_replicas", package)(images, *case[1:]), cpu.noisy_replicas(*case)), case[5:]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_noisy_replicas(launches: Any, shape: tuple[int, int, int], arch: int) -> None:
    launches(arch)
    for turn, (_, law, images, dtype, channels_last) in enumerate(form for form in FORMS if form[0] == shape):
        clip = dtype == DTYPES[1]
        case = noise_case(shape, law, images, dtype, channels_last, clip, turn % 2 == 0, ROWS)
        check_noise(case, case[0])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", KINDS)
def test_noisy_replicas_in_any_order_of_warps(launches: Any, kind: tuple[str, torch.dtype], arch: int) -> None:
    for turn, dtype in enumerate(DTYPES):
        launches(arch, turn + 1)
        case = noise_case((1, 8, 8), *kind, dtype, False, turn == 1, False, ROWS[:3])
        check_noise(case, case[0])


@pytest.mark.parametrize("kind", KINDS)
def test_noisy_replicas_of_images_out_of_alignment(launches: Any, kind: tuple[str, torch.dtype]) -> None:
    launches(80)
    case = noise_case((2, 36, 36), *kind)
    check_noise(case, shifted(case[0]))


# ---- the other ops ---------------------------------------------------------------------------------------------------


def check_tally(case: tuple[Any, ...], logits: Tensor, package: ModuleType = kernels) -> None:
    _, slots, *counts, voting, weights = case
    expected = [part.clone() for part in counts]
    cpu.tally(*case[:2], *expected, voting, weights)
    op("tally", package)(logits, slots, *counts, voting, weights)
    assert all(map(torch.equal, counts, expected))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize(("rows", "classes"), [(70, 10), (40, 33), (5, 1040)])
def test_tally(launches: Any, rows: int, classes: int, dtype: torch.dtype, arch: int) -> None:
    """70 and 40 rows are of several programs, 1,040 classes of two blocks."""
    for turn in range(len(SCHEDULES)):
        launches(arch, turn)
        case = votes(rows, classes, dtype, turn)
        check_tally(case, shifted(case[0]) if turn == 3 else case[0])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize(("rows", "classes"), [(70, 10), (5, 1040)])
def test_tally_by_other_rules(launches: Any, rows: int, classes: int, dtype: torch.dtype, arch: int) -> None:
    for turn, voting in enumerate(VOTINGS[1:]):
        launches(arch, turn)
        case = votes(rows, classes, dtype, voting=voting)
        check_tally(case, case[0])


def check_sum(case: tuple[Any, ...], values: Tensor, package: ModuleType = kernels) -> None:
    assert torch.equal(op("replica_sum", package)(values, *case[1:]), cpu.replica_sum(*case))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 19, 21), (3, 20, 20)])
def test_replica_sum(launches: Any, shape: tuple[int, int, int], arch: int) -> None:
    """Of one program, of two, and of two with elements that 16 divides; no rows leave zeros."""
    for turn, (dtype, channels_last) in enumerate(product(DTYPES, (False, True))):
        launches(arch, turn)
        for rows in (0, 9):
            case = gradients(shape, rows, dtype, channels_last)
            check_sum(case, case[0])
        if turn % 3 == 2:
            check_sum(case, shifted(case[0]))


def test_replica_sum_of_one_element(launches: Any) -> None:
    """A kernel of its own, most of which has nothing to do."""
    launches(80, new=True)
    case = gradients((1, 1, 1), 9, torch.float32, False)
    check_sum(case, case[0])


def check_step(case: tuple[Any, ...], package: ModuleType = kernels) -> None:
    adversarial, *rest = case
    expected = adversarial.clone()
    cpu.attack_step(expected, *rest)
    op("attack_step", package)(adversarial, *rest)
    assert torch.equal(adversarial, expected)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (3, 19, 21), (3, 16, 20)])
def test_attack_step(launches: Any, shape: tuple[int, int, int], norm: str, arch: int) -> None:
    for turn, eps in enumerate((0.0, 1e-40, 0.03, 0.5)):
        launches(arch, turn)
        adversarial, images, slopes, *rest = attack(shape, norm, eps)
        check_step((adversarial, images, shifted(slopes) if turn == 3 else slopes, *rest))


def check_weights(case: tuple[Any, ...], weights: Tensor, package: ModuleType = kernels) -> None:
    assert torch.equal(op("perturb_weights", package)(weights, *case[1:]), cpu.perturb_weights(*case))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("layers", "ranks"), [(NETWORKS[0], (0, 5, 64)), (NETWORKS[2], (17, 1, 0))])
def test_perturb_weights(launches: Any, layers: tuple[int, ...], ranks: tuple[int, ...], arch: int) -> None:
    """Of one program a pass, and of several with tiles of several layers."""
    for turn, (dtype, rank) in enumerate(zip(DTYPES, ranks, strict=True)):
        launches(arch, turn)
        case = network(layers, rank, dtype, PASSES[-2:])
        check_weights(case, case[0])


def test_perturb_weights_out_of_alignment(launches: Any) -> None:
    launches(80)
    case = network((12,), 5, torch.bfloat16, PASSES[-1:])
    check_weights(case, shifted(case[0]))


# ---- the tests themselves --------------------------------------------------------------------------------------------


NEEDED = [
    test_noisy_replicas,
    test_noisy_replicas_in_any_order_of_warps,
    test_noisy_replicas_of_images_out_of_alignment,
]
NEEDED += [test_tally, test_tally_by_other_rules, test_replica_sum, test_replica_sum_of_one_element, test_attack_step]
NEEDED += [test_perturb_weights, test_perturb_weights_out_of_alignment]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_instruction_was_executed(arch: int, request: pytest.FixtureRequest) -> None:
    """Of every kernel that the tests above had compiled."""
    if not asked_for(request, NEEDED):
        pytest.skip("not all tests above were asked for")
    assert len(devices[arch].reports) >= KERNELS
    assert devices[arch].not_executed() == []


MUTATIONS = {
    "a Philox multiplier": ("philox", "0xD2511F53", "0xD2511F51"),
    "refining bits": ("philox", "REFINE = tl.constexpr(3)", "REFINE = tl.constexpr(4)"),
    "what comes before the plane": ("noisy_replicas", "(at >= 0) & (at < plane)", "at < plane"),
    "the first of equals": ("tally", "value > best)", "value >= best)"),
    "padding rows": ("tally", "valid = (slot >= 0) & (broken == 0)", "valid = broken == 0"),
    "the order of ranks": ("tally", "index > winner_before", "index < winner_before"),
    "the largest logit": ("tally", "winner[:, None], logits_class, live", "0 * winner[:, None], logits_class, live"),
    "terms of lanes without a class": ("tally", "tl.where(inside, fixed(", "tl.where(lanes >= 0, fixed("),
    "the order of rows": ("replica_sum", "rows + i)", "rows + i) * 0 + i"),
    "interleaved gradients": ("replica_sum", "at % channels if channels_last", "at // plane if channels_last"),
    "an ulp of the ball": ("attack_step", "lost >= 0", "lost < 2"),
    "halves of the lanes": ("attack_step", "[2, lanes.numel // 2]), 0)", "[lanes.numel // 2, 2]), 1)"),
    "the projection": ("attack_step", "shift * factor", "shift"),
    "the layer of shared normals": ("perturb_weights", "layer + LOW_RANK", "layer"),
    "the number of a tile": ("perturb_weights", "number.to(tl.uint32) * 16", "number.to(tl.uint32)"),
    "the quarter of a turn": ("gaussian", "0x20000000", "0x10000000"),
}


def check_noises(package: ModuleType) -> None:
    case = noise_case((3, 5, 7), "lattice", torch.uint8)
    check_noise(case, case[0], package)
    case = arguments((3, 8, 8), "gaussian", torch.float32, torch.float32)
    check_noise(case, case[0], package)


def check_votes(package: ModuleType) -> None:
    for voting, classes in product(VOTINGS, (10, 2000)):
        case = votes(40, classes, torch.float32, voting=voting)
        check_tally(case, case[0], package)


def check_sums(package: ModuleType) -> None:
    case = gradients((3, 8, 8), 12, torch.float32, True)
    check_sum(case, case[0], package)


def check_steps(package: ModuleType) -> None:
    for norm in ("linf", "l2"):
        check_step(attack((3, 16, 20), norm, 0.03), package)
    # The square of the norm is at most 1 + 2^-52 if the lanes are added in their order, which makes a step of 1. If
    # neighbours were added first, it would be 1 + 2^-51, and the step a float less.
    slopes, images = torch.zeros(1, 1, 1, 256), torch.zeros(1, 1, 1, 256)
    slopes[..., 0], slopes[..., 8:16] = 1, 2.0**-27
    check_step((images.clone(), images, slopes, "l2", 1.0, 9.0, -9.0, 9.0), package)


def check_networks(package: ModuleType) -> None:
    case = network((3, 15), 5, torch.float32, PASSES[-2:])
    check_weights(case, case[0], package)


CHECKS = {
    "noisy_replicas": check_noises,
    "philox": check_noises,
    "tally": check_votes,
    "replica_sum": check_sums,
    "attack_step": check_steps,
    "gaussian": check_networks,
    "perturb_weights": check_networks,
}


@pytest.mark.parametrize("mutation", [None, *MUTATIONS])
def test_a_mutation_is_found(
    launches: Any, mutation: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none where nothing is changed but the name of the package."""
    launches(80, new=True)
    name = f"mutated{[None, *MUTATIONS].index(mutation)}"
    shutil.copytree(kernels.__path__[0], tmp_path / name)
    monkeypatch.syspath_prepend(tmp_path)
    if mutation is None:
        for check in CHECKS.values():
            check(import_module(name))
        return
    stem, text, instead = MUTATIONS[mutation]
    source = (tmp_path / name / f"{stem}.py").read_text()
    assert source.count(text) == 1
    (tmp_path / name / f"{stem}.py").write_text(source.replace(text, instead))
    with pytest.raises((AssertionError, PtxFault)):
        CHECKS[stem](import_module(name))

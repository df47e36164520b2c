"""The PTX of the Triton kernels, executed on the CPU: against the CPU backend bit for bit; and what ptxas makes of it.

The wrappers run as they are. Where they launch, Triton specialises and compiles as it would for a GPU, and `ptx_interp`
executes the result.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

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
from ptx_interp import PtxFault
from torch import Tensor

from smoothfast import kernels

triton = pytest.importorskip("triton")
Device = import_module("triton_device").Device
pytestmark = [
    pytest.mark.usefixtures("one_thread", "extension"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets, and compiles nothing"),
]
ARCHS = (80, 90)
KERNELS = 47  # are what the tests have compiled for each, or a few more
FLOATS = (torch.float64, *DTYPES)
cpu = torch.ops.smoothfast
devices = {arch: Device(arch) for arch in ARCHS}
Backend = import_module("triton.backends.nvidia.compiler").CUDABackend
assembled = Backend.make_cubin


def arch_of(*places: int) -> int:
    """The generation that a kernel is compiled for. Both take turns, so that each meets every dtype, law, rule, norm,
    format and size, and every two of these meet: the product of all would be twice as many kernels."""
    return ARCHS[sum(places) % 2]


@pytest.fixture(scope="module", autouse=True)
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Kernels are launched on the device that is returned when it is called, which is made anew if so asked. PTX is
    what it executes: ptxas waits until a test asks for machine code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setattr(Backend, "make_cubin", lambda *_: b"")
        function, driver = triton.runtime.jit.JITFunction, triton.runtime.driver
        compile = function.run

        def on(arch: int, turn: int = 0, new: bool = False) -> Device:
            device = Device(arch) if new else devices[arch]
            device.schedule, device.executes = SCHEDULES[turn % len(SCHEDULES)], True
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


def arch_of_noise(kind: tuple[str, torch.dtype], dtype: torch.dtype, channels_last: bool = False) -> int:
    return arch_of(KINDS.index(kind), DTYPES.index(dtype), channels_last)


def noise_case(shape: tuple[int, int, int], law: str, images: torch.dtype, *rest: Any) -> tuple[Any, ...]:
    """With the lattice law, some of the first elements of the first row tie."""
    pixels, *others = arguments(shape, law, images, *rest)
    return (pixels, *(tied((pixels[:, :1, :1], *others))[1:] if law == "lattice" else others))


def check_noise(case: tuple[Any, ...], images: Tensor, package: ModuleType = kernels) -> None:
    assert same(op("noisy_replicas", package)(images, *case[1:]), cpu.noisy_replicas(*case)), case[5:]


@pytest.mark.parametrize("shape", SHAPES)
def test_noisy_replicas(launches: Any, shape: tuple[int, int, int]) -> None:
    for turn, (_, law, images, dtype, channels_last) in enumerate(form for form in FORMS if form[0] == shape):
        launches(arch_of_noise((law, images), dtype, channels_last))
        clip = dtype == DTYPES[1]
        case = noise_case(shape, law, images, dtype, channels_last, clip, turn % 2 == 0, ROWS)
        check_noise(case, case[0])


@pytest.mark.parametrize("kind", KINDS)
def test_noisy_replicas_in_any_order_of_warps(launches: Any, kind: tuple[str, torch.dtype]) -> None:
    for turn, dtype in enumerate(DTYPES):
        launches(arch_of_noise(kind, dtype), turn + 1)
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


def arch_of_votes(size: tuple[int, int], dtype: torch.dtype, voting: str) -> int:
    return arch_of(SIZES[::2].index(size), FLOATS.index(dtype), VOTINGS.index(voting))


SIZES = [(70, 10), (40, 33), (5, 1040)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_tally(launches: Any, rows: int, classes: int, dtype: torch.dtype) -> None:
    """70 and 40 rows are of several programs, 1,040 classes of two blocks."""
    for turn in range(len(SCHEDULES)):
        launches(arch_of(rows == 5, FLOATS.index(dtype)), turn)  # as by other rules
        case = votes(rows, classes, dtype, turn)
        check_tally(case, shifted(case[0]) if turn == 3 else case[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "classes"), SIZES[::2])
def test_tally_by_other_rules(launches: Any, rows: int, classes: int, dtype: torch.dtype) -> None:
    for turn, voting in enumerate(VOTINGS[1:]):
        launches(arch_of_votes((rows, classes), dtype, voting), turn)
        case = votes(rows, classes, dtype, voting=voting)
        check_tally(case, case[0])


def check_sum(case: tuple[Any, ...], values: Tensor, package: ModuleType = kernels) -> None:
    assert torch.equal(op("replica_sum", package)(values, *case[1:]), cpu.replica_sum(*case))


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 19, 21), (3, 20, 20)])
def test_replica_sum(launches: Any, shape: tuple[int, int, int]) -> None:
    """Of one program, of two, and of two with elements that 16 divides; no rows leave zeros."""
    for turn, (dtype, channels_last) in enumerate(product(DTYPES, (False, True))):
        launches(arch_of(DTYPES.index(dtype), shape == (3, 20, 20)), turn)
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


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (3, 19, 21), (3, 16, 20)])
def test_attack_step(launches: Any, shape: tuple[int, int, int], norm: str) -> None:
    for turn, eps in enumerate((0.0, 1e-40, 0.03, 0.5)):
        launches(arch_of(norm == "l2", shape == (3, 16, 20)), turn)
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


# ---- machine code ----------------------------------------------------------------------------------------------------

# Of a thread of the noise kernels: by Triton 3.8 one of them keeps two more words on its stack.
NOISE_REGISTERS, STACK = (64, 0) if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else (80, 8)


@pytest.fixture
def kernel_of(launches: Any) -> Any:
    """The kernel that an op launches with these arguments, which is compiled if no test before did; it is not run."""

    def compiled(arch: int, name: str, *case: Any) -> Any:
        device = launches(arch)
        device.executes = False
        op(name)(*case)
        return device.kernel

    return compiled


def instructions(kernel: Any, pattern: str) -> set[str]:
    return set(re.findall(rf"\b(?:{pattern})[.\w]*", kernel.asm["ptx"]))


def registers(kernel: Any, folder: Path) -> int:
    """Of a thread, which spills nothing."""
    target, cubin = kernel.metadata.target, folder / "kernel.cubin"
    cubin.write_bytes(assembled(Backend(target), kernel.asm["ptx"], {}, kernel.metadata, target.arch))
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin]
    usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    count, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    assert int(stack) <= STACK
    assert local == "0"
    assert not instructions(kernel, "ld.local|st.local")
    return int(count)


def check_rounding(kernel: Any, operations: str = "add sub mul fma sqrt") -> None:
    """Each operation rounds as it says, to nearest even: ptxas contracts none that names its rounding."""
    used = instructions(kernel, r"(?:add|sub|mul|fma|mad|div|sqrt|rcp|ex2|lg2|sin|cos)[.\w]*f(?:32|64)")
    assert used <= {f"{operation}.rn.{type}" for operation in operations.split() for type in ("f32", "f64")}
    assert not any(".ftz" in instruction for instruction in instructions(kernel, r"\w+[.\w]*f32"))


def check_noise_code(kernel: Any, folder: Path) -> None:
    assert registers(kernel, folder) <= NOISE_REGISTERS
    check_rounding(kernel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_code_of_contiguous_noise(
    kernel_of: Any, kind: tuple[str, torch.dtype], dtype: torch.dtype, tmp_path: Path
) -> None:
    """With a limit and without."""
    for clip in (False, True):
        arch = arch_of_noise(kind, dtype)
        kernel = kernel_of(arch, "noisy_replicas", *arguments(SHAPES[0], *kind, dtype, False, clip))
        assert instructions(kernel, "st.global") == {"st.global.v4.b32"}
        check_noise_code(kernel, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_code_of_other_noise(kernel_of: Any, kind: tuple[str, torch.dtype], tmp_path: Path) -> None:
    """Interleaved, and where 16 does not divide the plane."""
    for shape, channels_last in ((SHAPES[0], True), (SHAPES[1], False)):
        for dtype in DTYPES:
            arch, clip = arch_of_noise(kind, dtype, channels_last), dtype == DTYPES[1]
            case = arguments(shape, *kind, dtype, channels_last, clip)
            check_noise_code(kernel_of(arch, "noisy_replicas", *case), tmp_path)


@pytest.mark.parametrize(("dtype", "cast"), [(torch.bfloat16, "cvt.rn.bf16"), (torch.float16, "cvt.rn.f16")])
def test_casts_are_those_of_the_hardware(kernel_of: Any, dtype: torch.dtype, cast: str) -> None:
    for channels_last in (False, True):
        case = arguments(SHAPES[0], "gaussian", torch.float32, dtype, channels_last, dtype == DTYPES[1])
        arch = arch_of_noise(KINDS[2], dtype, channels_last)
        used = instructions(kernel_of(arch, "noisy_replicas", *case), r"cvt[.\w]*f16[.\w]*")
        assert used
        assert used <= {f"{cast}.f32", f"{cast}x2.f32"}


@pytest.mark.parametrize(("rows", "classes"), SIZES[::2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_code_of_tally(kernel_of: Any, dtype: torch.dtype, rows: int, classes: int, tmp_path: Path) -> None:
    atomics = {f"{name}.global.gpu.relaxed.add.u64" for name in ("atom", "red")}
    for voting in VOTINGS:
        arch = arch_of_votes((rows, classes), dtype, voting)
        kernel = kernel_of(arch, "tally", *votes(rows, classes, dtype, voting=voting))
        assert instructions(kernel, "atom|red.global") <= atomics
        assert instructions(kernel, "atom|red.global")
        assert registers(kernel, tmp_path) <= 128
        check_rounding(kernel, "add sub mul fma div" if voting == "soft" else "add mul")


@pytest.mark.parametrize("dtype", DTYPES)
def test_code_of_replica_sum(kernel_of: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """Gradients are read 16 bytes at a time in either format, where 16 divides the elements of an image."""
    for channels_last in (False, True):
        even, odd = (
            kernel_of(
                arch_of(DTYPES.index(dtype), shape == (3, 20, 20)),
                "replica_sum",
                *gradients(shape, 9, dtype, channels_last),
            )
            for shape in ((3, 20, 20), (3, 19, 21))
        )
        assert instructions(even, r"ld.global.v\d") == {"ld.global.v4.b32"}
        for either in (even, odd):
            assert registers(either, tmp_path) <= 64
            check_rounding(either, "add mul")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_code_of_attack_step(kernel_of: Any, norm: str, tmp_path: Path) -> None:
    even, odd = (
        kernel_of(arch_of(norm == "l2", shape == (3, 16, 20)), "attack_step", *attack(shape, norm, 0.03))
        for shape in ((3, 16, 20), (3, 19, 21))
    )
    if norm == "linf":
        assert instructions(even, "(?:ld|st).global") == {"ld.global.v4.b32", "st.global.v4.b32"}
    for either in (even, odd):
        assert registers(either, tmp_path) <= 64
        check_rounding(either, "add sub" if norm == "linf" else "add sub mul div sqrt")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_code_of_perturb_weights(kernel_of: Any, dtype: torch.dtype, arch: int, tmp_path: Path) -> None:
    """Only the places of tiles, the passes and the key are not read 16 bytes at a time."""
    kernel = kernel_of(arch, "perturb_weights", *network(NETWORKS[0], 5, dtype, PASSES[-2:]))
    assert instructions(kernel, "(?:ld|st).global") == {"ld.global.b64", "ld.global.v4.b32", "st.global.v4.b32"}
    assert registers(kernel, tmp_path) <= 64
    check_rounding(kernel)


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
    "the quarter of a turn": ("gaussian", "rounded >> 30", "angle_word >> 30"),
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

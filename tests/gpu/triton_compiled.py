"""What Triton makes of its kernels for two generations of GPUs. None is here: nothing runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from triton.compiler import CompiledKernel
from triton_ptx import attack_kernel, noise_kernel, perturb_kernel, sum_kernel, tally_kernel

from smoothfast.names import VOTINGS

ARCHS = (80, 90)
KINDS = (("lattice", "u8"), ("gaussian", "u8"), ("gaussian", "fp32"))
DTYPES = ("fp32", "bf16", "fp16")
# Of a thread of the noise kernels: by Triton 3.8 one of them keeps two more words on its stack.
NOISE_REGISTERS, STACK = (64, 0) if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else (80, 8)


def instructions(kernel: CompiledKernel, pattern: str) -> set[str]:
    return set(re.findall(rf"\b(?:{pattern})[.\w]*", kernel.asm["ptx"]))


def registers(kernel: CompiledKernel, folder: Path) -> int:
    """Of a thread, which spills nothing."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin]
    usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    count, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    assert int(stack) <= STACK
    assert local == "0"
    assert not instructions(kernel, "ld.local|st.local")
    return int(count)


def check_rounding(kernel: CompiledKernel, operations: str = "add sub mul fma sqrt") -> None:
    """Each operation rounds as it says, to nearest even: ptxas contracts none that names its rounding."""
    used = instructions(kernel, r"(?:add|sub|mul|fma|mad|div|sqrt|rcp|ex2|lg2|sin|cos)[.\w]*f(?:32|64)")
    assert used <= {f"{operation}.rn.{type}" for operation in operations.split() for type in ("f32", "f64")}
    assert not any(".ftz" in instruction for instruction in instructions(kernel, r"\w+[.\w]*f32"))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_contiguous_noise(kind: tuple[str, str], dtype: str, arch: int, tmp_path: Path) -> None:
    law, images = kind
    kernel = noise_kernel(law, dtype, images, arch=arch)
    assert instructions(kernel, "st.global") == {"st.global.v4.b32"}
    assert registers(kernel, tmp_path) <= NOISE_REGISTERS
    check_rounding(kernel)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_noise(kind: tuple[str, str], arch: int, tmp_path: Path) -> None:
    law, images = kind
    limit = 255.0 if images == "u8" else 1.0
    kernels = [noise_kernel(law, dtype, images, channels_last=True, arch=arch) for dtype in DTYPES]
    kernels.append(noise_kernel(law, "bf16", images, limit=limit, arch=arch))
    kernels.append(noise_kernel(law, "bf16", images, aligned=False, arch=arch))
    for kernel in kernels:
        assert registers(kernel, tmp_path) <= NOISE_REGISTERS
        check_rounding(kernel)


@pytest.mark.parametrize(("dtype", "cast"), [("bf16", "cvt.rn.bf16"), ("fp16", "cvt.rn.f16")])
def test_casts_are_those_of_the_hardware(dtype: str, cast: str) -> None:
    for channels_last in (False, True):
        used = instructions(noise_kernel("gaussian", dtype, "fp32", channels_last), r"cvt[.\w]*f16[.\w]*")
        assert used
        assert used <= {f"{cast}.f32", f"{cast}x2.f32"}


@pytest.mark.parametrize(("classes", "arch"), [(10, 80), (1000, 90)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tally(dtype: torch.dtype, classes: int, arch: int, tmp_path: Path) -> None:
    atomics = {f"{name}.global.gpu.relaxed.add.u64" for name in ("atom", "red")}
    for voting in VOTINGS:
        kernel = tally_kernel(dtype, classes, voting, arch)
        assert instructions(kernel, "atom|red.global") <= atomics
        assert instructions(kernel, "atom|red.global")
        assert registers(kernel, tmp_path) <= 128
        check_rounding(kernel, "add sub mul fma div" if voting == "soft" else "add mul")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_replica_sum(dtype: str, arch: int, tmp_path: Path) -> None:
    """Gradients are read 16 bytes at a time in either format."""
    for channels_last in (False, True):
        kernel = sum_kernel(dtype, channels_last, arch=arch)
        assert instructions(kernel, r"ld.global.v\d") == {"ld.global.v4.b32"}
        for either in (kernel, sum_kernel(dtype, channels_last, aligned=False, arch=arch)):
            assert registers(either, tmp_path) <= 64
            check_rounding(either, "add mul")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attack_step(norm: str, arch: int, tmp_path: Path) -> None:
    kernel = attack_kernel(norm, arch=arch)
    if norm == "linf":
        assert instructions(kernel, "(?:ld|st).global") == {"ld.global.v4.b32", "st.global.v4.b32"}
    for either in (kernel, attack_kernel(norm, aligned=False, arch=arch)):
        assert registers(either, tmp_path) <= 64
        check_rounding(either, "add sub" if norm == "linf" else "add sub mul div sqrt")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_perturb_weights(dtype: str, arch: int, tmp_path: Path) -> None:
    """Only the places of tiles, the passes and the key are not read 16 bytes at a time."""
    kernel = perturb_kernel(dtype, arch)
    assert instructions(kernel, "(?:ld|st).global") == {"ld.global.b64", "ld.global.v4.b32", "st.global.v4.b32"}
    assert registers(kernel, tmp_path) <= 64
    check_rounding(kernel)

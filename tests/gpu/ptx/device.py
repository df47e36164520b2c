"""The CUDA kernels, compiled to PTX by nvcc and executed by `ptx_interp`, behind the signatures of the ops.

Launches are those that the package would make: it computes them without a device (`cuda_launch_of_*`).
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ptx_interp import Buffer, Memory, Module, Report
from torch import Tensor

from smoothfast import ops
from smoothfast.ops import reference

CSRC = Path(__file__).resolve().parents[3] / "csrc"
FLAGS = ("-std=c++17", "-O3", "-fmad=false")  # those of setup.py
TYPES = {torch.float32: "f", torch.bfloat16: "13__nv_bfloat16", torch.float16: "6__half", torch.uint8: "h"}
LAWS = {"lattice": "LatticeLaw", "gaussian": "GaussianLaw"}
RULES = {"prediction": "10Prediction", "weighted": "8Weighted", "soft": "4Soft", "logit": "5LogitI"}
FORMATS = {torch.float64: "FormatIlL", torch.float32: "FormatIiL", torch.bfloat16: "Ls32640", torch.float16: "Ls31744"}


def nvcc() -> str | None:
    """The compiler, if there is one."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=os.pathsep.join([str(Path(home) / "bin"), os.environ.get("PATH", "")]))


def source_of(stem: str) -> str:
    """csrc/cuda/<stem>_kernel.cu with our own headers in it, so that any line can be changed."""
    return _inlined(CSRC / "cuda" / f"{stem}_kernel.cu", set())


def _inlined(path: Path, seen: set[Path]) -> str:
    if path in seen:
        return ""
    seen.add(path)

    def header(match: re.Match[str]) -> str:
        return _inlined((path.parent / match[1]).resolve(), seen)

    return re.sub(r'^#include "(.*)"$', header, path.read_text().replace("#pragma once\n", ""), flags=re.MULTILINE)


def together(sources: dict[str, str], kernels: Sequence[str]) -> str:
    """Versions of one source as one source, each in a namespace of its name, with these of its kernels alone: headers
    are read once, and no kernel is compiled that nobody launches."""
    used = "void used() {\n" + "".join(f"  {kernel}<<<1, 1>>>({{}});\n" for kernel in kernels) + "}\n"
    headers, spaces = [], []
    for name, source in sources.items():
        device_code, host_code = source.rsplit("}  // namespace\n", 1)
        assert "__device__" not in host_code
        headers += re.findall(r"^#include <.*>$", device_code, re.MULTILINE)
        code = re.sub(r"^#include <.*>$", "", device_code, flags=re.MULTILINE)
        spaces.append(f"namespace {name} {{\n{code}}}\n{used}}}\n}}\n")
    return "\n".join([*dict.fromkeys(headers), *spaces])


def compiled(kind: str, source: str, *options: str) -> bytes:
    """What nvcc makes of a source: CUDA (cu), or PTX (ptx)."""
    with TemporaryDirectory() as folder:
        (Path(folder) / f"kernel.{kind}").write_text(source)
        command = [str(nvcc()), *options, f"kernel.{kind}", "-o", "out"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return (Path(folder) / "out").read_bytes()


@cache
def ptx_of(source: str, arch: int) -> str:
    return compiled("cu", source, *FLAGS, "-ptx", "-lineinfo", f"-arch=compute_{arch}").decode()


@cache
def module_of(source: str, arch: int) -> Module:
    return Module(ptx_of(source, arch))


class ReplicaArgs(ctypes.Structure):
    """`ReplicaArgs` of noisy_replicas.h, field for field."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("images", "out", "slots", "image_ids", "sample_ids", "key")),
        *((name, ctypes.c_uint64) for name in ("high", "low", "guide", "sigma", "scale", "shift")),
        *((name, ctypes.c_uint32) for name in ("units", "channels", "plane", "chunks", "steps")),
        *((name, ctypes.c_int32) for name in ("sigmas", "reach", "entries", "guide_shift", "guide_bytes")),
        *((name, ctypes.c_bool) for name in ("channels_last", "interleaved", "vectorized")),
        *((name, ctypes.c_float) for name in ("least", "most")),
    )


class TallyArgs(ctypes.Structure):
    """`TallyArgs` of tally.h, field for field."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("logits", "slots", "counts", "invalid", "weights")),
        *((name, ctypes.c_int64) for name in ("rows", "classes", "ranks")),
    )


class SumArgs(ctypes.Structure):
    """`SumArgs` of replica_sum.h, field for field."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("gradients", "rows", "first", "scale", "out")),
        *((name, ctypes.c_uint32) for name in ("units", "runs", "channels", "plane")),
        ("channels_last", ctypes.c_bool),
    )


class AttackArgs(ctypes.Structure):
    """`AttackArgs` of attack_step.h with the `Attack` of rules/attack.h in it, field for field."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("adversarial", "images", "gradients")),
        ("units", ctypes.c_int64),
        ("elements", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("alpha", "eps", "low", "high")),
    )


class PerturbArgs(ctypes.Structure):
    """`PerturbArgs` of perturb_weights.h, field for field."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("weights", "scales", "factors", "places", "pass_numbers", "key", "out")),
        ("tiles", ctypes.c_int64),
        *((name, ctypes.c_uint32) for name in ("units", "passes", "rank")),
    )


def array_of(tensor: Tensor) -> np.ndarray:
    """The bits of a tensor, in memory order."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.contiguous().view(torch.uint8).numpy() if tensor.numel() else np.zeros(0, np.uint8)


@dataclass
class Device:
    """A device of one architecture that executes PTX; keeps count of the instructions that were executed.

    Attributes:
        arch: 80 or 90.
        multiprocessors: few, so that a small grid goes through many strides.
        schedule: arguments of `Module.launch`: how threads are interleaved.
        offset: elements by which buffers are shifted from the alignment that allocators give.
        sources: changed sources by stem.
        namespace: of the kernels, where the sources have several.
    """

    arch: int = 80
    multiprocessors: int = 1
    schedule: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    sources: dict[str, str] = field(default_factory=dict)
    namespace: str = ""
    executed: dict[str, Counter[int]] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)

    def place(self, mem: Memory, tensor: Tensor, readonly: bool = False) -> Buffer:
        """A tensor in device memory."""
        return mem.alloc(array_of(tensor), readonly, offset=self.offset * tensor.element_size())

    def launch(self, stem: str, marks: Sequence[str], args: ctypes.Structure, launch: dict[str, int], mem: Any) -> None:
        """Runs the one kernel of a source whose mangled name has all `marks`; raises on any finding."""
        if launch["units"] == 0:
            return  # as the host code
        module = module_of(self.sources.get(stem) or source_of(stem), self.arch)
        (name,) = (name for name in module.kernels if all(mark in name for mark in (*marks, self.namespace)))
        report = module.launch(
            name, launch["grid"], launch["block"], [bytes(args)], mem, launch["shared"], uninit=True, **self.schedule
        )
        self.reports.append(report)
        seen = self.executed.setdefault(f"{stem} {' '.join(marks)}", Counter())
        seen.update({i: int(count) for i, count in enumerate(report.counts) if count})
        report.check()

    def not_executed(self) -> dict[str, list[str]]:
        """By kernel, the instructions that no launch executed; conditional branches aside, what follows them counts."""
        missing = {}
        for report in self.reports:
            code = report.kernel.code
            key = next(k for k in self.executed if all(mark in report.kernel.name for mark in k.split()[1:]))
            where = [code[i].where() for i in range(len(code)) if not self.executed[key][i]]
            missing[key] = [line for line in where if not re.search(r"`@!?%p\d+ bra", line)]
        return missing

    def noise(
        self, mem: Memory, images: Tensor, slots: Tensor, image_ids: Tensor, sample_ids: Tensor, key: Tensor, law: str,
        table: Sequence[Tensor], scale: Tensor, shift: Tensor, clip: bool,
    ) -> ReplicaArgs:  # fmt: skip
        """What a kernel makes noisy images of, but for how it is launched."""

        def read_only(tensor: Tensor) -> int:
            return self.place(mem, tensor.contiguous(), readonly=True).addr

        high, low, guide = table if law == "lattice" else (None, None, None)
        reach, entries = (high.shape[1] // 2, guide.shape[1]) if high is not None else (0, 0)
        octave_bits = next(k for k in range(24) if 31 * 2**k + 1 >= entries)
        bound = float("inf")
        return ReplicaArgs(
            images=read_only(images), slots=read_only(slots), image_ids=read_only(image_ids),
            sample_ids=read_only(sample_ids), key=read_only(key),
            high=0 if high is None else read_only(high), low=0 if low is None else read_only(low),
            guide=0 if guide is None else read_only(guide), sigma=read_only(table[0]) if high is None else 0,
            scale=read_only(scale), shift=read_only(shift), channels=images.shape[1], plane=images[0, 0].numel(),
            sigmas=len(table[0]), reach=reach, entries=entries, guide_shift=23 - octave_bits,
            least=0.0 if clip else -bound, most=(1.0 if images.is_floating_point() else 255.0) if clip else bound,
        )  # fmt: skip

    def noisy_replicas(
        self,
        images: Tensor,
        slots: Tensor,
        image_ids: Tensor,
        sample_ids: Tensor,
        key: Tensor,
        law: str,
        table: Sequence[Tensor],
        scale: Tensor,
        shift: Tensor,
        clip: bool,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        """As `torch.ops.smoothfast.noisy_replicas`."""
        rows, (channels, height, width) = len(slots), images.shape[1:]
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # Filled, so that what is not written shows.
        out = torch.full((rows, channels, height, width), 7.0, dtype=dtype).contiguous(memory_format=memory_format)
        if out.numel() == 0:
            return out
        mem = Memory()
        held = self.place(mem, out)
        args = self.noise(mem, images, slots, image_ids, sample_ids, key, law, table, scale, shift, clip)
        launch = dict(
            ops.extension.cuda_launch_of_noisy_replicas(
                rows, channels, height * width, out.element_size(), channels_last, held.addr % 16 == 0,
                4 * args.sigmas * args.entries, self.multiprocessors,
            )
        )  # fmt: skip
        args.out, args.channels_last = held.addr, channels_last
        for name in ("units", "chunks", "steps", "guide_bytes", "interleaved", "vectorized"):
            setattr(args, name, launch[name])
        marks = (LAWS[law], f"LawE{TYPES[dtype]}{TYPES[images.dtype]}EEv")
        self.launch("noisy_replicas", marks, args, launch, mem)
        bits = torch.from_numpy(held.get()).view(dtype)
        shape = (rows, height, width, channels) if channels_last and not out.is_contiguous() else out.shape
        return bits.view(shape).permute(0, 3, 1, 2) if shape != out.shape else bits.view(shape)

    def tally(
        self, logits: Tensor, slots: Tensor, counts: Tensor, invalid: Tensor, voting: str, weights: Tensor | None
    ) -> None:
        """As `torch.ops.smoothfast.tally`; counts and invalid are contiguous."""
        mem = Memory()
        rows, classes = logits.shape
        read, held = [
            [self.place(mem, tensor, readonly) for tensor in tensors]
            for readonly, tensors in ((True, (logits, slots)), (False, (counts, invalid)))
        ]
        table, ranks = (0, 0) if weights is None else (self.place(mem, weights, readonly=True).addr, len(weights))
        args = TallyArgs(*(buffer.addr for buffer in (*read, *held)), table, rows, classes, ranks)
        launch = dict(ops.extension.cuda_launch_of_tally(rows, self.multiprocessors))
        self.launch("tally", (FORMATS[logits.dtype], RULES[voting]), args, launch, mem)
        for tensor, buffer in zip((counts, invalid), held, strict=True):
            tensor.copy_(torch.from_numpy(buffer.get()).view(torch.int64).view(tensor.shape))

    def replica_sum(self, gradients: Tensor, slots: Tensor, scale: Tensor, images: int) -> Tensor:
        """As `torch.ops.smoothfast.replica_sum`."""
        mem = Memory()
        channels, height, width = gradients.shape[1:]
        channels_last = not gradients.is_contiguous() and gradients.is_contiguous(memory_format=torch.channels_last)
        elements = channels * height * width
        by_slot, rows = slots.sort(stable=True)
        first = torch.searchsorted(by_slot, torch.arange(images + 1))
        source, *read = [self.place(mem, tensor, readonly=True) for tensor in (gradients, rows, first, scale)]
        out = self.place(mem, torch.full((images, channels, height, width), 7.0))
        launch = dict(
            ops.extension.cuda_launch_of_replica_sum(
                images, elements, gradients.element_size(), source.addr % 16 == 0, self.multiprocessors
            )
        )
        args = SumArgs(
            *(buffer.addr for buffer in (source, *read, out)), launch["units"], elements // launch["width"], channels,
            height * width, channels_last,
        )  # fmt: skip
        marks = ("replica_sum_kernel", f"I{TYPES[gradients.dtype]}Li{launch['width']}E")
        self.launch("replica_sum", marks, args, launch, mem)
        return torch.from_numpy(out.get()).view(torch.float32).view(images, channels, height, width)

    def attack_step(
        self, adversarial: Tensor, images: Tensor, gradients: Tensor, norm: str, alpha: float, eps: float, low: float,
        high: float,
    ) -> None:  # fmt: skip
        """As `torch.ops.smoothfast.attack_step`; all tensors contiguous."""
        mem = Memory()
        held, *read = [self.place(mem, t, i > 0) for i, t in enumerate((adversarial, images, gradients))]
        count, elements = len(images), images[0].numel()
        launch = dict(ops.extension.cuda_launch_of_attack_step(count, elements, norm == "l2", self.multiprocessors))
        limits = reference._round_down(eps), -reference._round_down(-low), reference._round_down(high)
        args = AttackArgs(held.addr, *(b.addr for b in read), launch["units"], elements, alpha, *limits)
        self.launch("attack_step", (f"{norm}_kernel",), args, launch, mem)
        adversarial.copy_(torch.from_numpy(held.get()).view(torch.float32).view(adversarial.shape))

    def perturb_weights(
        self, weights: Tensor, scales: Tensor, factors: Tensor, tiles: Tensor, passes: Tensor, key: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        """As `torch.ops.smoothfast.perturb_weights`; all tensors contiguous."""
        out = torch.full((len(passes), *weights.shape), 7.0, dtype=dtype)
        if out.numel() == 0:
            return out
        mem, count, rank = Memory(), len(weights), len(factors)
        read = [
            self.place(mem, tensor, readonly=True).addr if tensor.numel() else 0
            for tensor in (weights, scales, factors, tiles, passes, key)
        ]
        held = self.place(mem, out)
        launch = dict(ops.extension.cuda_launch_of_perturb_weights(count, len(passes), self.multiprocessors))
        args = PerturbArgs(*read, held.addr, count, launch["units"], len(passes), rank)
        self.launch("perturb_weights", (f"perturb_weights_kernelI{TYPES[dtype]}E",), args, launch, mem)
        return torch.from_numpy(held.get()).view(dtype).view(out.shape)


def disassembler() -> str | None:
    """nvdisasm, which comes with the toolkit and with Triton."""
    found = find_spec("triton")
    folders = [
        str(Path(path) / "backends" / "nvidia" / "bin") for path in (found.submodule_search_locations if found else [])
    ]
    return shutil.which("nvdisasm", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


@cache
def sass_of(stem: str, arch: int) -> dict[str, list[str]]:
    """By kernel, the machine instructions of csrc/cuda/<stem>_kernel.cu."""
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled("ptx", ptx_of(source_of(stem), arch), "-cubin", f"-arch=sm_{arch}"))
        text = subprocess.run([str(disassembler()), str(cubin)], capture_output=True, text=True, check=True).stdout
    kernels: dict[str, list[str]] = {}
    for section in text.split("\t.section\t.text.")[1:]:
        lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?) ;", section)
        kernels[section.split(",")[0]] = [line for line in lines if not line.startswith(("NOP", "BRA `(.L_x_"))]
    return kernels

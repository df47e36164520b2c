"""A device that executes the PTX of Triton's kernels, in the place of Triton's driver."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import triton
from ptx_interp import Buffer, Memory, Module, Report
from torch import Tensor
from triton.compiler import CompiledKernel

WRITTEN = {"out", "counts", "invalid", "adversarial"}  # names of parameters


@cache  # parsing takes as long as a launch
def module_of(ptx: str) -> Module:
    return Module(ptx)


@dataclass
class Device:
    """What Triton takes for its driver and its device: of one architecture; keeps count of what was executed.

    Attributes:
        arch: 80 or 90.
        schedule: arguments of `Module.launch`: how threads are interleaved.
        executes: whether a launch does more than to compile.
        kernel: that of the last launch.
    """

    arch: int
    schedule: dict[str, Any] = field(default_factory=dict)
    executed: dict[str, Counter[int]] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)
    executes: bool = True
    kernel: CompiledKernel | None = None

    def get_current_device(self) -> int:
        return self.arch  # under which kernels are kept

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", self.arch, 32)

    def launch(self, compile: Any, function: Any, *values: Any, grid: tuple[int, ...], **options: Any) -> None:
        """In the place of `JITFunction.run`, which is `compile`; raises on any finding."""
        self.kernel = kernel = compile(function, *values, grid=grid, **options | {"warmup": True})
        if not self.executes:
            return
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

"""The fused kernels for AMX on processors that lack it, by amx_emulated.cpp."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

OF_FOLDERS = [
    f"cpu/fused/{folder}/{stem}" for folder in ("tiles", "integer") for stem in ("network", "pack", "program")
]
KERNELS = ("cpu/isa", "fused/plan", *OF_FOLDERS)
SOURCES = ["tests/helpers/amx_emulated.cpp", *(f"csrc/{stem}.cpp" for stem in KERNELS)]
KINDS = ("products", "loads", "stores", "zeros", "configurations")


def compiler_version() -> int:
    """Of g++; 0 if there is none."""
    if shutil.which("g++") is None:
        return 0
    return int(subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout.split(".")[0])


class EmulatedAmx:
    """The ops of the same names, where their arithmetic is "amx". In one thread, at a few microseconds an instruction.

    Attributes:
        executed: instructions of the last call, by kind.
    """

    executed: dict[str, int]

    def __init__(self, folder: Path) -> None:
        library = folder / "amx_emulated.so"
        flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-Icsrc"]
        compiled = ["g++", *flags, *SOURCES, "-o", str(library)]
        subprocess.run(compiled, cwd=Path(__file__).parents[2], check=True)
        loaded = ctypes.CDLL(str(library))
        self._run, self._run_integers = loaded.run_with_amx, loaded.run_integers_with_amx

    def fused_logits(self, replicas: Tensor, packed: Tensor, shape: list[int], arithmetic: str) -> Tensor:
        return self._called(replicas, None, packed, shape, arithmetic)[0]

    def integer_logits(self, replicas: Tensor, packed: Tensor, shape: list[int]) -> Tensor:
        """As `fused_logits` by "int8_amx"."""
        replicas = replicas.permute(0, 2, 3, 1).contiguous()
        logits = torch.empty(len(replicas), shape[-1])
        numbers, executed = torch.tensor(shape), torch.zeros(len(KINDS), dtype=torch.int64)
        places = [ctypes.c_void_p(t.data_ptr()) for t in (numbers, packed, replicas, logits, executed)]
        self._run_integers(*places[:3], ctypes.c_int64(len(replicas)), *places[3:])
        self.executed = dict(zip(KINDS, executed.tolist(), strict=True))
        return logits

    def fused_gradients(
        self, replicas: Tensor, classes: Tensor, packed: Tensor, shape: list[int], arithmetic: str
    ) -> tuple[Tensor, Tensor]:
        return self._called(replicas, classes.contiguous(), packed, shape, arithmetic)

    def _called(
        self, replicas: Tensor, classes: Tensor | None, packed: Tensor, shape: list[int], arithmetic: str
    ) -> tuple[Tensor, Tensor]:
        assert arithmetic == "amx"
        replicas = replicas.contiguous(memory_format=torch.channels_last)
        logits = torch.empty(len(replicas), shape[-1])
        gradients = torch.empty(replicas.shape if classes is not None else 0)
        numbers, executed = torch.tensor(shape), torch.zeros(len(KINDS), dtype=torch.int64)
        places = [ctypes.c_void_p(t.data_ptr()) for t in (numbers, packed, replicas, logits, gradients, executed)]
        labels = ctypes.c_void_p(None if classes is None else classes.data_ptr())
        self._run(*places[:3], ctypes.c_int64(len(replicas)), places[3], labels, *places[4:])
        self.executed = dict(zip(KINDS, executed.tolist(), strict=True))
        return logits, gradients

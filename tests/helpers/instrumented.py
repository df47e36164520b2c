"""smoothfast._C compiled under an instrument, and processes of Python that load it in place of the usual one.

The ops are those of the package, on tensors of torch, whose memory comes from the allocator of the instrument.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

from smoothfast import ops

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SOURCES = sorted(path.relative_to(CSRC) for path in CSRC.rglob("*.cpp") if "cuda" not in path.parts)
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
# As in setup.py, but for what makes code hard to read: sanitizers watch sources, not what an optimiser makes of them.
FLAGS = ("-O1", "-g1", "-w", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-wrapv")


@dataclass(frozen=True)
class Instrument:
    """A sanitizer of the compiler.

    Attributes:
        flags: of the compiler.
        libraries: what a process loads before all else: the runtime of the sanitizer, and what that looks for.
        options: environment variables.
    """

    name: str
    flags: tuple[str, ...]
    libraries: tuple[str, ...]
    options: dict[str, str]


# Leaks are not looked for here: an interpreter leaves much behind. Nor are types, of which torch hides some (vptr).
ADDRESS = Instrument(
    "address",
    ("-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
    ("libasan.so", "libstdc++.so"),
    {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
)
# What torch and the libraries below it read and write is not looked at (its threads of OpenMP would be races), but
# where threads wait there is. A suppression called_from_lib:libtorch_cpu.so leaves that out as well, and by halves: a
# function of torch that ends in a jump to pthread_mutex_unlock, as registerOpaqueType does, seems called by its
# caller, which then unlocks what nobody locked.
THREAD = Instrument(
    "thread",
    ("-DINTRA_OP_PARALLEL", "-include", str(Path(__file__).with_name("threads.h")), "-fsanitize=thread"),
    ("libtsan.so", "libstdc++.so"),
    {"TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1"},
)


@dataclass(frozen=True)
class Defect:
    """A defect to be planted: texts of files of csrc/, each of which must occur once, with what they become, and the
    source that is then compiled anew."""

    changes: dict[str, dict[str, str]]
    source: str


class Instrumented:
    """The package with its extension under an instrument, in a folder."""

    def __init__(self, instrument: Instrument, folder: Path) -> None:
        self.instrument, self.folder = instrument, folder
        self._objects = folder / "objects"
        self._objects.mkdir(parents=True)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            objects = list(pool.map(lambda source: self._compiled(CSRC, source), SOURCES))
        self._of_source = dict(zip(SOURCES, objects, strict=True))
        self._package(folder / "package", objects)

    def run(self, arguments: Sequence[str], package: str = "package") -> subprocess.CompletedProcess[str]:
        """Python with these arguments, its output and reports together. Not in the folder of the repository, where it
        would find the usual extension."""
        names = [[*COMPILER, f"-print-file-name={name}"] for name in self.instrument.libraries]
        found = [subprocess.run(name, capture_output=True, text=True, check=True).stdout.strip() for name in names]
        changed = {
            "LD_PRELOAD": " ".join(os.path.realpath(path) for path in found),
            "PYTHONPATH": str(self.folder / package),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder, env=os.environ | self.instrument.options | changed, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

    def test(self, *arguments: str, package: str = "package") -> subprocess.CompletedProcess[str]:
        """Tests of the package. What a process says when it is stopped is not captured."""
        configured = ["-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-q", "-s", "-p", "no:cacheprovider"]
        return self.run([*configured, *arguments], package)

    def plant(self, defect: Defect) -> str:
        """A package with a defect in it; its name."""
        name = f"defect{len(list(self.folder.glob('defect*')))}"
        csrc = self.folder / f"{name}-csrc"
        shutil.copytree(CSRC, csrc)
        for path, texts in defect.changes.items():
            content = (csrc / path).read_text()
            for text, instead in texts.items():
                assert content.count(text) == 1
                content = content.replace(text, instead)
            (csrc / path).write_text(content)
        source = Path(defect.source)
        objects = self._of_source | {source: self._compiled(csrc, source)}
        self._package(self.folder / name, list(objects.values()))
        return name

    def _compiled(self, csrc: Path, source: Path) -> Path:
        standard = ops.extension.build_info()["cplusplus"][2:4]
        out = self._objects / f"{csrc.name}-{'-'.join(source.with_suffix('.o').parts)}"
        folders = [str(csrc), sysconfig.get_paths()["include"], *include_paths()]
        command = [*COMPILER, f"-std=c++{standard}", *FLAGS, *self.instrument.flags]
        command += [*(f"-I{folder}" for folder in folders), "-c", str(csrc / source), "-o", str(out)]
        subprocess.run(command, check=True)
        return out

    def _package(self, folder: Path, objects: list[Path]) -> None:
        """All of smoothfast/ but for the extension, by links, and the one made of these objects."""
        package = folder / "smoothfast"
        package.mkdir(parents=True)
        for path in (ROOT / "smoothfast").iterdir():
            if not path.name.startswith("_C"):
                (package / path.name).symlink_to(path)
        library = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        torchs = Path(torch.__file__).parent / "lib"
        linked = ["-shared", *self.instrument.flags, *map(str, objects), f"-L{torchs}"]
        linked += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python", "-o", str(library)]
        subprocess.run([*COMPILER, *linked], check=True)

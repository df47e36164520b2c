"""The CUDA kernels compiled for the CPU, a thread for a thread, under the sanitizers of the host's compiler.

Their results are compared with the CPU backend bit for bit. Cases are those of test_cuda.py; no CUDA toolkit is needed.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import cases
import numpy as np
import pytest
import torch
from device import CSRC, Device, source_of
from ptx_interp import GLOBAL_BASE, Memory

HERE = Path(__file__).parent
SHIM = HERE / "ptx" / "cuda_on_cpu"
STEMS = ("noisy_replicas", "tally", "replica_sum", "attack_step", "perturb_weights")
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
SANITIZERS = ("thread", "address,undefined")
FLAGS = ("-std=c++17", "-O1", "-g1", "-w", "-ffp-contract=off", "-pthread", f"-I{SHIM}", f"-I{CSRC}")
# Leaks are not looked for: that takes ptrace, which containers may forbid.
OPTIONS = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
ROWS = torch.stack([torch.arange(24) % 4 - 1, torch.arange(24), torch.arange(24)], 1)  # three strides of 8 blocks
ALIGNMENT = 256  # of what allocators give; that of serve.cpp
FOLDER = TemporaryDirectory()  # of what is compiled
Mistake = str | tuple[str, int]  # one of MUTATIONS, or of BARRIERS

pytestmark = pytest.mark.usefixtures("one_thread", "extension")


# ---- programs --------------------------------------------------------------------------------------------------------


def compile_cpp(sanitizer: str, *arguments: str | Path) -> Path:
    """What the compiler makes of C++ sources or objects."""
    out = Path(mkdtemp(dir=FOLDER.name)) / "out.o"
    command = [*COMPILER, *FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    subprocess.run([*command, *arguments, "-o", out], capture_output=True, text=True, check=True)
    return out


def as_cpp(source: str) -> str:
    """CUDA as C++: written differently are launches and the memory that they bring, which no header gives a meaning."""
    launch = r"(\w+)<<<(.*), kThreads, (.*), stream>>>\((.*)\);", r"run_grid(\2, \3, [&] { \1(\4); });"
    shared = r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = reinterpret_cast<\1*>(dynamic_shared.data());"
    return re.sub(*shared, re.sub(*launch, source))


def with_mistakes(stem: str) -> str:
    """The source of a stem with all of its mistakes, of which a process makes the one that its environment names: so
    each source is compiled once, and not once for each mistake."""

    def choice(mistake: Mistake, text: str, instead: str) -> str:
        right, wrong = text.removesuffix(";"), instead.removesuffix(";")
        return f"(mistake == {number_of(mistake)} ? {wrong} : {right})" + ";" * text.endswith(";")

    first, *others = source_of(stem).split(BARRIER)
    source = first + "".join(choice((stem, i), BARRIER, "void()") + part for i, part in enumerate(others))
    for mistake, (where, text, instead) in MUTATIONS.items():
        if where == stem:
            assert source.count(text) == 1
            source = source.replace(text, choice(mistake, text, instead))
    return source


def object_of(sanitizer: str, source: str) -> Path:
    path = Path(mkdtemp(dir=FOLDER.name)) / "kernel.cpp"
    path.write_text(as_cpp(source))
    return compile_cpp(sanitizer, "-c", path)


@cache
def program(sanitizer: str) -> Path:
    """All kernels, and what runs them."""
    sources = [*map(with_mistakes, STEMS), (SHIM / "serve.cpp").read_text()]
    return compile_cpp(sanitizer, *(object_of(sanitizer, source) for source in sources))


@cache
def lacking(sanitizer: str) -> str:
    """Why no program runs under a sanitizer here, or nothing."""
    if shutil.which(COMPILER[0]) is None:
        return f"there is no C++ compiler {COMPILER[0]}"
    source = Path(mkdtemp(dir=FOLDER.name)) / "empty.cpp"
    source.write_text("int main() {}\n")
    try:
        subprocess.run([compile_cpp(sanitizer, source)], capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        return f"{COMPILER[0]} -fsanitize={sanitizer} gives nothing that runs: {error.stderr}"
    return ""


# ---- a device --------------------------------------------------------------------------------------------------------


class SanitizerError(Exception):
    """What a sanitizer reported."""


class OnCpu(Device):
    """A device whose kernels run in a process of their own, under a sanitizer."""

    def __init__(self, path: Path, mistake: Mistake | None) -> None:
        super().__init__()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        chosen = {} if mistake is None else {"MISTAKE": str(number_of(mistake))}
        self.process = subprocess.Popen([path], env=os.environ | OPTIONS | chosen, **pipes)

    def launch(
        self, stem: str, marks: Sequence[str], args: ctypes.Structure, launch: dict[str, int], mem: Memory
    ) -> None:
        if launch["units"] == 0:
            return  # as the host code
        addresses = [getattr(args, name) for name, kind in args._fields_ if kind is ctypes.c_uint64]
        rest = bytes(args)[8 * len(addresses) :]
        name = " ".join((stem, *marks)).encode()
        head = struct.pack("<64s4q", name, launch["grid"], launch["shared"], len(addresses), len(rest))
        buffers = [bytes_at(mem, address) for address in addresses]
        held = [
            struct.pack("<2q", len(buffer), address % ALIGNMENT) + buffer.tobytes()
            for address, buffer in zip(addresses, buffers, strict=True)
        ]
        self.process.stdin.write(b"".join([head, *held, rest]))
        self.process.stdin.flush()
        for buffer in buffers:
            answer = self.process.stdout.read(len(buffer))
            if len(answer) < len(buffer):
                raise SanitizerError(self.end())
            buffer[:] = np.frombuffer(answer, np.uint8)

    def end(self) -> str:
        """Lets the process come to its end; what it reported."""
        report = self.process.communicate()[1].decode()
        return report or f"exit status {self.process.returncode}" * (self.process.returncode != 0)


def bytes_at(mem: Memory, address: int) -> np.ndarray:
    """The buffer that begins at an address: up to the next byte that belongs to none."""
    start = address - GLOBAL_BASE if address else 0
    return mem.bytes[start : start + np.argmin(mem.state[start:])]


@contextmanager
def on_cpu(sanitizer: str, mistake: Mistake | None = None) -> Iterator[OnCpu]:
    if lacking(sanitizer):
        pytest.skip(lacking(sanitizer))
    device = OnCpu(program(sanitizer), mistake)
    try:
        yield device
        report = device.end()
        if report:
            raise SanitizerError(report)
    finally:
        device.process.kill()


@pytest.fixture(params=SANITIZERS)
def on(request: pytest.FixtureRequest) -> Iterator[OnCpu]:
    with on_cpu(request.param) as device:
        yield device


# ---- the kernels -----------------------------------------------------------------------------------------------------


def test_noisy_replicas(on: OnCpu) -> None:
    """Every two of shape, kind, dtype and memory format meet."""
    every = [
        (shape, kind, cases.DTYPES[(i + place) % 3], (i + place) % 2 == 1)
        for place, shape in enumerate(cases.SHAPES)
        for i, kind in enumerate(cases.KINDS)
    ]
    for number, (shape, (law, image_dtype), dtype, channels_last) in enumerate(every):
        on.offset = number % 5 // 3
        clip, per_channel = number % 2 == 0, number % 7 < 3
        case = cases.arguments(shape, law, image_dtype, dtype, channels_last, clip, per_channel)
        assert cases.same(on.noisy_replicas(*case), torch.ops.smoothfast.noisy_replicas(*case))


def test_noisy_replicas_in_many_strides_of_the_grid(on: OnCpu) -> None:
    for channels_last in (False, True):
        case = cases.arguments((3, 8, 8), channels_last=channels_last, rows=ROWS)
        assert cases.same(on.noisy_replicas(*case), torch.ops.smoothfast.noisy_replicas(*case))


def test_noisy_replicas_where_words_tie(on: OnCpu) -> None:
    case = cases.tied(cases.arguments((3, 8, 8)))
    assert cases.same(on.noisy_replicas(*case), torch.ops.smoothfast.noisy_replicas(*case))


def test_tally(on: OnCpu) -> None:
    sizes = [(0, 3), (1, 1), (13, 10), (70, 33), (5, 1000)]
    forms = [("prediction", *size) for size in sizes] + [(voting, 11, 70) for voting in cases.VOTINGS]
    for (voting, rows, classes), (on.offset, dtype) in product(forms, enumerate([torch.float64, *cases.DTYPES])):
        logits, slots, counts, invalid, *rule = cases.votes(rows, classes, dtype, voting=voting)
        expected = counts.clone(), invalid.clone()
        torch.ops.smoothfast.tally(logits, slots, *expected, *rule)
        on.tally(logits, slots, counts, invalid, *rule)
        assert torch.equal(counts, expected[0])
        assert torch.equal(invalid, expected[1])


def test_replica_sum(on: OnCpu) -> None:
    for dtype, channels_last in product(cases.DTYPES, (False, True)):
        for shape, rows, on.offset in [((3, 5, 7), 0, 0), ((3, 5, 7), 9, 0), ((3, 16, 16), 9, 1), ((3, 40, 40), 9, 0)]:
            case = cases.gradients(shape, rows, dtype, channels_last)
            assert torch.equal(on.replica_sum(*case), torch.ops.smoothfast.replica_sum(*case))


def test_attack_step(on: OnCpu) -> None:
    shapes = [(1, 1, 1), (3, 5, 7), (3, 16, 20)]
    for shape, norm, (on.offset, eps) in product(shapes, ("linf", "l2"), enumerate((0.03, 0.0))):
        adversarial, *rest = cases.attack(shape, norm, eps)
        expected = adversarial.clone()
        torch.ops.smoothfast.attack_step(expected, *rest)
        on.attack_step(adversarial, *rest)
        assert torch.equal(adversarial, expected)


def test_perturb_weights(on: OnCpu) -> None:
    ranks = (0, 5, 18)
    for layers, (on.offset, dtype), rank in zip(cases.NETWORKS, enumerate(cases.DTYPES), ranks, strict=True):
        case = cases.network(layers, rank, dtype)
        assert torch.equal(on.perturb_weights(*case), torch.ops.smoothfast.perturb_weights(*case))


# ---- the tests themselves --------------------------------------------------------------------------------------------

BARRIER = "__syncthreads()"
BARRIERS = [(stem, number) for stem in STEMS for number in range(source_of(stem).count(BARRIER))]
# An expression of a source, which is there once, and what is wrong in its place.
MUTATIONS = {
    "the atomic": (
        "tally",
        "atomicAdd(reinterpret_cast<unsigned long long*>(count), static_cast<unsigned long long>(amount))",
        "*count += amount",
    ),
    "one element too many": ("noisy_replicas", "i < count;", "i <= count;"),
    "one entry of the guide too many": (
        "noisy_replicas",
        "i < args.guide_bytes / sizeof(int32_t)",
        "i <= args.guide_bytes / sizeof(int32_t)",
    ),
    "one draw too many": ("noisy_replicas", "here >= at.end", "here > at.end"),
    "wide where it is not aligned": ("noisy_replicas", "args.vectorized", "true"),
    "one class too many": ("tally", "c < classes", "c <= classes"),
    "one row too many": ("replica_sum", "i < args.first[image + 1]", "i <= args.first[image + 1]"),
    "one unit too many": ("replica_sum", "unit < args.units", "unit <= args.units"),
    "one pixel too many": ("attack_step", "i < args.units", "i <= args.units"),
    "one lane too many": ("attack_step", "threadIdx.x < half", "threadIdx.x <= half"),
    "one tile too many": ("perturb_weights", "tile < args.tiles", "tile <= args.tiles"),
    "one factor too many": ("perturb_weights", "k < args.rank", "k <= args.rank"),
}


def number_of(mistake: Mistake) -> int:
    return 1 + [*BARRIERS, *MUTATIONS].index(mistake)


def run(on: OnCpu, stem: str) -> None:
    """A kernel in several strides of the grid; a sanitizer may stop it."""
    if stem == "noisy_replicas":
        on.offset = 1
        on.noisy_replicas(*cases.arguments((2, 5, 5), rows=ROWS))
    elif stem == "tally":
        on.tally(*cases.votes(70, 10, torch.float32))
    elif stem == "replica_sum":
        on.replica_sum(*cases.gradients((3, 5, 7), 9, torch.float32, False))
    elif stem == "perturb_weights":
        on.perturb_weights(*cases.network(cases.NETWORKS[2], 5, torch.float32))
    else:
        for norm in ("l2", "linf"):
            on.attack_step(*cases.attack((3, 16, 20), norm, 0.03))


def test_what_is_not_mutated_runs(on: OnCpu) -> None:
    for stem in STEMS:
        run(on, stem)


@pytest.mark.parametrize(("stem", "number"), BARRIERS)
def test_every_barrier_is_needed(stem: str, number: int) -> None:
    with pytest.raises(SanitizerError, match="data race"), on_cpu("thread", (stem, number)) as on:
        run(on, stem)


def test_the_atomic_is_needed() -> None:
    with pytest.raises(SanitizerError, match="data race"), on_cpu("thread", "the atomic") as on:
        run(on, "tally")


@pytest.mark.parametrize("mutation", [name for name in MUTATIONS if name != "the atomic"])
def test_an_access_out_of_place_is_found(mutation: str) -> None:
    with (
        pytest.raises(SanitizerError, match=r"buffer-overflow|runtime error"),
        on_cpu("address,undefined", mutation) as on,
    ):
        run(on, MUTATIONS[mutation][0])

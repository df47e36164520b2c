"""The extension under sanitizers: calls of all ops on odd shapes, the tests of the ops, and defects that are found.
And the bodies of the kernels under memcheck, which knows neither AVX-512 nor, within minutes, torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.instrumented import ADDRESS, COMPILER, CSRC, ROOT, THREAD, Defect, Instrument, Instrumented

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]
PROGRAM = str(ROOT / "tests" / "helpers" / "odd_calls.py")
# Tests of the bodies of the kernels; in one thread, where no two race, but for those of threads.
TESTS = {"address": "instruction_set or contiguous or scalar or avx", "thread": "number_of_threads"}
TALLY, STEP, SUM = ("cpu/tally_kernel.h", "cpu/attack_step_kernel.h", "cpu/replica_sum_kernel.h")
WRAPPING = ("uint64_t total = 0", "total += (uint64_t)fixed(terms[i] * kTermUnits)")
STEPS, ARENAS = (
    "cpu/attack_step.cpp",
    tuple(f"cpu/fused/{name}/network.cpp" for name in ("tiles", "winograd", "integer")),
)
TASKS = ("cpu/noisy_replicas.cpp", "cpu/perturb_weights.cpp", "cpu/replica_sum.cpp")
TASK_TWICE = "task = std::max<int64_t>(begin - 1, 0)"
DEFECTS = {
    "address": {
        "one element too many": Defect({STEP: {"i < end; ++i": "i <= end; ++i"}}, "cpu/attack_step.cpp"),
        "a row too many": Defect({SUM: {"- 3; i < last": "- 2; i < last"}}, "cpu/replica_sum.cpp"),
        "a sum that overflows": Defect(
            {TALLY: {text: text.replace("uint64_t", "int64_t") for text in WRAPPING}}, "cpu/tally.cpp"
        ),
    },
    "thread": {
        "no lock": Defect({"cpu/tally.cpp": {"const std::lock_guard<std::mutex> alone(adding);": ""}}, "cpu/tally.cpp"),
        "votes in one place": Defect({"cpu/tally.cpp": {"votes.data() + begin": "votes.data()"}}, "cpu/tally.cpp"),
        "an element twice": Defect({STEPS: {"(job, begin, end)": "(job, begin, std::min(end + 1, units))"}}, STEPS),
        **{f"a task twice, {op}": Defect({op: {"task = begin": TASK_TWICE}}, op) for op in TASKS},
        **{f"one memory for all, {at}": Defect({at: {"thread_local Arena": "Arena"}}, at) for at in ARENAS},
    },
}

SPOILED = """
static const int never_written = (Raw<int64_t>(3).look(), 0);
"""


def runs_under(instrument: Instrument, folder: Path) -> bool:
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    made = [*COMPILER, *instrument.flags, str(source), "-o", str(folder / "empty")]
    try:
        return all(not subprocess.run(command, check=False).returncode for command in (made, [folder / "empty"]))
    except OSError:
        return False


@pytest.fixture(scope="module", params=[ADDRESS, THREAD], ids=lambda instrument: instrument.name)
def instrumented(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Instrumented:
    folder: Path = tmp_path_factory.mktemp(request.param.name)
    if not runs_under(request.param, folder):
        pytest.skip(f"{COMPILER[0]} gives nothing here that runs under the {request.param.name} sanitizer")
    return Instrumented(request.param, folder)


def test_odd_calls(instrumented: Instrumented) -> None:
    found = instrumented.run([PROGRAM])
    assert found.returncode == 0, found.stdout
    assert "scalar noisy_replicas=" in found.stdout


def test_the_tests_of_the_ops(instrumented: Instrumented) -> None:
    found = instrumented.test(str(ROOT / "tests" / "ops"), "-k", TESTS[instrumented.instrument.name])
    assert found.returncode == 0, found.stdout


def test_defects_are_found(instrumented: Instrumented) -> None:
    for name, defect in DEFECTS[instrumented.instrument.name].items():
        found = instrumented.run([PROGRAM], instrumented.plant(defect))
        assert found.returncode != 0, name
        assert any(text in found.stdout for text in ("data race", "buffer-overflow", "runtime error")), found.stdout


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
@pytest.mark.parametrize("number", range(5), ids=["noisy_replicas", "tally", "replica_sum", "attack_step", "weights"])
def test_memcheck(number: int, tmp_path: Path) -> None:
    source, program = ROOT / "tests" / "ops" / "kernels_watched.cpp", str(tmp_path / "program")
    for name, text in {"clean": source.read_text(), "spoiled": source.read_text() + SPOILED}.items():
        (tmp_path / f"{name}.cpp").write_text(text)
        flags = ["-std=c++17", "-O3", "-g1", "-w", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
        made = [*COMPILER, *flags, f"-I{CSRC}", f"-DOP={number}", str(tmp_path / f"{name}.cpp"), "-o", program]
        subprocess.run(made, check=True)
        watched = ["valgrind", "-q", "--error-exitcode=9", program]
        found = subprocess.run(watched, capture_output=True, text=True, check=False)
        assert found.returncode == {"clean": 0, "spoiled": 9}[name], found.stderr

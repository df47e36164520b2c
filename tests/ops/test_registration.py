"""The ops as PyTorch sees them: opcheck, torch.compile, torch.export, schemas, and the choice of backend."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import smoothfast as sf
from smoothfast import ops
from smoothfast.names import VOTINGS
from smoothfast.noise import Stream, gaussian_law, lattice_law, stream_key
from smoothfast.ops import backend, reference
from smoothfast.voting import Voting, voting_rule

pytestmark = pytest.mark.usefixtures("one_thread")
SLOTS = torch.tensor([1, 0, -1, 1])
IDS = torch.tensor([2**33, 3, 0, 2**33])
IMAGES = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


KEY = stream_key(5, Stream.ESTIMATE)
SIGMA = (0.25, 0.5, 0.12)
LAWS = {torch.uint8: lattice_law(SIGMA), torch.float32: gaussian_law(SIGMA)}
AFFINE = {dtype: ops.affine(([0.5] * 3, [0.25] * 3), 3, dtype) for dtype in LAWS}


def replica_arguments(images: Tensor, dtype: torch.dtype, channels_last: bool, rows: int = 4) -> tuple[Any, ...]:
    law, (scale, shift) = LAWS[images.dtype], AFFINE[images.dtype]
    indices = [part[:rows] for part in (SLOTS, IDS, IDS)]
    return images, *indices, KEY, law.name, list(law.table), scale, shift, False, dtype, channels_last


def tally_arguments(logits: Tensor) -> tuple[Tensor, ...]:
    return logits, SLOTS, torch.zeros(2, logits.shape[1], dtype=torch.int64), torch.zeros(2, dtype=torch.int64)


def smoothed(images: Tensor, counts: Tensor, invalid: Tensor) -> Tensor:
    """Both ops in one function; the classes are the four first pixels."""
    replicas = ops.noisy_replicas(images, SLOTS, IDS, IDS, KEY, LAWS[images.dtype], *AFFINE[images.dtype])
    logits = replicas.flatten(1)[:, :4] * 2
    ops.tally(logits.detach(), SLOTS, counts, invalid)
    return logits


def results(function: Any, images: Tensor) -> list[Tensor]:
    """Logits, counts, invalid and, for float images, their gradient."""
    leaf = images.clone().requires_grad_(images.is_floating_point())
    counts, invalid = tally_arguments(torch.zeros(4, 4))[2:]
    logits = function(leaf, counts, invalid)
    gradient = list(torch.autograd.grad(logits.square().sum(), leaf)) if leaf.requires_grad else []
    return [logits.detach(), counts, invalid, *gradient]


def check_equal(actual: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# ---- PyTorch's own checks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        replica_arguments(IMAGES, torch.float32, False),
        replica_arguments(IMAGES[:, :, :1, :1], torch.bfloat16, True),
        replica_arguments(IMAGES, torch.float16, False, rows=0),
        replica_arguments(IMAGES / 255, torch.float16, True),
        replica_arguments((IMAGES / 255).requires_grad_(), torch.float32, False),
        replica_arguments((IMAGES / 255).requires_grad_(), torch.bfloat16, True),
    ],
    ids=["lattice", "pixel", "no-rows", "gaussian", "gradient", "gradient-bfloat16"],
)
def test_opcheck_of_noisy_replicas(arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(torch.ops.smoothfast.noisy_replicas.default, arguments)


@pytest.mark.parametrize(("dtype", "requires_grad"), [(torch.float64, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("voting", VOTINGS)
def test_opcheck_of_tally(voting: str, dtype: torch.dtype, requires_grad: bool) -> None:
    logits = torch.randn(4, 10, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_(requires_grad)
    arguments = (*tally_arguments(logits), voting, voting_rule(voting, 10).weights)
    torch.library.opcheck(torch.ops.smoothfast.tally.default, arguments)


@pytest.mark.parametrize(
    ("name", "mutates"),
    [
        ("noisy_replicas", ()),
        ("tally", ("counts", "invalid")),
        ("replica_sum", ()),
        ("attack_step", ("adversarial",)),
        ("perturb_weights", ()),
    ],
)
def test_schema_is_that_of_the_reference(name: str, mutates: tuple[str, ...]) -> None:
    schema = torch.library.infer_schema(getattr(reference, name), mutates_args=mutates)
    assert str(getattr(torch.ops.smoothfast, name).default._schema) == f"smoothfast::{name}{schema}"


# ---- compile and export ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["aot_eager", "inductor"])
def compiler(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "inductor" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    yield request.param
    torch._dynamo.reset()


def test_compile(compiler: str) -> None:
    compiled = torch.compile(smoothed, fullgraph=True, backend=compiler)
    images = IMAGES / 255 if compiler == "aot_eager" else IMAGES
    check_equal(results(compiled, images), results(smoothed, images))


def test_compile_passes_scalars_as_they_are(compiler: str) -> None:
    """Also once torch.compile takes a float that changes for a variable."""

    def step(adversarial: Tensor, alpha: float, eps: float) -> None:
        ops.attack_step(adversarial, images, gradients, "l2", alpha, 2 * eps, 0.0, 1.0)

    images, gradients = IMAGES / 255, torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    for i in range(4):
        once, again = images.clone(), images.clone()
        step(once, 0.1 + i / 7, 0.3 + i / 11)
        compiled(again, 0.1 + i / 7, 0.3 + i / 11)
        check_equal([again], [once])
        assert not torch.equal(once, images)


def test_compiled_voting_rules(compiler: str) -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    for name in VOTINGS:
        rule = voting_rule(name, 10)

        def call(logits: Tensor, counts: Tensor, invalid: Tensor, rule: Voting = rule) -> Tensor:
            ops.tally(logits * 2, SLOTS, counts, invalid, rule)
            return counts + 1

        once, again = tally_arguments(logits), tally_arguments(logits)
        wanted = call(logits, *once[2:])
        found = torch.compile(call, fullgraph=True, backend=compiler)(logits, *again[2:])
        check_equal([found, *again[2:]], [wanted, *once[2:]])
        assert wanted.max() > 1


def test_export() -> None:
    class Module(torch.nn.Module):
        def forward(self, images: Tensor, counts: Tensor, invalid: Tensor) -> Tensor:
            return smoothed(images, counts, invalid)

    exported = torch.export.export(Module(), (IMAGES, *tally_arguments(torch.zeros(4, 4))[2:]), strict=False)
    check_equal(results(exported.module(), IMAGES), results(smoothed, IMAGES))


def test_autocast_leaves_the_ops_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = results(smoothed, IMAGES)
    check_equal(inside, results(smoothed, IMAGES))


# ---- the choice of backend -------------------------------------------------------------------------------------------

# Prints what a process with other settings computes.
PROBE = """
import json, torch, smoothfast as sf
noise = sf.noise.lattice((200,), 0.5, 2**40, 2**33, [0, 2**32], sf.noise.Stream.PREDICT)
counts, invalid = torch.zeros(1, 200, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
logits = torch.cat([noise.float(), torch.full((1, 200), torch.nan)])
sf.ops.tally(logits, torch.zeros(3, dtype=torch.int64), counts, invalid)
extension = sf.ops.extension
used = "reference" if extension is None else extension.instruction_set()
print(json.dumps([used, noise.tolist(), counts.tolist(), invalid.tolist()]))
"""

# Runs into a bad setting, prints the error, and corrects the setting.
MISTAKE = """
import os, smoothfast as sf
try:
    sf.ops.extension.instruction_set()
except RuntimeError as error:
    print(error)
os.environ["SMOOTHFAST_CPU"] = "scalar"
"""


# Has imported torch and nothing of the package, and becomes what each line says: 2 s less than a new interpreter.
SERVER = """
import contextlib, io, json, os, sys
import pytest, torch
for line in sys.stdin:
    if not os.fork():
        code, environment = json.loads(line)
        os.environ.update(environment)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, {})
        print(json.dumps(printed.getvalue()), flush=True)
        os._exit(0)
    if os.wait()[1]:
        print("null", flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """The process that those are forked from which choose a backend."""
    path = os.pathsep.join([str(Path(sf.__file__).parents[1]), str(Path(__file__).parent)])
    variables = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=variables, text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(server: subprocess.Popen[str]) -> Callable[..., list[str]]:
    """Runs code under an environment in a process of its own, and returns the lines that it prints."""

    def printed(code: str, **environment: str) -> list[str]:
        server.stdin.write(json.dumps([code, environment]) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        assert answer is not None, "the code failed"
        return answer.splitlines()

    return printed


def test_every_backend_gives_the_same_noise_and_tally(extension: Any, run: Callable[..., list[str]]) -> None:
    mistake, line = run(MISTAKE + PROBE, SMOOTHFAST_CPU="best")
    assert mistake == "SMOOTHFAST_CPU is 'best'; it must be scalar, avx2 or avx512"
    scalar, plain = json.loads(line), json.loads(run(PROBE, SMOOTHFAST_BACKEND="reference")[0])
    assert (scalar[0], plain[0]) == ("scalar", "reference")
    assert scalar[1] == sf.noise.lattice((200,), 0.5, 2**40, 2**33, [0, 2**32], Stream.PREDICT).tolist()
    assert scalar[1:] == plain[1:]


# The backends, and through the dispatcher what serves CUDA: on tensors of the CPU, which Triton's interpreter takes.
SERVED = """
import json, sys, warnings
warnings.filterwarnings("error", message="(?s).*verrid")
import torch, smoothfast as sf
import test_registration as t
untouched = not any(name.startswith("smoothfast.kernels.") for name in sys.modules)
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
replicas = [t.replica_arguments(images, torch.float16, True) for images in (t.IMAGES, t.IMAGES / 255)]
logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
steps = [(t.IMAGES / 255, t.IMAGES / 300, t.IMAGES.float() - 99, norm, 0.1, 0.2, 0.0, 1.0) for norm in ("linf", "l2")]
cases = [("noisy_replicas", arguments) for arguments in replicas] + [("attack_step", step) for step in steps]
cases += [("replica_sum", (t.IMAGES[[0, 1, 1, 0]] / 3, t.SLOTS, torch.rand(3), 2))]
rules = [t.voting_rule(name, 10) for name in ("prediction", "weighted", "logit")]
cases += [("tally", (*t.tally_arguments(logits), rule.name, rule.weights)) for rule in rules]
weights = torch.arange(960).view(5, 3, 64) / 960
cases += [("perturb_weights", (*weights[:2], weights[2:], torch.arange(6).view(2, 3), t.IDS, t.KEY, torch.float16))]
def outputs(name, arguments, call):
    copies = [part.clone() if isinstance(part, torch.Tensor) else part for part in arguments]
    result = call(getattr(torch.ops.smoothfast, name).default, copies)
    return [part for part in [result, *copies] if isinstance(part, torch.Tensor)]
for case in cases:
    here = outputs(*case, lambda op, arguments: op(*arguments))
    there = outputs(*case, lambda op, arguments: op.redispatch(cuda, *arguments))
    assert all(map(torch.equal, here, there)), case[0]
print(json.dumps([sf.ops.backends(), untouched, "smoothfast.kernels.attack_step" in sys.modules]))
"""


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_triton_serves_gpus_before_compiled_kernels_where_asked(extension: Any, run: Callable[..., list[str]]) -> None:
    """Without a warning, and without an import of its kernels before one is called."""
    (line,) = run(SERVED, SMOOTHFAST_BACKEND="triton", TRITON_INTERPRET="1")
    assert json.loads(line) == [{"cpu": "compiled"} | dict.fromkeys(ops.GPUS, "triton"), True, True]


@needs_triton
def test_triton_serves_gpus_where_nothing_is_compiled(run: Callable[..., list[str]]) -> None:
    missing = "import sys; sys.modules['smoothfast._C'] = None\n"
    (line,) = run(missing + SERVED, SMOOTHFAST_BACKEND="auto", TRITON_INTERPRET="1")
    why = " (smoothfast._C is not built)"
    live = {"cpu": "reference" + why} | dict.fromkeys(ops.GPUS, "triton" + why)
    assert json.loads(line) == [live, True, True]


def test_no_backend_but_the_reference(run: Callable[..., list[str]]) -> None:
    code = "import sys; sys.modules['triton'] = sys.modules['smoothfast._C'] = None\n"
    code += "import json, smoothfast as sf; print(json.dumps(sf.ops.backends()))"
    why = "smoothfast._C is not built"
    gpu = f"reference ({why}; triton is not installed)"
    assert json.loads(run(code)[0]) == {"cpu": f"reference ({why})", "cuda": gpu, "xpu": gpu}


SOURCES = "smoothfast._C was compiled without CUDA sources"
CHOICES = {
    # (what is asked for, CUDA kernels compiled, Triton installed): what serves CUDA and why
    ("auto", True, True): ("compiled", []),
    ("auto", False, True): ("triton", [SOURCES]),
    ("auto", False, False): ("reference", [SOURCES, "triton is not installed"]),
    ("cuda", True, True): ("compiled", []),
    ("triton", True, True): ("triton", []),
    ("triton", True, False): ("compiled", ["triton is not installed"]),
    ("triton", False, False): ("reference", ["triton is not installed", SOURCES]),
    ("reference", True, True): ("reference", ["SMOOTHFAST_BACKEND=reference"]),
}


def pretend(monkeypatch: pytest.MonkeyPatch, asked: str, compiled: bool, triton: bool) -> None:
    monkeypatch.setenv("SMOOTHFAST_BACKEND", asked)
    monkeypatch.setattr(backend, "extension", None if asked == "reference" else object())
    monkeypatch.setattr(backend, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: key == "CUDA" and compiled)


@pytest.mark.parametrize(("setting", "choice"), CHOICES.items())
def test_choice_of_backend(
    monkeypatch: pytest.MonkeyPatch, setting: tuple[str, bool, bool], choice: tuple[str, list[str]]
) -> None:
    pretend(monkeypatch, *setting)
    assert backend._choose("cuda") == choice


def test_compiled_kernels_may_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", False, True)
    with pytest.raises(ImportError, match=f"SMOOTHFAST_BACKEND is 'cuda', but {SOURCES}; `auto` takes what there is"):
        backend._choose("cuda")
    assert backend._choose("xpu") == (
        "reference",
        ["smoothfast._C was compiled without XPU sources", "SMOOTHFAST_BACKEND=cuda"],
    )


def test_backend_must_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTHFAST_BACKEND", "best")
    message = "SMOOTHFAST_BACKEND is 'best'; it must be one of auto, cuda, triton, reference"
    with pytest.raises(ValueError, match=message):
        backend._load_extension()


@pytest.mark.skipif(sys.platform != "linux", reason="built without OpenMP elsewhere")
def test_the_kernels_are_built_with_threads(extension: Any) -> None:
    # Without OpenMP at::parallel_for compiles to a serial loop, and only the clock tells.
    assert int(extension.build_info()["openmp"]) > 0

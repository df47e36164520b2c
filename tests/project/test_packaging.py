"""What an installation contains and says, seen from outside the checkout. No network, and no GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from build.util import project_wheel_metadata
from device import nvcc
from test_registration import SERVED, SOURCES

from smoothfast import ops

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"smoothfast": "smoothfast", "benchmarks": "smoothfast/benchmarks", "kernels": "smoothfast/kernels"}
KERNELS = list((ROOT / "csrc" / "cuda").rglob("*.cu"))
OTHERS = [path for path in sys.path if path.endswith("site-packages")]
SITE = os.pathsep.join(dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")))

# Prints what is installed, then counts three votes with it.
REPORT = """
import json, torch, smoothfast, smoothfast.benchmarks, smoothfast.kernels
from smoothfast import ops
counts, invalid = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0], [float("nan"), 0.0, 0.0]])
ops.tally(logits, torch.tensor([0, 0, 1]), counts, invalid)
served = [op for op in ops.OPS if torch._C._dispatch_has_kernel_for_dispatch_key(f"smoothfast::{op}", "CUDA")]
print(json.dumps({
    "file": smoothfast.__file__, "version": smoothfast.__version__, "compiled": ops.extension is not None,
    "counts": counts.tolist(), "invalid": invalid.tolist(),
    "gpu": torch.cuda.is_available(), "cuda": ops.backends()["cuda"], "served": served,
}))
"""

PRINT_GENERATIONS = "from smoothfast import ops; print(ops.extension.build_info()['cuda_architectures'])"

# Prints the extension that setup.py asks setuptools for.
ASK_SETUP = """
import json, runpy, setuptools, sys
asked = {}
setuptools.setup = asked.update
sys.argv = ["setup.py", "build_ext"]
runpy.run_path("setup.py")
[module] = asked["ext_modules"]
print(json.dumps({"sources": module.sources, "flags": module.extra_compile_args, "libraries": module.libraries}))
"""


def run(*command: str | Path, cwd: Path, fails: bool = False, **env: str) -> str:
    """The output of a command, standard error included; `python` is the interpreter of the tests."""
    words = [sys.executable if word == "python" else str(word) for word in command]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SMOOTHFAST_", "FORCE_CUDA"))}
    kept |= {"CUDA_VISIBLE_DEVICES": "", "PIP_NO_CACHE_DIR": "1"}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(words, cwd=cwd, env=kept | env, check=False, **pipe)
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def install(what: Path, target: Path, **env: str) -> Path:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--target", target)
    run("python", "-m", "pip", "install", *options, what, cwd=target.parent, **env)
    return target


def python(*arguments: str | Path, target: Path, fails: bool = False, **env: str) -> str:
    """Runs Python beside an installation. Without `site`, or an editable install would fill in what is missing."""
    path = os.pathsep.join([str(target), SITE, str(ROOT / "tests"), str(ROOT / "tests" / "ops")])
    return run("python", "-S", *arguments, cwd=target.parent, fails=fails, PYTHONPATH=path, **env)


def check_report(target: Path, version: str, compiled: bool, cuda: str) -> None:
    report = json.loads(python("-c", REPORT, target=target).splitlines()[-1])
    assert Path(report.pop("file")).parent == target / "smoothfast"
    votes = {"counts": [[1, 1, 0], [0, 0, 0]], "invalid": [0, 1]}
    served = [] if cuda.startswith("reference") else list(ops.OPS)
    assert report == {"version": version, "compiled": compiled, **votes, "gpu": False, "cuda": cuda, "served": served}


def without_compiled(reason: str) -> str:
    """What serves CUDA where no kernels are compiled for it."""
    return f"triton ({reason})" if find_spec("triton") else f"reference ({reason}; triton is not installed)"


def environment(folder: Path, *paths: Path) -> Path:
    """The interpreter of a virtual environment that has what is on some paths and all that is installed here, but for
    editable installations."""
    run("python", "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text("".join(f"{path}\n" for path in (*paths, *OTHERS)))
    return folder / "venv" / "bin" / "python"


def path_without_nvcc(folder: Path) -> str:
    """The PATH; of a folder with nvcc in it, links to everything else."""
    path = os.environ["PATH"].split(os.pathsep)
    for i, place in enumerate(path):
        if shutil.which("nvcc", path=place):
            path[i] = str(folder / f"path{i}")
            Path(path[i]).mkdir()
            for tool in Path(place).absolute().iterdir():
                if tool.name != "nvcc":
                    (Path(path[i]) / tool.name).symlink_to(tool)
    return os.pathsep.join(path)


def generations(library: Path) -> Counter[str]:
    """How many sources were compiled for a generation, under the names of nvcc: sm_80 is machine code, compute_90 PTX.

    The tool comes with the toolkit and with Triton.
    """
    brought = [str(Path(str(spec.origin)).parent / "backends/nvidia/bin") for spec in [find_spec("triton")] if spec]
    tool = shutil.which(
        "cuobjdump", path=os.pathsep.join([str(Path(str(nvcc())).parent), os.environ["PATH"], *brought])
    )
    if tool is None:
        pytest.skip("cuobjdump is not installed")
    listed = [run(tool, kind, library, cwd=library.parent) for kind in ("--list-elf", "--list-ptx")]
    names = re.findall(r"\.sm_(\w+)\.(cubin|ptx)$", "".join(listed), re.MULTILINE)
    return Counter({"cubin": "sm_", "ptx": "compute_"}[kind] + number for number, kind in names)


def library_in(target: Path) -> Path:
    [library] = (target / "smoothfast").glob(f"_C*{sysconfig.get_config_var('EXT_SUFFIX')}")
    return library


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone: no build folders, no compiled extension."""
    copy = tmp_path_factory.mktemp("clone") / "smoothfast"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    for name in ("csrc", "tests", *PACKAGES):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH on which torch cannot be imported."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "torch.py").write_text('raise ImportError("torch is hidden")\n')
    return str(folder)


@pytest.fixture(scope="module")
def version(checkout: Path, without_torch: str) -> str:
    """The version in the metadata, which need no torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", without_torch)
        return project_wheel_metadata(checkout, isolated=False)["Version"]


@pytest.fixture(scope="module")
def sdist(checkout: Path, without_torch: str) -> Path:
    run("python", "-m", "build", "--sdist", "--no-isolation", cwd=checkout, PYTHONPATH=without_torch)
    [archive] = (checkout / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def plain(sdist: Path, without_torch: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation without compiled kernels, made from the sdist."""
    target = tmp_path_factory.mktemp("plain") / "site"
    return install(sdist, target, SMOOTHFAST_NO_EXT="1", PYTHONPATH=without_torch)


@pytest.fixture(scope="module")
def toolkit() -> None:
    """An nvcc of the CUDA release that torch was built with, which setup.py wants."""
    compiler, wanted = nvcc(), str(torch.version.cuda).partition(".")[0]
    if compiler is None:
        pytest.skip("nvcc is not installed")
    if f"release {wanted}." not in run(compiler, "--version", cwd=ROOT):
        pytest.skip(f"nvcc is not of CUDA {torch.version.cuda}, which torch was built with")


def test_the_sdist_has_every_source(checkout: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    sources = {str(path.relative_to(checkout)) for path in (checkout / "csrc").rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in sources} >= {".cpp", ".h", ".inc"}
    assert packed >= sources | {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", "tests/conftest.py"}
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]


def test_an_installation_has_every_file(checkout: Path, plain: Path) -> None:
    for source, package in PACKAGES.items():
        wanted = [path for path in (checkout / source).rglob("*") if path.suffix == ".py" or "assets" in path.parts]
        missing = [path for path in wanted if not (plain / package / path.relative_to(checkout / source)).exists()]
        assert not missing, f"{package} is installed without {missing}: see [tool.setuptools] in pyproject.toml"
    assert (plain / "smoothfast" / "py.typed").exists()
    assert not list(plain.rglob("*.so"))


def test_without_a_compiler_the_reference_kernels_run(plain: Path, version: str) -> None:
    """And on GPUs those of Triton."""
    check_report(plain, version, compiled=False, cuda=without_compiled("smoothfast._C is not built"))


@pytest.mark.slow
def test_the_wheel_of_the_sdist_serves_the_gpus_asked_for(
    toolkit: None, sdist: Path, version: str, tmp_path: Path
) -> None:
    """There is no GPU to ask, neither for the build nor for the installation."""
    options = ("--no-build-isolation", "--no-deps", "-w", tmp_path)
    run("python", "-m", "pip", "wheel", *options, sdist, cwd=tmp_path, TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX")
    [wheel] = tmp_path.glob("*.whl")
    target = install(wheel, tmp_path / "site")
    check_report(target, version, compiled=True, cuda="compiled")
    assert generations(library_in(target)) == dict.fromkeys(["sm_80", "sm_90", "compute_90"], len(KERNELS))


@pytest.mark.slow
def test_without_nvcc_triton_serves_gpus(sdist: Path, version: str, tmp_path: Path) -> None:
    """A compiler of C++ is there: the CPU has compiled kernels. Triton's run under its interpreter."""
    empty, path = tmp_path / "nothing", path_without_nvcc(tmp_path)  # setup.py looks in both
    target = install(sdist, tmp_path / "site", CUDA_HOME=str(empty), PATH=path)
    live = without_compiled(SOURCES)
    check_report(target, version, compiled=True, cuda=live)
    assert python("-c", PRINT_GENERATIONS, target=target) == "\n"
    if not find_spec("triton"):
        pytest.skip("triton is not installed")
    settings = {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    backends, *_ = json.loads(python("-c", SERVED, target=target, **settings).splitlines()[-1])
    assert (backends["cpu"], backends["cuda"]) == ("compiled", live)
    options = ("-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml")
    print(python("-m", "pytest", *options, ROOT / "tests" / "gpu" / "triton_interpreted.py", target=target, **settings))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_portable_wheel_runs_the_readme(checkout: Path, version: str, tmp_path: Path) -> None:
    """Of `make dist`, in an environment of its own that has what the package requires and nothing else of it."""
    for tool in ("auditwheel", "wheel"):
        pytest.importorskip(tool, reason='is not installed: pip install -e ".[release]"')
    copy = shutil.copytree(checkout, tmp_path / "copy", ignore=shutil.ignore_patterns("dist"))
    run("make", "dist", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.ready", cwd=copy)
    [wheel], [_] = ((copy / "dist").glob(pattern) for pattern in ("*.whl", "*.tar.gz"))
    assert re.search(r"-manylinux_2_\d+_", wheel.name), wheel.name
    with ZipFile(wheel) as archive:
        [told] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        about = archive.read(told).decode()
        libraries = [name for name in archive.namelist() if ".so" in name]
    release = ".".join(torch.__version__.split(".")[:2])
    assert f"\nRequires-Dist: torch=={release}.*\n" in about
    assert len(libraries) == 1  # none of torch
    python = environment(tmp_path)
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        wheel,
        cwd=tmp_path,
    )
    [example, *_] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    assert "accuracy of the smoothed classifier" in run(python, "example.py", cwd=tmp_path)
    assert json.loads(run(python, "-c", REPORT, cwd=tmp_path).splitlines()[-1])["compiled"]
    facts = json.loads(run(python, "-m", "smoothfast", "info", "--json", cwd=tmp_path))
    assert (facts["smoothfast"], facts["extension"]["cuda_architectures"]) == (version, "")


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_types_are_seen_by_checkers(checkout: Path, plain: Path, tmp_path: Path, editable: bool) -> None:
    """In a user's script; of an editable installation where setuptools is told to be strict."""
    python = environment(tmp_path, *([] if editable else [plain]))
    if editable:
        options = (
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            "--ignore-installed",
            "--config-settings",
            "editable_mode=strict",
        )
        run(
            sys.executable, "-m", "pip", "--python", python, "install", *options, "-e", checkout, cwd=tmp_path,
            SMOOTHFAST_NO_EXT="1",
        )  # fmt: skip
    (tmp_path / "user.py").write_text("import smoothfast as sf\n\nnumber: int = sf.data.demo()\n")
    for checker in (["mypy", "--python-executable", python], ["pyright", "--pythonpath", python]):
        program = shutil.which(checker[0], path=os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ["PATH"]]))
        if program is not None:
            told = run(program, *checker[1:], "user.py", cwd=tmp_path, fails=True)
            assert re.search(r'user\.py:3:.*"Images"', told), told
            assert not re.search(r"user\.py:1:", told), told


def test_the_version_is_told_once(version: str) -> None:
    """In smoothfast/version.py; the change log and the citation are of the same."""
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {version}\n")
    assert not [name for name in ("pyproject.toml", "setup.py", "Makefile") if version in (ROOT / name).read_text()]


def test_the_extension_in_use_is_for_the_gpus_that_it_names(extension: Any) -> None:
    named = extension.build_info()["cuda_architectures"]
    if not named:
        pytest.skip(SOURCES)
    assert generations(Path(extension.__file__)) == dict.fromkeys(named.split(","), len(KERNELS))
    output = run("python", "-c", REPORT, cwd=ROOT)
    report = json.loads(output.splitlines()[-1])
    assert (report["gpu"], report["cuda"], report["served"]) == (False, "compiled", list(ops.OPS))


def test_an_extension_of_another_torch_says_what_to_do(plain: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(plain, tmp_path / "site")
    (broken / "smoothfast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_text("not a library")
    output = python("-c", "import smoothfast.ops", target=broken, fails=True)
    assert "ImportError: smoothfast._C does not load beside torch" in output
    assert "pip install --no-build-isolation --force-reinstall" in output
    assert "SMOOTHFAST_BACKEND=reference" in output


def test_a_build_without_torch_says_what_to_type(checkout: Path, without_torch: str, tmp_path: Path) -> None:
    options = ("--no-build-isolation", "--no-deps", "--target", tmp_path)
    output = run(
        "python", "-m", "pip", "install", *options, checkout, cwd=tmp_path, fails=True, PYTHONPATH=without_torch
    )
    assert "torch is hidden" in output
    assert "torchvision && pip install --no-build-isolation ." in output
    assert "SMOOTHFAST_NO_EXT=1 pip install ." in output


def test_cuda_sources_are_compiled_where_asked(checkout: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkout, tmp_path / "copy")
    kernel = copy / "csrc" / "cuda" / "trivial.cu"
    kernel.parent.mkdir(exist_ok=True)
    kernel.write_text("__global__ void trivial() {}\n")
    output = run("python", "-c", ASK_SETUP, cwd=copy, FORCE_CUDA="1", CUDA_HOME=str(tmp_path))
    asked = json.loads(output.splitlines()[-1])
    assert {"csrc/cuda/trivial.cu", "csrc/ops.cpp"} <= set(asked["sources"])
    assert "-fmad=false" in asked["flags"]["nvcc"]
    assert "-ffp-contract=off" in asked["flags"]["cxx"]
    assert not [flag for flag in asked["flags"]["cxx"] if flag.startswith("-m")]  # for no processor in particular
    assert "cudart" in asked["libraries"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_extension_knows_what_gpus_it_is_for(checkout: Path) -> None:
    """The same list goes to nvcc and into the module; where none is asked for, nvcc says what it makes."""

    def asked(**env: str) -> tuple[list[str], str]:
        output = run("python", "-c", ASK_SETUP, cwd=checkout, FORCE_CUDA="1", **env)
        flags = json.loads(output.splitlines()[-1])["flags"]
        [told] = [flag.partition("=")[2] for flag in flags["cxx"] if "CUDA_ARCHITECTURES" in flag]
        return flags["nvcc"], told

    flags, told = asked(TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX")
    assert {flag.rpartition("=")[2] for flag in flags if "gencode" in flag} == set(told.split(","))
    assert sorted(told.split(",")) == ["compute_90", "sm_80", "sm_90"]
    flags, told = asked(TORCH_CUDA_ARCH_LIST="", CUDA_VISIBLE_DEVICES="")
    assert "-arch=all-major" in flags
    assert {"sm_80", "sm_90"} <= set(told.split(","))

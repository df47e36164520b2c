"""What an installation contains and says, seen from outside the checkout. No network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from build.util import project_wheel_metadata

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"smoothfast": "smoothfast", "benchmarks": "smoothfast/benchmarks", "kernels": "smoothfast/kernels"}
SITE = os.pathsep.join(dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")))

# Prints what is installed, then counts three votes with it.
REPORT = """
import json, torch, smoothfast, smoothfast.benchmarks, smoothfast.kernels
from smoothfast import ops
counts, invalid = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0], [float("nan"), 0.0, 0.0]])
ops.tally(logits, torch.tensor([0, 0, 1]), counts, invalid)
print(json.dumps({
    "file": smoothfast.__file__, "version": smoothfast.__version__, "compiled": ops.extension is not None,
    "counts": counts.tolist(), "invalid": invalid.tolist(),
}))
"""

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
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(words, cwd=cwd, env=kept | env, check=False, **pipe)
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def install(what: Path, target: Path, **env: str) -> Path:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--target", target)
    run("python", "-m", "pip", "install", *options, what, cwd=target.parent, **env)
    return target


def python(code: str, target: Path, fails: bool = False) -> str:
    """Runs code beside an installation. Without `site`, or an editable install would fill in what is missing."""
    path = os.pathsep.join([str(target), SITE])
    return run("python", "-S", "-c", code, cwd=target.parent, fails=fails, PYTHONPATH=path)


def check_report(target: Path, version: str, compiled: bool) -> None:
    report = json.loads(python(REPORT, target).splitlines()[-1])
    assert Path(report.pop("file")).parent == target / "smoothfast"
    votes = {"counts": [[1, 1, 0], [0, 0, 0]], "invalid": [0, 1]}
    assert report == {"version": version, "compiled": compiled, **votes}


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
    check_report(plain, version, compiled=False)


@pytest.mark.slow
def test_the_wheel_of_the_sdist_runs_compiled_kernels(sdist: Path, version: str, tmp_path: Path) -> None:
    run("python", "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, sdist, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    check_report(install(wheel, tmp_path / "site"), version, compiled=True)


def test_an_extension_of_another_torch_says_what_to_do(plain: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(plain, tmp_path / "site")
    (broken / "smoothfast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_text("not a library")
    output = python("import smoothfast", broken, fails=True)
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
    assert "cudart" in asked["libraries"]

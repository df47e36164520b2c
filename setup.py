"""Builds the extension module `smoothfast._C`; everything else is in pyproject.toml.

CUDA sources are compiled where there is an nvcc of the release that torch was built with; no GPU is needed.

Environment: SMOOTHFAST_NO_EXT=1 installs without a compiler (plain PyTorch kernels, slower); SMOOTHFAST_NO_CUDA=1 omits
CUDA sources; FORCE_CUDA=1 compiles them with whatever toolkit torch finds; CUDA_HOME, DEBUG=1, MAX_JOBS and
TORCH_CUDA_ARCH_LIST as usual.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
BUILDS = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}


def extension():
    """The extension and its build command, or nothing where no code is compiled."""
    if os.environ.get("SMOOTHFAST_NO_EXT") == "1" or not BUILDS & set(sys.argv):
        return {}
    try:
        import torch

        with_cuda = use_toolkit(torch.version.cuda)  # before the next line, which looks for one
        from torch.utils import cpp_extension
    except ImportError as error:
        sys.exit(
            f"smoothfast is compiled against torch, which cannot be imported here ({error}).\n"
            "Install torch first, then build without isolation:\n"
            "    pip install --upgrade setuptools torch torchvision && pip install --no-build-isolation .\n"
            "or install without compiled kernels: SMOOTHFAST_NO_EXT=1 pip install ."
        )
    debug = os.environ.get("DEBUG") == "1"
    # setuptools names an object by folder and stem: x.cpp and x.cu cannot stand side by side, hence x_kernel.cu.
    cuda = [path for path in files("*.cu") + files("*.cpp") if path.startswith("csrc/cuda/")]
    sources = [path for path in files("*.cpp") if path not in cuda]
    # No contraction: what is one rounding and what is two is written in the source, and equal on every path.
    # Nobody reads errno or the exception flags of a kernel, and none overflows a signed integer; promising these
    # (distutils brings -fwrapv along) kept Box-Muller scalar: 6 ns an element instead of 1.
    exact = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-wrapv"]
    # GCC takes the undefined vectors in its own avx512fintrin.h for mistakes; Clang does not know that warning.
    warnings = ["-Wall", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"]
    # No -std: torch adds the one that its headers need, C++17 up to 2.9 and then C++20. The sources are C++17.
    # Without -fopenmp at::parallel_for compiles to a serial loop, silently. Apple's compiler does not know it.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    flags = ["-O0" if debug else "-O3", "-g" if debug else "-g0", *openmp, *warnings, *exact]
    # torch asks the visible GPUs what to compile for; where there is none, for every generation that nvcc knows.
    asked = torch.cuda.is_available() or os.environ.get("TORCH_CUDA_ARCH_LIST")
    generations = cpp_extension._get_cuda_arch_flags() if asked else ["-arch=all-major"]
    nvcc = ["-O3", "-fmad=false", *generations]
    if with_cuda:  # not among the flags of nvcc, which cuts -D at commas
        flags.append(f"-DSMOOTHFAST_CUDA_ARCHITECTURES={compiled_for(generations, cpp_extension.CUDA_HOME)}")
    module = (cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension)(
        "smoothfast._C",
        sources + (cuda if with_cuda else []),
        include_dirs=[str(ROOT / "csrc"), *toolkit_includes(torch)],
        depends=files("*.h") + files("*.cuh") + files("*.inc"),
        extra_link_args=openmp,
        extra_compile_args={"cxx": flags, "nvcc": nvcc} if with_cuda else flags,
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": cpp_extension.BuildExtension}}


def use_toolkit(release):
    """Whether there is an nvcc of the CUDA release that torch was built with; torch is told where.

    Not where nvcc was found: that may be a link or a script elsewhere. FORCE_CUDA=1 leaves all of this to torch.
    """
    if os.environ.get("SMOOTHFAST_NO_CUDA") == "1":
        return False
    if os.environ.get("FORCE_CUDA") == "1":
        return True
    folders = [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"), os.environ.get("PATH", "")]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    if nvcc is None or release is None:
        return False
    version, plan = (
        subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=True)
        for arguments in (["--version"], ["--dryrun", "-E", "-x", "cu", os.devnull])
    )
    major, home = re.search(r"release (\d+)\.", version.stdout), re.search(r"^#\$ TOP=(.*)$", plan.stderr, re.MULTILINE)
    if not home or not major or major[1] != release.split(".")[0]:
        print(f"no CUDA kernels: {nvcc} is not of CUDA {release}, which torch was built with")
        return False
    os.environ["CUDA_HOME"] = os.path.realpath(home[1])
    return True


def compiled_for(generations, home):
    """What nvcc makes by these flags, for `smoothfast info`: sm_90 is machine code, compute_90 is PTX.

    Asked of nvcc, which alone knows what all-major is. Where there is none, the build will complain.
    """
    nvcc = shutil.which("nvcc", path=os.path.join(home or "", "bin"))
    if nvcc is None:
        return ""
    plan = subprocess.run(
        [nvcc, "--dryrun", "-c", *generations, "-x", "cu", os.devnull], capture_output=True, text=True, check=True
    )
    names = {"elf": "sm_", "ptx": "compute_"}
    return ",".join(names[kind] + number for kind, number in re.findall(r"kind=(elf|ptx),sm=(\w+)", plan.stderr))


def toolkit_includes(torch):
    """Headers of CUDA libraries that a bare nvcc lacks and torch's own headers ask for; its wheels bring them."""
    return [str(path) for path in Path(torch.__file__).parents[1].glob("nvidia/cu*/include")]


def files(pattern):
    """Paths under csrc/ as setuptools wants them: relative and in a fixed order."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))


MAPPED = ["smoothfast.benchmarks", "smoothfast.kernels"]  # their folders stand beside smoothfast/: see pyproject.toml

setup(packages=[*find_packages(include=["smoothfast", "smoothfast.*"]), *MAPPED], **extension())

"""Builds the extension module `smoothfast._C`; everything else is in pyproject.toml.

Environment: SMOOTHFAST_NO_EXT=1 installs without a compiler (plain PyTorch kernels, slower); FORCE_CUDA=1 compiles the
CUDA sources without a visible GPU; DEBUG=1, MAX_JOBS and TORCH_CUDA_ARCH_LIST as usual.
"""

import os
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
BUILDS = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}


def extension():
    """The extension and its build command, or nothing where no code is compiled."""
    if os.environ.get("SMOOTHFAST_NO_EXT") == "1" or not BUILDS & set(sys.argv):
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        sys.exit(
            f"smoothfast is compiled against torch, which cannot be imported here ({error}).\n"
            "Install torch first, then build without isolation:\n"
            "    pip install --upgrade setuptools torch torchvision && pip install --no-build-isolation .\n"
            "or install without compiled kernels: SMOOTHFAST_NO_EXT=1 pip install ."
        )
    debug = os.environ.get("DEBUG") == "1"
    sources, cuda = files("*.cpp"), files("*.cu")
    with_cuda = bool(cuda) and ((CUDA_HOME and torch.version.cuda) or os.environ.get("FORCE_CUDA") == "1")
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
    nvcc = ["-O3", "-fmad=false", *([] if asked else ["-arch=all-major"])]
    module = (CUDAExtension if with_cuda else CppExtension)(
        "smoothfast._C",
        sources + (cuda if with_cuda else []),
        include_dirs=[str(ROOT / "csrc")],
        depends=files("*.h") + files("*.inc") + files("*.cuh"),
        extra_link_args=openmp,
        extra_compile_args={"cxx": flags, "nvcc": nvcc} if with_cuda else flags,
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


def files(pattern):
    """Paths under csrc/ as setuptools wants them: relative and in a fixed order."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))


setup(**extension())

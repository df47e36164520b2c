"""The Triton kernels as a launch would specialise them, compiled without a GPU; test_triton.py has the path to here.

What a launch passes, in order: `parameters` of the kernel and two null pointers; 32 `num_warps` threads a program and
`shared` bytes, both from the metadata.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from smoothfast.kernels import attack_step, noisy_replicas, perturb_weights, replica_sum, tally
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

POINTERS = {
    **dict.fromkeys(("slots", "image_ids", "sample_ids", "key", "counts", "invalid", "rows", "first"), "*i64"),
    **dict.fromkeys(("scale", "shift", "sigma"), "*fp32"),
}


def compiled(
    function: Any, arch: int, types: dict[str, str], constants: dict[str, Any], multiples: set[str], **options: Any
) -> CompiledKernel:
    """`types` of what is neither a constant nor in POINTERS nor an int32; tensors and `multiples` divide by 16."""
    types = dict.fromkeys(function.arg_names, "i32") | POINTERS | types | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in function.arg_names}
    even = [i for i, name in enumerate(function.arg_names) if signature[name].startswith("*") or name in multiples]
    attributes = {(i,): [["tt.divisibility", 16]] for i in even}
    source = ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def parameters(kernel: CompiledKernel) -> list[str]:
    return [name for name, type in kernel.src.signature.items() if type != "constexpr"]


def noise_kernel(
    law: str,
    out: str,
    images: str = "u8",
    channels_last: bool = False,
    limit: float | None = None,
    aligned: bool = True,
    arch: int = 80,
) -> CompiledKernel:
    """out: fp32, bf16 or fp16; images: u8 or fp32; limit: None, 255.0 or 1.0; aligned: 16 divides the plane."""
    function = noisy_replicas.lattice_replicas if law == "lattice" else noisy_replicas.gaussian_replicas
    strides = {"channel_stride": 1} if channels_last else {"pixel_stride": 1}
    multiples = {"plane", "channel_stride"} - strides.keys() if aligned else set()
    constants = strides | {"limit": limit, "block": noisy_replicas.BLOCK}
    types = {"out": f"*{out}", "images": f"*{images}", "high": "*i64", "low": "*i64", "guide": "*i32"}
    return compiled(function, arch, types, constants, multiples, **noisy_replicas.OPTIONS)


def tally_kernel(dtype: torch.dtype, classes: int, voting: str = "prediction", arch: int = 80) -> CompiledKernel:
    """For contiguous logits."""
    integers, floats, exponent = tally.FORMATS[dtype]
    class_block = min(triton.next_power_of_2(classes), tally.BLOCK)
    constants = {"floats": floats, "exponent": exponent, "voting": voting}
    constants |= {"row_block": tally.BLOCK // class_block, "class_block": class_block}
    constants |= dict.fromkeys(("logits_class", "slots_row", "counts_class", "invalid_image"), 1)
    multiples = {"logits_row", "counts_image"} if classes % 16 == 0 else set()
    types = {"logits": f"*i{integers.itemsize * 8}", "weights": "*i64", "rows": "i32"}
    return compiled(tally.tally_rows, arch, types, constants, multiples, **tally.OPTIONS)


def sum_kernel(gradients: str, channels_last: bool = False, aligned: bool = True, arch: int = 80) -> CompiledKernel:
    """gradients: fp32, bf16 or fp16; aligned: 16 divides the elements of an image."""
    types = {"gradients": f"*{gradients}", "out": "*fp32"}
    constants = {"channels_last": channels_last, "block": replica_sum.BLOCK}
    multiples = {"elements"} if aligned else set()
    return compiled(replica_sum.sum_rows, arch, types, constants, multiples, **replica_sum.OPTIONS)


def attack_kernel(norm: str, aligned: bool = True, arch: int = 80) -> CompiledKernel:
    """aligned: 16 divides the elements of all images."""
    types = dict.fromkeys(("adversarial", "images", "gradients"), "*fp32")
    types |= dict.fromkeys(("alpha", "eps", "low", "high"), "fp32")
    if norm == "l2":
        return compiled(attack_step.l2_step, arch, types, {}, set(), **attack_step.OPTIONS)
    multiples, constants = {"elements"} if aligned else set(), {"block": attack_step.BLOCK}
    return compiled(attack_step.linf_step, arch, types, constants, multiples, **attack_step.OPTIONS)


def perturb_kernel(out: str, arch: int = 80) -> CompiledKernel:
    """out: fp32, bf16 or fp16."""
    types = dict.fromkeys(("weights", "scales", "factors"), "*fp32") | {"out": f"*{out}"}
    types |= dict.fromkeys(("places", "passes"), "*i64")
    constants = {"tiles": perturb_weights.TILES}
    return compiled(perturb_weights.perturb_tiles, arch, types, constants, set(), **perturb_weights.OPTIONS)

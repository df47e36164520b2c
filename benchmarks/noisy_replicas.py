"""`noisy_replicas` against the chain of PyTorch operations that it replaces, and against repeat + randn alone."""

from __future__ import annotations

from pathlib import Path

import torch

from smoothfast import models, noise, ops

from . import baselines, harness

MEAN, STD = models.CIFAR10_STATISTICS
SIGMA = 0.25
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(out: Path | None) -> None:
    """32x32 and 224x224 pixels, one and two threads, every instruction set."""
    extension = ops.extension
    sets = [None] if extension is None else extension.supported_instruction_sets()
    threads_before = torch.get_num_threads()
    for name in reversed(sets):
        if name is not None:
            extension.use_instruction_set(name)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for size, count, repeats in ((32, 1000, 7), (224, 50, 5)):
                for dtype in DTYPES:
                    for memory_format in FORMATS:
                        harness.report(_rows(size, count, dtype, memory_format, repeats), out)
    if extension is not None:
        extension.use_instruction_set(sets[-1])
    torch.set_num_threads(threads_before)


def _rows(size: int, count: int, dtype: str, memory_format: str, repeats: int) -> list[harness.Row]:
    bytes_image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    float_image = bytes_image / 255
    slots, samples = torch.zeros(count, dtype=torch.int64), torch.arange(count)
    key = noise.stream_key(0, noise.Stream.ESTIMATE)
    lattice, gaussian = noise.lattice_law(SIGMA), noise.gaussian_law(SIGMA)

    def replicas(image: torch.Tensor, law: noise.Law) -> torch.Tensor:
        scale, shift = ops.affine((MEAN, STD), 3, image.dtype)
        return ops.noisy_replicas(
            image, slots, slots, samples, key, law, scale, shift, False, DTYPES[dtype], FORMATS[memory_format]
        )

    contenders = {
        "lattice": lambda: replicas(bytes_image, lattice),
        "gaussian": lambda: replicas(float_image, gaussian),
        "torch repeat + randn": lambda: torch.randn_like(float_image.repeat(count, 1, 1, 1)),
        "torch chain": lambda: baselines.torch_replicas(
            float_image, count, SIGMA, MEAN, STD, DTYPES[dtype], FORMATS[memory_format]
        ),
    }
    kernels = ops.extension.instruction_set() if ops.extension is not None else "reference"
    setting = f"{size}x{size} {dtype} {memory_format} {kernels}"
    per = count * 3 * size * size * 1e-9
    return harness.compare("noisy_replicas", setting, contenders, per, "ns/element", repeats)

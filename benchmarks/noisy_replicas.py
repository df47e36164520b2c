"""`noisy_replicas` against the chain of PyTorch operations that it replaces, and against repeat + randn alone.

Beside them a copy of as many bytes as are written: the floor where memory is the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from smoothfast import models, noise, ops

from . import baselines, harness
from .harness import DTYPES, FORMATS

SIGMA = 0.25
SIZES = {"cpu": ((32, 1000, 7), (224, 50, 5)), "cuda": ((32, 1000, 7), (32, 16_000, 7), (224, 256, 7))}  # last: repeats


def main(out: Path | None) -> list[harness.Row]:
    """32x32 and 224x224 pixels; on the CPU one and two threads, every instruction set."""
    return harness.report(_groups(), out)


def _groups() -> Iterator[list[harness.Row]]:
    for device in harness.devices():
        for _ in _cpu_choices() if device.type == "cpu" else [None]:
            for (size, count, repeats), dtype, memory_format in product(SIZES[device.type], DTYPES, FORMATS):
                yield rows(size, count, dtype, memory_format, repeats, device)


def _cpu_choices() -> Iterator[None]:
    """Sets instruction set and threads to one choice after the other, and back at the end."""
    extension, threads_before = ops.extension, torch.get_num_threads()
    sets = [] if extension is None else extension.supported_instruction_sets()
    for name in reversed(sets or [None]):
        if name is not None:
            extension.use_instruction_set(name)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            yield
    if sets:
        extension.use_instruction_set(sets[-1])
    torch.set_num_threads(threads_before)


def rows(
    size: int, count: int, dtype: str, memory_format: str, repeats: int, device: torch.device
) -> list[harness.Row]:
    """Rows in nanoseconds an element."""
    setting = f"{size}x{size} {dtype} {memory_format} {harness.kernels(device)}, {count:,} rows"
    named = contenders(size, count, dtype, memory_format, device)
    per = count * 3 * size * size * 1e-9
    return harness.compare(
        "noisy_replicas", setting, named, per, "ns/element", repeats, device=device, calls=harness.calls_on(device)
    )


def contenders(
    size: int, count: int, dtype: str, memory_format: str, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """Contenders that return what they wrote, `count` rows of `size` x `size` pixels."""
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, device=device)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in models.CIFAR10_STATISTICS)
    source, target = torch.ones(2, count, 3, size, size, dtype=DTYPES[dtype], device=device)
    chain = (image / 255, count, SIGMA, mean, std, DTYPES[dtype], FORMATS[memory_format])
    return {
        **_ours(image, count, dtype, memory_format),
        "copy of as many bytes": lambda: target.copy_(source),
        "torch repeat + randn": lambda: torch.randn_like(chain[0].repeat(count, 1, 1, 1)),
        "torch chain": lambda: baselines.torch_replicas(*chain),
    }


def _ours(image: torch.Tensor, count: int, dtype: str, memory_format: str) -> dict[str, Callable[[], Any]]:
    """Both laws, by every implementation there is: lattice noise on the image as it is, Gaussian noise on floats."""
    device, samples = image.device, torch.arange(count, device=image.device)
    slots, key = torch.zeros_like(samples), noise.stream_key(0, noise.Stream.ESTIMATE).to(device)
    found: dict[str, Callable[[], Any]] = {}
    for law, images in ((noise.lattice_law(SIGMA), image), (noise.gaussian_law(SIGMA), image / 255)):
        affine = (part.to(device) for part in ops.affine(models.CIFAR10_STATISTICS, 3, images.dtype))
        arguments = (images, slots, slots, samples, key, law.name, law.to(device).table, *affine)
        form = (False, DTYPES[dtype], memory_format == "channels_last")
        for by, kernel in harness.implementations("noisy_replicas", device).items():
            found[law.name + by] = partial(kernel, *arguments, *form)
    return found

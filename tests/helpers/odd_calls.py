"""Calls of all ops on odd shapes, by every instruction set and in several threads, for an instrument to watch.

Results are compared: by instruction set, with those of one thread, and of tensors that begin at odd elements of their
memory. A program: what it has called is printed at the end.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "gpu" / "ptx")]

import cases
from helpers.integer import random_tensors

from smoothfast import models, ops
from smoothfast.integers.exact import network_of
from smoothfast.noise import Law, Stream, lattice_law, stream_key
from smoothfast.runners.fused import arithmetics, dtype_of, preferred

THREADS = 3
WRITTEN = {"tally": (2, 3), "attack_step": (0,)}  # arguments
MANY = torch.stack([torch.arange(90) % 4 - 1, torch.arange(90), torch.arange(90) + 2**32 - 40], 1)
# A row, a tile of many and one of few pixels; then work for several threads.
SHAPES = [(3, 32, 32), (3, 5, 7), (1, 1, 1), (4, 8, 8), (6, 8, 8), (3, 40, 40), (5, 9, 11)]


def calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Names of ops and their arguments."""
    formats = list(product(cases.KINDS, cases.DTYPES, (False, True)))
    for number, (shape, (kind, dtype, channels_last)) in enumerate(product(SHAPES, formats)):
        options = kind[0], kind[1], dtype, channels_last, number % 2 == 0, number % 3 == 0
        yield "noisy_replicas", cases.arguments(shape, *options)
    for channels_last in (False, True):
        yield "noisy_replicas", cases.arguments((3, 33, 31), channels_last=channels_last, rows=MANY)
        yield "noisy_replicas", cases.tied(cases.arguments((3, 8, 8), channels_last=channels_last))
        yield "noisy_replicas", cases.arguments((3, 5, 7), channels_last=channels_last, rows=cases.ROWS[:0])
    for voting, dtype in product(cases.VOTINGS, (torch.float64, *cases.DTYPES)):
        for rows, classes in [(0, 3), (1, 1), (13, 10), (70, 33), (5, 1000), (9000, 7)]:
            yield "tally", cases.votes(rows, classes, dtype, voting=voting)
    for dtype, channels_last in product(cases.DTYPES, (False, True)):
        for shape, rows in [((3, 5, 7), 0), ((1, 1, 1), 1), ((3, 5, 7), 9), ((2, 47, 53), 13), ((3, 64, 64), 60)]:
            yield "replica_sum", cases.gradients(shape, rows, dtype, channels_last)
    for norm, eps in product(("linf", "l2"), (0.0, 0.03)):
        for shape in [(1, 1, 1), (3, 5, 7), (1, 16, 17), (3, 120, 130)]:
            yield "attack_step", cases.attack(shape, norm, eps)
    for layers, dtype, rank in product(cases.NETWORKS, cases.DTYPES, (0, 1, 33, 64)):
        yield "perturb_weights", cases.network(layers, rank, dtype)
    yield "perturb_weights", cases.network((300,), 5, torch.float32)


def fused_calls(isa: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The same of fused networks, by each arithmetic that there is; for less than AVX-512 one has bodies."""
    names = arithmetics() if isa == "avx512" else ["winograd_fp32"]
    for arithmetic, (widths, blocks, classes) in product(names, [((16, 32, 64), 1, 10), ((32, 64, 96), 1, 1)]):
        packed = ops.fused_pack(*parameters(widths, blocks, classes), arithmetic, gradients=True)
        shape = [*widths, blocks, classes]
        for rows in (0, 1, 7, 25):
            replicas = torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(rows))
            replicas = replicas.to(dtype_of(arithmetic))
            yield "fused_logits", (replicas, packed, shape, arithmetic)
            yield "fused_gradients", (replicas, torch.arange(rows) % classes, packed, shape, arithmetic)
        rows_of_images = noisy(lattice_law(0.25), ops.affine(models.CIFAR10_STATISTICS, 3, torch.uint8))
        yield "fused_votes", (*rows_of_images, packed, shape, arithmetic, *counted(classes))


def integer_calls(isa: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The same of networks in integers."""
    names = preferred("int8") if isa == "avx512" else [f"int8_{isa}"]
    for arithmetic, (widths, blocks, classes) in product(names, [((16, 32, 64), 1, 10), ((32, 64, 96), 1, 2)]):
        packed = network_of(random_tensors(widths, blocks, classes, seed=0)).packed()
        shape = [*widths, blocks, classes]
        for rows in (0, 1, 7, 25):
            generator = torch.Generator().manual_seed(rows)
            levels = torch.randint(-1900, 1900, (rows, 3, 32, 32), dtype=torch.int16, generator=generator)
            yield "fused_logits", (levels, packed, shape, arithmetic)
        rows_of_images = noisy(lattice_law(0.25), (torch.ones(3), torch.zeros(3)))
        yield "fused_votes", (*rows_of_images, packed, shape, arithmetic, *counted(classes))


def noisy(law: Law, affine: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
    """Rows of three images, in no order, with padding between."""
    slots, images = torch.arange(45) % 4 - 1, torch.full((3, 3, 32, 32), 100, dtype=torch.uint8)
    numbers = slots, slots.clamp(min=0), torch.arange(45), stream_key(1, Stream.PREDICT), law.name, law.table
    return images, *numbers, *affine, True


def counted(classes: int) -> tuple[Tensor, Tensor]:
    """No votes yet."""
    return torch.zeros(3, classes, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)


def parameters(widths: tuple[int, ...], blocks: int, classes: int) -> tuple[Any, ...]:
    """Those of a network, as `ops.fused_pack` takes them; the last block of each stage that changes has a shortcut."""
    kernels, inputs = [(16 if widths[0] == 16 else widths[0], 3, 3)], widths[0]
    for stage, outputs in enumerate(widths):
        for block in range(blocks):
            kernels += [(outputs, inputs, 1)] * (stage > 0 and block == 0)
            kernels += [(outputs, inputs, 3), (outputs, outputs, 3)]
            inputs = outputs
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(o, i, size, size, generator=generator) / 9 for o, i, size in kernels]
    gains = [torch.full((o,), 0.5, dtype=torch.float64) for o, *_ in kernels]
    linear = nn.Linear(widths[2], classes)
    return weights, gains, gains, linear.weight.detach(), linear.bias.detach()


def called(name: str, arguments: tuple[Any, ...], place: Callable[[Tensor], Tensor] = torch.clone) -> list[Tensor]:
    """What a call returns and writes, of copies of the arguments that `place` makes."""
    own = tuple(place(a) if isinstance(a, Tensor) else a for a in arguments)
    out = getattr(torch.ops.smoothfast, name)(*own)
    written = [own[at] for at in (WRITTEN | {"fused_votes": (13, 14)}).get(name, ())]
    return [*written, *((out,) if isinstance(out, Tensor) else out or ())]


def misplaced(tensor: Tensor) -> Tensor:
    """A copy that begins an element after the start of its memory and ends with it; of a packed network, a line."""
    skipped = 64 if tensor.dtype == torch.uint8 and tensor.dim() == 1 else 1
    memory = tensor.new_empty(tensor.numel() + skipped)
    return memory.as_strided(tensor.shape, tensor.stride(), skipped).copy_(tensor)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) for a, b in zip(found, expected, strict=True))


def main() -> None:
    for isa in ops.extension.supported_instruction_sets():
        ops.extension.use_instruction_set(isa)
        seen: Counter[str] = Counter()
        for name, arguments in [*calls(), *fused_calls(isa), *integer_calls(isa)]:
            torch.set_num_threads(1)
            expected = called(name, arguments)
            torch.set_num_threads(THREADS)
            assert same(called(name, arguments), expected), (isa, name, "threads")
            assert same(called(name, arguments, misplaced), expected), (isa, name, "misplaced")
            seen[name] += 3
        print(isa, *(f"{name}={count}" for name, count in seen.items()))


if __name__ == "__main__":
    main()

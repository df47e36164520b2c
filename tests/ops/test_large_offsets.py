"""Tensors so large that elements and bytes are numbered beyond 2^31, most of them beyond 2^32.

The rows touched are compared with those of small tensors, and by those tests of the ops with their definitions. What is
only read takes no memory: pages that nothing was written to are all the same page of zeros.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.odd_calls import parameters
from test_noise import in_element_order, keyed
from torch import Tensor

from smoothfast import models, ops
from smoothfast.noise import Law, Stream, gaussian_law, lattice_law, stream_key, within
from smoothfast.runners.fused import arithmetics, dtype_of
from smoothfast.voting import LOGIT, PREDICTION, SOFT, Voting, weighted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("extension"),
    pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="maps memory as Linux does"),
]
IMAGE = (3, 32, 32)
FAR = 2**32 // prod(IMAGE) + 1  # images of bytes
KEY, SEED = stream_key(5, Stream.PREDICT), 5
BF16 = torch.bfloat16
ONE, ZERO = torch.ones(3), torch.zeros(3)
GENERATOR = torch.Generator().manual_seed(0)


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory where they are written."""
    count = prod(shape) * dtype.itemsize
    if not count:  # torch takes no view of no bytes as another dtype
        return torch.zeros(shape, dtype=dtype)
    return torch.from_numpy(np.zeros(count, np.uint8)).view(dtype).view(shape)


def needs(gigabytes: float) -> None:
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    if int(facts["MemAvailable"].split()[0]) < 2**20 * (gigabytes + 2):
        pytest.skip(f"there are no {gigabytes} GiB of memory to spare")


def ring(elements: int) -> Tensor:
    """float32 that may be written everywhere: all but the last piece of 64 MiB are the same memory again and again."""
    piece, both = 64 << 20, mmap.PROT_READ | mmap.PROT_WRITE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    own, fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 0x10
    pieces = -(-4 * elements // piece)
    start = libc.mmap(None, pieces * piece, both, own | 0x4000, -1, 0)  # nothing reserved
    file = os.memfd_create("ring")
    os.truncate(file, piece)
    for at in range(pieces - 1):
        place = start + at * piece
        assert libc.mmap(place, piece, both, mmap.MAP_SHARED | fixed, file, 0) == place
    os.close(file)
    memory = (ctypes.c_char * (4 * elements)).from_address(start)
    return torch.frombuffer(memory, dtype=torch.float32)


# ---- noisy_replicas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("law", [lattice_law(0.25), gaussian_law(0.25, 255)], ids=lambda law: law.name)
def test_images_far_away(instruction_set: str, law: Law, channels_last: bool) -> None:
    images = zeros((FAR + 1, *IMAGE), torch.uint8)
    slots = torch.tensor([FAR, 0, FAR // 2 + 1, -1, FAR])
    images[slots] = torch.randint(0, 256, (5, *IMAGE), dtype=torch.uint8, generator=GENERATOR)
    form = torch.channels_last if channels_last else torch.contiguous_format
    rest = torch.arange(5), torch.arange(5), KEY, law, ONE, ZERO, True, BF16, form
    found = ops.noisy_replicas(images, slots, *rest)
    assert torch.equal(found, ops.noisy_replicas(images[slots], torch.tensor([0, 1, 2, -1, 4]), *rest))
    floats = zeros((FAR // 4 + 1, *IMAGE), torch.float32)
    floats[-1] = torch.rand(IMAGE, generator=GENERATOR)
    law, rest = gaussian_law(0.25), (torch.arange(1), torch.arange(1), KEY)
    found = ops.noisy_replicas(floats, torch.tensor([len(floats) - 1]), *rest, law, ONE, ZERO)
    assert torch.equal(found, ops.noisy_replicas(floats[-1:], torch.tensor([0]), *rest, law, ONE, ZERO))


@pytest.mark.parametrize("channels_last", [False, True])
def test_replicas_far_away(channels_last: bool) -> None:
    needs(4)
    rows = 2**31 // prod(IMAGE) + 70
    slots = torch.full((rows,), -1)
    slots[-66:] = 0
    images = torch.full((1, *IMAGE), 100, dtype=torch.uint8)
    form = torch.channels_last if channels_last else torch.contiguous_format
    rest = KEY, lattice_law(0.25), ONE, ZERO, False, BF16, form
    numbers = torch.arange(rows)
    found = ops.noisy_replicas(images, slots, numbers // rows, numbers, *rest)
    last = slots[-70:]
    assert torch.equal(found[-70:], ops.noisy_replicas(images, last, 0 * last, numbers[-70:], *rest))
    assert not found[:: rows // 100][:-1].any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_image_of_more_than_2_31_elements(channels_last: bool) -> None:
    needs(4)
    shape = (3, 26_800, 26_800)
    images, law = zeros((1, *shape), torch.uint8), lattice_law(0.25)
    images[..., -1, :] = 200
    form = torch.channels_last if channels_last else torch.contiguous_format
    zero = torch.zeros(1, dtype=torch.int64)
    found = ops.noisy_replicas(images, zero, zero + 7, zero + 9, KEY, law, ONE, ZERO, False, torch.float16, form)
    for element in (0, 2**30 - 64, 2**31 - 128, 2**31 + 64, prod(shape) - 64):
        tile = element // 64
        words = keyed(SEED, 7, [9], int(Stream.PREDICT), 16 * tile + np.arange(16, dtype=np.uint64))
        words = torch.from_numpy(in_element_order(words).astype(np.int64)).flatten()
        high = law.table[0][0]
        below, upto = torch.searchsorted(high, words), torch.searchsorted(high, words, right=True)
        at = torch.arange(64 * tile, min(64 * tile + 64, prod(shape)))
        places = at // shape[1] // shape[2], at // shape[2] % shape[1], at % shape[2]
        wanted = images[0][places] + (below - len(high) // 2)[: len(at)]
        decided = (below == upto)[: len(at)]
        assert decided.sum() > len(at) - 3
        assert torch.equal(found[0][places][decided], wanted[decided].half())


# ---- tally and replica_sum -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voting", [PREDICTION, weighted([1.0, 0.5]), SOFT, LOGIT], ids=lambda voting: voting.name)
def test_logits_and_counts_far_away(instruction_set: str, voting: Voting) -> None:
    classes, rows, images = 4096, 2**31 // 4096 + 9, 2**32 // (8 * 4096) + 3
    logits, slots = zeros((rows, classes), BF16), torch.full((rows,), -1)
    logits[-5:] = torch.randn(5, classes, generator=GENERATOR).bfloat16()
    logits[-2, 7] = torch.nan
    slots[-5:] = torch.tensor([images - 1, 0, images // 2, images - 1, images - 1])
    counts, invalid = zeros((images, classes), torch.int64), torch.zeros(images, dtype=torch.int64)
    ops.tally(logits, slots, counts, invalid, voting)
    wanted = torch.zeros(3, classes, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    ops.tally(logits[-5:], torch.tensor([2, 0, 1, 2, 2]), *wanted, voting)
    touched = torch.tensor([0, images // 2, images - 1])
    assert torch.equal(counts[touched], wanted[0])
    assert invalid[touched].tolist() == wanted[1].tolist() == [0, 0, 1]
    assert invalid.sum() == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_far_away(instruction_set: str, channels_last: bool) -> None:
    rows = 2**31 // prod(IMAGE) + 9
    gradients = zeros((rows, 32, 32, 3), BF16).permute(0, 3, 1, 2) if channels_last else zeros((rows, *IMAGE), BF16)
    slots, last = torch.full((rows,), -1), torch.tensor([0, 1, 1, 0, 1, 1, 1])
    gradients[-7:], slots[-7:] = torch.randn(7, *IMAGE, generator=GENERATOR).bfloat16(), last
    found = ops.replica_sum(gradients, slots, 2 * ONE, 2)
    assert torch.equal(found, ops.replica_sum(gradients[-7:], last, 2 * ONE, 2))


def test_sums_far_away() -> None:
    needs(4)
    images = FAR // 4 + 5
    gradients = torch.randn(3, *IMAGE, generator=GENERATOR)
    sums = ops.replica_sum(gradients, torch.tensor([images - 1, 0, images - 1]), ONE, images)
    assert torch.equal(sums[-1], gradients[0] + gradients[2])
    assert not sums[:: images // 100][1:].any()


# ---- attack_step and perturb_weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2**31 // 256 + 3, 16, 16), (2**31 // 256 + 3, 1, 16, 16)], ids=["one", "many"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_far_away(norm: str, shape: tuple[int, ...]) -> None:
    """Zeros but for the last 512 elements. They are summed in the lanes that they have in a small image."""
    elements = prod(shape)
    adversarial, images, gradients = ring(elements), *(zeros((elements,), torch.float32) for _ in range(2))
    for tensor in (adversarial, images, gradients):
        tensor[-512:] = torch.rand(512, generator=GENERATOR)
    small = [
        tensor[-512:].clone().view(*((1, 2) if shape[0] == 1 else (2, 1)), 16, 16)
        for tensor in (adversarial, images, gradients)
    ]
    ops.attack_step(*(t.view(shape) for t in (adversarial, images, gradients)), norm, 0.1, 0.3, 0.0, 1.0)
    before = small[0].clone()
    ops.attack_step(*small, norm, 0.1, 0.3, 0.0, 1.0)
    assert torch.equal(adversarial[-512:], small[0].flatten())
    assert not torch.equal(before, small[0])
    assert not adversarial[:512].any()


def perturbed(tiles: int, rank: int, passes: int) -> tuple[Tensor, Tensor]:
    """The last tile in the last pass: of so many, and by itself."""
    weights, scales = zeros((tiles, 64), torch.float32), zeros((tiles, 64), torch.float32)
    factors = zeros((rank, tiles, 64), torch.float32)
    weights[-1], scales[-1], factors[:, -1] = 1.5, 0.5, torch.randn(rank, 64, generator=GENERATOR)
    places, numbers = torch.stack([torch.zeros(tiles, dtype=torch.int64), torch.arange(tiles)]), torch.arange(passes)
    key = within(KEY, Stream.WEIGHT)
    found = ops.perturb_weights(weights, scales, factors, places, numbers, key, BF16)
    alone: Any = weights[-1:], scales[-1:], factors[:, -1:], places[:, -1:], numbers[-1:]
    return found[-1, -1], ops.perturb_weights(*alone, key, BF16)[0, 0]


def test_factors_far_away() -> None:
    found, wanted = perturbed(2**31 // 64 // 64 + 1, 64, 1)
    assert torch.equal(found, wanted)


def test_weights_far_away() -> None:
    needs(4.2)
    found, wanted = perturbed(2**19 + 1, 0, 65)
    assert torch.equal(found, wanted)


# ---- fused networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", arithmetics()[:2])
def test_fused_networks_far_away(arithmetic: str) -> None:
    shape, dtype = [16, 32, 64, 1, 10], dtype_of(arithmetic)
    packed = ops.fused_pack(*parameters((16, 32, 64), 1, 10), arithmetic, gradients=True)
    images = zeros((FAR + 1, *IMAGE), torch.uint8)
    images[-1] = torch.randint(0, 256, IMAGE, dtype=torch.uint8, generator=GENERATOR)
    affine, numbers = ops.affine(models.CIFAR10_STATISTICS, 3, torch.uint8), torch.arange(20)
    rest = numbers, numbers, KEY, lattice_law(0.25), *affine, False
    counts, more = torch.zeros(FAR + 1, 10, dtype=torch.int64), torch.zeros(1, 10, dtype=torch.int64)
    invalid = torch.zeros(FAR + 1, dtype=torch.int64)
    found = ops.fused_votes((images, numbers * 0 + FAR, *rest), packed, shape, arithmetic, counts, invalid)
    wanted = ops.fused_votes((images[-1:], numbers * 0, *rest), packed, shape, arithmetic, more, invalid[:1])
    assert torch.equal(found, wanted)
    assert torch.equal(counts[-1:], more)
    rows = 2**31 // (2 * prod(IMAGE)) + 9
    replicas = zeros((rows, 32, 32, 3), dtype).permute(0, 3, 1, 2)
    replicas[-5:] = torch.randn(5, *IMAGE, generator=GENERATOR).to(dtype)
    logits = ops.fused_logits(replicas, packed, shape, arithmetic)
    assert torch.equal(logits[-5:], ops.fused_logits(replicas[-5:], packed, shape, arithmetic))

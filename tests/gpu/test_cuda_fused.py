"""Fused networks on CUDA, compiled by nvcc and executed on the CPU: in integers the bits of the definition."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import device
import pytest
import torch
from cases import SCHEDULES, law_of, tied
from fused_device import FusedDevice
from helpers.integer import Integers, drawn
from ptx_interp import Module, PtxFault
from torch import Tensor

from smoothfast import ops
from smoothfast.noise import Stream, stream_key
from smoothfast.voting import voting_rule

pytestmark = [
    pytest.mark.usefixtures("one_thread", "extension"),
    pytest.mark.skipif(device.nvcc() is None, reason="nvcc is not installed"),
]
INTEGERS = ("int8_mma", "int8_mma_pairs")
STEMS = (("fused/integers", 2), ("fused/bf16", 2), pytest.param("fused/bf16_wide", 1, marks=pytest.mark.slow))
WIDTHS = (16, 32, 64)
# Two images, their rows of padding in between; of a unit of two samples none, one and both.
SLOTS = torch.tensor([0, 1, -1, 1, 0, -1, -3, -1])
IDS = torch.tensor([7, 2**44 - 1, 0, 2**32 + 1, 8, 0, 0, 0])
SAMPLES = torch.tensor([0, 2**40 - 1, 0, 2**32 - 1, 5, 0, 0, 0])


@cache
def network(blocks: int, classes: int = 10) -> Integers:
    return drawn(WIDTHS, blocks, classes, seed=blocks + classes)


@cache
def replicas() -> Tensor:
    """Noisy pixels; the ends of what they may be, both at random, everything at random, and each everywhere."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 32, 32)
    noisy = torch.randint(0, 256, shape, generator=generator) + 64 * torch.randn(shape, generator=generator)
    ends = torch.randint(0, 2, shape, generator=generator) * (2**16 - 1) - 2**15
    anything = torch.randint(-(2**15), 2**15, shape, generator=generator)
    each = [torch.full(shape, value) for value in (2**15 - 1, -(2**15))]
    return torch.stack([noisy.round().long(), ends, anything, *each]).short()


@cache
def known(blocks: int) -> tuple[Integers, Tensor]:
    """A network and the logits of the replicas."""
    return network(blocks), network(blocks).definition()(replicas())


# ---- logits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arithmetic", "blocks", "rows", "schedule"),
    [("int8_mma", 1, 5, 0), ("int8_mma", 2, 1, 1), ("int8_mma_pairs", 3, 5, 0), ("int8_mma_pairs", 1, 3, 2)],
)
def test_logits_in_integers(arithmetic: str, blocks: int, rows: int, schedule: int) -> None:
    """Depths 8, 14 and 20 by one binary."""
    network, logits = known(blocks)
    on = FusedDevice(80, schedule=SCHEDULES[schedule])
    found = on.fused_logits(replicas()[:rows], network.packed(arithmetic), network.shape, arithmetic)
    assert torch.equal(found, logits[:rows])


def test_the_largest_sums_do_not_overflow() -> None:
    """At the limits that are allowed, or nearly so, with maps and pixels at theirs."""
    network = drawn(WIDTHS, 1, 2)
    network.weights[0] = torch.full_like(network.weights[0], 2427)
    for i, weight in enumerate(network.weights[1:], 1):
        network.weights[i] = torch.full_like(weight, (64 if weight.shape[-1] == 3 else 63) * (1 if i % 2 else -1))
    network.multipliers[2].fill_(127)
    for i, shift in ((2, 16), (5, 13), (8, 12)):
        network.shifts[i].fill_(shift)
    network.linear = torch.full_like(network.linear, 2050).mul(torch.tensor([[1], [-1]])).short()
    rows = replicas()[3:]
    found = FusedDevice().fused_logits(rows, network.packed("int8_mma"), network.shape, "int8_mma")
    assert torch.equal(found, network.definition()(rows))


# ---- votes -----------------------------------------------------------------------------------------------------------


def votes_case(
    law: str, dtype: torch.dtype, sigmas: list[float], clip: bool, voting: str, classes: int
) -> tuple[Any, ...]:
    """Arguments of `fused_votes`, but for the network."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = images / 255 if dtype.is_floating_point else images
    table = law_of(law, sigmas, dtype).table
    scale = torch.tensor([255.0, 250.0, 3e5] if dtype.is_floating_point else [1.0, 0.5, -200.0])
    shift = torch.tensor([0.0, -3.25, 0.5])
    weights = voting_rule("weighted", 4).weights if voting == "weighted" else None
    counts = torch.full((2, classes), 5), torch.arange(2)
    rows = images, SLOTS, IDS, SAMPLES, stream_key(2**63 + 5, Stream.ESTIMATE), law, table, scale, shift, clip
    return *rows, *counts, voting, weights


def check_votes(on: FusedDevice, arithmetic: str, case: tuple[Any, ...], of: Integers) -> Tensor:
    """Compares logits and what is added to counts with those of the CPU, and returns the logits."""
    *noise, counts, invalid, voting, weights = case
    here = next(name for name in ops.extension.fused_arithmetics() if name.startswith("int8"))
    added = counts.clone(), invalid.clone()
    logits = torch.ops.smoothfast.fused_votes(*noise, of.packed(here), of.shape, here, *added, voting, weights)
    votes = counts, invalid, voting, weights
    found = on.fused_votes(*noise, of.packed(arithmetic), of.shape, arithmetic, *votes)
    assert torch.equal(found, logits)
    assert torch.equal(counts, added[0])
    assert torch.equal(invalid, added[1])
    return logits


KINDS = [
    # The guide of the last law is too long to be staged; that of 0.25 is.
    ("lattice", torch.uint8, [0.25], False, "prediction", 10),
    ("gaussian", torch.uint8, [0.5, 0.12, 1.0], True, "weighted", 10),
    ("gaussian", torch.float32, [0.25], False, "soft", 10),
    ("lattice", torch.uint8, [0.5, 0.12, 1.0], True, "logit", 100),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}, {kind[1]}, {kind[4]}")
@pytest.mark.parametrize("arithmetic", INTEGERS)
def test_votes_in_integers(arithmetic: str, kind: tuple[Any, ...]) -> None:
    logits = check_votes(FusedDevice(), arithmetic, votes_case(*kind), network(1, kind[-1]))
    assert len(logits.unique(dim=0)) == 5  # four rows, and zeros


@pytest.mark.parametrize("arithmetic", INTEGERS)
def test_votes_where_words_tie(arithmetic: str) -> None:
    *rows, scale, shift, clip, counts, invalid, voting, weights = votes_case(*KINDS[0])
    *noise, clip = tied((*rows, scale, shift, clip))
    check_votes(FusedDevice(), arithmetic, (*noise, clip, counts, invalid, voting, weights), network(1))


def test_votes_of_logits_that_are_not_finite() -> None:
    """Of about a half of the rows."""
    whole = replace(network(1, 33), unit=1.0)
    case = votes_case("lattice", torch.uint8, [0.25], False, "weighted", 33)
    counts, invalid = case[-4:-2]
    largest = check_votes(FusedDevice(), INTEGERS[0], case, whole)[case[1] >= 0].abs().amax(1)
    valid = counts.sum()
    unit = torch.finfo(torch.float32).max / float(largest.median())
    check_votes(FusedDevice(), INTEGERS[0], case, replace(whole, unit=unit))
    assert counts.sum() > valid
    assert invalid.sum() > 1


# ---- the code --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(device.disassembler() is None, reason="nvdisasm is not installed (Triton brings it)")
@pytest.mark.parametrize("arch", [80, pytest.param(90, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("stem", "count"), STEMS)
def test_machine_code(stem: str, count: int, arch: int) -> None:
    """Nothing is spilled."""
    kernels = device.sass_of(stem, arch)
    assert len(kernels) == count
    for kernel, instructions in kernels.items():
        names = [re.sub(r"^@!?U?P\d+ ", "", line).split()[0] for line in instructions]
        assert not [name for name in names if name.startswith(("LDL", "STL"))], kernel


@pytest.mark.parametrize(
    "number", [0, 4, 8, 12, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14))]
)
def test_every_barrier_is_needed(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Depth 14, in which every loop turns."""
    kernels = re.split(r"(?=\.entry)", device.ptx_of(device.source_of("fused/integers"), 80))
    (place,) = (i for i, text in enumerate(kernels) if "ILi1E" in text.partition("(")[0])
    parts = kernels[place].split("bar.sync 0;")
    assert len(parts) == 16
    kernels[place] = "bar.sync 0;".join(parts[: number + 1]) + "bar.sync 0;".join(parts[number + 1 :])
    monkeypatch.setattr(device, "module_of", lambda *_: Module("".join(kernels)))
    case = votes_case(*KINDS[0])
    one_row = case[0], *(part[:1] for part in case[1:4]), *case[4:]
    with pytest.raises(PtxFault, match="race"):
        check_votes(FusedDevice(), INTEGERS[0], one_row, network(2))

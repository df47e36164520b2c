"""Fused networks on a CUDA device: the bits of the CPU in integers, graphs, the runner. `make test ARGS="-m gpu"`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.integer import Integers, drawn
from test_cuda_fused import INTEGERS, KINDS, network, replicas, votes_case
from torch import Tensor

import smoothfast as sf
from smoothfast import ops

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = "cuda"
HERE = "int8_scalar"


def placed(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.to(DEVICE, copy=True)
    return [placed(inner) for inner in part] if isinstance(part, (list, tuple)) else part


def numbers(of: Integers, arithmetic: str) -> tuple[Tensor, list[int], str]:
    packed = of.packed(arithmetic)
    return packed if arithmetic == HERE else packed.to(DEVICE), of.shape, arithmetic


@pytest.mark.parametrize("blocks", [1, 3, 18])
@pytest.mark.parametrize("arithmetic", INTEGERS)
def test_logits(arithmetic: str, blocks: int) -> None:
    """Of depths 8, 20 and 110; more rows than a device takes at a time."""
    rows = replicas().repeat(400, 1, 1, 1)
    found = ops.fused_logits(rows.to(DEVICE), *numbers(network(blocks), arithmetic)).cpu()
    wanted = ops.fused_logits(rows[:5], *numbers(network(blocks), HERE))
    assert torch.equal(found, wanted.repeat(400, 1))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}, {kind[1]}, {kind[4]}")
@pytest.mark.parametrize("arithmetic", INTEGERS)
def test_votes(arithmetic: str, kind: tuple[Any, ...]) -> None:
    of, case, found = network(1, kind[-1]), votes_case(*kind), placed(votes_case(*kind))
    for _ in range(3):
        logits = votes_of(case, numbers(of, HERE))
        assert torch.equal(votes_of(found, numbers(of, arithmetic)).cpu(), logits)
    for mine, theirs in zip(found[-4:-2], case[-4:-2], strict=True):
        assert torch.equal(mine.cpu(), theirs)


def votes_of(case: Any, numbers: tuple[Tensor, list[int], str]) -> Tensor:
    *noise, counts, invalid, voting, weights = case
    return torch.ops.smoothfast.fused_votes(*noise, *numbers, counts, invalid, voting, weights)


@pytest.mark.parametrize("arithmetic", INTEGERS)
def test_a_graph_is_replayed_with_other_rows(arithmetic: str) -> None:
    of, case = network(1), placed(votes_case(*KINDS[0]))
    packed = numbers(of, arithmetic)
    votes_of(case, packed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = votes_of(case, packed)
    case[1].copy_(case[1].flip(0))
    case[3].add_(1).clamp_(max=2**40 - 1)
    case[4].add_(1)
    graph.replay()
    found = logits.clone()
    assert torch.equal(found, votes_of(case, packed))
    assert torch.equal(found.cpu(), votes_of([on_cpu(part) for part in case], numbers(of, HERE)))


def on_cpu(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.cpu()
    return [on_cpu(inner) for inner in part] if isinstance(part, list) else part


def test_certificates_are_those_of_the_cpu() -> None:
    """By the runner that `auto` takes, from a graph; its meta is that of a CPU but for the device."""
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    base = drawn((16, 32, 64), 1, 10).definition()
    certificates = [
        sf.SmoothedClassifier(base.to(place), sigma=0.25, num_classes=10).certify(images.to(place), n0=50, n=300)
        for place in (DEVICE, "cpu")
    ]
    one, other = certificates
    assert one.meta["runner"] == "fused"
    assert one.meta["graph"] == "captured"
    assert "arithmetic" not in one.meta
    assert one.sound
    assert torch.equal(one.counts.cpu(), other.counts)
    assert torch.equal(one.radii.cpu(), other.radii)


def test_what_is_refused() -> None:
    of, rows = network(1), replicas().to(DEVICE)
    packed, shape, _ = numbers(of, INTEGERS[0])
    for wrong, message in [
        ((rows.float(), packed, shape, INTEGERS[0]), r"replicas must be Short \[R, 3, 32, 32\], not Float"),
        ((rows, packed[:-1], shape, INTEGERS[0]), "packed must come from fused_pack_integers, for shape"),
        ((rows, packed.cpu(), shape, INTEGERS[0]), "fused_logits: tensors are on cuda:0 and cpu"),
        ((rows, packed, [32, 32, 64, 1, 10], INTEGERS[0]), "on GPUs widths must be 16, 32, 64"),
        ((rows, packed, shape, "int8_avx2"), "arithmetic is 'int8_avx2', which GPUs have not"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.fused_logits(*wrong)

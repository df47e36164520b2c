"""The CUDA kernels, compiled by nvcc for two generations and executed on the CPU: the bits of the CPU backend."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import device
import pytest
import torch
from cases import (
    ARCHS,
    DTYPES,
    KINDS,
    NETWORKS,
    PASSES,
    ROWS,
    SCHEDULES,
    SHAPES,
    VOTINGS,
    arguments,
    asked_for,
    attack,
    gradients,
    network,
    same,
    tied,
    votes,
)
from device import Device
from ptx_interp import PtxFault

pytestmark = [
    pytest.mark.usefixtures("one_thread", "extension"),
    pytest.mark.skipif(device.nvcc() is None, reason="nvcc is not installed"),
]
devices = {arch: Device(arch) for arch in ARCHS}


def on(arch: int, schedule: dict[str, Any], offset: int = 0) -> Device:
    """The device of an architecture, which keeps count of what was executed."""
    devices[arch].schedule, devices[arch].offset = schedule, offset
    return devices[arch]


# ---- noisy_replicas --------------------------------------------------------------------------------------------------


# Shapes take turns on the generations; below, every instruction must have run on both.
@pytest.mark.parametrize(("shape", "arch"), list(zip(SHAPES, cycle(ARCHS))))
def test_noisy_replicas(shape: tuple[int, int, int], arch: int) -> None:
    turn = SHAPES.index(shape) + ARCHS.index(arch)
    for (law, image_dtype), dtype, channels_last in product(KINDS, DTYPES, (False, True)):
        turn += 1
        rows = ROWS if shape[1] < 40 else ROWS[2:]
        case = arguments(shape, law, image_dtype, dtype, channels_last, turn % 2 == 0, turn % 5 < 2, rows)
        found = on(arch, SCHEDULES[turn % 4], turn % 3 == 2).noisy_replicas(*case)
        assert same(found, torch.ops.smoothfast.noisy_replicas(*case)), (law, image_dtype, dtype, channels_last)


@pytest.mark.parametrize(("dtype", "arch"), list(zip(DTYPES, cycle(ARCHS))))
def test_noisy_replicas_in_many_strides_of_the_grid(dtype: torch.dtype, arch: int) -> None:
    """A grid of 8 blocks goes through 60 rows."""
    slots, samples = torch.arange(60) % 4 - 1, torch.arange(60)
    rows = torch.stack([slots, slots + 5, samples], 1)
    case = arguments((3, 8, 8), dtype=dtype, rows=rows)
    assert same(on(arch, SCHEDULES[1]).noisy_replicas(*case), torch.ops.smoothfast.noisy_replicas(*case))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_noisy_replicas_where_words_tie(dtype: torch.dtype, arch: int) -> None:
    plain = arguments((3, 8, 8), dtype=dtype, channels_last=True)
    case = tied(plain)
    expected = torch.ops.smoothfast.noisy_replicas(*case)
    assert not same(expected, torch.ops.smoothfast.noisy_replicas(*plain))
    for schedule in SCHEDULES:
        assert same(on(arch, schedule).noisy_replicas(*case), expected)


# ---- tally -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize(
    ("rows", "classes", "arch"), [(0, 3, 80), (1, 1, 90), (13, 10, 80), (40, 33, 90), (70, 100, 80), (5, 1000, 90)]
)
def test_tally(rows: int, classes: int, dtype: torch.dtype, arch: int) -> None:
    """70 rows are more than the 64 warps of the grid."""
    for schedule, offset in product(SCHEDULES, (0, 1)):
        check_tally(on(arch, schedule, offset), votes(rows, classes, dtype))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_tally_by_other_rules(dtype: torch.dtype, arch: int) -> None:
    """200 classes are more than a lane goes through in one turn of an unrolled loop."""
    for turn, (voting, (rows, classes)) in enumerate(product(VOTINGS[1:], [(11, 10), (5, 200)])):
        check_tally(on(arch, SCHEDULES[turn % 4], turn % 2), votes(rows, classes, dtype, voting=voting))


def check_tally(on: Device, case: tuple[Any, ...]) -> None:
    logits, slots, counts, invalid, *rule = case
    expected = counts.clone(), invalid.clone()
    torch.ops.smoothfast.tally(logits, slots, *expected, *rule)
    on.tally(logits, slots, counts, invalid, *rule)
    assert torch.equal(counts, expected[0])
    assert torch.equal(invalid, expected[1])


# ---- replica_sum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "arch"), [((1, 1, 1), 80), ((3, 5, 7), 90), ((3, 16, 16), 90), ((3, 40, 40), 80), ((3, 5, 7), 80)]
)
def test_replica_sum(shape: tuple[int, int, int], arch: int) -> None:
    """4 images of 3 x 40 x 40 have more runs of 8 than the grid has threads, 2,048; no rows leave zeros."""
    for number, (dtype, channels_last) in enumerate(product(DTYPES, (False, True))):
        for rows, offset in ((0, 0), (9, 0), (9, 1)):
            case = gradients(shape, rows, dtype, channels_last)
            found = on(arch, SCHEDULES[number % 4], offset).replica_sum(*case)
            assert torch.equal(found, torch.ops.smoothfast.replica_sum(*case))


# ---- attack_step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (3, 16, 20)])
def test_attack_step(shape: tuple[int, int, int], norm: str, arch: int) -> None:
    for number, eps in enumerate((0.0, 1e-40, 0.03, 0.5)):
        adversarial, *rest = attack(shape, norm, eps)
        expected = adversarial.clone()
        torch.ops.smoothfast.attack_step(expected, *rest)
        on(arch, SCHEDULES[number], number % 2).attack_step(adversarial, *rest)
        assert torch.equal(adversarial, expected)


# ---- perturb_weights -------------------------------------------------------------------------------------------------


RANKS = ((0, 64, 33), (17, 0, 1), (5, 2, 49))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("layers", "ranks"), list(zip(NETWORKS, RANKS, strict=True)))
def test_perturb_weights(layers: tuple[int, ...], ranks: tuple[int, ...], arch: int) -> None:
    """77 tiles are 2 chunks, which makes 10 units of 5 passes: more than the grid has blocks. Threads meet in a warp
    only, so that one tile is enough for the schedules."""
    for number, (dtype, rank) in enumerate(zip(DTYPES, ranks, strict=True)):
        case = network(layers, rank, dtype)
        found = on(arch, SCHEDULES[number + 1 if layers == (1,) else 0], number % 2).perturb_weights(*case)
        assert torch.equal(found, torch.ops.smoothfast.perturb_weights(*case))


# ---- machine code ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(device.disassembler() is None, reason="nvdisasm is not installed (Triton brings it)")
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("stem", ["noisy_replicas", "tally", "replica_sum", "attack_step", "perturb_weights"])
def test_machine_code(stem: str, arch: int) -> None:
    """Nothing is spilled, noise is written 16 bytes a thread, and no loop was unrolled out of proportion."""
    for kernel, instructions in device.sass_of(stem, arch).items():
        names = [re.sub(r"^@!?U?P\d+ ", "", line).split()[0] for line in instructions]
        assert not [name for name in names if name.startswith(("LDL", "STL"))], kernel
        assert len(names) < MOST_INSTRUCTIONS[stem], kernel
        if stem == "noisy_replicas":
            assert "STG.E.128" in names, kernel


MOST_INSTRUCTIONS = {
    "noisy_replicas": 1200,
    "tally": 1400,
    "replica_sum": 650,
    "attack_step": 600,
    "perturb_weights": 800,
}


# ---- the tests themselves --------------------------------------------------------------------------------------------


def test_the_interpreter_is_right() -> None:
    program = Path(__file__).parent / "ptx" / "test_ptx_interp.py"
    done = subprocess.run([sys.executable, "-W", "ignore", program], capture_output=True, text=True, check=False)
    assert "all equal to the oracles" in done.stdout, done.stdout + done.stderr


KERNELS = 36
NEEDED = [test_noisy_replicas, test_noisy_replicas_in_many_strides_of_the_grid, test_noisy_replicas_where_words_tie]
NEEDED += [test_tally, test_tally_by_other_rules, test_replica_sum, test_attack_step, test_perturb_weights]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_instruction_was_executed(arch: int, request: pytest.FixtureRequest) -> None:
    """Of every kernel, by the tests above."""
    if not asked_for(request, NEEDED):
        pytest.skip("not all tests above were asked for")
    missing = devices[arch].not_executed()
    assert len(missing) == KERNELS
    assert {kernel: lines for kernel, lines in missing.items() if lines} == {}


MUTATIONS = {
    "a Philox multiplier": ("noisy_replicas", "0xD2511F53", "0xD2511F51"),
    "a round of Philox": ("noisy_replicas", "kRounds = 10", "kRounds = 9"),
    "the bits of a tile": ("noisy_replicas", "threadIdx.x / 16 * 64", "threadIdx.x / 16 * 32"),
    "the first barrier": ("noisy_replicas", "guide = staged;\n    __syncthreads();", "guide = staged;"),
    "the second barrier": ("noisy_replicas", "__syncthreads();\n    write_chunk", "write_chunk"),
    "the third barrier": ("noisy_replicas", "slot >= 0);\n    __syncthreads();", "slot >= 0);"),
    "a tail": ("noisy_replicas", "if (here >= at.end) break;", ""),
    "the last elements": ("noisy_replicas", "i < count;", "i + 1 < count;"),
    "too many elements": ("noisy_replicas", "min(elements - begin, most)", "most"),
    "padding": ("noisy_replicas", "if (slot >= 0) {", "if (slot >= -5) {"),
    "refining bits": ("noisy_replicas", "kRefine = 3", "kRefine = 4"),
    "a comparison of thresholds": ("noisy_replicas", "<= refined", "< refined / 2"),
    "clipping": ("noisy_replicas", "value > high ? high", "value > high ? value"),
    "sigma of a channel": ("noisy_replicas", "args.sigmas == 1 ? 0 : channel", "0 * channel"),
    "a lane": (
        "tally",
        "distance = 16; distance > 0; distance /= 2) best",
        "distance = 8; distance > 0; distance /= 2) best",
    ),
    "the first of equals": ("tally", "b.value == a.value && b.first < a.first", "b.value == a.value"),
    "padding rows": ("tally", "if (slot < 0) continue;", ""),
    "the sign of zero": ("tally", "((bits & Format::kMagnitude) ^ sign) - sign", "bits"),
    "what is not finite": ("tally", "a.broken || b.broken", "a.broken"),
    "the order of rows": ("replica_sum", "args.rows[i] * elements", "i * elements"),
    "the last row": ("replica_sum", "i < args.first[image + 1]", "i + 1 < args.first[image + 1]"),
    "neighbours": ("replica_sum", "sums[j] += value(run.at[j])", "sums[j] += value(run.at[0])"),
    "interleaved gradients": ("replica_sum", "at % args.channels", "at / args.plane"),
    "an ulp of the ball": ("attack_step", "lost >= 0 ? sum", "lost < 2 ? sum"),
    "no gradient": ("attack_step", "gradient < 0 ? -attack.alpha : 0", "gradient <= 0 ? -attack.alpha : 0"),
    "the barrier after the lanes": ("attack_step", "= lane;\n  __syncthreads();", "= lane;"),
    "the barrier between halves": ("attack_step", "half];\n    __syncthreads();", "half];"),
    "the barrier before the next sum": ("attack_step", "__syncthreads();  // before", "// before"),
    "half of the lanes": ("attack_step", "half = kLanes / 2", "half = kLanes / 4"),
    "the projection": ("attack_step", "shift * factor", "shift"),
    "the layer of shared normals": ("perturb_weights", "layer + kLowRank", "layer"),
    "a change of layer": ("perturb_weights", "layer != drawn", "drawn < 0"),
    "a normal of the other tile": ("perturb_weights", "first + k % kTileThreads", "k % kTileThreads"),
    "a normal beyond 16": ("perturb_weights", "k < 16 ?", "k < 17 ?"),
    "the number of a tile": ("perturb_weights", "args.places[args.tiles + tile]", "tile"),
    "a factor": ("perturb_weights", "k < args.rank; ++k", "k + 1 < args.rank; ++k"),
    "the words of a weight": ("perturb_weights", "{first.z0, first.z1, second", "{first.z1, first.z0, second"),
    "the last tiles": ("perturb_weights", "tile < args.tiles", "tile <= args.tiles"),
    "an atomic": (
        "tally",
        "atomicAdd(reinterpret_cast<unsigned long long*>(count), static_cast<unsigned long long>(amount))",
        "*count += amount",
    ),
    "the order of ranks": ("tally", "c > best.first", "c < best.first"),
    "a rank": ("tally", "++rank == args.ranks", "++rank + 1 == args.ranks"),
    "a term of a row": ("tally", "total += __shfl_xor_sync", "total = __shfl_xor_sync"),
    "the largest logit": ("tally", "ordered<Format>(best.value)", "best.value"),
}


def check_noisy_replicas(on: Device) -> None:
    cases = [
        tied(arguments((3, 8, 8), channels_last=True)),
        arguments((3, 8, 8), rows=ROWS[[0, 2, 3] * 6], per_channel=True),
        arguments((3, 5, 7), "gaussian", torch.float32, torch.float32, clip=True),
        arguments((3, 40, 40), dtype=torch.float32),
    ]
    for case in cases:
        assert same(on.noisy_replicas(*case), torch.ops.smoothfast.noisy_replicas(*case))


def check_votes(on: Device) -> None:
    for classes in (10, 33):
        check_tally(on, votes(70, classes, torch.float32))
    for voting in VOTINGS[1:]:
        check_tally(on, votes(11, 40, torch.float32, voting=voting))


def check_replica_sum(on: Device) -> None:
    for channels_last in (False, True):
        case = gradients((3, 8, 8), 12, torch.float32, channels_last)
        assert torch.equal(on.replica_sum(*case), torch.ops.smoothfast.replica_sum(*case))


def check_attack_step(on: Device) -> None:
    for norm in ("linf", "l2"):
        adversarial, *rest = attack((3, 16, 20), norm, 0.03)
        expected = adversarial.clone()
        torch.ops.smoothfast.attack_step(expected, *rest)
        on.attack_step(adversarial, *rest)
        assert torch.equal(adversarial, expected)


def check_perturb_weights(on: Device) -> None:
    for rank, passes in ((5, 5), (18, 1)):
        case = network(NETWORKS[2], rank, torch.float32, PASSES[:passes])
        assert torch.equal(on.perturb_weights(*case), torch.ops.smoothfast.perturb_weights(*case))


CHECKS = {
    "noisy_replicas": check_noisy_replicas,
    "tally": check_votes,
    "replica_sum": check_replica_sum,
    "attack_step": check_attack_step,
    "perturb_weights": check_perturb_weights,
}
# The kernels that the checks launch.
LAUNCHED = {
    "noisy_replicas": [
        f"noisy_replicas_kernel<{types}>"
        for types in ("LatticeLaw, __nv_bfloat16, uint8_t", "LatticeLaw, float, uint8_t", "GaussianLaw, float, float")
    ],
    "tally": [f"tally_kernel<Float32, {rule}<Float32>>" for rule in ("Prediction", "Weighted", "Soft", "Logit")],
    "replica_sum": ["replica_sum_kernel<float, 4>"],
    "attack_step": ["linf_kernel", "l2_kernel"],
    "perturb_weights": ["perturb_weights_kernel<float>"],
}


@cache
def mutated(stem: str) -> str:
    """The source as it is and with each of its mutations, which nvcc compiles in a third of the time all together."""
    source = device.source_of(stem)
    versions = {space_of(None): source}
    for name, (where, text, instead) in MUTATIONS.items():
        if where == stem:
            assert source.count(text) == 1
            versions[space_of(name)] = source.replace(text, instead)
    return device.together(versions, LAUNCHED[stem])


def space_of(mutation: str | None) -> str:
    return f"mutant_{[None, *MUTATIONS].index(mutation)}_"


def check(stem: str, mutation: str | None) -> None:
    for schedule in SCHEDULES[:2]:
        CHECKS[stem](Device(80, schedule=schedule, sources={stem: mutated(stem)}, namespace=space_of(mutation)))


@pytest.mark.parametrize("stem", CHECKS)
def test_what_is_not_mutated_passes(stem: str) -> None:
    check(stem, None)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_found(mutation: str) -> None:
    with pytest.raises((AssertionError, PtxFault)):
        check(MUTATIONS[mutation][0], mutation)

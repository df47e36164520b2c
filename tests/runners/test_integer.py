"""Networks in integers: every arithmetic gives the bits of the definition; what would break that is refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.amx import EmulatedAmx
from helpers.integer import Integers, drawn
from torch import Tensor

from smoothfast import ops
from smoothfast.noise import Stream, lattice_law, stream_key
from smoothfast.runners import DeclinedError, choice, fused
from smoothfast.voting import PREDICTION, SOFT, Voting

ALL = ("int8_amx", "int8_avx512_vnni", "int8_avx_vnni", "int8_avx2", "int8_scalar")
HERE = [] if ops.extension is None else [name for name in ops.extension.fused_arithmetics() if name in ALL]

pytestmark = pytest.mark.skipif(not HERE, reason="smoothfast._C is not built")


@pytest.fixture(autouse=True)
def one_core(one_thread: None) -> Iterator[None]:
    return


def replicas(count: int, seed: int = 0) -> Tensor:
    """Noisy pixels, and others that no image has: the ends of the range of int16, at random and everywhere."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, 32, 32)
    noisy = torch.randint(0, 256, shape, generator=generator) + 64 * torch.randn(shape, generator=generator)
    ends = torch.randint(0, 2, shape, generator=generator) * 3800 - 1900
    anything = torch.randint(-(2**15), 2**15, shape, generator=generator)
    kind = torch.arange(count).view(-1, 1, 1, 1) % 5
    found = torch.where(kind == 1, ends, torch.where(kind == 2, anything, noisy.round()))
    return torch.where(kind == 3, 2**15 - 1, torch.where(kind == 4, -(2**15), found)).short()


@cache
def known(widths: tuple[int, int, int], blocks: int, classes: int, count: int) -> tuple[Integers, Tensor, Tensor]:
    """A network, replicas and their logits."""
    network, x = drawn(widths, blocks, classes, seed=sum(widths)), replicas(count)
    return network, x, network.definition()(x)


SMALL = ((16, 32, 64), 1, 10, 50)
NETS = [((16, 32, 64), 3, 10, 7), ((32, 48, 16), 1, 7, 6), ((48, 16, 80), 1, 2, 3), ((16, 16, 32), 18, 3, 2)]


@pytest.mark.parametrize("net", NETS, ids=lambda net: f"{net[0]}, {net[1]}")
def test_every_arithmetic_computes_the_function(net: Any) -> None:
    network, x, logits = known(*net)
    packed = network.packed()
    for arithmetic in HERE:
        assert torch.equal(ops.fused_logits(x, packed, network.shape, arithmetic), logits), arithmetic


@pytest.mark.skipif("int8_amx" in HERE, reason="it need not be: this processor has AMX")
@pytest.mark.parametrize("net", [SMALL, NETS[1], NETS[2]], ids=lambda net: f"{net[0]}")
def test_amx_where_it_is_emulated(emulated_amx: EmulatedAmx, net: Any) -> None:
    network, x, logits = known(*net)
    assert torch.equal(emulated_amx.integer_logits(x[:3], network.packed(), network.shape), logits[:3])


def test_the_networks_of_these_tests_have_all_numbers() -> None:
    """Maps of zeros would prove nothing."""
    network, x, logits = known(*NETS[0])
    maps: list[Tensor] = []
    definition = network.definition()
    definition.blocks[-1].register_forward_hook(lambda *called: maps.append(called[-1]))
    definition(x)
    counts = maps[0].long().flatten().bincount(minlength=256) / maps[0].numel()
    assert (counts > 0).all()
    assert counts[1:255].sum() > 0.2
    assert len(logits.unique()) == logits.numel()


@pytest.mark.parametrize("arithmetic", HERE)
def test_rows_in_any_number_order_and_company(arithmetic: str) -> None:
    network, x, logits = known(*SMALL)
    packed, shape = network.packed(), network.shape
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    choices = [order, torch.tensor([7] * 5), *(torch.arange(rows) for rows in (0, 1, 15, 16, 17, 33))]
    for rows in choices:
        assert torch.equal(ops.fused_logits(x[rows], packed, shape, arithmetic), logits[rows])
    torch.set_num_threads(2)
    assert torch.equal(ops.fused_logits(x[order], packed, shape, arithmetic), logits[order])
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.fused_logits(last, packed, shape, arithmetic), logits)


def test_networks_in_turn() -> None:
    """Neither another network nor another arithmetic leaves anything behind in the memory of a thread."""
    nets = [known(*SMALL), known(*NETS[1])]
    for arithmetic in [*HERE, *HERE[::-1]]:
        for network, x, logits in nets:
            assert torch.equal(ops.fused_logits(x[:3], network.packed(), network.shape, arithmetic), logits[:3])


@pytest.mark.slow
def test_where_there_is_no_torch(tmp_path: Path) -> None:
    """Of Debian: g++-aarch64-linux-gnu and qemu-user-static."""
    logits = []
    for compiler, emulator in (("g++", []), ("aarch64-linux-gnu-g++", ["qemu-aarch64-static"])):
        for tool in (compiler, *emulator):
            if shutil.which(tool) is None:
                pytest.skip(f"needs {tool}")
        program = str(tmp_path / compiler)
        stems = ["cpu/isa", "fused/plan", *(f"cpu/fused/integer/{stem}" for stem in ("network", "pack", "program"))]
        sources = ["tests/runners/integer_elsewhere.cpp", *(f"csrc/{stem}.cpp" for stem in stems)]
        flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-static", "-Icsrc", "-Itests"]
        subprocess.run([compiler, *flags, *sources, "-o", program], cwd=Path(__file__).parents[2], check=True)
        logits.append(subprocess.run([*emulator, program], capture_output=True, text=True, check=True).stdout)
    assert logits[0] == logits[1]
    assert len(set(logits[0].split())) == 25


@pytest.mark.parametrize("voting", [PREDICTION, SOFT], ids=lambda voting: voting.name)
@pytest.mark.parametrize("arithmetic", HERE)
def test_votes_are_those_of_the_single_operators(arithmetic: str, voting: Voting) -> None:
    network, *_ = known(*SMALL)
    packed, classes = network.packed(), network.shape[-1]
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    slots = torch.randint(-1, 4, (45,), generator=generator)
    rows = (images, slots, slots.clamp(min=0) + 7, torch.arange(45), stream_key(1, Stream.PREDICT), lattice_law(0.25))
    affine = torch.ones(3), torch.zeros(3), False
    wanted, found = ((torch.ones(4, classes, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)) for _ in range(2))
    drawn_rows = ops.noisy_replicas(*rows, *affine, torch.int16)
    assert torch.equal(drawn_rows, ops.noisy_replicas(*rows, *affine).short())
    logits = ops.fused_logits(drawn_rows, packed, network.shape, arithmetic)
    ops.tally(logits, slots, *wanted, voting)
    by_one = ops.fused_votes((*rows, *affine), packed, network.shape, arithmetic, *found, voting)
    assert torch.equal(by_one, logits.masked_fill(slots[:, None] < 0, 0))
    assert torch.equal(found[0], wanted[0])
    torch.set_num_threads(2)
    ops.fused_votes((*rows, *affine), packed, network.shape, arithmetic, *found, voting)
    assert torch.equal(found[0] - wanted[0], wanted[0] - 1)


@pytest.mark.parametrize("instructions", ["scalar", "avx2", "avx512"])
def test_which_there_are(extension: Any, instructions: str) -> None:
    if instructions not in extension.supported_instruction_sets():
        pytest.skip(f"this processor lacks {instructions}")
    before = extension.instruction_set()
    extension.use_instruction_set(instructions)
    there = [name for name in extension.fused_arithmetics() if name.startswith("int8")]
    extension.use_instruction_set(before)
    assert there == [name for name in ALL if name in there]
    allowed = {"scalar": ALL[4:], "avx2": ALL[2:], "avx512": ALL}[instructions]
    assert set(there) <= set(allowed)
    assert "int8_scalar" in there
    assert ("int8_avx2" in there) == (instructions != "scalar")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", HERE)
def test_operators(arithmetic: str) -> None:
    network, x, _ = known(*SMALL)
    x, packed, shape = x[:3], network.packed(), network.shape
    torch.library.opcheck(torch.ops.smoothfast.fused_logits, (x, packed, shape, arithmetic))
    law, ids, counts = lattice_law(0.1), torch.arange(3), torch.zeros(3, 10, dtype=torch.int64)
    numbers = (ids, ids, ids, stream_key(0, Stream.PREDICT), law.name, law.table, *[torch.ones(3)] * 2, False)
    arguments = (x.clamp(0, 255).byte(), *numbers, packed, shape, arithmetic, counts, counts[:, 0].clone())
    torch.library.opcheck(torch.ops.smoothfast.fused_votes, arguments)
    for wrong, message in [
        ((x.float(), packed, shape), r"replicas must be Short \[R, 3, 32, 32\], not Float"),
        ((x, packed[:-1], shape), "packed must come from fused_pack_integers, for shape"),
        ((x, torch.cat([packed[:1], packed])[1:], shape), "packed must come from fused_pack_integers, for shape"),
        ((x, packed, [16, 32, 64, 2, 10]), "packed must come from fused_pack_integers, for shape"),
        ((x, packed, [16, 32, 65, 1, 10]), "widths must be multiples of 16"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.fused_logits(*wrong, arithmetic)
    with pytest.raises(RuntimeError, match=f"arithmetic is '{arithmetic}', a function of integers, which has no grad"):
        ops.fused_gradients(x, torch.arange(3), packed, shape, arithmetic)
    with pytest.raises(RuntimeError, match=f"arithmetic is '{arithmetic}', which there is not"):
        ops.fused_pack([], [], [], torch.zeros(1), torch.zeros(1), arithmetic, False)


def changed(name: str, i: int, change: Callable[[Tensor], Any]) -> Callable[[Integers], Integers]:
    """A network of which a tensor of a list is another: what `change` returns, or the one it was given and altered."""

    def apply(network: Integers) -> Integers:
        tensors = list(getattr(network, name))
        tensor = tensors[i].clone()
        found = change(tensor)
        tensors[i] = tensor if found is None else found
        return replace(network, **{name: tensors})

    return apply


def setting(*values: Any) -> Callable[[Tensor], None]:
    """Sets the first elements."""

    def change(tensor: Tensor) -> None:
        tensor.flatten()[: len(values)] = torch.tensor(values).to(tensor.dtype)

    return change


def pair(first: int, second: int) -> Callable[[Tensor], None]:
    """Sets two weights that are added in 16 bits."""

    def change(tensor: Tensor) -> None:
        tensor[0, 2:4, 1 % tensor.shape[2], 0] = torch.tensor([first, second], dtype=tensor.dtype)

    return change


# Layers of the network below: 0 the image, then 1 and 2, the shortcut 3 with 4 and 5, the shortcut 6 with 7 and 8.
WRONG: dict[str, tuple[Callable[[Integers], Integers], str]] = {
    "too few weights": (lambda n: replace(n, weights=n.weights[:-1]), r"there must be 3 \+ 6n weights, not 8"),
    "too few shifts": (lambda n: replace(n, shifts=n.shifts[:-1]), "there must be 9 of weights, .* each, not 8"),
    "weights of one dimension": (changed("weights", 0, Tensor.flatten), r"weights\[0\] must have four dimensions"),
    "a width": (changed("weights", 0, lambda w: w[:8]), "widths must be multiples of 16; widths are 8, 32, 64"),
    "image in int8": (changed("weights", 0, Tensor.char), r"weights\[0\] must be Short \[16, 3, 3, 3\], not Char"),
    "other inputs": (changed("weights", 4, lambda w: w[:, :8]), r"weights\[4\] must be Char \[32, 16, 3, 3\], not"),
    "a scale of a shortcut": (changed("scales", 3, lambda s: torch.ones(32)), r"scales\[3\] must be Float \[0\]"),
    "scales in float64": (changed("scales", 1, Tensor.double), r"scales\[1\] must be Float \[16\], not Double"),
    "bias of the image": (changed("biases", 0, lambda b: b[1]), r"biases\[0\] must be Float \[3, 3, 16\], not"),
    "a multiplier too many": (changed("multipliers", 5, lambda m: torch.ones(32).char()), r"multipliers\[5\] .* \[0\]"),
    "no multipliers": (changed("multipliers", 2, lambda m: m[:0]), r"multipliers\[2\] must be Char \[16\], not"),
    "no shifts": (changed("shifts", 5, lambda s: s[:0]), r"shifts\[5\] must be Int \[32\], not Int \[0\]"),
    "a large pixel weight": (changed("weights", 0, setting(4096)), r"weights\[0\] has 4096; .* lie in -4095 .. 4095"),
    "large sums of pixels": (changed("weights", 0, lambda w: w.fill_(2428)), "magnitudes add up to 65556; .* 65535"),
    "a pair": (changed("weights", 1, pair(100, -29)), r"weights\[1\] has 100 and -29 for two inputs .* exceed 128"),
    "the least pair": (changed("weights", 8, pair(-128, 1)), r"weights\[8\] has -128 and 1 for two inputs"),
    "a pair of a shortcut": (changed("weights", 3, pair(127, 2)), r"weights\[3\] has 127 and 2 for two inputs"),
    "scale 0": (changed("scales", 1, setting(1e-50)), r"scales\[1\] has 0; its numbers must lie in"),
    "a large scale": (changed("scales", 2, setting(0.51)), r"scales\[2\] has 0.51; its numbers must lie in"),
    "scale NaN": (changed("scales", 2, setting(float("nan"))), r"scales\[2\] has nan; its numbers must lie in"),
    "a large bias": (changed("biases", 4, setting(-6e8)), r"biases\[4\] has -6e\+08; its numbers must lie in"),
    "a negative multiplier": (changed("multipliers", 2, setting(-1)), r"multipliers\[2\] has -1; .* lie in 0 .. 127"),
    "a negative shift": (changed("shifts", 2, setting(-1)), r"shifts\[2\] has -1; its numbers must lie in 0 .. 24"),
    "a large shift": (changed("shifts", 5, setting(25)), r"shifts\[5\] has 25; its numbers must lie in 0 .. 24"),
    "sums": (changed("shifts", 5, setting(24)), r"weights\[5\] and shifts\[5\] let a sum of output 0 reach \d+"),
    "linear in float32": (lambda n: replace(n, linear=n.linear.float()), r"linear must be int16 \[K, C\], not Float"),
    "another linear bias": (lambda n: replace(n, linear_bias=n.linear_bias[1:]), r"linear_bias must be int32 \[10\]"),
    "logits": (lambda n: replace(n, linear=n.linear.sign() * 2100), r"linear\[0\] and linear_bias\[0\] let a logit"),
    "unit 0": (lambda n: replace(n, unit=1e-50), "unit must be positive and finite in float32, not 1e-50"),
    "unit of infinity": (lambda n: replace(n, unit=1e39), r"unit must be positive and finite in float32, not 1e\+39"),
    "unit NaN": (lambda n: replace(n, unit=float("nan")), "unit must be positive and finite in float32, not nan"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_network_that_is_refused(change: Callable[[Integers], Integers], message: str) -> None:
    with pytest.raises(RuntimeError, match="fused_pack_integers: .*" + message):
        change(known(*SMALL)[0]).packed()


def test_packing_for_gpus() -> None:
    """Also where there is none; widths are fewer there, and what was packed is for GPUs alone."""
    network, x, _ = known(*SMALL)
    packed = network.packed("int8_mma")
    assert torch.equal(packed, network.packed("int8_mma_pairs"))
    with pytest.raises(RuntimeError, match=r"on GPUs widths must be 16, 32, 64; widths are 32, 48, 16"):
        known(*NETS[1])[0].packed("int8_mma")
    for name in ("int8", "bf16_mma"):
        with pytest.raises(
            RuntimeError, match=f"fused_pack_integers: arithmetic is '{name}', which is none in integers"
        ):
            network.packed(name)
    with pytest.raises(RuntimeError, match="arithmetic is 'int8_mma', which this processor has not"):
        ops.fused_logits(x, packed, network.shape, "int8_mma")
    with pytest.raises(RuntimeError, match="packed must come from fused_pack_integers, for shape"):
        ops.fused_logits(x, packed, network.shape, HERE[0])


def test_the_runner_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes it where there are kernels, and is told why where there are none."""
    cuda, workload = torch.device("cuda"), choice.Workload(1e6, 20, family=True)
    network, examples = known(*SMALL)[0].definition(), (torch.zeros(2, 3, 32, 32),)
    for there in (["int8_mma"], []):
        monkeypatch.setattr(fused, "_live", lambda device, there=there: there)
        assert choice.for_integers(workload, cuda) == ["fused", "eager"][len(there) == 0 :]
    for device, why in (
        (cuda, "compiled without CUDA sources"),
        (torch.device("xpu"), "the base classifier is on xpu"),
    ):
        with pytest.raises(DeclinedError, match=why):
            fused.make(network, torch.float32, device, examples, 1)


def test_the_largest_sums_do_not_overflow() -> None:
    """At the limits that are allowed, with maps and pixels at theirs."""
    network = drawn((16, 16, 16), 1, 2)
    network.weights[0] = torch.full_like(network.weights[0], 2427)
    for i, weight in enumerate(network.weights[1:], 1):
        network.weights[i] = torch.full_like(weight, 64 if i % 2 else -64)
    network.multipliers[2].fill_(127)
    network.shifts[2].fill_(15)
    for i in (5, 8):  # 255 times 16 times 64 << 13 is 2^31 less a little
        network.shifts[i].fill_(13)
    network.linear = torch.full_like(network.linear, 8191).mul(torch.tensor([[1], [-1]])).short()
    x = torch.full((3, 3, 32, 32), 2**15 - 1).short()
    x[1] = -(2**15)
    wanted, packed = network.definition()(x), network.packed()
    for arithmetic in HERE:
        assert torch.equal(ops.fused_logits(x, packed, network.shape, arithmetic), wanted), arithmetic

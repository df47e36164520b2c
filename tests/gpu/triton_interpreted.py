"""The Triton kernels under Triton's interpreter, against the CPU backend and the reference, bit for bit."""

from __future__ import annotations

import math
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import test_attack_step
import test_noise
import test_noisy_replicas
import test_replica_sum
import test_tally
import torch
import triton
import triton.language as tl
from cases import DTYPES, NETWORKS, PASSES, network
from smoothfast.kernels import philox
from smoothfast.kernels.attack_step import attack_step
from smoothfast.kernels.noisy_replicas import noisy_replicas
from smoothfast.kernels.perturb_weights import perturb_weights
from smoothfast.kernels.replica_sum import replica_sum
from smoothfast.kernels.tally import tally
from test_attack_step import stepped
from test_noisy_replicas import Case, cases, strided
from torch import Tensor
from triton.runtime import interpreter

from smoothfast import noise
from smoothfast.noise import Law, Stream, gaussian_law, lattice_law, stream_key
from smoothfast.ops import laws, reference
from smoothfast.voting import LOGIT, SOFT, voting_rule

pytestmark = pytest.mark.usefixtures("one_thread")
# One element; several channels in one block of 64; planes that begin within one, and of two programs.
SHAPES = ((1, 1, 1), (3, 5, 7), (2, 33, 31), (2, 40, 40), (3, 32, 32))
not_finite = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")
ROWS = test_noisy_replicas.ROWS[[3, 6, 9]]  # padding, the last ids, and ids of which both pass 2^32


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter truncates to bfloat16, and that of Triton 3.8 rounds the product of an fma; a GPU rounds to
    nearest even, once: see check_rounding and the casts in test_triton_ptx.py."""
    former = interpreter.InterpreterBuilder.cast_impl

    def cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
            return former(self, source, target)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype(np.float64) * y.data + z.data  # or nearly so
        return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)


@pytest.fixture(autouse=True)
def patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter exchanges the functions of triton.language when a kernel is launched, and again at every call of
    a function by a kernel, when it finds nothing left to do: that took a third of the time of these tests."""
    if not hasattr(interpreter, "_LangPatchScope"):
        return  # before Triton 3.6, which keeps no record of what it exchanged
    former, done = interpreter._patch_lang, set()

    class Scope(interpreter._LangPatchScope):
        def restore(self) -> None:
            super().restore()
            done.clear()

    def patch(function: Any) -> Any:
        modules = [value for value in function.__globals__.values() if isinstance(value, ModuleType)]
        parts = frozenset(module.__name__ for module in modules if module in (tl, tl.core))
        if parts in done:
            return Scope()
        done.add(parts)
        return former(function)

    monkeypatch.setattr(interpreter, "_LangPatchScope", Scope)
    monkeypatch.setattr(interpreter, "_patch_lang", patch)


def arguments(case: Case) -> tuple[Any, ...]:
    images, _, _, _, *rest = test_noisy_replicas.arguments(case)
    return images, *ROWS.T, *rest


def same(actual: Tensor, expected: Tensor) -> bool:
    """Bit for bit, strides included."""
    integers = {2: torch.int16, 4: torch.int32}[actual.element_size()]
    equal = torch.equal(actual.view(integers), expected.view(integers))
    return equal and actual.dtype == expected.dtype and actual.stride() == expected.stride()


# ---- words -----------------------------------------------------------------------------------------------------------


@triton.jit
def write_words(out: tl.tensor, counter: tl.tensor, key: tl.tensor, blocks: tl.constexpr) -> None:
    c0 = tl.load(counter).to(tl.uint32) + tl.arange(0, blocks).to(tl.uint32)
    c1, c2, c3 = (tl.load(counter + 1 + i).to(tl.uint32) for i in range(3))
    w0, w1, w2, w3 = philox.philox(c0, c1, c2, c3, tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32))
    tl.store(out + tl.arange(0, 4 * blocks), philox.in_element_order(w0, w1, w2, w3).to(tl.int64))


def test_words() -> None:
    generator, blocks = torch.Generator().manual_seed(0), 64
    counters = torch.randint(0, 2**32, (20, 6), generator=generator)
    counters[0, 0] = 2**32 - 5  # wraps
    counters[1] = 0
    counters[2] = 2**32 - 1
    for row in counters:
        out = torch.empty(4 * blocks, dtype=torch.int64)
        write_words[(1,)](out, row[:4], row[4:], blocks)
        first = (row[0] + torch.arange(blocks)) & reference.WORD
        expected = reference.philox([first, *row[1:4].expand(blocks, 3).T], (row[4], row[5]))
        assert torch.equal(out.view(-1, 4, 16), torch.stack([word.view(-1, 16) for word in expected], 1))


# ---- noise -----------------------------------------------------------------------------------------------------------


def drawn(law: Law, shape: Any, seed: int, image: int, samples: Any, stream: Stream, zeros: Tensor) -> Tensor:
    ids, one = torch.tensor(samples), torch.ones(1)
    zeros = zeros.expand(1, 1, 1, math.prod(shape))
    rows = (torch.zeros_like(ids), torch.full_like(ids, image), ids, stream_key(seed, stream))
    out = noisy_replicas(zeros, *rows, law.name, law.table, one, 0 * one, False, torch.float32, False)
    return out.view(-1, *shape)


def lattice(shape: Any, sigma: float, seed: int, image: int, samples: Any, stream: Stream = Stream.ESTIMATE) -> Tensor:
    return drawn(lattice_law(sigma), shape, seed, image, samples, stream, torch.zeros(1, dtype=torch.uint8))


def gaussian(shape: Any, sigma: float, seed: int, image: int, samples: Any, stream: Stream = Stream.ESTIMATE) -> Tensor:
    return drawn(gaussian_law(sigma), shape, seed, image, samples, stream, torch.zeros(1))


def half(shape: tuple[int, int, int], kinds: list[tuple[str, torch.dtype]]) -> list[Case]:
    """Of each kind and dtype, in one memory format: formats take turns, so that each meets every kind, dtype and shape.
    The interpreter takes a thousand times as long as the kernels."""
    turn = SHAPES.index(shape)
    return [case for i, case in enumerate(cases(shape, kinds)) if (i + i // 2 + turn) % 2 == 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_lattice_equals_the_reference(shape: tuple[int, int, int]) -> None:
    for case in half(shape, [("lattice", torch.uint8)]):
        assert same(noisy_replicas(*arguments(case)), reference.noisy_replicas(*arguments(case))), case


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_equals_the_cpu(extension: Any, shape: tuple[int, int, int]) -> None:
    for case in half(shape, [("gaussian", torch.uint8), ("gaussian", torch.float32)]):
        assert same(noisy_replicas(*arguments(case)), test_noisy_replicas.op(*arguments(case))), case


@pytest.mark.parametrize("ties", test_noise.TIES)
def test_lattice_where_words_tie(ties: Any) -> None:
    test_noise.check_ties(lattice, *ties)


def test_many_unsure_words_in_a_program() -> None:
    """A guide that leaves every 256th word to the thresholds: its empty buckets stand one N further out, and their
    threshold at 0 is passed by all other words."""
    high, low, _ = lattice_law(0.12).table
    guide = torch.from_numpy(laws._guide_row(high[0].numpy(), 15))[None]
    empty = guide & 255 == 255
    law = Law("lattice", (0.12,), (high, low, torch.where(empty, (guide >> 8) - 1 << 8, guide)))
    where = ((2000,), 5, 2**33, [7, 2**39], Stream.SELECT)
    actual = drawn(law, *where, torch.zeros(1, dtype=torch.uint8))
    assert torch.equal(actual.double(), test_noise.lattice_by_reference(where[0], 0.12, *where[1:]))


@pytest.mark.parametrize("place", [test_noise.LARGEST_RADIUS, test_noise.SMALLEST_RADIUS])
def test_gaussian_at_the_ends_of_the_radius(extension: Any, place: tuple[int, int, int, int]) -> None:
    expected = test_noise.pair_at(noise.gaussian, *place)
    assert torch.equal(test_noise.pair_at(gaussian, *place), expected)


def test_casts_round_to_nearest_even() -> None:
    """Subnormal, overflowing and infinite results, of both signs, in every dtype."""
    images, *rest, _, _, clip, _, channels_last = arguments(Case((4, 16, 16)))
    scale, shift = torch.tensor([1e-7, -300, 1.3e36, -1e38]), torch.tensor([0.0, 0, 0, 1e30])
    for dtype in test_noisy_replicas.DTYPES:
        changed = (images, *rest, scale, shift, clip, dtype, channels_last)
        out = noisy_replicas(*changed)
        assert same(out, reference.noisy_replicas(*changed)), dtype
        assert out.isinf().any()


def test_nan_pixels_stay_nan() -> None:
    for clip, dtype in product((False, True), test_noisy_replicas.DTYPES):
        images, *rest = arguments(Case((3, 5, 7), "gaussian", torch.float32, clip=clip, dtype=dtype))
        images = images.clone()
        images[1, 2, 3, 4] = math.nan
        broken = noisy_replicas(images, *rest).isnan()
        assert torch.equal(broken[:, 2, 3, 4], ROWS[:, 0] == 1)
        assert broken.sum() == (ROWS[:, 0] == 1).sum()


@pytest.mark.parametrize("law", test_noisy_replicas.LAWS)
def test_nothing_and_only_padding(law: str) -> None:
    images, slots, image_ids, sample_ids, *rest = arguments(Case((3, 5, 7), law))
    assert noisy_replicas(images, slots[:0], image_ids[:0], sample_ids[:0], *rest).shape == (0, 3, 5, 7)
    assert noisy_replicas(images[..., :0], slots, image_ids, sample_ids, *rest).shape == (len(slots), 3, 5, 0)
    assert not noisy_replicas(images[:0], torch.full_like(slots, -1), image_ids, sample_ids, *rest).any()


@pytest.mark.parametrize("law", test_noisy_replicas.LAWS)
def test_inputs_need_not_be_contiguous(law: str) -> None:
    images, *lists, name, table, scale, shift, clip, dtype, _ = arguments(Case((3, 5, 7), law, per_channel=True))
    out = noisy_replicas(images, *lists, name, table, scale, shift, clip, dtype, True)
    table, lists, constants = ([strided(part) for part in parts] for parts in (table, lists, (scale, shift)))
    for other in (strided(images), images.contiguous(memory_format=torch.channels_last)):
        assert same(out, noisy_replicas(other, *lists, name, table, *constants, clip, dtype, True))


# ---- tally -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", test_tally.DTYPES)
@pytest.mark.parametrize(("classes", "rows"), [(1, 200), (2, 200), (10, 200), (1000, 20), (1025, 20), (21841, 3)])
def test_tally_equals_a_loop(classes: int, rows: int, dtype: torch.dtype) -> None:
    batch = test_tally.random_batch(classes, dtype, rows)
    assert test_tally.equal(test_tally.tallied(tally, *batch), test_tally.looped(*batch))


@not_finite
@pytest.mark.parametrize("dtype", test_tally.DTYPES)
@pytest.mark.parametrize(("classes", "rows"), [(1, 50), (10, 150), (1025, 6)])
def test_every_voting_rule_equals_the_cpu(extension: Any, classes: int, rows: int, dtype: torch.dtype) -> None:
    logits, slots = test_tally.random_batch(classes, dtype, rows)
    logits[::2] *= 3000
    for voting in (voting_rule("weighted", min(classes, 12)), SOFT, LOGIT):
        found = test_tally.tallied(tally, logits, slots, voting)
        assert test_tally.equal(found, test_tally.tallied(test_tally.op, logits, slots, voting)), voting


@pytest.mark.parametrize("dtype", test_tally.DTYPES)
def test_the_first_of_equals_wins_over_blocks(dtype: torch.dtype) -> None:
    logits = torch.zeros(4, 3000, dtype=dtype)
    logits[0, [2999, 1500, 476]] = 1  # the last two share a lane, the first does not
    logits[1, [2500, 1025]] = 1
    logits[2], logits[2, ::2] = -1, -0.0
    logits[3] = torch.finfo(dtype).min
    counts, invalid = test_tally.tallied(tally, logits, torch.arange(4))
    assert counts.nonzero().tolist() == [[0, 476], [1, 1025], [2, 0], [3, 0]]
    assert not invalid.any()


@pytest.mark.parametrize("dtype", test_tally.DTYPES)
def test_what_is_not_finite_is_counted_apart(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0, math.nan], [math.inf, 0], [0, -math.inf], [0, -math.nan], [-0.0, 0.0]], dtype=dtype)
    counts, invalid = test_tally.tallied(tally, logits, torch.tensor([3, 3, 3, -1, 3]))
    assert (counts[3].tolist(), invalid.tolist()) == ([1, 0], [0, 0, 0, 3, 0])
    test_tally.tallied(tally, logits[:0], torch.arange(0))


def test_tensors_of_tally_need_not_be_contiguous() -> None:
    logits, slots = test_tally.random_batch(10, torch.bfloat16)
    counts = torch.full((10, 2 * test_tally.IMAGES), 2**40)
    invalid = torch.full((2 * test_tally.IMAGES,), 2**50)
    tally(logits.T.contiguous().T, strided(slots), counts[:, ::2].T, invalid[::2])
    assert test_tally.equal((counts[:, ::2].T - 2**40, invalid[::2] - 2**50), test_tally.looped(logits, slots))
    assert (counts[:, 1::2] == 2**40).all()
    assert (invalid[1::2] == 2**50).all()


# ---- replica_sum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", test_replica_sum.DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (1100, 1, 2)])
def test_sums_equal_a_loop(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    gradients, *rest = test_replica_sum.batch(shape, dtype)
    wanted = test_replica_sum.looped(gradients, *rest)
    for memory_format in test_replica_sum.FORMATS:
        assert same(replica_sum(gradients.contiguous(memory_format=memory_format), *rest), wanted)


def test_nothing_to_add() -> None:
    gradients, slots, scale, images = test_replica_sum.batch((3, 5, 7))
    assert torch.equal(replica_sum(gradients[:0], slots[:0], scale, 2), torch.zeros(2, 3, 5, 7))
    assert torch.equal(replica_sum(gradients, torch.full_like(slots, -1), scale, 2), torch.zeros(2, 3, 5, 7))
    assert replica_sum(gradients, slots, scale, 0).shape == (0, 3, 5, 7)
    assert replica_sum(gradients[:, :, :0], slots, scale, images).shape == (images, 3, 0, 7)


def test_gradients_need_not_be_contiguous() -> None:
    gradients, slots, scale, images = test_replica_sum.batch((3, 5, 7), torch.bfloat16)
    out = replica_sum(gradients, slots, scale, images)
    for other in (strided(gradients), gradients.transpose(2, 3).contiguous().transpose(2, 3)):
        assert same(replica_sum(other, strided(slots), strided(scale), images), out)


# ---- attack_step -----------------------------------------------------------------------------------------------------

STEPS = ((0.01, 8 / 255), (0.5, 0.25), (0.0, 0.5), (1e30, 0.0), (1e-42, 1e-40))


@not_finite
@pytest.mark.parametrize("norm", test_attack_step.NORMS)
@pytest.mark.parametrize("shape", test_attack_step.SHAPES)
def test_steps_equal_the_cpu(extension: Any, shape: tuple[int, ...], norm: str) -> None:
    adversarial, images, gradients = test_attack_step.batch(shape)
    broken = gradients.clone()
    broken[:1].view(-1)[::3] = math.nan
    broken[1:2].view(-1)[::2] = -math.inf
    slopes = (gradients, broken, torch.zeros_like(gradients))
    for turn, (alpha, eps) in enumerate(STEPS):  # each with every slope, over the shapes
        slope = slopes[(turn + test_attack_step.SHAPES.index(shape)) % 3]
        case = (adversarial, images, slope, norm, alpha, eps, 0.1, 0.7)
        found, wanted = stepped(attack_step, *case), stepped(test_attack_step.op, *case)
        if alpha == 0:  # the interpreter of Triton 3.8 loses the sign of -0.0 where it is a scalar; a GPU does not
            found, wanted = found + 0.0, wanted + 0.0
        assert same(found, wanted), (alpha, eps)


@not_finite
@pytest.mark.parametrize("norm", test_attack_step.NORMS)
def test_steps_at_the_ends_of_the_floats(extension: Any, norm: str) -> None:
    """Zeros of both signs, subnormal numbers, and sums that overflow, without limits."""
    values = [0.0, test_attack_step.TINY, 2.0**-126, 0.1, 1.0, test_attack_step.LARGEST]
    values += [-value for value in values]
    images, here, slope = (part.reshape(1, 1, 1, -1) for part in torch.cartesian_prod(*[torch.tensor(values)] * 3).T)
    for alpha, eps in ((0.0, 0.0), (0.0, 0.1), (1e-45, 1e-45), (1e38, 1e38), (1.0, 1e39), (0.3, 1.0)):
        case = (here.contiguous(), images.contiguous(), slope.contiguous(), norm, alpha, eps, -math.inf, math.inf)
        found, wanted = stepped(attack_step, *case), stepped(test_attack_step.op, *case)
        if alpha == 0:  # the interpreter of Triton 3.8 loses the sign of -0.0 where it is a scalar; a GPU does not
            found, wanted = found + 0.0, wanted + 0.0
        assert same(found, wanted), (alpha, eps)


@pytest.mark.parametrize("norm", test_attack_step.NORMS)
def test_tensors_of_a_step_need_not_be_contiguous(extension: Any, norm: str) -> None:
    adversarial, images, gradients = test_attack_step.batch((2, 3, 5, 7))
    rest = (norm, 0.05, 0.5, 0.0, 1.0)
    wanted = stepped(test_attack_step.op, adversarial, images, gradients, *rest)
    wide = adversarial.repeat_interleave(2, dim=3)
    attack_step(wide[..., ::2], strided(images), gradients.contiguous(memory_format=torch.channels_last), *rest)
    assert torch.equal(wide[..., ::2], wanted)
    assert torch.equal(wide[..., 1::2], adversarial)


# ---- perturb_weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "rank"), [(NETWORKS[0], 33), (NETWORKS[0], 64), (NETWORKS[1], 1), (NETWORKS[2], 0), (NETWORKS[2], 5)]
)
def test_weights_equal_the_cpu(extension: Any, layers: tuple[int, ...], rank: int) -> None:
    for dtype, passes in zip(DTYPES, (PASSES[:2], PASSES[2:3], PASSES[3:]), strict=True):
        case = network(layers, rank, dtype, passes)
        assert same(perturb_weights(*case), torch.ops.smoothfast.perturb_weights(*case))


def test_no_tiles_and_no_passes() -> None:
    weights, scales, factors, tiles, passes, *rest = network((3,), 2, torch.float16)
    assert perturb_weights(weights, scales, factors, tiles, passes[:0], *rest).shape == (0, *weights.shape)
    nothing = (weights[:0], scales[:0], factors[:, :0], tiles[:, :0])
    assert perturb_weights(*nothing, passes, *rest).shape == (len(passes), 0, 64)


def test_tensors_of_a_network_need_not_be_contiguous(extension: Any) -> None:
    *tensors, dtype = network(NETWORKS[2], 3, torch.float32)
    wanted = torch.ops.smoothfast.perturb_weights(*tensors, dtype)
    assert same(perturb_weights(*map(strided, tensors), dtype), wanted)

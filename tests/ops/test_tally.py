"""tally against a loop over rows in NumPy, against its plain PyTorch definition, and its complaints."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothfast import ops
from smoothfast.ops import reference
from smoothfast.voting import LOGIT, PREDICTION, SOFT, Voting, voting_rule, weighted

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
IMAGES = 5


op = torch.ops.smoothfast.tally


def shares(row: np.ndarray, voting: Voting) -> Any:
    """What a row of float64 gives each class, in units; probabilities as exact as float64 is."""
    ranked = np.argsort(-row, kind="stable")
    if voting.name == "prediction":
        return (np.arange(len(row)) == ranked[0]).astype(int)
    if voting.name == "weighted":
        given = np.zeros(len(row), int)
        for rank, weight in enumerate(voting.weights.tolist()):
            given[ranked[rank]] = weight
        return given
    limit = float(np.finfo(np.float32).max)
    values = row.clip(-limit, limit).astype(np.float32).astype(float)
    if voting.name == "logit":
        return np.rint(values.clip(-4096, 4096) * 2**20).astype(int)
    terms = np.exp(values - values.max())
    return np.rint(terms / terms.sum() * 2**32).astype(int)


def looped(logits: Tensor, slots: Tensor, voting: Voting = PREDICTION) -> tuple[Tensor, Tensor]:
    """What finite rows give and the number of broken rows, image by image."""
    counts = torch.zeros(IMAGES, logits.shape[1], dtype=torch.int64)
    invalid = torch.zeros(IMAGES, dtype=torch.int64)
    for row, slot in zip(logits.double().numpy(), slots.tolist(), strict=True):
        if slot >= 0 and np.isfinite(row).all():
            counts[slot] += torch.from_numpy(shares(row, voting))
        elif slot >= 0:
            invalid[slot] += 1
    return counts, invalid


def tallied(function: Any, logits: Tensor, slots: Tensor, voting: Voting = PREDICTION) -> tuple[Tensor, Tensor]:
    counts = torch.zeros(IMAGES, logits.shape[1], dtype=torch.int64)
    invalid = torch.zeros(IMAGES, dtype=torch.int64)
    function(logits, slots, counts, invalid, voting.name, voting.weights)
    return counts, invalid


def votings(classes: int) -> list[Voting]:
    """Those that are exact in whatever arithmetic: two of them by rank, one of more ranks than are sorted on a heap."""
    linear = weighted([rank / classes for rank in range(classes, 0, -1)])
    return [PREDICTION, voting_rule("weighted", classes), weighted([1.0, 0.3][:classes]), linear, LOGIT]


def equal(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def votes_for(logits: Tensor) -> int:
    """The class that one row of logits votes for, -1 if none."""
    counts, invalid = tallied(op, logits[None], torch.tensor([2]))
    assert counts.sum() + invalid.sum() == counts[2].sum() + invalid[2] == 1
    return -1 if invalid[2] else int(counts[2].argmax())


def random_batch(classes: int, dtype: torch.dtype, rows: int = 200) -> tuple[Tensor, Tensor]:
    """Rows with ties and zeros of both signs, a few of them broken, in mixed slots with padding."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randint(-4, 1, (rows, classes), generator=generator).to(dtype)
    logits[::3] += torch.randn(logits[::3].shape, generator=generator).to(dtype)
    logits[torch.rand(logits.shape, generator=generator) < 0.1] *= -0.0
    logits[::20, classes // 2] = math.nan
    logits[7::20, classes - 1] = math.inf
    logits[11::20, 0] = -math.inf
    return logits, torch.randint(-2, IMAGES, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("classes", "rows"), [(1, 200), (2, 200), (10, 200), (33, 100), (1000, 50)])
def test_tally_equals_a_loop(instruction_set: str, classes: int, rows: int, dtype: torch.dtype) -> None:
    batch = random_batch(classes, dtype, rows)
    for voting in votings(classes):
        assert equal(tallied(op, *batch, voting), looped(*batch, voting)), voting


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 10, 33, 1000])
def test_reference_equals_a_loop(classes: int, dtype: torch.dtype) -> None:
    batch = random_batch(classes, dtype, 50)
    for voting in votings(classes):
        assert equal(tallied(reference.tally, *batch, voting), looped(*batch, voting)), voting
    counts, invalid = tallied(reference.tally, *batch, SOFT)
    expected = looped(*batch, SOFT)
    assert (counts - expected[0]).abs().max() <= 50  # float64 is rounded differently at 2^-53: a unit a row
    assert torch.equal(invalid, expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_position_and_the_range_of_the_dtype(instruction_set: str, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for best, rest in [(limits.max, limits.max / 2), (-limits.max / 2, -limits.max), (limits.smallest_normal, -0.0)]:
        logits = torch.full((70, 70), rest, dtype=torch.float64).fill_diagonal_(best).to(dtype)
        counts, invalid = tallied(op, logits, torch.zeros(70, dtype=torch.int64))
        assert counts[0].tolist() == [1] * 70
        assert not invalid.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("row", "vote"),
    [
        ([1, 3, 3, 2, 3], 1),
        ([0.0, -0.0], 0),
        ([-0.0, 0.0], 0),
        ([-1, -0.0, 0.0], 1),
        ([-3, -2, -2], 1),
        ([-1, 0, 2**-14], 2),
        ([0, math.nan], -1),
        ([math.nan, 1], -1),
        ([0, math.inf], -1),
        ([0, -math.inf], -1),
        ([math.inf, -math.inf], -1),
    ],
)
def test_ties_zeros_and_broken_rows(instruction_set: str, dtype: torch.dtype, row: list[float], vote: int) -> None:
    assert votes_for(torch.tensor(row, dtype=dtype)) == vote


def test_nan_of_either_sign_is_broken(instruction_set: str) -> None:
    nan = torch.tensor([math.nan])
    for broken in (nan, -nan):
        assert votes_for(torch.cat([torch.ones(1), broken])) == -1


# ---- soft and logit voting: fixed point ------------------------------------------------------------------------------


def apart(logits: Tensor, voting: Voting, function: Any = op) -> Tensor:
    """What every row of its own gives, in units."""
    counts = torch.zeros(logits.shape, dtype=torch.int64)
    invalid = torch.zeros(len(logits), dtype=torch.int64)
    function(logits, torch.arange(len(logits)), counts, invalid, voting.name, voting.weights)
    assert not invalid.any()
    return counts


def spread(classes: int, rows: int, scale: float) -> Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes))


@pytest.mark.parametrize("classes", [2, 10, 33, 1000, 21841])
def test_probabilities_are_as_exact_as_softmax(instruction_set: str, classes: int) -> None:
    """At most twice its error in float32, and the rounding to units."""
    for scale in (0.01, 1.0, 5.0, 30.0, 1e30):
        logits = spread(classes, max(1, 20_000 // classes), scale)
        exact = logits.double().softmax(1)
        allowed = 2 * (logits.softmax(1) - exact).abs().max() + SOFT.unit / 2
        found = apart(logits, SOFT)
        assert (found.double() * SOFT.unit - exact).abs().max() <= allowed
        assert ((found.sum(1) - 2**32).abs() <= classes).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 10, 33, 1000])
def test_probabilities_have_the_same_bits_everywhere(extension: Any, classes: int, dtype: torch.dtype) -> None:
    batch = random_batch(classes, dtype)
    former, found = extension.instruction_set(), []
    for name in extension.supported_instruction_sets():
        extension.use_instruction_set(name)
        found.append(tallied(op, *batch, SOFT))
    extension.use_instruction_set(former)
    assert all(equal(one, found[0]) for one in found)
    expected = looped(*batch, SOFT)
    assert torch.equal(found[0][1], expected[1])
    assert (found[0][0] - expected[0]).abs().max() <= 2**10 * len(batch[0])  # 2^-22 a row


def test_probabilities_at_the_ends() -> None:
    limit = float(torch.finfo(torch.float32).max)
    for row, expected in [
        ([limit, -limit], [2**32, 0]),
        ([-limit, -limit], [2**31, 2**31]),
        ([0, -22.0], [2**32 - 1, 1]),
        ([0, -23.0], [2**32, 0]),
        ([1e-45, 0], [2**31, 2**31]),
    ]:
        assert apart(torch.tensor([row]), SOFT)[0].tolist() == expected
    beyond = torch.tensor([[1e300, 1e200, -1e300]], dtype=torch.float64)  # rounded to the ends of float32
    assert apart(beyond, SOFT)[0].tolist() == [2**31, 2**31, 0]


@pytest.mark.parametrize("function", [op, reference.tally])
def test_logits_are_rounded_and_clamped(function: Any) -> None:
    unit = LOGIT.unit
    row = [0.5 * unit, 1.5 * unit, -2.5 * unit, 4096.0, 4096.5, -5000.0, 3e38, -0.0, 4095.9998]
    wanted = [0, 2, -2, 2**32, 2**32, -(2**32), 2**32, 0, 2**32 - 256]
    assert apart(torch.tensor([row]), LOGIT, function)[0].tolist() == wanted
    assert apart(torch.tensor([[1e300, -1e300]], dtype=torch.float64), LOGIT, function)[0].tolist() == [2**32, -(2**32)]


def test_every_float16_is_read_as_it_is(instruction_set: str) -> None:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = values[values.isfinite()]
    wanted = (values.double().clamp(-4096, 4096) * 2**20).round().long()
    assert torch.equal(apart(values[:, None], LOGIT)[:, 0], wanted)


@pytest.mark.parametrize("voting", [voting_rule("weighted", 100), SOFT, LOGIT], ids=lambda voting: voting.name)
def test_the_order_of_rows_and_the_number_of_threads_change_nothing(voting: Voting) -> None:
    logits, slots = spread(100, 1000, 3.0), torch.arange(1000) % IMAGES
    expected = tallied(op, logits, slots, voting)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert equal(tallied(op, logits[order], slots[order], voting), expected)
    for threads in (2, 3):
        torch.set_num_threads(threads)  # the fixture one_thread sets it back
        assert equal(tallied(op, logits, slots, voting), expected)


# ---- weights by rank -------------------------------------------------------------------------------------------------


def test_weights_by_rank_of_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 3.0, -0.0, 0.0]])  # ranks of equal logits: the lower class first
    half = 2**31
    assert apart(logits, voting_rule("weighted", 5))[0].tolist() == [2 * half, half // 2, half, half // 4, half // 8]
    assert apart(logits, voting_rule([2, 1], 5))[0].tolist() == [2 * half, 0, half, 0, 0]
    assert voting_rule([2, 1], 5).unit == 2.0**-31
    assert voting_rule([3, 1e-300], 5).weights.tolist() == [3 * 2**30]  # of a unit of 2^-30
    assert voting_rule([0.75, 0.5], 5).weights.tolist() == [3 * 2**30, 2**31]
    assert len(voting_rule("weighted", 1000).weights) == 33


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("loud", "voting is 'loud'; it must be one of prediction, weighted, soft, logit, or weights by rank"),
        ([1, 0.5, 0.2, 0.1], "voting has 4 weights; there are 3 classes"),
        ([], r"voting has the weights \[\]; they must be finite, at least 0 and none larger than the one before it"),
        ([0.5, 1], r"voting has the weights \[0.5, 1.0\]; .* none larger than the one before it"),
        ([0, 0], r"voting has the weights \[0.0, 0.0\]; .* the first one positive"),
        ([1, -1], r"voting has the weights \[1.0, -1.0\]; they must be finite, at least 0"),
        ([math.inf, 1], r"voting has the weights \[inf, 1.0\]; they must be finite"),
        ([1, math.nan], r"voting has the weights \[1.0, nan\]; they must be finite"),
    ],
)
def test_voting_rules_that_are_none(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        voting_rule(spec, 3)


# ---- calls -----------------------------------------------------------------------------------------------------------


def test_counts_add_up_over_calls(instruction_set: str) -> None:
    logits, slots = random_batch(10, torch.float32)
    counts, invalid = torch.empty(IMAGES, 10, dtype=torch.int64), torch.empty(IMAGES, dtype=torch.int64)
    for voting in votings(10):
        counts.fill_(2**40), invalid.fill_(2**50)
        for part in (slice(0, 1), slice(1, 120), slice(120, None), slice(0, 0)):
            ops.tally(logits[part], slots[part], counts, invalid, voting)
        assert equal((counts - 2**40, invalid - 2**50), looped(logits, slots, voting))


def test_tensors_need_not_be_contiguous(instruction_set: str) -> None:
    logits, slots = random_batch(10, torch.bfloat16)
    for voting in votings(10):
        counts = torch.zeros(10, 2 * IMAGES, dtype=torch.int64)
        invalid = torch.zeros(2 * IMAGES, dtype=torch.int64)
        ops.tally(logits.T.contiguous().T, slots.repeat_interleave(2)[::2], counts[:, ::2].T, invalid[::2], voting)
        assert equal((counts[:, ::2].T, invalid[::2]), looped(logits, slots, voting))
        assert not counts[:, 1::2].any()
        assert not invalid[1::2].any()


def test_any_number_of_threads_gives_the_same_counts() -> None:
    batch = random_batch(1000, torch.float32, rows=300)
    alone = tallied(op, *batch)
    for threads in (2, 3):
        torch.set_num_threads(threads)  # the fixture one_thread sets it back
        assert equal(tallied(op, *batch), alone)


def test_logits_may_carry_a_gradient() -> None:
    logits, slots = random_batch(10, torch.float32)
    for voting, function in product(votings(10), (op, reference.tally)):
        found = tallied(function, logits.clone().requires_grad_(), slots, voting)
        assert equal(found, looped(logits, slots, voting))


LOGITS, SLOTS = torch.zeros(3, 4), torch.tensor([0, -1, 1])
COUNTS, INVALID = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
BAD = {
    "integer logits": ((LOGITS.int(), SLOTS, COUNTS, INVALID), r"logits must be floating \[R, K\], not Int \[3, 4\]"),
    "float8 logits": (
        (LOGITS.to(torch.float8_e5m2), SLOTS, COUNTS, INVALID),
        "logits must be float64, float32, bfloat16 or float16, not Float8_e5m2",
    ),
    "one row": ((LOGITS[0], SLOTS, COUNTS, INVALID), r"logits must be floating \[R, K\], not Float \[4\]"),
    "no classes": ((LOGITS[:, :0], SLOTS, COUNTS[:, :0], INVALID), r"logits must be .*, not Float \[3, 0\]"),
    "too few slots": ((LOGITS, SLOTS[:2], COUNTS, INVALID), r"slots must be int64 \[3\], not Long \[2\]"),
    "slots of another dtype": ((LOGITS, SLOTS.int(), COUNTS, INVALID), r"slots must be int64 \[3\], not Int \[3\]"),
    "slot beyond the counts": ((LOGITS, SLOTS + 1, COUNTS, INVALID), r"slots\[2\] is 2; counts has 2 rows"),
    "other classes": ((LOGITS, SLOTS, COUNTS[:, :3], INVALID), r"counts must be int64 \[S, 4\], not Long \[2, 3\]"),
    "counts of another dtype": ((LOGITS, SLOTS, COUNTS.int(), INVALID), r"counts must be int64 \[S, 4\], not Int"),
    "too few invalid": ((LOGITS, SLOTS, COUNTS, INVALID[:1]), r"invalid must be int64 \[2\], not Long \[1\]"),
    "no rule": ((LOGITS, SLOTS, COUNTS, INVALID, Voting("loud", 1.0)), "voting must be 'prediction', .*, not 'loud'"),
    "no weights": ((LOGITS, SLOTS, COUNTS, INVALID, Voting("weighted", 1.0)), "voting 'weighted' needs weights"),
    "weights of another rule": (
        (LOGITS, SLOTS, COUNTS, INVALID, Voting("soft", 1.0, SLOTS)),
        "weights belong to voting 'weighted', not to 'soft'",
    ),
    "too many weights": (
        (LOGITS, SLOTS, COUNTS, INVALID, Voting("weighted", 1.0, torch.ones(5, dtype=torch.int64))),
        r"weights must be int64 \[1 .. 4\], not Long \[5\]",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_changes_nothing(extension: Any, arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match="tally: " + message):
        ops.tally(*arguments)
    assert not COUNTS.any()
    assert not INVALID.any()

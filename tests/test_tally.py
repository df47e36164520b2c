"""tally against a loop over rows in NumPy, against its plain PyTorch definition, and its complaints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothfast import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
IMAGES = 5


def looped(logits: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The votes of finite rows and the number of broken rows, image by image."""
    counts = torch.zeros(IMAGES, logits.shape[1], dtype=torch.int64)
    invalid = torch.zeros(IMAGES, dtype=torch.int64)
    for row, slot in zip(logits.double().numpy(), slots.tolist(), strict=True):
        if slot >= 0 and np.isfinite(row).all():
            counts[slot, row.argmax()] += 1
        elif slot >= 0:
            invalid[slot] += 1
    return counts, invalid


def tallied(function: Any, logits: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    counts = torch.zeros(IMAGES, logits.shape[1], dtype=torch.int64)
    invalid = torch.zeros(IMAGES, dtype=torch.int64)
    function(logits, slots, counts, invalid)
    return counts, invalid


def equal(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def votes_for(logits: Tensor) -> int:
    """The class that one row of logits votes for, -1 if none."""
    counts, invalid = tallied(ops.tally, logits[None], torch.tensor([2]))
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
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_tally_equals_a_loop(instruction_set: str, classes: int, dtype: torch.dtype) -> None:
    batch = random_batch(classes, dtype)
    assert equal(tallied(ops.tally, *batch), looped(*batch))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_reference_equals_a_loop(classes: int, dtype: torch.dtype) -> None:
    batch = random_batch(classes, dtype)
    assert equal(tallied(reference.tally, *batch), looped(*batch))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_position_and_the_range_of_the_dtype(instruction_set: str, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for best, rest in [(limits.max, limits.max / 2), (-limits.max / 2, -limits.max), (limits.smallest_normal, -0.0)]:
        logits = torch.full((70, 70), rest, dtype=torch.float64).fill_diagonal_(best).to(dtype)
        counts, invalid = tallied(ops.tally, logits, torch.zeros(70, dtype=torch.int64))
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


def test_counts_add_up_over_calls(instruction_set: str) -> None:
    logits, slots = random_batch(10, torch.float32)
    counts, invalid = torch.full((IMAGES, 10), 2**40), torch.full((IMAGES,), 2**50)
    for part in (slice(0, 1), slice(1, 120), slice(120, None), slice(0, 0)):
        ops.tally(logits[part], slots[part], counts, invalid)
    assert equal((counts - 2**40, invalid - 2**50), looped(logits, slots))


def test_tensors_need_not_be_contiguous(instruction_set: str) -> None:
    logits, slots = random_batch(10, torch.bfloat16)
    counts = torch.zeros(10, 2 * IMAGES, dtype=torch.int64)
    invalid = torch.zeros(2 * IMAGES, dtype=torch.int64)
    ops.tally(logits.T.contiguous().T, slots.repeat_interleave(2)[::2], counts[:, ::2].T, invalid[::2])
    assert equal((counts[:, ::2].T, invalid[::2]), looped(logits, slots))
    assert not counts[:, 1::2].any()
    assert not invalid[1::2].any()


def test_any_number_of_threads_gives_the_same_counts() -> None:
    batch = random_batch(1000, torch.float32, rows=300)
    alone = tallied(ops.tally, *batch)
    for threads in (2, 3):
        torch.set_num_threads(threads)  # the fixture one_thread sets it back
        assert equal(tallied(ops.tally, *batch), alone)


def test_logits_may_carry_a_gradient() -> None:
    logits, slots = random_batch(10, torch.float32)
    assert equal(tallied(ops.tally, logits.clone().requires_grad_(), slots), looped(logits, slots))


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
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_changes_nothing(extension: Any, arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match="tally: " + message):
        ops.tally(*arguments)
    assert not COUNTS.any()
    assert not INVALID.any()

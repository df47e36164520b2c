"""Losses of attacks against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smoothfast.losses import capped_margin, cross_entropy, difference, dlr, margin

CLASSES = torch.tensor([0, 3, 6, 2, 2])


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4


def other(row: Tensor, label: int) -> Tensor:
    return torch.cat([row[:label], row[label + 1 :]])


def test_cross_entropy_is_that_of_torch(logits: Tensor) -> None:
    torch.testing.assert_close(cross_entropy(logits, CLASSES), F.cross_entropy(logits, CLASSES, reduction="none"))


def test_margin(logits: Tensor) -> None:
    wanted = [other(row, y).max() - row[y] for row, y in zip(logits, CLASSES.tolist(), strict=True)]
    assert torch.equal(margin(logits, CLASSES), torch.stack(wanted))
    assert torch.equal(margin(logits, CLASSES) > 0, logits.argmax(1) != CLASSES)
    assert torch.equal(capped_margin(0.5)(logits, CLASSES), margin(logits, CLASSES).clamp(max=0.5))


def test_dlr_is_the_ratio_of_croce_and_hein(logits: Tensor) -> None:
    for row, y, found in zip(logits, CLASSES.tolist(), dlr(logits, CLASSES), strict=True):
        first, _, third, *_ = row.sort(descending=True).values
        torch.testing.assert_close(found, -(row[y] - other(row, y).max()) / (first - third))
    scaled = dlr(3 * logits + 5, CLASSES)  # the loss does not depend on scale and shift
    torch.testing.assert_close(scaled, dlr(logits, CLASSES))


def test_difference(logits: Tensor) -> None:
    targets = (CLASSES + 1) % 7
    rows = torch.arange(5)
    assert torch.equal(difference(logits, CLASSES, targets), logits[rows, targets] - logits[rows, CLASSES])


@pytest.mark.parametrize("lead", [6.0, 8.0, 12.0])
def test_the_gradient_of_a_confident_row_in_bfloat16(lead: float) -> None:
    """p - 1 is 0 in bfloat16 where p is 0.998 and more; the sum of the other probabilities is not."""
    exact = torch.tensor([[lead, 0.0, 1.0, -1.0]], dtype=torch.float64)
    wanted = exact.softmax(1)
    wanted[0, 0] = -wanted[0, 1:].sum()
    rounded = exact.bfloat16().requires_grad_()
    (found,) = torch.autograd.grad(cross_entropy(rounded, torch.tensor([0])).sum(), rounded)
    torch.testing.assert_close(found.double(), wanted, rtol=0.05, atol=0)


def test_large_logits_are_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    for label in range(3):
        loss = cross_entropy(logits, torch.tensor([label]))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()

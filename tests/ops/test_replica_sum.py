"""replica_sum against a loop over rows in NumPy, against its plain PyTorch definition, its gradient and complaints."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothfast import ops
from smoothfast.noise import Stream, gaussian_law, stream_key
from smoothfast.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")
op = torch.ops.smoothfast.replica_sum
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = (torch.contiguous_format, torch.channels_last)
# Less than a vector, less and more than a tile of 2048 elements, tiles that end within a plane and within a pixel.
SHAPES = [(1, 1, 1), (3, 1, 1), (1, 5, 7), (3, 5, 7), (3, 32, 32), (5, 21, 47), (2, 47, 53), (2500, 1, 2)]
IMAGES = 5
SLOTS = torch.tensor([3, 3, -1, 0, 3, 1, -7, 1, 3, 0, 3, 3, 1])  # images 2 and 4 have no rows


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, int]:
    """Sums of large and small values, which show any other order; padding rows are NaN."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(len(SLOTS), *shape, generator=generator) * torch.randint(1, 2000, (len(SLOTS), 1, 1, 1))
    scale = torch.randn(shape[0], generator=generator)
    return gradients.masked_fill((SLOTS < 0).view(-1, 1, 1, 1), math.nan).to(dtype), SLOTS, scale, IMAGES


def looped(gradients: Tensor, slots: Tensor, scale: Tensor, images: int) -> Tensor:
    sums = np.zeros((images, *gradients.shape[1:]), np.float32)
    for row, slot in zip(gradients.float().numpy(), slots.tolist(), strict=True):
        if slot >= 0:
            sums[slot] += row
    return torch.from_numpy(sums * scale.numpy()[:, None, None])


def strided(tensor: Tensor) -> Tensor:
    """The same values with other strides."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


# ---- against the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_equal_a_loop(instruction_set: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    gradients, *rest = batch(shape, dtype)
    wanted = looped(gradients, *rest)
    for memory_format, function in product(FORMATS, (op, reference.replica_sum)):
        out = function(gradients.contiguous(memory_format=memory_format), *rest)
        assert torch.equal(out, wanted)
        assert out.dtype == torch.float32
        assert out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_value_is_read_exactly(instruction_set: str, dtype: torch.dtype) -> None:
    values = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).view(1, 1, 256, 256)
    out = op(values, torch.tensor([0]), torch.ones(1), 1)
    torch.testing.assert_close(out, values.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("function", [op, reference.replica_sum])
def test_nothing_to_add(function: Any) -> None:
    gradients, slots, scale, _ = batch((3, 5, 7))
    assert torch.equal(function(gradients[:0], slots[:0], scale, 2), torch.zeros(2, 3, 5, 7))
    assert torch.equal(function(gradients, torch.full_like(slots, -1), scale, 2), torch.zeros(2, 3, 5, 7))
    assert function(gradients, torch.full_like(slots, -1), scale, 0).shape == (0, 3, 5, 7)
    assert function(gradients[:, :, :0], slots, scale, IMAGES).shape == (IMAGES, 3, 0, 7)


def test_inputs_need_not_be_contiguous(instruction_set: str) -> None:
    gradients, slots, scale, images = batch((3, 5, 7), torch.bfloat16)
    out = op(gradients, slots, scale, images)
    for other in (strided(gradients), gradients.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(op(other, strided(slots), strided(scale), images), out)


def test_any_number_of_threads_gives_the_same_sums() -> None:
    gradients, _, scale, _ = batch((5, 21, 47))
    gradients, slots = gradients.nan_to_num().repeat(40, 1, 1, 1), torch.arange(40 * len(SLOTS)) % IMAGES
    alone = op(gradients, slots, scale, IMAGES)
    for threads in (2, 3):
        torch.set_num_threads(threads)  # the fixture one_thread sets it back
        assert torch.equal(op(gradients, slots, scale, IMAGES), alone)


# ---- gradients -------------------------------------------------------------------------------------------------------


def replicas(function: Any, images: Tensor, dtype: torch.dtype) -> Tensor:
    rows = torch.arange(len(SLOTS))
    law, constants = gaussian_law(0.25), ops.affine(([0.5] * 3, [0.25, 0.3, 0.2]), 3, torch.float32)
    key = stream_key(1, Stream.ESTIMATE)
    return function(images, SLOTS, rows, rows, key, law.name, law.table, *constants, False, dtype, False)


def leaf() -> Tensor:
    return torch.rand(IMAGES, 3, 5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_backward_pass_of_noisy_replicas(dtype: torch.dtype) -> None:
    images, (gradients, *_) = leaf(), batch((3, 5, 7), dtype)
    out = replicas(torch.ops.smoothfast.noisy_replicas, images, dtype)
    (actual,) = torch.autograd.grad(out, images, gradients)
    scale, _ = ops.affine(([0.5] * 3, [0.25, 0.3, 0.2]), 3, torch.float32)
    assert torch.equal(actual, looped(gradients, SLOTS, scale, IMAGES))


@pytest.mark.parametrize("dtype", DTYPES)
def test_second_derivatives_are_those_of_the_reference(dtype: torch.dtype) -> None:
    results = []
    for function in (torch.ops.smoothfast.noisy_replicas, reference.noisy_replicas):
        images = leaf()
        loss = replicas(function, images, dtype).float().pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
        results += torch.autograd.grad(gradient.square().sum(), images)
    tolerance = max(1e-5, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance * float(results[1].abs().max()))


# ---- as PyTorch sees it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype, requires_grad: bool) -> None:
    gradients, *rest = batch((3, 5, 7), dtype)
    gradients = gradients.nan_to_num().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(op.default, (gradients.requires_grad_(requires_grad), *rest))


def test_compile() -> None:
    gradients, slots, scale, _ = batch((3, 5, 7))
    compiled = torch.compile(lambda g, s, images: ops.replica_sum(g * 2, s, scale, images) + 1, fullgraph=True)
    for rows, images in ((len(slots), IMAGES), (9, 4), (5, 4)):
        wanted = looped(gradients[:rows] * 2, slots[:rows], scale, images) + 1
        assert torch.equal(compiled(gradients[:rows], slots[:rows], images), wanted)
    torch._dynamo.reset()


GRADIENTS, _, SCALE, _ = batch((3, 5, 7))
BAD = {
    "one row": ((GRADIENTS[0, 0, 0], SLOTS, SCALE, 5), r"gradients must be \[R, C, H, W\], not \[7\]"),
    "float64": ((GRADIENTS.double(), SLOTS, SCALE, 5), "gradients must be float32, bfloat16 or float16, not Double"),
    "too few slots": ((GRADIENTS, SLOTS[:2], SCALE, 5), r"slots must be int64 \[13\], not Long \[2\]"),
    "slots of another dtype": ((GRADIENTS, SLOTS.int(), SCALE, 5), r"slots must be int64 \[13\], not Int \[13\]"),
    "slot beyond the images": ((GRADIENTS, SLOTS, SCALE, 3), r"slots\[0\] is 3; there are 3 images"),
    "other channels": ((GRADIENTS, SLOTS, SCALE[:2], 5), r"scale must be float32 \[3\], not Float \[2\]"),
    "scale of another dtype": ((GRADIENTS, SLOTS, SCALE.double(), 5), r"scale must be float32 \[3\], not Double \[3\]"),
    "negative images": ((GRADIENTS, SLOTS, SCALE, -1), "images must be at least 0, not -1"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(extension: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match="replica_sum: " + message):
        ops.replica_sum(*arguments)

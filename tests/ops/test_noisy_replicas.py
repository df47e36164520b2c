"""noisy_replicas against its plain PyTorch definition, its purity, its gradient and its complaints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from smoothfast import ops
from smoothfast.noise import Law, Stream, gaussian_law, lattice_law, stream_key
from smoothfast.ops import philox, reference

pytestmark = pytest.mark.usefixtures("one_thread")
op = torch.ops.smoothfast.noisy_replicas
LAWS = ("lattice", "gaussian")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLANES = ((1, 1), (5, 7), (8, 8), (28, 28), (33, 31), (32, 32), (40, 40))
SHAPES = [(channels, *plane) for channels, plane in product((1, 2, 3, 4), PLANES)]
IMAGES = 3
# (slot, image id, sample id): mixed order, repeated rows, padding with any ids, the last ids, and samples that pass
# 2^32 within a run of rows of one image.
ROWS = torch.tensor(
    [(1, 7, 0), (1, 7, 1), (1, 7, 2), (-1, 0, 0), (1, 7, 3), (0, 3, 9), (2, 2**44 - 1, 2**40 - 1), (-5, -1, -1)]
    + [(2, 2**32 + 1, 2**32 - 2 + i) for i in range(4)]
    + [(0, 3, 9), (1, 3, 9)]
)


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int]
    law: str = "lattice"
    image_dtype: torch.dtype = torch.uint8
    clip: bool = False
    normalize: bool = True
    per_channel: bool = False
    dtype: torch.dtype = torch.float32
    channels_last: bool = False


def random_images(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images / 255 if dtype.is_floating_point else images


def law_of(name: str, sigma: Any, image_dtype: torch.dtype) -> Law:
    return lattice_law(sigma) if name == "lattice" else gaussian_law(sigma, 1 if image_dtype.is_floating_point else 255)


@lru_cache
def arguments(case: Case) -> tuple[Any, ...]:
    """The arguments of the op."""
    channels = case.shape[0]
    law = law_of(case.law, [0.5, 0.12, 1.0, 0.25][: channels if case.per_channel else 1], case.image_dtype)
    statistics = ([0.485, 0.456, 0.406, 0.5][:channels], [0.229, 0.224, 0.225, 0.3][:channels])
    scale, shift = ops.affine(statistics if case.normalize else None, channels, case.image_dtype)
    images, key = random_images((IMAGES, *case.shape), case.image_dtype), stream_key(2**33 + 1, Stream.ESTIMATE)
    return images, *ROWS.T, key, law.name, law.table, scale, shift, case.clip, case.dtype, case.channels_last


@lru_cache
def expected(case: Case) -> Tensor:
    return reference.noisy_replicas(*arguments(case))


def cases(shape: tuple[int, int, int], kinds: list[tuple[str, torch.dtype]]) -> list[Case]:
    """All dtypes and memory formats of a shape; the options take turns, so that all meet over the shapes."""
    turn = SHAPES.index(shape)
    formats = product(kinds, DTYPES, (False, True))
    return [
        Case(shape, *kind, *(bool((turn + i) >> bit & 1) for bit in range(3)), *form)
        for i, (kind, *form) in enumerate(formats)
    ]


@lru_cache
def normals(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Box-Muller as one would write it in PyTorch, of the words that the reference draws for ROWS."""
    _, slots, image_ids, sample_ids, key, *_ = arguments(Case(shape))
    words = philox.random_words(math.ceil(math.prod(shape) / 64) * 64, image_ids, sample_ids, key)
    radius_word, angle_word = words.view(len(slots), -1, 2, 2, 16).to(dtype).unbind(3)
    radius, angle = torch.sqrt(-2 * torch.log((radius_word + 1) * 2.0**-32)), angle_word * (2 * math.pi * 2.0**-32)
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 3)
    return pairs.flatten(1)[:, : math.prod(shape)].view(-1, *shape)


def plain(case: Case, dtype: torch.dtype) -> Tensor:
    """The op with the Gaussian law in plain PyTorch, in float64 or float32 throughout."""
    images, slots, _, _, _, _, table, scale, shift, clip, *_ = arguments(case)
    sigma, scale, shift = (part.to(dtype).view(-1, 1, 1) for part in (*table, scale, shift))
    noisy = images[slots.clamp(min=0)].to(dtype) + sigma * normals(case.shape, dtype)
    if clip:
        noisy = noisy.clamp(0, 1 if images.is_floating_point() else 255)
    return (noisy * scale + shift) * (slots >= 0).view(-1, 1, 1, 1)


# ---- against the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_lattice_equals_the_reference(instruction_set: str, shape: tuple[int, int, int]) -> None:
    for case in cases(shape, [("lattice", torch.uint8)]):
        out = op(*arguments(case))
        assert torch.equal(out, expected(case)), case
        form = torch.channels_last if case.channels_last else torch.contiguous_format
        assert out.dtype == case.dtype, case
        assert out.is_contiguous(memory_format=form), case


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_is_as_accurate_as_plain_pytorch(
    instruction_set: str, extension: Any, shape: tuple[int, int, int]
) -> None:
    for case in cases(shape, [("gaussian", torch.uint8), ("gaussian", torch.float32)]):
        out, truth = op(*arguments(case)), plain(case, torch.float64)
        # One unit in the last place beside the rule of two: on an image of one pixel plain PyTorch may be lucky.
        plain_error = (plain(case, torch.float32).to(case.dtype) - truth).abs().max()
        allowed = 2 * plain_error + torch.finfo(case.dtype).eps * truth.abs().max()
        assert (out - truth).abs().max() <= allowed, case
        assert (expected(case) - truth).abs().max() <= allowed, case
        extension.use_instruction_set("scalar")
        assert torch.equal(out, op(*arguments(case))), case
        extension.use_instruction_set(instruction_set)


def test_casts_round_to_nearest_even(instruction_set: str) -> None:
    """Subnormal, overflowing and infinite results, of both signs, in every dtype."""
    images, *rest, _, _, clip, _, channels_last = arguments(Case((4, 40, 40)))
    scale, shift = torch.tensor([1e-7, -300, 1.3e36, -1e38]), torch.tensor([0.0, 0, 0, 1e30])
    for dtype in DTYPES:
        changed = (images, *rest, scale, shift, clip, dtype, channels_last)
        out = op(*changed)
        assert torch.equal(out, reference.noisy_replicas(*changed)), dtype
        assert out.isinf().any()


def test_nan_pixels_stay_nan(instruction_set: str) -> None:
    for clip, dtype in product((False, True), DTYPES):
        images, *rest = arguments(Case((3, 5, 7), "gaussian", torch.float32, clip=clip, dtype=dtype))
        images = images.clone()
        images[1, 2, 3, 4] = math.nan
        broken = op(images, *rest).isnan()
        assert torch.equal(broken[:, 2, 3, 4], ROWS[:, 0] == 1)
        assert broken.sum() == (ROWS[:, 0] == 1).sum()


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 5, 7)])
@pytest.mark.parametrize(("law", "image_dtype"), [("lattice", torch.uint8), ("gaussian", torch.float32)])
def test_int16_is_the_nearest_number(
    instruction_set: str, law: str, image_dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """Ties go to the even one, what is too large to the last one, and NaN to 0."""
    for channels_last, factor in product((False, True), (1.0, 0.5, 1000.0, -torch.inf)):
        images, *rest, scale, shift, clip, _, _ = arguments(Case(shape, law, image_dtype))
        if images.is_floating_point():
            images = images.clone()
            images[1, 1, 3, 4] = math.nan
        form = clip, torch.float32, channels_last
        changed = (images, *rest, torch.full_like(scale, factor), torch.zeros_like(shift))
        plain = op(*changed, *form).double()
        wanted = plain.nan_to_num(0, torch.inf, -torch.inf).round().clamp(-(2**15), 2**15 - 1).short()
        out = op(*changed, clip, torch.int16, channels_last)
        assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        assert torch.equal(out, wanted), factor
        if law == "lattice":
            assert torch.equal(out, reference.noisy_replicas(*changed, clip, torch.int16, channels_last)), factor
            assert factor != 1 or torch.equal(out.double(), plain)


def test_int16_of_the_reference() -> None:
    values = torch.tensor([0.5, 1.5, -2.5, 32767.5, 1e9, -32768.6, torch.inf, -torch.inf, torch.nan])
    stored = torch.tensor([0, 2, -2, 32767, 32767, -32768, 32767, -32768, 0]).short()
    assert torch.equal(reference._stored(values, torch.int16), stored)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("function", [op, reference.noisy_replicas])
def test_no_rows(function: Any, law: str) -> None:
    images, slots, image_ids, sample_ids, *rest = arguments(Case((3, 5, 7), law))
    assert function(images, slots[:0], image_ids[:0], sample_ids[:0], *rest).shape == (0, 3, 5, 7)


def test_only_padding(instruction_set: str) -> None:
    images, slots, *rest = arguments(Case((3, 5, 7)))
    assert not op(images, torch.full_like(slots, -1), *rest).any()


def strided(tensor: Tensor) -> Tensor:
    """The same values with other strides."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


@pytest.mark.parametrize("law", LAWS)
def test_inputs_need_not_be_contiguous(instruction_set: str, law: str) -> None:
    images, slots, image_ids, sample_ids, key, name, table, scale, shift, *rest = arguments(
        Case((3, 5, 7), law, per_channel=True)
    )
    lists = [strided(part) for part in (slots, image_ids, sample_ids, key)]
    constants = [strided(part) for part in (scale, shift)]
    out = op(images, slots, image_ids, sample_ids, key, name, table, scale, shift, *rest)
    for other in (strided(images), images.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(out, op(other, *lists, name, [strided(part) for part in table], *constants, *rest))


# ---- purity ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=LAWS)
def job(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of ops.noisy_replicas: rows for several threads, in runs longer and shorter than the kernel's."""
    slots = torch.arange(200) % 150 // 90
    scale, shift = ops.affine(([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]), 3, torch.uint8)
    return {
        "images": random_images((2, 3, 33, 31), torch.uint8),
        "slots": slots.masked_fill(torch.arange(200) % 23 == 22, -1),
        "image_ids": slots + 2**32 - 1,
        "sample_ids": torch.arange(200) + 2**32 - 100,
        "key": stream_key(5, Stream.PREDICT),
        "law": law_of(request.param, 0.25, torch.uint8),
        "scale": scale,
        "shift": shift,
    }


def rows(job: dict[str, Any], which: Any) -> dict[str, Any]:
    return job | {name: job[name][which] for name in ("slots", "image_ids", "sample_ids")}


def test_any_batch_split_gives_the_same_rows(job: dict[str, Any]) -> None:
    whole = ops.noisy_replicas(**job)
    for size in (1, 7, 64, 65, 199):
        parts = [ops.noisy_replicas(**rows(job, slice(i, i + size))) for i in range(0, 200, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_any_order_gives_the_same_rows(job: dict[str, Any]) -> None:
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.noisy_replicas(**rows(job, order)), ops.noisy_replicas(**job)[order])


def test_slots_only_choose_the_pixels(job: dict[str, Any]) -> None:
    moved = job | {"images": job["images"].flip(0), "slots": torch.where(job["slots"] < 0, -1, 1 - job["slots"])}
    assert torch.equal(ops.noisy_replicas(**moved), ops.noisy_replicas(**job))


def test_any_number_of_threads_gives_the_same_rows(job: dict[str, Any]) -> None:
    alone = ops.noisy_replicas(**job)
    for threads in (2, 3):
        torch.set_num_threads(threads)  # the fixture one_thread sets it back
        assert torch.equal(ops.noisy_replicas(**job), alone)


def test_dtype_and_memory_format_only_cast_and_lay_out(job: dict[str, Any]) -> None:
    plain = ops.noisy_replicas(**job)
    for dtype, form in product(DTYPES, (torch.contiguous_format, torch.channels_last)):
        assert torch.equal(ops.noisy_replicas(**job, dtype=dtype, memory_format=form), plain.to(dtype))


# ---- gradient --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_that_of_the_reference(dtype: torch.dtype, channels_last: bool) -> None:
    case = Case((3, 5, 7), "gaussian", torch.float32, dtype=dtype, channels_last=channels_last)
    images, slots, *rest = arguments(case)
    weight = torch.randn(len(slots), 3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    leaf = images.clone().requires_grad_()
    (actual,) = torch.autograd.grad(op(leaf, slots, *rest), leaf, weight)
    (wanted,) = torch.autograd.grad(reference.noisy_replicas(leaf, slots, *rest), leaf, weight)
    torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)
    scale = rest[5].view(-1, 1, 1)
    by_hand = torch.stack([weight[slots == i].float().sum(0) * scale for i in range(IMAGES)])
    torch.testing.assert_close(actual, by_hand, rtol=1e-6, atol=1e-5)


def test_gradient_ignores_padding_rows() -> None:
    """What a loss makes of a padding row, NaN included, reaches no image."""
    images, slots, *rest = arguments(Case((3, 5, 7), "gaussian", torch.float32))
    weight = torch.ones(len(slots), 3, 5, 7).masked_fill((slots < 0).view(-1, 1, 1, 1), math.nan)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(op(leaf, slots, *rest), leaf, weight)
    assert gradient.isfinite().all()


def test_uint8_images_have_no_gradient() -> None:
    assert not op(*arguments(Case((3, 5, 7)))).requires_grad


def test_clip_and_gradient_exclude_each_other() -> None:
    images, *rest = arguments(Case((3, 5, 7), "gaussian", torch.float32, clip=True))
    with pytest.raises(ValueError, match="clip is True; gradients with respect to images need clip=False"):
        op(images.clone().requires_grad_(), *rest)
    with torch.no_grad():
        assert op(images.clone().requires_grad_(), *rest).min() < 0  # normalised after the clip


# ---- bad input -------------------------------------------------------------------------------------------------------

FLOAT_IMAGES = torch.zeros(2, 3, 33, 31)
IDS = torch.zeros(200, dtype=torch.int64)
BAD = {
    "images of another dtype": ({"images": FLOAT_IMAGES.double()}, "images must be uint8 or float32, not Double"),
    "images without a batch": ({"images": FLOAT_IMAGES[0, 0, 0]}, r"images must be \[S, C, H, W\], not \[31\]"),
    "slots of two dimensions": ({"slots": IDS[None]}, r"slots must be int64 \[R\], not \[1, 200\]"),
    "slots of another dtype": ({"slots": IDS.int()}, r"slots must be int64 \[200\], not Int \[200\]"),
    "slot beyond the images": ({"slots": IDS + 2}, r"slots\[0\] is 2; there are 2 images"),
    "too few image ids": ({"image_ids": IDS[:3]}, r"image_ids must be int64 \[200\], not Long \[3\]"),
    "image id too large": ({"image_ids": IDS + 2**44}, rf"image_ids\[0\] is {2**44}; it must lie in 0 .. 2\^44 - 1"),
    "image id negative": ({"image_ids": IDS - 1}, r"image_ids\[0\] is -1; it must lie in 0 .. 2\^44 - 1"),
    "sample ids of another dtype": ({"sample_ids": IDS.float()}, r"sample_ids must be int64 \[200\], not Float"),
    "sample id too large": ({"sample_ids": IDS + 2**40}, rf"sample_ids\[0\] is {2**40}; it must lie in 0 .. 2\^40 - 1"),
    "sample id negative": ({"sample_ids": IDS - 1}, r"sample_ids\[0\] is -1; it must lie in 0 .. 2\^40 - 1"),
    "key without a stream": ({"key": IDS[:1]}, r"key must be int64 \[2\], not Long \[1\]"),
    "lattice law on float images": ({"images": FLOAT_IMAGES}, "the lattice law needs uint8 images, not Float"),
    "unknown law": ({"law": Law("uniform", (1,), ())}, "law must be 'lattice' or 'gaussian', not 'uniform'"),
    "lattice without its table": ({"law": Law("lattice", (1,), (IDS,))}, r"table must come from noise.lattice_law"),
    "gaussian without sigma": ({"law": Law("gaussian", (1,), (IDS,))}, r"table must come from noise.gaussian_law"),
    "sigma of other channels": ({"law": gaussian_law([1, 2])}, "sigma has 2 entries; the images have 3 channels"),
    "scale of other channels": ({"scale": torch.ones(2)}, r"scale must be float32 \[3\], not Float \[2\]"),
    "shift of another dtype": ({"shift": torch.ones(3).double()}, r"shift must be float32 \[3\], not Double"),
    "output dtype": ({"dtype": torch.float64}, "dtype must be float32, bfloat16, float16 or int16, not Double"),
}


@pytest.mark.parametrize("job", ["lattice"], indirect=True)
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(extension: Any, job: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match="noisy_replicas: " + message):
        ops.noisy_replicas(**job | change)


def test_affine() -> None:
    scale, shift = ops.affine(([0.5, 0.25], [0.25, 2.0]), 2, torch.uint8)
    assert torch.equal(scale, torch.tensor([4 / 255, 0.5 / 255]))
    assert torch.equal(shift, torch.tensor([-2.0, -0.125]))
    assert [part.tolist() for part in ops.affine(None, 2, torch.float32)] == [[1, 1], [0, 0]]
    with pytest.raises(ValueError, match="normalize has 2 means and 2 stds; the images have 3 channels"):
        ops.affine(([0.5, 0.25], [0.25, 2.0]), 3, torch.uint8)
    with pytest.raises(ValueError, match=r"normalize has std \[0\]; every std must be positive"):
        ops.affine(([0.5], [0]), 1, torch.uint8)

"""attack_step: ball and range of pixels in exact arithmetic, its plain PyTorch definition, and its complaints."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from smoothfast import ops
from smoothfast.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")
op = torch.ops.smoothfast.attack_step
NORMS = ("linf", "l2")
TINY, LARGEST = 2.0**-149, torch.finfo(torch.float32).max
# One element, less than, as many as and more than the 256 lanes of a sum, several images, none, empty ones.
SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 1, 5),
    (2, 3, 5, 7),
    (1, 1, 16, 16),
    (2, 1, 1, 257),
    (3, 3, 33, 31),
    (0, 3, 5, 7),
    (2, 3, 0, 7),
]
# The fixtures hold for all examples of a test.
examples = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Adversarial inside and outside of any ball, images, gradients of many magnitudes and with zeros."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    images, adversarial = torch.rand(2, *shape, generator=generator)
    images[images < 0.1] = 0
    near = images + 1e-3 * torch.randn(shape, generator=generator)
    gradients = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-20, 18, shape, generator=generator)
    gradients[torch.rand(shape, generator=generator) < 0.2] *= -0.0
    return torch.where(adversarial < 0.3, adversarial, near), images, gradients


def stepped(function: Any, adversarial: Tensor, *rest: Any) -> Tensor:
    out = adversarial.clone()
    assert function(out, *rest) is None
    return out


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def row(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).float().view(1, 1, 1, -1)


def exact(tensor: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in tensor.flatten().tolist()]


def moves(out: Tensor, images: Tensor) -> list[Fraction]:
    return [after - before for after, before in zip(exact(out), exact(images), strict=True)]


# ---- the projections in exact arithmetic -----------------------------------------------------------------------------

sizes = st.one_of(
    st.sampled_from([0.0, TINY, 3 * TINY, 2.0**-126, 0.1, 0.5, 8 / 255, 1.0, 1e30, 1e39]),
    st.floats(0, 2, allow_nan=False),
    st.floats(0, 1e-37, allow_nan=False),
)
steps = st.one_of(sizes.filter(lambda size: size < LARGEST), st.just(3e38))
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
pixels = st.one_of(floats, st.floats(0, 1, width=32), st.floats(0, 2.0**-140, width=32), st.just(LARGEST))
small = st.one_of(st.floats(-1, 1, width=32), floats)
triples = st.lists(st.tuples(pixels, small, small), min_size=1, max_size=12)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float, float, float, float]:
    """All arguments but the norm. The adversarial is near the images or anywhere; the limits are the least and greatest
    pixels, or beyond."""
    images, offsets, gradients = (row(list(values)) for values in zip(*draw(triples), strict=True))
    adversarial = images + offsets if draw(st.booleans()) else offsets
    low, high = float(images.min()), float(images.max())
    spread = draw(st.sampled_from([0.0, 1e-9, 1.0, math.inf]))
    finite = adversarial.nan_to_num(posinf=LARGEST, neginf=-LARGEST)
    return finite, images, gradients, draw(steps), draw(sizes), low - spread, high + spread


@examples
@given(jobs())
def test_linf_never_leaves_the_ball(instruction_set: str, job: tuple[Any, ...]) -> None:
    adversarial, images, gradients, alpha, eps, low, high = job
    out = stepped(ops.attack_step, adversarial, images, gradients, "linf", alpha, eps, low, high)
    assert max(map(abs, moves(out, images))) <= Fraction(eps)
    assert low <= float(out.min()) <= float(out.max()) <= high
    assert same_bits(out, stepped(reference.attack_step, adversarial, images, gradients, "linf", alpha, eps, low, high))


@examples
@given(jobs())
def test_l2_never_leaves_the_ball(instruction_set: str, job: tuple[Any, ...]) -> None:
    adversarial, images, gradients, alpha, eps, low, high = job
    out = stepped(ops.attack_step, adversarial, images, gradients, "l2", alpha, eps, low, high)
    assert sum(move**2 for move in moves(out, images)) <= Fraction(eps) ** 2
    assert low <= float(out.min()) <= float(out.max()) <= high
    assert same_bits(out, stepped(reference.attack_step, adversarial, images, gradients, "l2", alpha, eps, low, high))


@examples
@given(st.lists(pixels, min_size=1, max_size=12), sizes, st.booleans())
def test_linf_reaches_the_last_float_of_the_ball(
    instruction_set: str, values: list[float], eps: float, up: bool
) -> None:
    images, sign = row(values), 1 if up else -1
    start, gradients = torch.full_like(images, sign * math.inf), torch.full_like(images, sign)
    out = stepped(ops.attack_step, start, images, gradients, "linf", 0.0, eps, -math.inf, math.inf)
    assert max(map(abs, moves(out, images))) <= Fraction(eps)
    following = torch.nextafter(out, start)
    within = following.isfinite()
    radius = Fraction(min(eps, LARGEST))
    assert all(
        abs(move) > radius or eps != float(torch.tensor(eps)) for move in moves(following[within], images[within])
    )


@pytest.mark.parametrize("elements", [1, 255, 3072, 150528])
@pytest.mark.parametrize("eps", [TINY * 2**30, 0.1, 0.5, 3.0, 1e30])
def test_l2_comes_near_the_sphere(eps: float, elements: int) -> None:
    """From images of zeros the elements round by 2**-24 of their own size."""
    gradients = torch.randn(1, 1, 1, elements, generator=torch.Generator().manual_seed(0))
    images = torch.zeros_like(gradients)
    out = stepped(ops.attack_step, images, images, gradients, "l2", 2 * eps, eps, -math.inf, math.inf)
    # As integers: Fractions of this many elements would take a minute.
    unit = 2.0 ** (math.frexp(eps)[1] - 60)
    square = sum(int(value / unit) ** 2 for value in out.flatten().tolist())
    assert ((1 - 1e-6) * eps / unit) ** 2 < square
    assert square <= (Fraction(eps) / Fraction(unit)) ** 2


def test_limits_round_inwards() -> None:
    """0.1 and 0.7 are larger and smaller as float32."""
    for eps in (0.1, 0.7):
        for sign, norm in ((1, "linf"), (-1, "linf"), (1, "l2")):
            zero, far = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0 * sign)
            assert max(map(abs, moves(stepped(op, far, zero, zero, norm, 0.0, eps, -3, 3), zero))) <= Fraction(eps)
    out = stepped(op, row([-2, 2]), row([0, 0]), row([0, 0]), "linf", 0.0, 1.0, -0.1, 0.1)
    assert max(exact(out)) <= Fraction(0.1)
    assert min(exact(out)) >= Fraction(-0.1)


# ---- against the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_are_those_of_the_reference(instruction_set: str, shape: tuple[int, ...], norm: str) -> None:
    adversarial, images, gradients = batch(shape)
    broken = gradients.clone()
    broken[:1].view(-1)[::3] = math.nan
    broken[1:2].view(-1)[::2] = -math.inf
    for slope in (gradients, broken, torch.zeros_like(gradients)):
        for alpha, eps in ((0.01, 8 / 255), (0.5, 0.25), (0.0, 0.5), (1e30, 0.0), (1e-42, 1e-40)):
            arguments = (adversarial, images, slope, norm, alpha, eps, 0.0, 1.0)
            assert same_bits(stepped(op, *arguments), stepped(reference.attack_step, *arguments))


def test_a_step_is_divided_once(instruction_set: str) -> None:
    """1.5 / 66878084, rounded once, leads to 1.5; by the rounded reciprocal it would not."""
    zero, slope = row([0, 0]), row([0, 66878084])
    for function in (op, reference.attack_step):
        assert stepped(function, zero, zero, slope, "l2", 1.5, 9.0, -9.0, 9.0).tolist() == [[[[0, 1.5]]]]


def plain(adversarial: Tensor, images: Tensor, gradients: Tensor, norm: str, alpha: float, eps: float) -> Tensor:
    """As attacks are usually written."""
    if norm == "linf":
        step = adversarial + alpha * gradients.sign()
        return torch.min(torch.max(step, images - eps), images + eps).clamp(0, 1)
    lengths = gradients.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    shift = adversarial + alpha * gradients / lengths - images
    return (images + shift.flatten(1).renorm(2, 0, eps).view_as(images)).clamp(0, 1)


@pytest.mark.parametrize("eps", [0.03, 0.5, 1e3])
@pytest.mark.parametrize("norm", NORMS)
def test_a_walk_is_what_plain_pytorch_makes(instruction_set: str, norm: str, eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 33, 31, generator=generator)
    out, wanted = images.clone(), images.double()
    for _ in range(10):
        gradients = torch.randn(images.shape, generator=generator)
        ops.attack_step(out, images, gradients, norm, eps / 4, eps, 0.0, 1.0)
        wanted = plain(wanted, images.double(), gradients.double(), norm, eps / 4, eps)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2e-6)


def test_gradients_of_no_direction(instruction_set: str) -> None:
    adversarial, images, _ = batch((2, 3, 5, 7))
    still = {norm: stepped(op, adversarial, images, images * 0, norm, 0.0, 0.1, 0.0, 1.0) for norm in NORMS}
    for value in (0.0, -0.0, math.nan, -math.nan):
        gradients = torch.full_like(images, value)
        assert all(
            same_bits(stepped(op, adversarial, images, gradients, n, 9.0, 0.1, 0.0, 1.0), still[n]) for n in NORMS
        )
    gradients = torch.ones_like(images)
    gradients[0, 1, 2, 3] = math.inf
    out = stepped(op, adversarial, images, gradients, "l2", 9.0, 0.1, 0.0, 1.0)
    assert torch.equal(out[0], still["l2"][0])
    assert not torch.equal(out[1], still["l2"][1])


@pytest.mark.parametrize("norm", NORMS)
def test_no_radius_gives_the_images(instruction_set: str, norm: str) -> None:
    adversarial, images, gradients = batch((3, 3, 33, 31))
    assert torch.equal(stepped(op, adversarial, images, gradients, norm, 0.1, 0.0, 0.0, 1.0), images)


@pytest.mark.parametrize("norm", NORMS)
def test_no_step_projects(instruction_set: str, norm: str) -> None:
    adversarial, images, gradients = batch((3, 3, 33, 31))
    once = stepped(op, adversarial, images, gradients, norm, 0.0, 0.1, 0.0, 1.0)
    assert not torch.equal(once, adversarial)
    assert torch.equal(stepped(op, once, images, gradients, norm, 0.0, 0.1, 0.0, 1.0), once)


@pytest.mark.parametrize("norm", NORMS)
def test_tensors_need_not_be_contiguous(instruction_set: str, norm: str) -> None:
    adversarial, images, gradients = batch((2, 3, 5, 7))
    rest = (norm, 0.05, 0.5, 0.0, 1.0)
    wanted = stepped(op, adversarial, images, gradients, *rest)
    last = torch.channels_last
    out = adversarial.contiguous(memory_format=last)
    op(out, images.contiguous(memory_format=last), gradients.transpose(2, 3).contiguous().transpose(2, 3), *rest)
    assert same_bits(out, wanted)
    wide = adversarial.repeat_interleave(2, dim=3)
    op(wide[..., ::2], images, gradients, *rest)
    assert same_bits(wide[..., ::2], wanted)
    assert same_bits(wide[..., 1::2], adversarial)


@pytest.mark.parametrize("norm", NORMS)
def test_any_number_of_threads_gives_the_same_bits(norm: str) -> None:
    arguments = (*batch((40, 3, 33, 31)), norm, 0.1, 0.5, 0.0, 1.0)
    alone = stepped(op, *arguments)
    for threads in (2, 3):
        torch.set_num_threads(threads)  # the fixture one_thread sets it back
        assert same_bits(stepped(op, *arguments), alone)


# ---- as PyTorch sees it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_opcheck(norm: str, requires_grad: bool) -> None:
    adversarial, images, gradients = batch((2, 3, 5, 7))
    gradients.requires_grad_(requires_grad)
    torch.library.opcheck(op.default, (adversarial, images, gradients, norm, 0.1, 0.5, 0.0, 1.0))


@pytest.mark.parametrize("norm", NORMS)
def test_compile(norm: str) -> None:
    def walk(images: Tensor, gradients: Tensor, eps: float) -> Tensor:
        out = images.clone()
        for _ in range(2):
            ops.attack_step(out, images, gradients * 2, norm, eps / 2, eps, 0.0, 1.0)
        return out * 1

    _, images, gradients = batch((2, 3, 5, 7))
    compiled = torch.compile(walk, fullgraph=True)
    for eps in (0.25, 0.5):
        assert same_bits(compiled(images, gradients, eps), walk(images, gradients, eps))
    torch._dynamo.reset()


IMAGES, OTHER = torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 5, 7)
BAD = {
    "one image": ({"adversarial": IMAGES[0, 0, 0]}, r"adversarial must be float32 \[N, C, H, W\], not Float \[7\]"),
    "another dtype": ({"adversarial": IMAGES.half()}, r"adversarial must be float32 \[N, C, H, W\], not Half"),
    "other images": ({"images": IMAGES[:1]}, r"images must be float32 \[2, 3, 5, 7\], not Float \[1, 3, 5, 7\]"),
    "images in bytes": ({"images": IMAGES.byte()}, r"images must be float32 \[2, 3, 5, 7\], not Byte"),
    "other gradients": (
        {"gradients": IMAGES[0]},
        r"gradients must be float32 \[2, 3, 5, 7\], not Float \[3, 5, 1, 7\]",
    ),
    "gradients in half": ({"gradients": IMAGES.half()}, r"gradients must be float32 \[2, 3, 5, 7\], not Half"),
    "images written": ({"images": OTHER}, "images must not share memory with adversarial, which is written"),
    "gradients written": ({"gradients": OTHER}, "gradients must not share memory with adversarial"),
    "negative alpha": ({"alpha": -1.0}, "alpha must be at least 0 and finite in float32, not -1"),
    "large alpha": ({"alpha": 1e39}, "alpha must be at least 0 and finite in float32, not 1e"),
    "alpha of nothing": ({"alpha": math.nan}, "alpha must be at least 0 and finite in float32, not "),
    "negative eps": ({"eps": -1.0}, "eps must be at least 0 and finite, not -1"),
    "no limit": ({"eps": math.inf}, "eps must be at least 0 and finite, not inf"),
    "eps of nothing": ({"eps": math.nan}, "eps must be at least 0 and finite, not "),
    "empty range": ({"low": 2.0}, "low must be at most high, not 2 and 1"),
    "range of nothing": ({"high": math.nan}, "low must be at most high, not 0 and "),
}


def arguments(change: dict[str, Any]) -> dict[str, Any]:
    tensors = {"adversarial": OTHER, "images": IMAGES, "gradients": IMAGES}
    return tensors | {"norm": "l2", "alpha": 0.1, "eps": 0.5, "low": 0.0, "high": 1.0} | change


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_changes_nothing(extension: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match="attack_step: " + message):
        ops.attack_step(**arguments(change))
    assert not OTHER.any()


def test_norm_must_be_known(extension: Any) -> None:
    with pytest.raises(ValueError, match="norm is 'l1'; it must be one of linf, l2"):
        ops.attack_step(**arguments({"norm": "l1"}))
    with pytest.raises(RuntimeError, match="attack_step: norm must be 'linf' or 'l2', not 'l1'"):
        op(**arguments({"norm": "l1"}))

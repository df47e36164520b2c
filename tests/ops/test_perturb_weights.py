"""perturb_weights against its plain PyTorch definition and its law, its purity, its gradient and its complaints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, NETWORKS, PASSES, network
from scipy.stats import chi2
from test_noise import in_element_order, keyed
from test_noisy_replicas import strided
from torch import Tensor

from smoothfast import noise, ops
from smoothfast.noise import Stream, stream_key, within
from smoothfast.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")
op = torch.ops.smoothfast.perturb_weights
RANKS = (0, 1, 5, 32, 33, 64)
SEED, TAG = 2**63 + 5, 16 * Stream.PREDICT + Stream.WEIGHT  # of `network`
MANY = 100_000  # passes


def normals(layers: Tensor, numbers: Tensor, passes: Tensor, dtype: torch.dtype) -> Tensor:
    """[P, T, 64] by the contract, computed once more: Philox in NumPy, Box-Muller as one would write it in PyTorch."""
    words = [
        in_element_order(keyed(SEED, layer, passes.tolist(), TAG, 16 * number + np.arange(16, dtype=np.uint64)))
        for layer, number in zip(layers.tolist(), numbers.tolist(), strict=True)
    ]
    radius_word, angle_word = torch.from_numpy(np.stack(words, 1).astype(np.int64)).unflatten(2, (2, 2, 16)).unbind(3)
    radius = torch.sqrt(-2 * torch.log((radius_word.to(dtype) + 1) * 2.0**-32))
    angle = angle_word.to(dtype) * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 3).flatten(2)


def plain(case: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
    """The op in plain PyTorch, in float64 or float32 throughout."""
    weights, scales, factors, tiles, passes, *_ = case
    layers, numbers = tiles
    shared = normals(layers + 2**32, torch.zeros_like(numbers), passes, dtype)[..., : len(factors)]
    own = scales.to(dtype) * normals(layers, numbers, passes, dtype)
    return weights.to(dtype) + own + torch.einsum("kte,ptk->pte", factors.to(dtype), shared)


# ---- against the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("layers", NETWORKS)
def test_weights_are_as_accurate_as_plain_pytorch(
    instruction_set: str, extension: Any, layers: tuple[int, ...], rank: int
) -> None:
    truth, written = (plain(network(layers, rank, torch.float32), dtype) for dtype in (torch.float64, torch.float32))
    for dtype in DTYPES:
        case = network(layers, rank, dtype)
        out = op(*case)
        # One unit in the last place beside the rule of two, as for the Gaussian law.
        allowed = 2 * (written.to(dtype) - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
        assert (out - truth).abs().max() <= allowed
        assert (reference.perturb_weights(*case) - truth).abs().max() <= allowed
        assert (out.dtype, out.shape, out.is_contiguous()) == (dtype, truth.shape, True)
        extension.use_instruction_set("scalar")
        assert torch.equal(out, op(*case))
        extension.use_instruction_set(instruction_set)


@pytest.mark.parametrize("function", [op, reference.perturb_weights])
def test_no_passes_and_no_tiles(function: Any) -> None:
    weights, scales, factors, tiles, passes, key, dtype = network((3,), 2, torch.bfloat16)
    assert function(weights, scales, factors, tiles, passes[:0], key, dtype).shape == (0, 4, 64)
    assert function(weights[:0], scales[:0], factors[:, :0], tiles[:, :0], passes, key, dtype).shape == (5, 0, 64)


def test_inputs_need_not_be_contiguous(instruction_set: str) -> None:
    *tensors, dtype = network(NETWORKS[2], 3, torch.float32)
    assert torch.equal(op(*map(strided, tensors), dtype), op(*tensors, dtype))


# ---- purity ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def job() -> tuple[Any, ...]:
    """Work for several threads, in runs longer and shorter than the kernel's."""
    return network((3, 1, 40, 2, 30), 5, torch.float32, torch.arange(150) + 2**32 - 70)


def test_passes_may_be_drawn_together_or_apart(job: tuple[Any, ...]) -> None:
    *weights, passes, key, dtype = job
    whole = op(*job)
    for size in (1, 7, 64, 149):
        assert torch.equal(torch.cat([op(*weights, part, key, dtype) for part in passes.split(size)]), whole)
    order = torch.randperm(len(passes), generator=torch.Generator().manual_seed(0))
    assert torch.equal(op(*weights, passes[order], key, dtype), whole[order])


def test_tiles_may_stand_in_any_order_or_alone(job: tuple[Any, ...]) -> None:
    weights, scales, factors, tiles, *rest = job
    whole = op(*job)
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))
    for some in (order, order[:9], order[:1]):
        assert torch.equal(op(weights[some], scales[some], factors[:, some], tiles[:, some], *rest), whole[:, some])


def test_any_number_of_threads_gives_the_same_bits(job: tuple[Any, ...]) -> None:
    alone = op(*job)
    for threads in (2, 3):
        torch.set_num_threads(threads)  # the fixture one_thread sets it back
        assert torch.equal(op(*job), alone)


def test_dtypes_only_cast(instruction_set: str, job: tuple[Any, ...]) -> None:
    """Subnormal and infinite results of float16 among them."""
    weights, scales, factors, *rest, dtype = job
    size = 10.0 ** torch.linspace(-9, 6, len(weights))[:, None]
    scaled = (weights * size, scales * size, factors * size, *rest)
    out = op(*scaled, dtype)
    for other in DTYPES:
        assert torch.equal(op(*scaled, other), out.to(other))
    assert out.half().isinf().any()


# ---- the law ---------------------------------------------------------------------------------------------------------


def test_mean_and_covariance_over_passes() -> None:
    """Entry i, j of a sample covariance of n normal vectors has variance (C_ii C_jj + C_ij^2) / n: none of 2,080 is
    five deviations off. The whitened mean is chi-square."""
    weights, scales, factors, tiles, _, key, dtype = network((1,), 5, torch.float32)
    tiles = tiles[:, :1]
    drawn = op(weights[:1], scales[:1], factors[:, :1], tiles, torch.arange(MANY), key, dtype)[:, 0].double()
    mean, columns = weights[0].double(), factors[:, 0].double()
    wanted = scales[0].double().square().diag() + columns.T @ columns
    assert (wanted - wanted.diag().diag()).abs().max() > 0.3  # what is shared is seen
    centred = drawn - mean
    variances = wanted.diag()
    deviation = ((variances[:, None] * variances + wanted.square()) / MANY).sqrt()
    assert ((centred.T @ centred / MANY - wanted).abs() <= 5 * deviation).all()
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(wanted), centred.mean(0)[:, None], upper=False)
    assert 1e-4 < chi2.sf(float(white.square().sum()) * MANY, 64) < 1 - 1e-4


def streams() -> dict[str, Tensor]:
    """Standard normals [MANY, 32] of which no two are to depend on each other."""
    passes, eye, zeros, one = torch.arange(MANY), torch.eye(64)[:, None], torch.zeros(1, 64), torch.ones(1, 64)

    def of(
        layer: int, number: int = 0, first: int = 0, stream: Stream = Stream.PREDICT, shared: bool = False
    ) -> Tensor:
        tile, key = torch.tensor([[layer], [number]]), within(stream_key(1, stream), Stream.WEIGHT)
        scales, factors = (zeros, eye) if shared else (one, eye[:0])
        return ops.perturb_weights(zeros, scales, factors, tile, passes + first, key)[:, 0, :32]

    return {
        "own": of(7),
        "shared": of(7, shared=True),
        "another tile": of(7, 1),
        "another layer": of(8),
        "shared by another layer": of(8, shared=True),
        "the next pass": of(7, first=1),
        "shared in the next pass": of(7, first=1, shared=True),
        "passes of another stream": of(7, stream=Stream.ESTIMATE),
        "an image of the same number": noise.gaussian((32,), 1.0, 1, 7, passes, Stream.PREDICT),
    }


def test_normals_are_independent() -> None:
    """By the correlations of the numbers and of their squares: of 41,328 pairs none is six deviations from zero."""
    drawn = torch.cat(list(streams().values()), 1)
    for scores in (drawn, (drawn.square() - 1) / 2**0.5):
        correlations = scores.T @ scores / MANY**0.5
        # The variances vary by 2 / MANY and, of the squares, by 14 / MANY.
        assert (correlations - correlations.diag().diag()).abs().max() < 6
        assert (correlations.diag() - MANY**0.5).abs().max() < 6 * 14**0.5


def test_images_of_the_tag_of_weights_have_the_normals_of_layers() -> None:
    """The contract: layer and pass stand where noise on images has image and sample."""
    weights, scales, factors, tiles, passes, key, dtype = network((3,), 0, torch.float32)
    own = op(torch.zeros_like(weights), torch.ones_like(scales), factors, tiles, passes, key, dtype)
    zero, one = torch.zeros(1), torch.ones(1)
    law = noise.gaussian_law(1.0)
    slots = torch.zeros_like(passes)
    layers = torch.full_like(passes, int(tiles[0, 0]))
    images = ops.noisy_replicas(torch.zeros(1, 1, 1, 192), slots, layers, passes, key, law, one, zero)
    (numbers,) = tiles[1:, :3]
    assert torch.equal(own[:, :3].flatten(1), images.view(-1, 3, 64)[:, numbers].flatten(1))


# ---- gradient --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def differentiated(request: pytest.FixtureRequest) -> Any:
    """A case, the slope of a loss, and its gradients by weights, scales and factors."""
    case = network((3, 20), 5, request.param)
    leaves = [part.requires_grad_() for part in case[:3]]
    slope = torch.randn(len(PASSES), len(case[0]), 64, generator=torch.Generator().manual_seed(1)).to(request.param)
    return case, slope, torch.autograd.grad(op(*case), leaves, slope)


def directions(tensors: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(part.shape, generator=generator) for part in tensors]


def product(a: Any, b: Any) -> float:
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["weights", "scales", "factors"])
def test_gradient_is_that_of_finite_differences(differentiated: Any, which: int) -> None:
    case, slope, gradients = differentiated
    *leaves, tiles, passes, _, _ = (part.detach() if isinstance(part, Tensor) else part for part in case)
    (direction,) = directions([leaves[which]])
    step = 1e-3

    def loss(h: float) -> float:
        moved = [part.double() + h * direction if i == which else part for i, part in enumerate(leaves)]
        return product([plain((*moved, tiles, passes), torch.float64)], [slope])

    slopes = (loss(step) - loss(-step)) / (2 * step)
    size = gradients[which].norm() * direction.norm()
    assert abs(product([gradients[which]], [direction]) - slopes) < 1e-6 * size


def test_gradient_is_the_adjoint(differentiated: Any) -> None:
    """The op is linear in weights, scales and factors together: it is its own derivative."""
    case, slope, gradients = differentiated
    moves = directions(gradients)
    forward = op(*moves, *case[3:6], torch.float32)
    size = slope.norm() * forward.norm()
    assert abs(product(gradients, moves) - product([forward], [slope])) < 1e-7 * size


def test_gradient_without_factors() -> None:
    weights, scales, factors, *rest = network((2,), 0, torch.float32)
    leaves = [part.requires_grad_() for part in (weights, scales, factors)]
    by_weights, by_scales, by_factors = torch.autograd.grad(op(*leaves, *rest).sum(), leaves)
    assert torch.equal(by_weights, torch.full_like(weights, len(PASSES)))
    assert torch.allclose(by_scales, plain((0 * weights, scales * 0 + 1, factors, *rest), torch.float64).sum(0).float())
    assert by_factors.shape == (0, 3, 64)


# ---- as PyTorch sees it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "passes", "requires_grad"), [(5, 5, True), (0, 5, True), (5, 0, False), (1, 5, False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(rank: int, passes: int, requires_grad: bool, dtype: torch.dtype) -> None:
    *parts, tiles, numbers, key, dtype = network((3,), rank, dtype, PASSES[:passes])
    leaves = [part.requires_grad_(requires_grad) for part in parts]
    torch.library.opcheck(op.default, (*leaves, tiles, numbers, key, dtype))


def test_compile() -> None:
    def outputs(*case: Any) -> Tensor:
        weights, *rest = case
        return ops.perturb_weights(weights * 2, *rest).flatten(1).square()

    compiled = torch.compile(outputs, fullgraph=True)
    *parts, tiles, passes, key, dtype = network((3, 2), 2, torch.float32)
    leaves = [part.requires_grad_() for part in parts]
    found, wanted = (function(*leaves, tiles, passes, key, dtype) for function in (compiled, outputs))
    assert torch.equal(found, wanted)
    for a, b in zip(*(torch.autograd.grad(out.sum(), leaves) for out in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


# ---- bad input -------------------------------------------------------------------------------------------------------

WEIGHTS, FACTORS = torch.zeros(3, 64), torch.zeros(2, 3, 64)
TILES, NUMBERS, KEY = torch.zeros(2, 3, dtype=torch.int64), torch.arange(4), within(stream_key(0, Stream.PREDICT), 6)
BAD = {
    "weights in rows of 32": ({"weights": WEIGHTS[:, :32]}, r"weights must be float32 \[T, 64\], not Float \[3, 32\]"),
    "weights in half": ({"weights": WEIGHTS.half()}, r"weights must be float32 \[T, 64\], not Half \[3, 64\]"),
    "scales of fewer tiles": ({"scales": WEIGHTS[:1]}, r"scales must be float32 \[3, 64\], not Float \[1, 64\]"),
    "scales in double": ({"scales": WEIGHTS.double()}, r"scales must be float32 \[3, 64\], not Double"),
    "one factor": ({"factors": WEIGHTS}, r"factors must be float32 \[r, 3, 64\], not Float \[3, 64\]"),
    "factors in half": ({"factors": FACTORS.half()}, r"factors must be float32 \[r, 3, 64\], not Half"),
    "rank 65": ({"factors": torch.zeros(65, 3, 64)}, "factors have rank 65; at most 64 is possible"),
    "tiles without numbers": ({"tiles": TILES[0]}, r"tiles must be int64 \[2, 3\], not Long \[3\]"),
    "tiles in int32": ({"tiles": TILES.int()}, r"tiles must be int64 \[2, 3\], not Int \[2, 3\]"),
    "a layer too large": ({"tiles": TILES + torch.tensor([[2**32], [0]])}, rf"tiles\[0, 0\] is {2**32}; .* 2\^32 - 1"),
    "a layer too small": (
        {"tiles": TILES - torch.tensor([0, 1, 1])},
        r"tiles\[0, 1\] is -1; it must lie in 0 .. 2\^32",
    ),
    "a tile too large": ({"tiles": TILES + torch.tensor([[0], [2**28]])}, rf"tiles\[1, 0\] is {2**28}; .* 2\^28 - 1"),
    "a tile too small": (
        {"tiles": TILES - torch.tensor([[0], [1]])},
        r"tiles\[1, 0\] is -1; it must lie in 0 .. 2\^28",
    ),
    "passes in a table": ({"passes": NUMBERS[None]}, r"passes must be int64 \[P\], not Long \[1, 4\]"),
    "passes in int32": ({"passes": NUMBERS.int()}, r"passes must be int64 \[P\], not Int \[4\]"),
    "a pass too large": ({"passes": NUMBERS + 2**40 - 1}, rf"passes\[1\] is {2**40}; it must lie in 0 .. 2\^40 - 1"),
    "a pass too small": ({"passes": NUMBERS - 1}, r"passes\[0\] is -1; it must lie in 0 .. 2\^40 - 1"),
    "a seed alone": ({"key": KEY[:1]}, r"key must be int64 \[2\], not Long \[1\]"),
    "another dtype": ({"dtype": torch.float64}, "dtype must be float32, bfloat16 or float16, not Double"),
}


def good(change: dict[str, Any]) -> dict[str, Any]:
    tensors = {"weights": WEIGHTS, "scales": WEIGHTS, "factors": FACTORS, "tiles": TILES, "passes": NUMBERS, "key": KEY}
    return tensors | {"dtype": torch.float32} | change


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(extension: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match="perturb_weights: " + message):
        ops.perturb_weights(**good(change))


@pytest.mark.parametrize("name", [name for name in BAD if name.endswith((" too large", " too small"))])
def test_the_reference_looks_at_the_numbers_too(name: str) -> None:
    change, message = BAD[name]
    values = message.split(r"\[")[0]
    with pytest.raises(ValueError, match=rf"perturb_weights: {values}(\[[01]\])? must lie in 0 .. "):
        reference.perturb_weights(**good(change))

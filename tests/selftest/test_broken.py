"""What a self test checks is broken on purpose: each check finds out the mistake that it is for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from smoothfast import noise as of_package
from smoothfast import ops, statistics
from smoothfast.engine.votes import EXACT, ROUNDED, Engine
from smoothfast.noise import Stream
from smoothfast.ops import philox as words
from smoothfast.ops import reference
from smoothfast.procedures import SequentialCertify
from smoothfast.runners.fused import arithmetics
from smoothfast.selftest import FAILED, PASSED, Effort, definition, kernels, laws, levels, noise, philox, rounding, rows
from smoothfast.selftest.backends import Backend, backends
from smoothfast.statistics import radii

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Effort(elements=5, draws=2**17, pairs=2**14, points=24)
PLAIN = Backend("reference", reference)


def with_kernels(**changed: Callable[..., Any]) -> Backend:
    """The plain definitions with some of them exchanged."""
    return Backend("broken", SimpleNamespace(**{op: getattr(reference, op) for op in ops.OPS} | changed))


def failed(finding: Any) -> bool:
    return finding.status == FAILED


# ---- Philox ----------------------------------------------------------------------------------------------------------


def test_a_wrong_constant_of_philox(monkeypatch: pytest.MonkeyPatch) -> None:
    right = words.philox

    def wrong(counter: Any, key: Any) -> list[Tensor]:
        """Words of a key that is off by one."""
        return right(counter, (key[0], (key[1] + 1) & words.WORD))

    monkeypatch.setattr(words, "philox", wrong)
    assert failed(philox.published_answers(PLAIN))
    assert failed(philox.other_words(SMALL, PLAIN))


def test_wrong_words_of_an_instruction_set(extension: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(
        philox_words=lambda counter, key, blocks: extension.philox_words(counter, key, blocks) ^ (counter[0] > 2**31),
        instruction_set=extension.instruction_set,
        use_instruction_set=extension.use_instruction_set,
    )
    compiled = Backend("scalar", torch.ops.smoothfast, instruction_set="scalar")
    assert not failed(philox.other_words(SMALL, compiled))
    monkeypatch.setattr(ops, "extension", broken)
    assert failed(philox.published_answers(compiled))
    assert failed(philox.other_words(SMALL, compiled))


def test_a_wrong_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definition, "WORD", 2**31)
    assert failed(philox.plain_answers())


# ---- noise -----------------------------------------------------------------------------------------------------------


def scaled(by: float) -> Backend:
    return with_kernels(noisy_replicas=lambda *given: reference.noisy_replicas(*given) * by)


def short_samples(images: Tensor, slots: Tensor, ids: Tensor, samples: Tensor, *rest: Any) -> Tensor:
    return reference.noisy_replicas(images, slots, ids, samples & words.WORD, *rest)


def short_images(images: Tensor, slots: Tensor, ids: Tensor, *rest: Any) -> Tensor:
    return reference.noisy_replicas(images, slots, ids & words.WORD, *rest)


def turned(*given: Any) -> Tensor:
    return reference.noisy_replicas(*given).flatten(1).roll(1, 1).view(len(given[1]), *given[0].shape[1:])


@pytest.mark.parametrize("broken", [short_samples, short_images, turned])
def test_noise_of_another_place(broken: Callable[..., Tensor]) -> None:
    backend = with_kernels(noisy_replicas=broken)
    assert failed(noise.lattice_elements(SMALL, backend))
    assert failed(noise.gaussian_elements(SMALL, backend))


def test_noise_that_is_scaled() -> None:
    assert not failed(noise.gaussian_elements(SMALL, scaled(1)))
    assert failed(noise.gaussian_elements(SMALL, scaled(1.01)))
    assert failed(noise.gaussian_elements(SMALL, scaled(1 + 1e-5)))
    assert failed(noise.gaussian_elements(SMALL, scaled(float("nan"))))


def test_refining_bits_of_another_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not failed(noise.lattice_ties(PLAIN))
    monkeypatch.setattr(reference, "Stream", SimpleNamespace(REFINE=7))
    assert failed(noise.lattice_ties(PLAIN))
    assert not failed(noise.lattice_elements(SMALL, PLAIN))


def test_ties_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "TIES", ((0.25, 1, 2, "SELECT", ((3, 4),)),))
    assert failed(noise.lattice_ties(PLAIN))


def test_a_shifted_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    right = of_package.lattice_thresholds(0.12)
    monkeypatch.setattr(of_package, "lattice_thresholds", lambda sigma: (*right[:9], right[9] + 1, *right[10:]))
    assert failed(laws.thresholds(0.12))
    monkeypatch.setattr(of_package, "lattice_thresholds", lambda sigma: right[1:])
    assert failed(laws.thresholds(0.12))


def test_another_number_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(definition.STREAMS, "ATTACK", 6)
    assert failed(noise.stream_numbers())


def test_noise_in_weights_of_another_place() -> None:
    def wrong(weights: Tensor, scales: Tensor, factors: Tensor, tiles: Tensor, *rest: Any) -> Tensor:
        return reference.perturb_weights(weights, scales, factors, tiles ^ torch.tensor([[0], [2**27]]), *rest)

    assert not failed(noise.weight_elements(SMALL, PLAIN))
    assert failed(noise.weight_elements(SMALL, with_kernels(perturb_weights=wrong)))


def test_a_uniform_number_rounded_down(monkeypatch: pytest.MonkeyPatch) -> None:
    right = of_package.uniform
    monkeypatch.setattr(of_package, "uniform", lambda seed, image: right(seed, image) - 2.0**-53)
    assert failed(noise.uniforms(SMALL))


# ---- laws ------------------------------------------------------------------------------------------------------------

DRAWS = Effort(draws=2**20)


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z * 1.01,
        lambda z: z + 0.01,
        lambda z: z.clamp(-4, 4),
        lambda z: torch.where(z < 0, 0.99 * z, z),
        lambda z: z + 0.1 * torch.sin(z),
        lambda z: torch.where(z.abs() < 0.01, 0.02, z),
    ],
    ids=["wider", "moved", "clipped", "skew", "bent", "a hole"],
)
def test_gaussian_noise_of_another_law(change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    right = of_package.gaussian
    monkeypatch.setattr(of_package, "gaussian", lambda *given: change(right(*given)))
    assert failed(laws.gaussian_law(DRAWS))


@pytest.mark.parametrize(
    "change",
    [
        lambda levels: levels + 1,
        lambda levels: torch.where((levels == 3) & (torch.arange(levels.shape[-1]) % 4 == 0), 4, levels),
        lambda levels: levels.clamp(-100, 100),
        lambda levels: levels * 100,
    ],
    ids=["moved", "a shifted cell", "clipped", "beyond"],
)
def test_lattice_noise_of_another_law(change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    right = of_package.lattice
    monkeypatch.setattr(of_package, "lattice", lambda *given: change(right(*given)))
    assert failed(laws.lattice_law(DRAWS, 0.12))


def test_lattice_noise_of_another_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    right = of_package.lattice
    monkeypatch.setattr(of_package, "lattice", lambda shape, sigma, *rest: right(shape, 1.01 * sigma, *rest))
    assert failed(laws.lattice_law(DRAWS, 0.12))


def test_a_deviation_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed in (7e-11, 1e-9):
        monkeypatch.setattr(ops.laws.Law, "deviation", lambda law, elements, allowed=allowed: allowed * elements)
        assert failed(laws.deviation(0.12))


@pytest.mark.parametrize("law", laws.LAWS)
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("seed", lambda seed, image, samples, stream: (seed & words.WORD, image, samples, stream)),
        ("image", lambda seed, image, samples, stream: (seed, image & ~7, samples, stream)),
        ("sample", lambda seed, image, samples, stream: (seed, image, [samples[0] & words.WORD], stream)),
        ("stream", lambda seed, image, samples, stream: (seed, image, samples, min(stream, Stream.ESTIMATE))),
    ],
)
def test_noise_that_ignores(law: str, what: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = laws.LAWS[law]
    monkeypatch.setitem(laws.LAWS, law, lambda shape, sigma, *where: right(shape, sigma, *change(*where)))
    found = laws.correlations(SMALL, law)
    assert failed(found)
    assert what in found.found


def test_elements_that_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    right = laws.LAWS["gaussian"]
    for change in (lambda z: z + 0.1 * z.roll(16, 1), lambda z: z * (1 + 0.3 * z.roll(1, 1).abs())):
        monkeypatch.setitem(laws.LAWS, "gaussian", lambda *given, change=change: change(right(*given)))
        assert failed(laws.correlations(SMALL, "gaussian"))


# ---- ops -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SHAPES", kernels.SHAPES[:3])


def off(op: str, change: Callable[[Tensor], Tensor]) -> Backend:
    return with_kernels(**{op: lambda *given: change(getattr(reference, op)(*given))})


def a_bit(values: Tensor) -> Tensor:
    """The last number, one place up."""
    values.view(-1)[-1:] = torch.nextafter(values.view(-1)[-1:], torch.full((1,), 9e4, dtype=values.dtype))
    return values


def test_wrong_replicas(few_shapes: None) -> None:
    assert failed(kernels.lattice_replicas(SMALL, off("noisy_replicas", lambda rows: rows.roll(1, 0))))
    assert failed(kernels.gaussian_replicas(SMALL, scaled(1 + 2.0**-6)))
    assert failed(kernels.gaussian_replicas(SMALL, off("noisy_replicas", lambda rows: rows.float())))


def test_wrong_sums_and_weights(few_shapes: None) -> None:
    assert failed(kernels.sums(SMALL, off("replica_sum", a_bit)))
    assert failed(kernels.weights(SMALL, off("perturb_weights", lambda rows: rows * (1 + 2.0**-6))))
    assert failed(kernels.weights(SMALL, off("perturb_weights", lambda rows: rows * float("nan"))))


def test_wrong_steps(few_shapes: None) -> None:
    def step(adversarial: Tensor, *rest: Any) -> None:
        reference.attack_step(adversarial, *rest)
        a_bit(adversarial)

    assert failed(kernels.steps(SMALL, with_kernels(attack_step=step)))


def test_wrong_tallies() -> None:
    def last_of_equals(logits: Tensor, slots: Tensor, counts: Tensor, *rest: Any) -> None:
        flipped = counts.flip(1)
        reference.tally(logits.flip(1), slots, flipped, *rest)
        counts.copy_(flipped.flip(1))

    def more(logits: Tensor, slots: Tensor, counts: Tensor, *rest: Any) -> None:
        reference.tally(logits, slots, counts, *rest)
        counts += 2**20

    assert failed(kernels.tallies(SMALL, with_kernels(tally=last_of_equals)))
    assert failed(kernels.soft_tallies(SMALL, with_kernels(tally=more)))


def test_instruction_sets_that_differ(few_shapes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = with_kernels(perturb_weights=lambda *given: a_bit(reference.perturb_weights(*given))).kernels
    pair = [Backend("a", reference, instruction_set="scalar"), Backend("b", broken, instruction_set="scalar")]
    monkeypatch.setattr(kernels, "backends", lambda: pair)
    assert failed(kernels.equal_bits(SMALL))


@pytest.mark.parametrize("arithmetic", arithmetics())
def test_wrong_fused_networks(arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, votes = ops.fused_gradients, ops.fused_votes

    def tilted(*given: Any) -> tuple[Tensor, Tensor]:
        logits, by = gradients(*given)
        return logits, 1.5 * by

    def generous(noisy: Any, packed: Any, shape: Any, arithmetic: Any, counts: Tensor, invalid: Tensor) -> Tensor:
        logits = votes(noisy, packed, shape, arithmetic, counts, invalid)
        counts[0, 0] += 1
        return logits

    monkeypatch.setattr(ops, "fused_gradients", tilted)
    monkeypatch.setattr(ops, "fused_votes", generous)
    assert failed(kernels.fused_precision(arithmetic))
    assert failed(kernels.fused_votes(SMALL, arithmetic))


# ---- error levels ----------------------------------------------------------------------------------------------------

COUNTED = {counted.name: counted for counted in levels.everything()}
QUICK_ONES = [
    name for name, one in COUNTED.items() if one.exact and "multiclass" not in name and "not certified" not in name
]


@pytest.mark.parametrize("name", QUICK_ONES)
def test_twice_the_level(name: str) -> None:
    counted, effort = COUNTED[name], Effort(runs=20_000)
    assert levels.mistake(effort, counted).status == PASSED
    doubled = counted._replace(make=lambda alpha: counted.make(2 * alpha))
    assert failed(levels.errors(effort, doubled))
    halved = counted._replace(make=lambda alpha: counted.make(alpha / 2))
    assert failed(levels.mistake(effort, halved))


def test_a_procedure_that_stops_later(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SequentialCertify._decide

    def late(self: Any, look: int, votes: Any, label: int) -> Any:
        return None if look < 8 else right(self, look, votes, label)

    monkeypatch.setattr(levels, "REPLAYED", 30)
    monkeypatch.setattr(SequentialCertify, "_decide", late)
    assert failed(levels.one_by_one(SMALL))


# ---- rounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("clopper_pearson_lower", rounding.lower_bounds),
        ("clopper_pearson_upper", rounding.upper_bounds),
        ("gaussian_quantile_lower", rounding.lower_quantiles),
        ("gaussian_quantile_upper", rounding.upper_quantiles),
        ("gaussian_probability_lower", rounding.lower_probabilities),
        ("gaussian_probability_upper", rounding.upper_probabilities),
        ("certified_radius", rounding.radii),
    ],
)
@pytest.mark.parametrize("by", [1e-6, -1e-6])
def test_what_is_rounded_to_one_side_or_too_far(name: str, check: Any, by: float, monkeypatch: Any) -> None:
    right = getattr(statistics, name)
    assert not failed(check(SMALL))
    monkeypatch.setattr(statistics, name, lambda *given: right(*given) * (1 + by))
    assert failed(check(SMALL))


def test_a_radius_that_is_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radii, "_ROUND_DOWN", 1 + 64 * 2.0**-52)
    assert failed(rounding.radii(SMALL))


def test_quantiles_without_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radii, "_QUANTILE_MARGIN", 0.0)
    effort = Effort(points=200)
    assert failed(rounding.lower_quantiles(effort))
    assert failed(rounding.lower_probabilities(effort))


def test_boundaries_of_another_level(monkeypatch: pytest.MonkeyPatch) -> None:
    right = statistics.sequential_boundaries
    monkeypatch.setattr(statistics, "sequential_boundaries", lambda p0, looks, alpha: right(p0, looks, 2 * alpha))
    assert failed(rounding.boundaries())


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [EXACT, ROUNDED])
def test_a_row_test_that_always_finds_the_same(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_agreement_of", lambda *_: found)
    for case in (*rows.PLAIN, *rows.EAGER[-4:]):
        changes = case.name == "a network that changes"
        assert failed(rows.found_out(SMALL, case, "eager")) == (case.wanted != found), case.name
        assert changes <= (case.wanted == EXACT)


def test_backends_begin_with_the_plain_definition() -> None:
    assert backends()[0] == PLAIN

"""The noise contract against a computation of its own: Philox in NumPy, thresholds by another route, and refining bits
drawn for every element."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from mpmath import mp
from torch import Tensor

import smoothfast as sf
from smoothfast import ops
from smoothfast.noise import Stream, gaussian_law, lattice_law, lattice_thresholds, stream_key
from smoothfast.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")
SIGMAS = (0.12, 0.25, 0.5, 1.0)
SHAPE = (3, 35, 39)  # not a multiple of the 64 elements that share 16 blocks
WORD = 2**32 - 1
Draw = Callable[..., Tensor]


# ---- the contract, once more -----------------------------------------------------------------------------------------


def philox(counter: Sequence[Any], key: Sequence[int]) -> list[np.ndarray]:
    """Philox4x32-10 on arrays of 32-bit words held in uint64."""
    m0, m1, mask, half = (np.uint64(n) for n in (0xD2511F53, 0xCD9E8D57, WORD, 32))
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    for r in range(10):
        k0 = np.uint64((key[0] + r * 0x9E3779B9) & WORD)
        k1 = np.uint64((key[1] + r * 0xBB67AE85) & WORD)
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = p1 >> half ^ c1 ^ k0, p1 & mask, p0 >> half ^ c3 ^ k1, p0 & mask
    return [c0, c1, c2, c3]


def in_element_order(words: Sequence[np.ndarray]) -> np.ndarray:
    """Word w of block b stands at element 64 (b // 16) + 16 w + b % 16."""
    block = np.arange(words[0].shape[-1])
    elements = np.empty((*words[0].shape[:-1], 4 * block.size), np.uint64)
    for w, word in enumerate(words):
        elements[..., 64 * (block // 16) + 16 * w + block % 16] = word
    return elements


def keyed(seed: int, image: int, samples: Sequence[int], tag: int, first: np.ndarray) -> list[np.ndarray]:
    """Four words per sample and entry of `first`, the first counter word."""
    rows = [
        [s & WORD, image & WORD, (image >> 32) << 20 | (s >> 32) << 12 | tag << 4 | 1] for s in samples
    ]  # the 1 is the version
    counter = np.array(rows, np.uint64).T[:, :, None]
    return philox([first, *counter], [seed & WORD, seed >> 32])


def words_of(elements: int, seed: int, image: int, samples: Sequence[int], stream: int) -> np.ndarray:
    blocks = np.arange(math.ceil(elements / 64) * 16)
    return in_element_order(keyed(seed, image, samples, stream, blocks))[:, :elements]


@lru_cache
def thresholds(sigma: float) -> list[int]:
    """As 2^96 - 2^95 erfc(+z): for the lower half a difference of nearly equal numbers, which 400 bits can afford."""
    reach = math.ceil(Fraction(13, 2) * 255 * Fraction(sigma))
    with mp.workprec(400):
        unit = 510 * mp.mpf(sigma) * mp.sqrt(2)
        return [
            int(mp.floor(mp.mpf(2) ** 96 - mp.ldexp(mp.erfc((2 * i + 1) / unit), 95))) for i in range(-reach, reach)
        ]


@lru_cache
def high_words(sigma: float) -> np.ndarray:
    return np.array([t >> 64 for t in thresholds(sigma)], np.uint64)


@lru_cache
def expected_lattice(
    shape: tuple[int, ...], sigma: float, seed: int, image: int, samples: Sequence[int], stream: Stream
) -> np.ndarray:
    elements = math.prod(shape)
    words = words_of(elements, seed, image, samples, stream)
    refined = keyed(seed, image, samples, stream * 16 + Stream.REFINE, np.arange(elements))
    bits = refined[0] << np.uint64(32) | refined[1]
    reach = len(thresholds(sigma)) // 2
    noise = np.searchsorted(high_words(sigma), words) - reach
    for at in zip(*np.nonzero(np.isin(words, high_words(sigma))), strict=True):
        noise[at] = bisect_right(thresholds(sigma), int(words[at]) << 64 | int(bits[at])) - reach
    return noise.reshape(-1, *shape)


def lattice_by_reference(
    shape: Sequence[int], sigma: float, seed: int, image: int, samples: Sequence[int], stream: Stream
) -> Tensor:
    ids = torch.tensor(samples)
    key, table = stream_key(seed, stream), lattice_law(sigma).table
    return reference.LAWS["lattice"](math.prod(shape), torch.full_like(ids, image), ids, key, table).view(-1, *shape)


# ---- Philox ----------------------------------------------------------------------------------------------------------

# The official vectors of Random123: counter, key, output.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([WORD] * 4, [WORD] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: list[int], key: list[int], output: list[int]) -> None:
    assert [int(word) for word in philox(counter, key)] == output
    words = reference.philox([torch.tensor(c) for c in counter], (torch.tensor(key[0]), torch.tensor(key[1])))
    assert [int(word) for word in words] == output


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_compiled_philox_known_answers(
    instruction_set: str, extension: Any, counter: list[int], key: list[int], output: list[int]
) -> None:
    assert extension.philox_words(counter, key, 16)[::16].tolist() == output


def test_compiled_philox_on_a_stretch_of_blocks(instruction_set: str, extension: Any) -> None:
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (20, 4))
    counters[0, 0] = WORD - 100  # wraps
    for counter, key in zip(counters.tolist(), rng.integers(0, 2**32, (20, 2)).tolist(), strict=True):
        blocks = (counter[0] + np.arange(16 * 13)) & WORD
        expected = in_element_order(philox([blocks, *counter[1:]], key))
        np.testing.assert_array_equal(extension.philox_words(counter, key, blocks.size), expected)


# ---- the lattice law -------------------------------------------------------------------------------------------------

# sigma, seed, image, first sample, stream: seeds, images and samples on both sides of 2^32, and the last ones.
PLACES = [
    (0.12, 0, 0, 0, Stream.ESTIMATE),
    (0.12, 2**32 + 5, 2**32 - 1, 2**32 - 16, Stream.SELECT),
    (0.25, 2**64 - 1, 2**44 - 1, 2**40 - 40, Stream.ESTIMATE),
    (0.25, 2**63, 3, 7, Stream.ATTACK_START),
    (0.5, 12345, 2**32, 2**32, Stream.PREDICT),
    (0.5, 2**33 + 1, 2**43 + 1, 1, Stream.TRAIN),
    (1.0, 2**40 + 3, 50000, 2**39 - 5, Stream.ATTACK),
    (1.0, 1, 2**35 + 7, 99980, Stream.ESTIMATE),
]
SAMPLES = 33  # of 4095 elements at 8 places: 1,081,080 draws


# Draws whose word ties with a threshold, found by search: such a word comes up once in a million draws. In each list
# the refining bits pass the threshold for some of the (sample, element) and fail it for others.
TIES = [
    (0.12, 2**63 + 7, 5, Stream.ESTIMATE, [(1013, 819), (3379, 2188), (3571, 1599), (5873, 654), (6327, 1178)]),
    (0.25, 12345678901, 2**33 + 1, Stream.SELECT, [(2781, 1321), (3761, 2088), (4708, 750), (5248, 1371)]),
    (
        0.5,
        2**40 + 3,
        2**44 - 1,
        Stream.PREDICT,
        [(2**32 - 3203, 1554), (2**32 - 1064, 164), (2**32 + 2103, 364), (2**32 + 3680, 2490)],
    ),
    (0.5, 1, 2**32 - 1, Stream.ESTIMATE, [(2**40 - 19804, 1528), (2**40 - 18240, 64), (2**40 - 13964, 2915)]),
    (1.0, 2**64 - 1, 17, Stream.ATTACK, [(2**39 + 105, 1205), (2**39 + 375, 1962), (2**39 + 420, 1728)]),
    (1.0, 0, 0, Stream.TRAIN, [(353, 1277), (1346, 2083), (1622, 2561), (2115, 663), (2294, 327)]),
]


def check_place(lattice: Draw, place: tuple[float, int, int, int, Stream]) -> None:
    sigma, seed, image, first, stream = place
    where = (SHAPE, sigma, seed, image, range(first, first + SAMPLES), stream)
    np.testing.assert_array_equal(lattice(*where).numpy(), expected_lattice(*where))


def check_ties(
    lattice: Draw, sigma: float, seed: int, image: int, stream: Stream, found: list[tuple[int, int]]
) -> None:
    steps = set()
    for sample, element in found:
        where = ((element + 1,), sigma, seed, image, (sample,), stream)
        word = words_of(element + 1, seed, image, [sample], stream)[0, element]
        assert word in high_words(sigma)
        noise = expected_lattice(*where)[0, element]
        assert lattice(*where)[0, element] == noise
        steps.add(noise + len(thresholds(sigma)) // 2 > np.searchsorted(high_words(sigma), word))
    assert steps == {False, True}


@pytest.mark.parametrize("place", PLACES)
def test_lattice(instruction_set: str, place: tuple[float, int, int, int, Stream]) -> None:
    check_place(sf.noise.lattice, place)


@pytest.mark.parametrize("place", PLACES)
def test_lattice_of_the_reference(place: tuple[float, int, int, int, Stream]) -> None:
    check_place(lattice_by_reference, place)


@pytest.mark.parametrize("ties", TIES)
def test_lattice_where_words_tie(instruction_set: str, ties: Any) -> None:
    check_ties(sf.noise.lattice, *ties)


@pytest.mark.parametrize("ties", TIES)
def test_lattice_of_the_reference_where_words_tie(ties: Any) -> None:
    check_ties(lattice_by_reference, *ties)


@pytest.mark.parametrize("sigma", [*SIGMAS, 0.01, 1 / 3])
def test_thresholds(sigma: float) -> None:
    actual = lattice_thresholds(sigma)
    assert len(actual) == 2 * math.ceil(Fraction(13, 2) * 255 * Fraction(sigma))
    assert list(actual) == thresholds(sigma)
    assert all(a < b for a, b in pairwise(actual))
    assert all(a + b == 2**96 - 1 for a, b in zip(actual, reversed(actual), strict=True))


def table_of(sigma: float) -> list[np.ndarray]:
    return [part[0].numpy() for part in lattice_law(sigma).table]


@lru_cache
def forced_draws(sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words on and beside every threshold and at the ends, each with refining bits that pass it and that fail it."""
    cuts = thresholds(sigma)
    ends = {0, 2**64 - 1}
    forced = set(product((0, 1, 2**31 - 1, 2**31, WORD - 1, WORD), ends))
    for cut in cuts:
        high, low = divmod(cut, 2**64)
        words = [word for word in (high - 1, high, high + 1) if 0 <= word <= WORD]
        forced |= set(product(words, {(low + step) % 2**64 for step in (-1, 0, 1)} | ends))
    words, refined = (np.array(part, np.uint64) for part in zip(*sorted(forced), strict=True))
    noise = [bisect_right(cuts, word << 64 | bits) - len(cuts) // 2 for word, bits in sorted(forced)]
    return words.astype(np.uint32), refined, np.array(noise)


def check_forced_draws(extension: Any, sigma: float) -> None:
    words, refined, expected = forced_draws(sigma)
    high, low, guide = table_of(sigma)
    np.testing.assert_array_equal(extension.exact_draws(words, refined, high, low, guide), expected)
    noise, unsure = extension.guided_draws(words, high, low, guide)
    assert np.all(unsure | (noise == expected))
    assert np.all(unsure[np.isin(words, high)])


@pytest.mark.parametrize("sigma", SIGMAS)
def test_forced_draws(instruction_set: str, extension: Any, sigma: float) -> None:
    check_forced_draws(extension, sigma)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [19.0])  # the largest: tens of thousands of thresholds, many in one guide bucket
def test_forced_draws_at_the_largest_sigma(instruction_set: str, extension: Any, sigma: float) -> None:
    check_forced_draws(extension, sigma)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_guide_is_seldom_unsure(extension: Any, sigma: float) -> None:
    words = np.random.default_rng(1).integers(0, 2**32, 10**6, np.uint32)
    high, low, guide = table_of(sigma)
    noise, unsure = extension.guided_draws(words, high, low, guide)
    assert unsure.mean() < 1e-4
    assert np.all(unsure | (noise == np.searchsorted(high, words, side="right") - len(high) // 2))


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", ["avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_guide_on_all_words(instruction_set: str, extension: Any, sigma: float) -> None:
    high, low, guide = table_of(sigma)
    chunk = 2**20  # stays in the cache
    for first in range(0, 2**32, chunk):
        words = np.arange(first, first + chunk, dtype=np.uint32)
        noise, unsure = extension.guided_draws(words, high, low, guide)
        # Consecutive words: the noise is a staircase, one step at every threshold inside.
        inside = np.searchsorted(high, [first, first + chunk])
        steps = high[inside[0] : inside[1]] - first
        runs = np.diff(steps, prepend=0, append=chunk)
        expected = np.repeat(np.arange(inside[0], inside[1] + 1, dtype=np.int32) - len(high) // 2, runs)
        assert not np.any((noise != expected) & (unsure == 0))
        assert np.all(unsure[steps])


@pytest.mark.parametrize("sigma", SIGMAS)
def test_lattice_cells_have_their_probabilities(sigma: float) -> None:
    draws = sf.noise.lattice((10**5,), sigma, 11, 0, range(10)).numpy()
    cuts = thresholds(sigma)
    # The cells of each tail are counted together: where fewer than 10 draws are expected, the test does not hold.
    edge = bisect_right(cuts, 10 * 2**96 // draws.size)
    kept = cuts[edge : len(cuts) - edge]
    expected = [(b - a) * draws.size / 2**96 for a, b in pairwise([0, *kept, 2**96])]
    observed = np.bincount(np.clip(draws.ravel() + len(kept) // 2, 0, len(kept)))
    assert min(expected) > 0.1
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("sigma", SIGMAS)
def test_lattice_is_as_near_to_the_rounded_gaussian_as_its_deviation_says(sigma: float) -> None:
    cuts = thresholds(sigma)
    reach = len(cuts) // 2
    drawn = [b - a for a, b in pairwise([0, *cuts, 2**96])]
    with mp.workprec(200):
        unit = 510 * mp.mpf(sigma)
        below = [mp.ncdf((2 * i + 1) / unit) for i in range(-reach - 1, reach + 1)]
        apart = sum(abs(mp.mpf(n) / 2**96 - (b - a)) for n, (a, b) in zip(drawn, pairwise(below), strict=True))
        distance = (apart + below[0] + 1 - below[-1]) / 2
    deviation = lattice_law(sigma).deviation(1)
    assert 0.8 * deviation < distance < deviation  # M is rounded up
    assert lattice_law(sigma).deviation(3072) == 3072 * deviation
    assert gaussian_law(sigma).deviation(3072) == 0


# ---- the Gaussian law ------------------------------------------------------------------------------------------------


def box_muller(words: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The plain formula in PyTorch: words 0 and 1 of a block, and words 2 and 3, are radius and angle of a pair."""
    pairs = torch.from_numpy(words.astype(np.int64)).view(len(words), -1, 2, 16).to(dtype)
    radius = torch.sqrt(-2 * torch.log((pairs[:, :, 0] + 1) * 2.0**-32))
    angle = pairs[:, :, 1] * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 2).flatten(1)


def test_gaussian_is_the_same_on_every_instruction_set(instruction_set: str, extension: Any) -> None:
    def draw() -> Tensor:
        return sf.noise.gaussian((3, 100, 100), 0.25, 2**40, 9, range(20))

    actual = draw()
    extension.use_instruction_set("scalar")
    assert torch.equal(actual, draw())


def test_gaussian_is_as_accurate_as_plain_float32(instruction_set: str) -> None:
    where = (6400, 77, 5, range(160), Stream.ESTIMATE)
    words = words_of(*where)
    truth = box_muller(words, torch.float64)
    error = (sf.noise.gaussian((6400,), 1.0, 77, 5, range(160)) - truth).abs()
    plain = (box_muller(words, torch.float32) - truth).abs()
    assert error.max() <= 2 * plain.max()
    assert error.mean() <= 2 * plain.mean()


# (seed, image, sample, element), found by search: the radius word of the element is 0 and 2^32 - 6.
LARGEST_RADIUS, SMALLEST_RADIUS = (2024, 3, 318365, 8812), (2024, 3, 1437, 13312)


def pair_at(draw: Draw, seed: int, image: int, sample: int, element: int) -> Tensor:
    return draw((element + 17,), 1.0, seed, image, [sample])[0, [element, element + 16]]


def test_gaussian_at_the_ends_of_the_radius(instruction_set: str) -> None:
    for seed, image, sample, element, word in [(*LARGEST_RADIUS, 0), (*SMALLEST_RADIUS, 2**32 - 6)]:
        assert words_of(element + 1, seed, image, [sample], Stream.ESTIMATE)[0, element] == word
    largest = pair_at(sf.noise.gaussian, *LARGEST_RADIUS)
    assert torch.hypot(*largest) == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-6)
    assert largest.abs().max() > 6.65
    assert pair_at(sf.noise.gaussian, *SMALLEST_RADIUS).abs().max() < 1e-4


def test_gaussian_of_the_reference_at_the_largest_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "random_words", lambda elements, *_: torch.zeros(1, elements, dtype=torch.int64))
    key, ids = stream_key(0, Stream.ESTIMATE), torch.tensor([0])
    z = reference.LAWS["gaussian"](64, ids, ids, key, gaussian_law(1.0).table)
    assert z.max().item() == pytest.approx(6.6604, abs=1e-4)


def test_gaussian_moments_and_tails() -> None:
    tails, n = np.array([3, 4, 5]), 10**7
    moments, beyond = np.zeros(4), np.zeros(3)
    for first in range(0, 100, 10):
        z = sf.noise.gaussian((10**5,), 1.0, 2**34, 1, range(first, first + 10)).numpy().ravel()
        power = np.ones(z.size)
        for k in range(4):
            power *= z
            moments[k] += power.sum() / n
        beyond += [np.count_nonzero(np.abs(z) > t) for t in tails]
    # The variance of z^k is E z^2k - (E z^k)^2.
    assert np.all(np.abs(moments - [0, 1, 0, 3]) < 5 * np.sqrt(np.array([1, 2, 15, 96]) / n))
    expected = n * 2 * scipy.stats.norm.sf(tails)
    assert np.all(np.abs(beyond - expected) < 5 * np.sqrt(expected))
    assert beyond[-1] > 0


# ---- what the noise depends on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [sf.noise.lattice, sf.noise.gaussian])
def test_every_argument_makes_new_noise(draw: Draw) -> None:
    n, home = 2**14, (2**33 + 1, 2**34 + 2, 2**35 + 3)  # seed, image, sample
    bits = [1 << b for b in (0, 1, 31, 32, 39)]
    places = [home, *(tuple(x ^ (bit if i == k else 0) for k, x in enumerate(home)) for i in range(3) for bit in bits)]
    noise = [draw((n,), 0.5, seed, image, [sample]) for seed, image, sample in places]
    noise += [draw((n,), 0.5, *home[:2], [home[2]], stream) for stream in Stream if stream != Stream.ESTIMATE]
    rows = torch.cat(noise).double()
    for values in (rows, rows.abs()):  # in value, and in scale
        correlation = torch.corrcoef(values).fill_diagonal_(0)
        assert correlation.abs().max() < 5 / math.sqrt(n)


# seed, image: on both sides of 2^32, and the last ones.
UNIFORM_PLACES = [
    (0, 0),
    (1, 0),
    (0, 1),
    (2**32 + 5, 2**32 - 1),
    (2**63, 2**32),
    (12345, 2**43 + 1),
    (2**64 - 1, 2**44 - 1),
]


@pytest.mark.parametrize(("seed", "image"), UNIFORM_PLACES)
def test_uniform_is_the_first_two_words_of_its_stream(seed: int, image: int) -> None:
    high, low, *_ = (int(word[0, 0]) for word in keyed(seed, image, [0], 10, np.zeros(1)))
    number = sf.noise.uniform(seed, image)
    assert Fraction(number) == Fraction((high << 32 | low) // 2**11 + 1, 2**53)
    # The 53 bits are the upper ones, and the number is the next one up.
    assert 0 < Fraction(number) - Fraction(high << 32 | low, 2**64) <= Fraction(1, 2**53)


@pytest.mark.parametrize(("seed", "image"), UNIFORM_PLACES)
def test_uniform_by_compiled_philox(instruction_set: str, extension: Any, seed: int, image: int) -> None:
    counter = [0, 0, image & WORD, (image >> 32) << 20 | Stream.RANDOMIZE << 4 | 1]
    high, low, *_ = extension.philox_words(counter, [seed & WORD, seed >> 32], 16)[::16].tolist()
    assert sf.noise.uniform(seed, image) == ((high << 21 | low >> 11) + 1) / 2**53


@pytest.mark.parametrize(("word", "number"), [(0, 2.0**-53), (WORD, 1.0)])
def test_uniform_at_its_ends(word: int, number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sf.noise, "philox", lambda *_: [torch.tensor(word)] * 4)
    assert sf.noise.uniform(0, 0) == number


def test_uniform_depends_on_seed_and_image_alone() -> None:
    places = [(seed, image) for seed in (0, 1, 2**32, 2**63) for image in (0, 1, 2**32, 2**43)]
    numbers = [sf.noise.uniform(*place) for place in places]
    assert len(set(numbers)) == len(places)
    assert all(0 < number <= 1 for number in numbers)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = torch.get_rng_state()
        assert [sf.noise.uniform(*place) for place in places] == numbers
        assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="seed is -1; it must lie in"):
        sf.noise.uniform(-1, 0)


def test_uniform_looks_uniform() -> None:
    by_image = np.array([sf.noise.uniform(7, image) for image in range(2000)])
    by_seed = np.array([sf.noise.uniform(seed, 7) for seed in range(2000)])
    for numbers in (by_image, by_seed):
        assert scipy.stats.kstest(numbers, "uniform").pvalue > 1e-4
        neighbours = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
        assert abs(neighbours) < 5 / math.sqrt(2000)
    assert abs(np.corrcoef(by_image, by_seed)[0, 1]) < 5 / math.sqrt(2000)


def test_streams_are_numbered_for_good() -> None:
    names = ["SELECT", "ESTIMATE", "REFINE", "ATTACK", "ATTACK_START", "WEIGHT", "ACTIVATION", "TRAIN", "PREDICT"]
    names += ["RANDOMIZE", "FORWARD", "AUGMENT"]
    assert {stream.name: int(stream) for stream in Stream} == {name: i for i, name in enumerate(names, 1)}


@pytest.mark.parametrize(("draw", "dtype"), [(sf.noise.lattice, torch.int16), (sf.noise.gaussian, torch.float32)])
def test_shape_dtype_and_order(draw: Draw, dtype: torch.dtype) -> None:
    noise = draw((3, 4, 5), 0.25, 1, 2, [7, 8])
    assert (noise.shape, noise.dtype) == ((2, 3, 4, 5), dtype)
    assert torch.equal(noise.flatten(1), draw((60,), 0.25, 1, 2, torch.tensor([7, 8])))
    assert torch.equal(noise[1:], draw((3, 4, 5), 0.25, 1, 2, range(8, 9), Stream.ESTIMATE))
    assert draw((3, 4, 5), 0.25, 1, 2, []).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("draw", [sf.noise.lattice, sf.noise.gaussian])
def test_global_generator_is_left_alone(draw: Draw) -> None:
    torch.manual_seed(0)
    state, noise = torch.get_rng_state(), draw((64,), 0.25, 1, 2, [3])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(draw((64,), 0.25, 1, 2, [3]), noise)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [sf.noise.lattice, sf.noise.gaussian])
@pytest.mark.parametrize("sigma", [0, -0.25, math.nan])
def test_sigma_must_be_positive(draw: Draw, sigma: float) -> None:
    with pytest.raises(ValueError, match=f"sigma is {float(sigma)}; it must be finite and at least 1e-06"):
        draw((3,), sigma, 0, 0, [0])


@pytest.mark.parametrize("draw", [sf.noise.lattice, sf.noise.gaussian])
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_must_have_64_bits(draw: Draw, seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed is {seed}; it must lie in 0 .. 2\*\*64 - 1"):
        draw((3,), 0.25, seed, 0, [0])


def test_lattice_sigma_must_fit_int16() -> None:
    with pytest.raises(ValueError, match="sigma is 20; int16 holds lattice noise up to sigma 19"):
        sf.noise.lattice((3,), 20, 0, 0, [0])


def test_law_moves_with_its_table() -> None:
    law = lattice_law([0.12, 0.25]).to("meta")
    assert law.sigma == (0.12, 0.25)
    assert all(part.is_meta and part.shape[0] == 2 for part in law.table)


def test_instruction_set_must_be_known(extension: Any) -> None:
    before = ops.extension.instruction_set()
    with pytest.raises(RuntimeError, match="'sse9'; it must be scalar, avx2 or avx512"):
        extension.use_instruction_set("sse9")
    assert extension.instruction_set() == before

"""The battery of experiments/randomness saw the noise of the contract, all of it, and nothing failed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from smoothfast.noise import Stream, gaussian_law, lattice_law
from smoothfast.ops import reference
from smoothfast.ops.philox import random_words

HERE = Path(__file__).parents[2] / "experiments" / "randomness"
if not HERE.is_dir():
    pytest.skip("experiments/ is not here: this is no clone of the repository", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread", "extension")


def module(name: str) -> ModuleType:
    spec = util.spec_from_file_location(f"randomness_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


stream, report = module("stream"), module("report")
SEED, ORDERS = stream.SEED, ("sample", "image", "image-sample", "seed", "stream")
EVERY = [(kind, order) for kind in ("words", "lattice", "gaussian") for order in ("element", *ORDERS)]
of_each = pytest.mark.parametrize(("kind", "order"), EVERY)

# ---- the numbers of the contract, by the plain definition ------------------------------------------------------------

OUTER = (1, 2, 4, 5, 8, 9, 10, 11, 12)
TAGS = (*OUTER, *(16 * outer + inner for outer in OUTER for inner in (3, 6, 7)))
PLACES: dict[str, Callable[[int], tuple[int, int, int, int]]] = {  # of a row: seed, tag, image, sample
    "element": lambda row: (SEED, 2, 1, row),
    "sample": lambda row: (SEED, 2, 1, row),
    "image": lambda row: (SEED, 2, row, 1),
    "image-sample": lambda row: (SEED, 2, row % 64, row // 64),
    "seed": lambda row: (SEED + row, 2, 1, 1),
    "stream": lambda row: (SEED, TAGS[row % 36], 1, row // 36),
}


def defined(kind: str, seed: int, tag: int, image: int, sample: int) -> np.ndarray:
    """The first 1024 numbers of a kind at a place."""
    where = 1024, torch.tensor([image]), torch.tensor([sample]), torch.tensor([seed, tag])
    if kind == "words":
        return random_words(*where)[0].numpy()
    law = lattice_law(4.0) if kind == "lattice" else gaussian_law(1.0)
    noise = reference.LAWS[kind](*where, law.table)[0].double().numpy()
    return noise % 256 if kind == "lattice" else np.floor(scipy.stats.norm.cdf(noise) * 2**16)


@lru_cache
def written(kind: str, order: str, batch: int) -> bytes:
    """A batch, which several tests look at."""
    return stream.chunk(kind, order, batch)


def numbers_of(kind: str, order: str, batch: int) -> np.ndarray:
    """The numbers of a batch as [blocks, rows, 4]; of the large image as [elements]."""
    numbers = np.frombuffer(written(kind, order, batch), DTYPES[kind])
    return numbers if order == "element" else numbers.reshape(256, -1, 4)


DTYPES = {"words": "<u4", "lattice": "u1", "gaussian": "<u2"}


def in_blocks(elements: np.ndarray) -> np.ndarray:
    """Elements [1024] as [blocks, 4]: word w of block 16 t + b is element 64 t + 16 w + b."""
    return elements.reshape(16, 4, 16).swapaxes(1, 2).reshape(256, 4)


def check_numbers(kind: str, numbers: np.ndarray, expected: np.ndarray) -> None:
    # The definition agrees with the kernels to a few units in the last place, so a float may fall beside an edge.
    most = 1 if kind == "gaussian" else 0
    apart = np.abs(numbers.astype(np.int64) - expected.astype(np.int64))
    assert apart.max() <= most
    assert np.mean(apart > 0) < 0.02


@of_each
def test_streams_are_the_noise_of_the_contract(kind: str, order: str) -> None:
    for batch in (0, 1):
        numbers = numbers_of(kind, order, batch)
        if order == "element":
            check_numbers(kind, numbers[:1024], defined(kind, *PLACES[order](batch)))
            continue
        rows = numbers.shape[1]
        assert rows == (1008 if order == "stream" else 1024)
        for row in (0, 1, 40, rows - 1):
            check_numbers(kind, numbers[:, row], in_blocks(defined(kind, *PLACES[order](batch * rows + row))))


def test_tags_are_all_that_noise_is_drawn_under() -> None:
    assert {1, 2, 4, 5, 8, 9, 10, 11, 12, 3, 6, 7} == set(Stream)


def test_lattice_bytes_are_uniform_as_the_page_says() -> None:
    grey_levels = 255 * 4.0
    wave = math.exp(-2 * math.pi**2 * grey_levels**2 / 256**2)
    assert wave < 1e-136
    law = lattice_law(4.0)
    cuts = torch.cat([torch.tensor([0]), law.table[0][0], torch.tensor([2**32])]).double()
    cells, reach = cuts.diff() / 2**32, (len(cuts) - 2) // 2
    shares = torch.zeros(256, dtype=torch.float64).index_add_(0, torch.arange(-reach, reach + 1) % 256, cells)
    # Upper words alone round each threshold down by at most 2^-32, and about 52 cells share a residue.
    assert (shares - 1 / 256).abs().sum() / 2 < law.deviation(1) + 256 * 2**-32
    assert law.deviation(1) * 2**30 < 0.09


# ---- what is written is not a bad stream -----------------------------------------------------------------------------

HEAD = 2**19  # bytes of each batch: 32 blocks of all rows, more than the 16 of a tile


def flaws(data: bytes) -> list[str]:
    """What no stream may have: bytes that are not alike in number, or eight of them twice."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    found = [] if scipy.stats.chisquare(counts).pvalue > 1e-7 else ["bytes"]
    eights = np.frombuffer(data, np.uint64)
    return found + ["repeats"] * (len(np.unique(eights)) < len(eights))


@of_each
def test_streams_have_no_flaws(kind: str, order: str) -> None:
    assert flaws(b"".join(written(kind, order, batch)[:HEAD] for batch in (0, 1))) == []


@pytest.mark.parametrize("kind", DTYPES)
def test_other_seeds_are_other_bytes(kind: str) -> None:
    assert flaws(b"".join(stream.chunk(kind, "sample", 0, seed)[:HEAD] for seed in (5, 2**40))) == []


def test_bad_streams_have_flaws(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flaws(np.arange(2**20).astype(np.uint8).tobytes()) == ["repeats"]  # the low byte of a counter
    assert "bytes" in flaws(np.arange(2**18).astype(np.uint32).tobytes())  # a counter
    once = written("words", "sample", 0)[:HEAD]
    assert "repeats" in flaws(2 * once)  # samples reused

    def first_tile(_: int, *rows: Any) -> np.ndarray:
        return np.tile(words(64, *rows), 16)

    words = stream.words
    monkeypatch.setitem(stream.KINDS, "words", first_tile)
    assert "repeats" in flaws(stream.chunk("words", "sample", 0)[:HEAD])  # elements reused


# ---- results ---------------------------------------------------------------------------------------------------------


def test_every_stream_was_tested() -> None:
    names = {f"{kind}, {order}" for kind, order in EVERY}
    assert set(report.practrand()) == names
    assert all(reports[-1].length in ("1 gigabyte", "4 gigabytes") for reports in report.practrand().values())
    groups = {f"words, element-{group}" for group in ("diehard", "sts", "bits", "dab", "lagged")}
    assert set(report.dieharder()) == groups | {"lattice, sample-diehard", "lattice, sample-sts"}


def test_nothing_failed() -> None:
    texts = {path.name: path.read_text() for path in (HERE / "results").glob("*.txt")}
    assert [name for name, text in texts.items() if "FAIL" in text or "SUSPICIOUS" in text.upper()] == []


def test_failures_are_seen() -> None:
    bad = """length= 1 gigabyte (2^30 bytes), time= 9.1 seconds
  Test Name                         Raw       Processed     Evaluation
  [Low1/32]BCFN(2+0,13-0,T)         R=  +9.2  p =  1.5e-4   unusual          
  FPF-14+6/16:cross                 R= -12.2  p =1-2.5e-10  very suspicious  
  DC6-9x1Bytes-1                    R= +8999  p =  6e-1316    FAIL !!!!!!!!  
  ...and 189 test result(s) without anomalies
"""
    (read,) = report._reports(bad)
    assert (read.length, read.results) == ("1 gigabyte", 192)
    assert read.remarks[1] == ("FPF-14+6/16:cross", "1-2.5e-10", "very suspicious")
    assert [evaluation for *_, evaluation in read.remarks] == ["unusual", "very suspicious", "FAIL !!!!!!!!"]
    (outcome,) = report._outcomes("         sts_serial|   3|    100000|     100|0.00000000|  FAILED  \n")
    assert outcome == ("sts_serial 3", 0.0, "FAILED")

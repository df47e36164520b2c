"""The interpreter of PTX: matrix products, packed conversions and counts, against NumPy.

Fragments are placed by the layouts of CUTLASS (mma_traits_sm80.hpp, strides retyped here), not by the interpreter's own
indices."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ptx_interp import Memory, Module, PtxFault, Report
from ptx_interp.rounding import bf16_to_f32, f32_to_bf16

Array = NDArray[Any]
WARPS = 3


def program(inputs: int, outputs: int, body: str) -> str:
    """A kernel that reads so many words a thread into %i0..., and writes %o0...."""
    reads = "".join(f"ld.global.b32 %i{k}, [%rd1+{4 * k}];\n" for k in range(inputs))
    writes = "".join(f"st.global.b32 [%rd2+{4 * k}], %o{k};\n" for k in range(outputs))
    return f"""
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 p, .param .u64 q) {{
.reg .b32 %i<33>, %o<17>, %r<9>; .reg .b64 %rd<9>; .reg .pred %p; .shared .align 16 .b8 s[8192];
ld.param.u64 %rd1, [p]; ld.param.u64 %rd2, [q]; mov.u32 %r0, %tid.x; mov.u32 %r1, s;
mad.wide.u32 %rd1, %r0, {4 * inputs}, %rd1; mad.wide.u32 %rd2, %r0, {4 * outputs}, %rd2;
{reads}{body}
{writes}ret; }}"""


def execute(body: str, words: Array, outputs: int, **options: Any) -> tuple[Array, Report]:
    """What the threads of one CTA make of their words [threads, inputs]: words [threads, outputs]."""
    mem = Memory()
    given = mem.alloc(np.ascontiguousarray(words, np.uint32), readonly=True)
    made = mem.alloc(np.zeros((len(words), outputs), np.uint32))
    report = Module(program(words.shape[1], outputs, body)).launch("k", 1, len(words), [given, made], mem, **options)
    return made.get(), report.check()


# ---- matrix products -------------------------------------------------------------------------------------------------

# Modes of (lane, value) as sizes and strides, and the rows of the column-major matrix that they are offsets in.
LAYOUTS = {
    ("a", 16): ([(4, 32), (8, 1)], [(2, 16), (2, 8), (2, 128)], 16),
    ("b", 16): ([(4, 16), (8, 1)], [(2, 8), (2, 64)], 8),
    ("a", 32): ([(4, 64), (8, 1)], [(4, 16), (2, 8), (2, 256)], 16),
    ("b", 32): ([(4, 32), (8, 1)], [(4, 8), (2, 128)], 8),
    ("c", 16): ([(4, 32), (8, 1)], [(2, 16), (2, 8)], 16),
    ("c", 32): ([(4, 32), (8, 1)], [(2, 16), (2, 8)], 16),
}


@cache
def places(matrix: str, inner: int) -> tuple[Array, Array]:
    """Row and column of each (lane, value)."""
    *modes, rows = LAYOUTS[matrix, inner]

    def offsets(mode: list[tuple[int, int]]) -> Array:
        found = np.zeros(1, int)
        for size, stride in mode:
            found = (found + stride * np.arange(size)[:, None]).ravel()
        return found

    at = offsets(modes[0])[:, None] + offsets(modes[1])
    return at % rows, at // rows


def words_of(values: Array, matrix: str, inner: int) -> Array:
    """The registers [warps * 32, count] that hold the matrices [warps, rows, columns]."""
    row, column = places(matrix, inner)
    return np.ascontiguousarray(values[:, row, column]).view(np.uint32).reshape(len(values) * 32, -1)


def product(kind: str, a: Array, b: Array, c: Array, **options: Any) -> Array:
    """A B' + C by mma; a and b as they are in registers, b [warps, columns, inner]."""
    inner, of_sums = a.shape[2], "s32" if c.dtype == np.int32 else "f32"
    words = np.concatenate([words_of(x, name, inner) for name, x in (("a", a), ("b", b), ("c", c))], 1)
    body = (
        f"mma.sync.aligned.m16n8k{inner}.row.col.{of_sums}.{kind}.{of_sums} "
        "{%o0,%o1,%o2,%o3}, {%i0,%i1,%i2,%i3}, {%i4,%i5}, {%i6,%i7,%i8,%i9};"
    )
    found, report = execute(body, words, 4, **options)
    assert report.sum_of(report.warps, "mma") == len(a)
    result = np.zeros_like(c)
    row, column = places("c", inner)
    result[:, row, column] = found.view(c.dtype).reshape(len(a), 32, 4)
    return result


def halves(kind: str, values: Array) -> tuple[Array, Array]:
    """Values as bfloat16 or float16 in registers, and what these are in float64."""
    if kind == "bf16":
        bits = f32_to_bf16(values.astype(np.float32))
        return bits, bf16_to_f32(bits).astype(np.float64)
    half = values.astype(np.float16)
    return half.view(np.uint16), half.astype(np.float64)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("case", range(5))
def test_products_of_floats(kind: str, case: int) -> None:
    rng = np.random.default_rng(case)
    a, exact_a = halves(kind, rng.normal(size=(WARPS, 16, 16)))
    b, exact_b = halves(kind, rng.normal(size=(WARPS, 8, 16)))
    c = rng.normal(size=(WARPS, 16, 8)).astype(np.float32)
    if case == 0:
        exact_a[:, 3, 5], c[:, 9, 2] = np.inf, np.nan
        a = halves(kind, exact_a)[0]
    with np.errstate(invalid="ignore"):
        expected = (np.einsum("wmk,wnk->wmn", exact_a, exact_b) + c).astype(np.float32)
    found = product(f"{kind}.{kind}", a, b, c)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=0)
    if case:  # cut off 24 + 2 bits below the largest, at most 9 terms and 3 sums of them
        cut = product(f"{kind}.{kind}", a, b, c, truncated=True)
        largest = np.abs(np.einsum("wmk,wnk->wmnk", exact_a, exact_b)).sum(3) + np.abs(c)
        assert (np.abs(cut - expected) <= largest * 2.0**-21).all()
        assert (cut != expected).any()


@pytest.mark.parametrize("of_a", ["s8", "u8"])
@pytest.mark.parametrize("of_b", ["s8", "u8"])
def test_products_of_integers(of_a: str, of_b: str) -> None:
    """All sums are modulo 2^32."""
    rng = np.random.default_rng(0)
    limits = {"s8": (-128, 128), "u8": (0, 256)}
    for _ in range(5):
        a = rng.integers(*limits[of_a], (WARPS, 16, 32))
        b = rng.integers(*limits[of_b], (WARPS, 8, 32))
        c = rng.integers(-(2**31), 2**31, (WARPS, 16, 8)).astype(np.int32)
        expected = (np.einsum("wmk,wnk->wmn", a, b) + c).astype(np.int32)
        assert np.array_equal(product(f"{of_a}.{of_b}", a.astype(np.uint8), b.astype(np.uint8), c), expected)


def test_sums_that_are_cut_off() -> None:
    """What is below 2^-25 of the largest is lost from a sum, and what a float32 has no bits for, towards zero."""
    a, b, sums = np.zeros((1, 16, 16)), np.ones((1, 8, 16)), np.zeros((1, 16, 8), np.float32)
    a[:, :, 0], a[0, 1, 1], a[0, 2, 1:8], a[0, 3, 8:] = 1, 1.5 * 2**-24, 2**-26, 2**-24
    for truncated, expected in ((False, [1, 1 + 2**-23, 1 + 2**-23, 1 + 2**-21]), (True, [1, 1, 1, 1 + 2**-21])):
        found = product("bf16.bf16", halves("bf16", a)[0], halves("bf16", b)[0], sums, truncated=truncated)
        assert found[0, :4, 0].tolist() == expected


def test_products_need_whole_warps() -> None:
    mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%o0,%o1,%o2,%o3}, {%i0,%i0,%i0,%i0}, {%i0,%i0}, "
    sums = "{%i0,%i0,%i0,%i0};"
    with pytest.raises(PtxFault, match="part of a warp"):
        execute(f"setp.lt.u32 %p, %r0, 31; @%p {mma}{sums}", np.zeros((64, 1)), 4)
    execute(f"setp.lt.u32 %p, %r0, 32; @%p {mma}{sums}", np.zeros((64, 1)), 4)


# ---- matrices in shared memory ---------------------------------------------------------------------------------------

STAGED = "shl.b32 %r2, %r0, 5; add.u32 %r2, %r1, %r2; st.shared.v4.b32 [%r2], {%i1,%i2,%i3,%i4};" + (
    "st.shared.v4.b32 [%r2+16], {%i5,%i6,%i7,%i8}; bar.sync 0;"
)


@pytest.mark.parametrize("turned", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_loaded(count: int, turned: str) -> None:
    """Lane 8 q + row has the address of a row of matrix q, lane 4 row + pair two of its elements."""
    rng = np.random.default_rng(count)
    memory = rng.integers(0, 1 << 16, (WARPS * 64, 8)).astype(np.uint16)
    rows = rng.permutation(WARPS * 64)[: WARPS * 32]
    words = np.concatenate([16 * rows[:, None], memory.view(np.uint32).reshape(-1, 8)], 1)
    to = ",".join(f"%o{k}" for k in range(count))
    load = f"add.u32 %r3, %r1, %i0; ldmatrix.sync.aligned.m8n8.x{count}{turned}.shared.b16 {{{to}}}, [%r3];"
    found, report = execute(STAGED + load, words, count, uninit=True, traffic=True)
    matrices = memory[rows].reshape(WARPS, 4, 8, 8)[:, :count]
    matrices = matrices.transpose(0, 1, 3, 2) if turned else matrices
    expected = np.ascontiguousarray(matrices).view(np.uint32).reshape(WARPS, count, 32).transpose(0, 2, 1)
    assert np.array_equal(found.reshape(WARPS, 32, count), expected)
    assert report.sum_of(report.traffic.without_conflicts, "ldmatrix") == WARPS * count


@pytest.mark.parametrize("turned", ["", ".trans"])
def test_matrices_are_stored(turned: str) -> None:
    """What was stored is loaded."""
    words = np.random.default_rng(0).integers(0, 1 << 32, (32, 4))
    body = f"""shl.b32 %r2, %r0, 4; add.u32 %r2, %r1, %r2;
    stmatrix.sync.aligned.m8n8.x4{turned}.shared.b16 [%r2], {{%i0,%i1,%i2,%i3}}; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4{turned}.shared.b16 {{%o0,%o1,%o2,%o3}}, [%r2];"""
    assert np.array_equal(execute(body, words, 4, uninit=True)[0], words)


# ---- packed values ---------------------------------------------------------------------------------------------------

WORDS = np.random.default_rng(1).integers(0, 1 << 32, (256, 3)).astype(np.uint32)
SMALL = np.random.default_rng(2).integers(-400, 400, (256, 3)).astype(np.int32)


@pytest.mark.parametrize(("kind", "least", "most"), [("u8", 0, 255), ("s8", -128, 127)])
def test_bytes_are_packed(kind: str, least: int, most: int) -> None:
    for words in (WORDS.view(np.int32), SMALL):
        found = execute(f"cvt.pack.sat.{kind}.s32.b32 %o0, %i0, %i1, %i2;", words.view(np.uint32), 1)[0][:, 0]
        upper, lower = (words[:, k].clip(least, most) & 255 for k in (0, 1))
        assert np.array_equal(found, (lower | upper << 8).astype(np.uint32) | words.view(np.uint32)[:, 2] << 16)


@pytest.mark.parametrize(("kind", "least", "most"), [("u16", 0, 65535), ("s16", -(2**15), 2**15 - 1)])
def test_shorts_are_packed(kind: str, least: int, most: int) -> None:
    signed = WORDS.view(np.int32) >> 14
    found = execute(f"cvt.pack.sat.{kind}.s32 %o0, %i0, %i1;", signed.view(np.uint32), 1)[0][:, 0]
    upper, lower = (signed[:, k].clip(least, most) & 65535 for k in (0, 1))
    assert np.array_equal(found, (lower | upper << 16).view(np.uint32))


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_halves_are_packed_without_what_is_negative(kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    values[0], values[1] = (np.nan, -np.inf), (-0.0, np.inf)
    found = execute(f"cvt.rn.relu.{kind}x2.f32 %o0, %i0, %i1;", values.view(np.uint32), 1)[0].view(np.uint16)
    expected = halves(kind, np.where(values > 0, values, np.where(np.isnan(values), values, 0)))[0][:, ::-1]
    known = ~np.isnan(values[:, ::-1])
    assert np.array_equal(found[known], expected[known])
    assert np.isnan(bf16_to_f32(found[0, 1:]) if kind == "bf16" else found[0, 1:].view(np.float16)).all()


@pytest.mark.parametrize("of_a", ["s32", "u32"])
@pytest.mark.parametrize("of_b", ["s32", "u32"])
def test_dot_products(of_a: str, of_b: str) -> None:
    def parts(column: int, size: int, ty: str) -> Array:
        return WORDS[:, column : column + 1].copy().view(f"{'i' if ty == 's32' else 'u'}{size}").astype(np.int64)

    for op, size, chosen in (("dp4a", 1, slice(4)), ("dp2a.lo", 2, slice(2)), ("dp2a.hi", 2, slice(2, 4))):
        found = execute(f"{op}.{of_a}.{of_b} %o0, %i0, %i1, %i2;", WORDS, 1)[0][:, 0]
        expected = (parts(0, size, of_a) * parts(1, 1, of_b)[:, chosen]).sum(1) + WORDS[:, 2]
        assert np.array_equal(found, (expected & 0xFFFFFFFF).astype(np.uint32)), op


# ---- counts ----------------------------------------------------------------------------------------------------------


def test_warps_are_counted() -> None:
    """A warp issues both sides of a branch that divides it, and nothing that no lane of it executes."""
    body = "setp.lt.u32 %p, %r0, 40; @%p bra $A; mov.u32 %o0, 1; bra $B; $A: neg.s32 %o0, %i0; $B:"
    for options in ({}, {"schedule": "warp", "seed": 1}):
        report = execute(body, np.zeros((96, 1)), 1, **options)[1]
        assert report.sum_of(report.warps, "neg") == 2
        assert report.sum_of(report.counts, "neg") == 40
        assert report.sum_of(report.warps, "setp") == 3
    report = execute("setp.lt.u32 %p, %r0, 1; @%p neg.s32 %o0, %i0;", np.zeros((96, 1)), 1)[1]
    assert report.sum_of(report.warps, "neg") == 1


@pytest.mark.parametrize(
    ("stride", "vector", "wavefronts", "fewest"),
    [
        *((4, 1, 1, 1), (8, 1, 2, 1), (128, 1, 32, 1), (0, 1, 1, 1), (132, 1, 1, 1)),
        *((8, 2, 2, 2), (16, 2, 4, 2), (16, 4, 4, 4), (32, 4, 8, 4), (128, 4, 32, 4), (144, 4, 4, 4)),
    ],
)
def test_bank_conflicts_are_counted(stride: int, vector: int, wavefronts: int, fewest: int) -> None:
    """32 banks of 4 bytes; lanes that read one word share it; 8 bytes a lane go by halves of a warp, 16 by quarters."""
    kind = {1: ".b32", 2: ".v2.b32", 4: ".v4.b32"}[vector]
    registers = "{" + ",".join(["%i0"] * vector) + "}" if vector > 1 else "%i0"
    body = f"mad.lo.u32 %r2, %r0, {stride}, %r1; st.shared{kind} [%r2], {registers}; mov.u32 %o0, 0;"
    report = execute(body, np.zeros((32, 1)), 1, traffic=True)[1]
    at = [ins.text.startswith("st.shared") for ins in report.kernel.code].index(True)
    assert report.traffic.wavefronts[at] == wavefronts
    assert report.traffic.without_conflicts[at] == fewest


def test_sectors_are_counted() -> None:
    """A warp that reads 12 bytes a thread, 4 at a time, touches 12 sectors of 32 bytes with each read."""
    report = execute("mov.u32 %o0, %i0;", np.zeros((64, 3)), 1, traffic=True)[1]
    reads = [ins.pc for ins in report.kernel.code if ins.op == "ld" and "global" in ins.mods]
    assert report.traffic.sectors[reads].tolist() == [24, 24, 24]
    assert report.sum_of(report.traffic.sectors, "st") == 8

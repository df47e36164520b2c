"""Products of matrices that a warp holds (mma), and of bytes of one lane (dp4a, dp2a)."""

from functools import cache

import numpy as np

from .accesses import Accesses
from .formats import DT, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32
from .rounding import bf16_to_f32, narrow

ROWS, COLUMNS = 16, 8  # of the result
F32_BITS = 24  # of a significand
LANE = np.arange(32)
GROUP, MEMBER = LANE // 4, LANE % 4
KINDS = {
    **{("m16n8k16", half, half, "f32"): 2 for half in ("bf16", "f16")},
    **{("m16n8k32", a, b, "s32"): 4 for a in ("s8", "u8") for b in ("s8", "u8")},
}  # shape, types of the factors and of the sums: elements of a register
BYTES, HALVES = np.arange(1 << 8, dtype=U8), np.arange(1 << 16, dtype=U16)
with np.errstate(invalid="ignore"):  # signalling NaN
    VALUES = {
        **{"u8": BYTES.astype(F64), "s8": BYTES.view(I8).astype(F64)},
        **{"bf16": bf16_to_f32(HALVES).astype(F64), "f16": HALVES.view(F16).astype(F64)},
    }  # of all bits of an element


def places_of_a(per):
    """Row-major places in the first factor of what registers hold, [lane, register, element], as the PTX manual has
    it for `per` elements a register."""
    register, element = np.arange(4)[:, None], np.arange(per)
    row = GROUP[:, None, None] + 8 * (register & 1)
    return row * 8 * per + per * MEMBER[:, None, None] + element + 4 * per * (register >> 1)


def places_of_b(per):
    """Row-major places in the second factor."""
    register, element = np.arange(2)[:, None], np.arange(per)
    row = per * MEMBER[:, None, None] + element + 4 * per * register
    return row * COLUMNS + GROUP[:, None, None]


def places_of_sums():
    """Row-major places in the sums, and in the result."""
    register = np.arange(4)[:, None]
    return (GROUP[:, None, None] + 8 * (register >> 1)) * COLUMNS + 2 * MEMBER[:, None, None] + (register & 1)


@cache
def gathered(matrix, per, warps):
    """For each place of the matrices of so many warps, where it is in [registers, lanes of all warps, elements]."""
    places = {"a": places_of_a, "b": places_of_b}[matrix](per) if matrix != "c" else places_of_sums()
    registers, elements = places.shape[1:]
    found = np.argsort(places.ravel())
    lane, register, element = found // elements // registers, found // elements % registers, found % elements
    return ((register * warps + np.arange(warps)[:, None]) * 32 + lane) * elements + element


@cache
def scattered(warps):
    """For each register and lane of all warps, its place in the results."""
    return (np.arange(warps)[:, None] * ROWS * COLUMNS + places_of_sums()[:, :, 0].T[:, None]).reshape(4, -1)


def truncated_sums(a, b, c, block=8, extra=2):
    """A B + C in blocks of products, each aligned with the largest and with the sum so far, cut off `extra` bits below
    the last bit of a float32 of that exponent, added exactly, and cut to float32.

    A model of what has been published of sm_80: what a device does is not documented."""
    sums = c
    for k in range(0, a.shape[2], block):
        products = a[:, :, k : k + block, None] * b[:, None, k : k + block, :]
        terms = np.concatenate([products, sums[:, :, None, :]], 2)
        largest = np.abs(terms).max(2, keepdims=True)
        unit = np.ldexp(1.0, np.frexp(largest)[1] - F32_BITS - extra)
        sums = narrow((np.trunc(terms / unit) * unit).sum(2), 0.0, F32, "rz").astype(F64)
    return sums


class Products(Accesses):
    """Products of matrices that a warp holds, and of bytes of one lane."""

    def op_mma(self):
        state, ins, mods = self.state, self.ins, self.ins.mods
        d, a, b, c = self.types()
        shape = next(m for m in mods if m.startswith("m16"))
        per = KINDS[shape, a, b, d]
        if not {"sync", "row", "col"} <= set(mods) or "satfinite" in mods or c != d:
            raise self.bad()
        registers = [self.vec(x) for x in ins.args]
        if [len(r) for r in registers] != [4, 4, 2, 4]:
            raise self.bad("fragments")
        result = np.array([state.kernel.rows[x] for x in registers[0]])
        left, right = self._factor(registers[1], "a", a, per), self._factor(registers[2], "b", b, per)
        added = self._factor(registers[3], "c", c, 1)

        def run(i):
            state.check_whole_warps(ins, i)
            warps = len(i) // 32
            a, b, c = left(warps), right(warps), added(warps)
            sums = self._sums(a.reshape(warps, ROWS, -1), b.reshape(warps, -1, COLUMNS), c.reshape(warps, ROWS, -1), d)
            state.set_words(result, sums.view(U32).reshape(-1).take(scattered(warps)))

        return run

    def _factor(self, registers, matrix, ty, per):
        """Reader of the matrices that registers hold: f(warps) -> float64 [warps, elements]."""
        state, rows = self.state, np.array([self.state.kernel.rows[x] for x in registers])
        bits = U8 if per == 4 else U16

        def read_sums(warps):
            return state.words(rows).reshape(-1).view(DT[ty]).take(gathered(matrix, per, warps)).astype(F64)

        def read(warps):
            return VALUES[ty].take(state.words(rows).reshape(-1).view(bits).take(gathered(matrix, per, warps)))

        return read_sums if matrix == "c" else read

    def _sums(self, a, b, c, ty):
        """A B + C: of integers exactly and modulo 2^32, of floats with one rounding of a sum in double."""
        if ty == "s32":
            return ((a @ b).astype(I64) + c.astype(I64)).astype(I32)
        return (truncated_sums(a, b, c) if self.state.launch.truncated else a @ b + c).astype(F32)

    def op_dp4a(self):
        return self._dot(slice(0, 4), I8, U8)

    def op_dp2a(self):
        return self._dot(slice(2, 4) if "hi" in self.ins.mods else slice(0, 2), I16, U16)

    def _dot(self, chosen, signed, unsigned):
        """d = c + the products of all parts of a with the chosen bytes of b."""
        of_a, of_b = self.types()
        part = signed if of_a == "s32" else unsigned
        byte = I8 if of_b == "s32" else U8
        out = "u32" if (of_a, of_b) == ("u32", "u32") else "s32"

        def parts(x, dtype):
            return np.ascontiguousarray(x).view(dtype).reshape(len(x), -1).astype(I64)

        def dot(a, b, c):
            return (c + (parts(a, part) * parts(b, byte)[:, chosen]).sum(1)).astype(DT[out])

        return self.simple(dot, out=out, src=[of_a, of_b, out])

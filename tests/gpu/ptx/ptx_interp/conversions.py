"""Conversions between formats."""

from types import MappingProxyType

import numpy as np

from .formats import DT, F16, F32, F64, FLOAT, SIZE, U16, U32
from .operands import Operands
from .rounding import bf16_to_f32, f32_to_bf16, flush, narrow

TO_INTEGER = MappingProxyType({"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil})


def rectified(x):
    """The larger of each float and 0; what is no number stays none."""
    return np.where(x <= 0, x.dtype.type(0), x)


class Conversions(Operands):
    """Conversions between formats."""

    def op_cvt(self):
        to, source = self.types()[:2]
        if "pack" in self.ins.mods:
            return self.to_packed(to)
        if to in ("f16x2", "bf16x2"):
            return self.to_pair(to, source)
        r, w = self.rd(self.ins.args[1], source), self.wr(self.ins.args[0], to)
        if to in FLOAT:
            f = self.float_to_float(to, source) if source in FLOAT else self.integer_to_float(to, source)
        else:
            f = self.float_to_integer(to, source) if source in FLOAT else self.integer_to_integer(to)
        return lambda i: w(i, f(r(i)))

    def to_pair(self, to, source):
        """Two floats in one register: the first operand is the upper half."""
        mods, a = self.ins.mods, self.ins.args
        if self.mode() != "rn" or source != "f32":
            raise self.bad()
        ra, rb, w = self.rd(a[1], "f32"), self.rd(a[2], "f32"), self.wr(a[0], "b32")

        def half(x):
            x = rectified(x) if "relu" in mods else x
            return x.astype(F16).view(U16) if to == "f16x2" else f32_to_bf16(x)

        def run(i):
            upper, lower = np.broadcast_arrays(half(ra(i)), half(rb(i)))
            w(i, lower.astype(U32) | (upper.astype(U32) << U32(16)))

        return run

    def to_packed(self, to):
        """Two integers, clipped, in the lowest bits, that of the second operand the lower one; above bytes, the lowest
        bits of the third operand."""
        least, most, bits = np.iinfo(DT[to]).min, np.iinfo(DT[to]).max, 8 * SIZE[to]
        operands = ["s32", "s32", "b32"][: len(self.ins.args) - 1]
        if "sat" not in self.ins.mods or len(operands) != {8: 3, 16: 2}[bits]:
            raise self.bad()

        def clipped(x):
            return np.clip(x, least, most).view(U32) & U32((1 << bits) - 1)

        def pack(upper, lower, *rest):
            pair = clipped(lower) | clipped(upper) << U32(bits)
            return pair | rest[0] << U32(2 * bits) if rest else pair

        return self.simple(pack, ty="b32", src=operands)

    def float_to_float(self, to, source):
        mods, dtype = self.ins.mods, DT[to]
        integral = next((TO_INTEGER[m] for m in mods if m in TO_INTEGER), None)
        directed = self.mode() != "rn" and SIZE[to] < SIZE[source]
        if directed and to == "bf16":
            raise self.bad()

        def convert(x):
            x = bf16_to_f32(x) if source == "bf16" else x
            x = flush(x) if "ftz" in mods else x
            x = integral(x) if integral else x
            x = rectified(x) if "relu" in mods else x
            if to == "bf16":
                return f32_to_bf16(x.astype(F32))
            y = narrow(x.astype(F64), 0.0, dtype, self.mode()) if directed else x.astype(dtype)
            y = flush(y) if "ftz" in mods else y
            return np.where(np.isnan(y), dtype(0), np.clip(y, dtype(0), dtype(1))) if "sat" in mods else y

        return convert

    def float_to_integer(self, to, source):
        dtype = DT[to]
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        integral = next((TO_INTEGER[m] for m in self.ins.mods if m in TO_INTEGER), np.trunc)

        def convert(x):
            x = integral((bf16_to_f32(x) if source == "bf16" else x).astype(F64))
            big, small = x >= float(most), x <= float(least)
            y = np.where(big | small | np.isnan(x), 0, x).astype(dtype)
            return np.where(big, dtype(most), np.where(small, dtype(least), y))

        return convert

    def integer_to_float(self, to, source):
        mode = self.mode()
        if mode != "rn":
            if to != "f32" or SIZE[source] > 4:
                raise self.bad()
            return lambda x: narrow(x.astype(F64), 0.0, F32, mode)
        if to == "bf16":
            return lambda x: f32_to_bf16(narrow(x.astype(F64), 0.0, F32, "rn"))
        return lambda x: x.astype(DT[to])

    def integer_to_integer(self, to):
        dtype = DT[to]
        if "sat" not in self.ins.mods:
            return lambda x: x.astype(dtype)
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        clipped = np.frompyfunc(lambda x: min(max(int(x), least), most), 1, 1)
        return lambda x: clipped(x).astype(dtype)

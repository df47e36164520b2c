"""Logic, shifts and fields of bits."""

import numpy as np

from .formats import DT, I64, RAW, SIGNED, SIZE, U32, U64
from .operands import Operands


class Bits(Operands):
    """Logic, shifts and fields of bits."""

    def op_and(self):
        return self.simple(np.bitwise_and)

    def op_or(self):
        return self.simple(np.bitwise_or)

    def op_xor(self):
        return self.simple(np.bitwise_xor)

    def op_not(self):
        return self.simple(np.invert)

    def op_cnot(self):
        return self.simple(lambda a: (a == 0).astype(a.dtype))

    def op_shl(self):
        ty, n = self.ty, 8 * SIZE[self.ty]
        dt = DT[ty]
        return self.simple(lambda a, s: np.where(s < n, a << np.minimum(s, n - 1).astype(dt), dt(0)), src=[ty, "u32"])

    def op_shr(self):
        ty, n = self.ty, 8 * SIZE[self.ty]
        dt = DT[ty]
        if ty in SIGNED:
            return self.simple(lambda a, s: a >> np.minimum(s, n - 1).astype(dt), src=[ty, "u32"])
        return self.simple(lambda a, s: np.where(s < n, a >> np.minimum(s, n - 1).astype(dt), dt(0)), src=[ty, "u32"])

    def op_shf(self):
        left, wrap = "l" in self.ins.mods, "wrap" in self.ins.mods

        def f(lo, hi, s):
            s = (s & U32(31)) if wrap else np.minimum(s, U32(32))
            v, s = lo.astype(U64) | (hi.astype(U64) << U64(32)), s.astype(U64)
            return ((v << s) >> U64(32)).astype(U32) if left else (v >> s).astype(U32)

        return self.simple(f)

    def op_lop3(self):
        lut = int(self.ins.args[4], 0)

        def f(a, b, c, _):
            r = U32(0)
            for k in range(8):
                if lut >> k & 1:
                    r = r | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
            return r + np.zeros_like(a & b & c)

        return self.simple(f)

    def op_prmt(self):
        if any(m in self.ins.mods for m in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")):
            raise self.bad()

        def f(a, b, s):
            v, r = a.astype(U64) | (b.astype(U64) << U64(32)), U32(0)
            for k in range(4):
                n = (s >> U32(4 * k)) & U32(15)
                byte = ((v >> ((n & U32(7)) * U32(8)).astype(U64)) & U64(255)).astype(U32)
                byte = np.where(n & U32(8), np.where(byte & U32(128), U32(255), U32(0)), byte)
                r = r | (byte << U32(8 * k))
            return r

        return self.simple(f, ty="u32")

    def op_bfe(self):
        ty = self.ty
        n, dt, signed = 8 * SIZE[ty], DT[ty], ty in SIGNED

        def f(a, p, ln):
            p, ln = (p & U32(255)).astype(I64), (ln & U32(255)).astype(I64)
            a, p, ln = np.broadcast_arrays(a, p, ln)
            raw = np.ascontiguousarray(a).view(RAW[SIZE[ty]]).astype(U64)
            v = np.where(p < n, raw >> np.minimum(p, 63).astype(U64), U64(0))
            v = np.where(ln < n, v & ((U64(1) << np.minimum(ln, 63).astype(U64)) - U64(1)), v)
            if signed:
                sb = np.minimum(p + ln - 1, n - 1)
                neg = (ln > 0) & ((raw >> np.maximum(sb, 0).astype(U64)) & U64(1) != 0)
                top = np.minimum(ln, np.maximum(n - p, 0))
                fill = np.where(top >= 64, U64(0), ~U64(0) << np.minimum(top, 63).astype(U64))
                v = np.where(neg, v | fill, v)
            return v.astype(RAW[SIZE[ty]]).view(dt)

        return self.simple(f, src=[ty, "u32", "u32"])

    def op_bfi(self):
        ty = self.ty
        n, dt = 8 * SIZE[ty], DT[ty]

        def f(a, b, p, ln):
            p, ln = (p & U32(255)).astype(I64), (ln & U32(255)).astype(I64)
            m = np.where(ln >= 64, ~U64(0), (U64(1) << np.minimum(ln, 63).astype(U64)) - U64(1))
            m = np.where(p < n, m << np.minimum(p, 63).astype(U64), U64(0)).astype(dt)
            return (b & ~m) | ((a << np.minimum(p, n - 1).astype(dt)) & m)

        return self.simple(f, src=[ty, ty, "u32", "u32"])

    @staticmethod
    def _bits(a):
        """The bits [n, 64], lowest first."""
        return (a.astype(U64)[:, None] >> np.arange(64, dtype=U64)) & U64(1)

    def op_popc(self):
        return self.simple(lambda a: self._bits(a).sum(1).astype(U32), out="u32")

    def op_clz(self):
        n = 8 * SIZE[self.ty]
        f = np.frompyfunc(lambda x: n - int(x).bit_length(), 1, 1)
        return self.simple(lambda a: f(a).astype(U32), out="u32")

    def op_bfind(self):
        n, signed, amount = 8 * SIZE[self.ty], self.ty in SIGNED, "shiftamt" in self.ins.mods

        def one(x):
            x = int(x)
            pos = (~x if signed and x < 0 else x).bit_length() - 1
            return 0xFFFFFFFF if pos < 0 else n - 1 - pos if amount else pos

        f = np.frompyfunc(one, 1, 1)
        return self.simple(lambda a: f(a).astype(U32), out="u32")

    def op_brev(self):
        n, dt = 8 * SIZE[self.ty], DT[self.ty]
        f = np.frompyfunc(lambda x: int(format(int(x), f"0{n}b")[::-1], 2), 1, 1)
        return self.simple(lambda a: f(a).astype(dt))

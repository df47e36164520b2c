"""Arithmetic of integers and floats."""

import numpy as np

from .formats import DT, FLOAT, I32, I64, SIGNED, SIZE, U32, U64
from .operands import Operands
from .rounding import add, fma, mul


class Arithmetic(Operands):
    """Arithmetic of integers and floats."""

    def op_add(self):
        if self.ty in FLOAT:
            md = self.mode()
            return self.floats(lambda dt, a, b: add(a, b, dt, md))
        if "cc" in self.ins.mods:
            return self.carry("add")
        if "sat" in self.ins.mods:
            return self.simple(lambda a, b: np.clip(a.astype(I64) + b, -(2**31), 2**31 - 1).astype(I32))
        return self.simple(lambda a, b: a + b)

    def op_sub(self):
        if self.ty in FLOAT:
            md = self.mode()
            return self.floats(lambda dt, a, b: add(a, -b, dt, md))
        if "cc" in self.ins.mods:
            return self.carry("sub")
        return self.simple(lambda a, b: a - b)

    def op_addc(self):
        return self.carry("addc")

    def op_subc(self):
        return self.carry("subc")

    def carry(self, kind):
        """add.cc / addc / sub.cc / subc of 32-bit values, through 64 bits."""
        state, a = self.state, self.ins.args
        if SIZE[self.ty] != 4:
            raise self.bad("64-bit carry")
        ra, rb, w, keep = self.rd(a[1], "u32"), self.rd(a[2], "u32"), self.wr(a[0], "u32"), "cc" in self.ins.mods

        def run(i):
            x, y = ra(i).astype(U64), rb(i).astype(U64)
            c = state.cc[state.sel] if kind.endswith("c") else U64(0)
            s = x + y + c if kind.startswith("add") else x - y - c
            w(i, (s + np.zeros(len(i), U64)).astype(U32))
            if keep:
                state.cc[state.sel] = (s >> U64(32)) & U64(1)

        return run

    def wide(self):
        t = self.ty
        return {"u16": U32, "s16": I32, "u32": U64, "s32": I64}[t], t[0] + str(2 * int(t[1:]))

    @staticmethod
    def _mulhi(a, b, ty):
        if SIZE[ty] < 8:
            big = I64 if ty in SIGNED else U64
            return ((a.astype(big) * b.astype(big)) >> big(8 * SIZE[ty])).astype(DT[ty])
        o = np.broadcast_arrays(a, b)  # 64 x 64: Python integers
        f = np.frompyfunc(lambda x, y: ((int(x) * int(y)) >> 64) % (1 << 64), 2, 1)
        return f(*o).astype(U64).view(DT[ty])

    def op_mul(self):
        ty, mods = self.ty, self.ins.mods
        if ty in FLOAT:
            md = self.mode()
            return self.floats(lambda dt, a, b: mul(a, b, dt, md))
        if "wide" in mods:
            w, out = self.wide()
            return self.simple(lambda a, b: a.astype(w) * b.astype(w), out=out)
        if "hi" in mods:
            return self.simple(lambda a, b: self._mulhi(a, b, ty))
        return self.simple(lambda a, b: a * b)

    def op_mad(self):
        ty, mods = self.ty, self.ins.mods
        if ty in FLOAT:
            return self.op_fma()
        if "cc" in mods:
            raise self.bad()
        if "wide" in mods:
            w, out = self.wide()
            return self.simple(lambda a, b, c: a.astype(w) * b.astype(w) + c, out=out, src=[ty, ty, out])
        if "hi" in mods:
            return self.simple(lambda a, b, c: self._mulhi(a, b, ty) + c)
        return self.simple(lambda a, b, c: a * b + c)

    def op_mul24(self):
        if "lo" not in self.ins.mods:
            raise self.bad()
        s = U32(8)
        if self.ty == "s32":
            return self.simple(lambda a, b: (a << 8 >> 8) * (b << 8 >> 8))
        return self.simple(lambda a, b: (a << s >> s) * (b << s >> s))

    def op_fma(self):
        md = self.mode()
        return self.floats(lambda dt, a, b, c: fma(a, b, c, dt, md))

    @staticmethod
    def _divmod(a, b, dt):
        a, b = np.broadcast_arrays(a, b)
        z = b == 0
        b = np.where(z, dt(1), b)
        q = a // b
        if np.issubdtype(dt, np.signedinteger):  # C truncates, NumPy floors
            q = q + ((a % b != 0) & ((a < 0) != (b < 0)))
        q = q.astype(dt)
        return np.where(z, np.array(-1).astype(dt), q), np.where(z, a, a - q * b)

    def op_div(self):
        if self.ty in FLOAT:
            if "rn" in self.ins.mods:
                return self.floats(lambda dt, a, b: a / b)
            if "full" in self.ins.mods or "approx" in self.ins.mods:
                return self.approx(lambda a, b: a / b)
            raise self.bad()
        dt = DT[self.ty]
        return self.simple(lambda a, b: self._divmod(a, b, dt)[0])

    def op_rem(self):
        dt = DT[self.ty]
        return self.simple(lambda a, b: self._divmod(a, b, dt)[1])

    def op_abs(self):
        if self.ty in FLOAT:
            return self.floats(lambda dt, a: np.abs(a))
        return self.simple(np.abs)

    def op_neg(self):
        return self.floats(lambda dt, a: -a) if self.ty in FLOAT else self.simple(lambda a: -a)

    def minmax(self, f, less):
        if self.ty not in FLOAT:
            return self.simple(f)
        nan = "NaN" in self.ins.mods

        def g(dt, a, b):
            a, b = np.broadcast_arrays(a, b)
            pick = (a < b) | ((a == b) & np.signbit(a)) if less else (a > b) | ((a == b) & ~np.signbit(a))
            r = np.where(np.isnan(a), b, np.where(np.isnan(b) | pick, a, b))
            return np.where(np.isnan(a) | np.isnan(b), dt(np.nan), r) if nan else r

        return self.floats(g)

    def op_min(self):
        return self.minmax(np.minimum, True)

    def op_max(self):
        return self.minmax(np.maximum, False)

    def op_copysign(self):  # the sign of a, the value of b
        return self.simple(lambda a, b: np.copysign(b, a))

    def op_sqrt(self):
        return self.approx(np.sqrt) if "approx" in self.ins.mods else self.floats(lambda dt, a: np.sqrt(a))

    def op_rcp(self):
        return self.approx(lambda a: 1 / a) if "approx" in self.ins.mods else self.floats(lambda dt, a: dt(1) / a)

    def op_rsqrt(self):
        return self.approx(lambda a: 1 / np.sqrt(a))

    def op_ex2(self):
        return self.approx(np.exp2)

    def op_lg2(self):
        return self.approx(np.log2)

    def op_sin(self):
        return self.approx(np.sin)

    def op_cos(self):
        return self.approx(np.cos)

    def op_tanh(self):
        return self.approx(np.tanh)

    def op_testp(self):
        m, tiny = self.ins.mods[0], np.finfo(DT[self.ty]).tiny
        f = {
            "finite": np.isfinite,
            "infinite": np.isinf,
            "number": lambda a: ~np.isnan(a),
            "notanumber": np.isnan,
            "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
            "subnormal": lambda a: (a != 0) & (np.abs(a) < tiny),
        }[m]
        return self.simple(f, out="pred")

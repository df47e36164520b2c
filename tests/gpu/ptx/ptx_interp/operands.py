"""Operands of an instruction."""

import re

import numpy as np

from .formats import DT, F16, F32, F64, I16, I32, I64, RAW, SIGNED, SIZE, U16, U32, U64
from .report import Unsupported
from .rounding import bf16_to_f32, f32_to_bf16, flush
from .special import Special

FLOAT_WORD = re.compile(r"0[fFdD]([0-9a-fA-F]{8}|[0-9a-fA-F]{16})")
INTEGER = re.compile(r"(-?\s*(?:0[xX][0-9a-fA-F]+|\d+))[uU]?")
SYMBOL = re.compile(r"(?:generic\()?([\w$.%@]+)\)?\s*(?:\+\s*(-?\d+))?")
DECIMAL = re.compile(r"[+-]?\d+\.\d*(?:[eE][+-]?\d+)?")
PAIRS = ("f16x2", "bf16x2")
SIGNED_OF = {2: I16, 4: I32, 8: I64}


class Operands:
    """One instruction, and its operands as functions of the active lanes."""

    def __init__(self, state, ins):
        self.state, self.ins = state, ins

    def bad(self, why=""):
        """The error that this instruction is not supported."""
        return Unsupported(f"{self.ins.where()} {why}")

    def rd(self, a, ty):
        """Reader of operand `a` as type `ty`: f(lanes) -> array (n,) or (1,)."""
        readers = self.state.readers
        if (a, ty) not in readers:
            readers[a, ty] = self._reader(a, ty)
        return readers[a, ty]

    def _reader(self, a, ty):
        state, dt, size = self.state, DT[ty], SIZE[ty]
        negated = a.startswith("!")
        a = a.lstrip("!").strip()
        if a in state.regs:
            return self._register(a, ty, negated)
        if a in Special.NAMES:
            special = state.special
            return lambda i: special[a][state.sel].astype(RAW[size]).view(dt)
        value = self._constant(a, ty, negated)
        if value is not None:
            return lambda i: value
        m = SYMBOL.fullmatch(a)
        if m and m.group(1) in state.symbols:
            name, more = m.group(1), int(m.group(2) or 0)
            return lambda i: np.array([state.symbols[name][1] + more], U64).astype(RAW[size]).view(dt)
        raise self.bad(f"operand {a}")

    def _register(self, a, ty, negated):
        """Reader of a register, which may be wider than the type."""
        state, regs, dt, size = self.state, self.state.regs, DT[ty], SIZE[ty]
        if ty == "pred":
            return (lambda i: ~regs[a][state.sel]) if negated else (lambda i: regs[a][state.sel])
        if ty in PAIRS:
            half = F16 if ty == "f16x2" else U16
            return lambda i: regs[a][state.sel].view(half).reshape(-1, 2)
        if regs[a].dtype == dt:
            return lambda i: regs[a][state.sel]
        if regs[a].dtype.itemsize == size:
            return lambda i: regs[a][state.sel].view(dt)
        return lambda i: regs[a][state.sel].astype(RAW[size]).view(dt)

    @staticmethod
    def _constant(a, ty, negated):
        """The value of an operand that is a number, of length 1; None if it is none."""
        dt, size = DT[ty], SIZE[ty]
        if m := FLOAT_WORD.fullmatch(a):
            word, value = (U32, F32) if len(m.group(1)) == 8 else (U64, F64)
            number = np.array([int(m.group(1), 16)], word).view(value)
            return number.astype(dt) if dt in (F16, F32, F64) else number.view(dt)
        if m := INTEGER.fullmatch(a):
            number = int(m.group(1).replace(" ", ""), 0)
            if ty == "pred":
                return np.array([bool(number) != negated])
            raw = np.array([number % (1 << 8 * size)], RAW[size])
            return raw.view(F16 if ty == "f16x2" else U16).reshape(1, 2) if ty in PAIRS else raw.view(dt)
        return np.array([float(a)], dt) if DECIMAL.fullmatch(a) else None

    def wr(self, a, ty):
        """Writer of register `a` as type `ty`: f(lanes, value)."""
        writers = self.state.writers
        if (a, ty) not in writers:
            writers[a, ty] = self._writer(a, ty)
        return writers[a, ty]

    def _writer(self, a, ty):
        state = self.state
        if a == "_":
            return lambda i, v: None
        regs, raw = state.regs, state.regs[a].dtype
        width, size = raw.itemsize, SIZE[ty]

        def same(i, v):
            if v.dtype != raw:
                v = np.ascontiguousarray(v)
                v = v.view(raw).reshape(-1) if v.ndim == 2 else v.view(raw)  # two dimensions: packed halves
            regs[a][state.sel] = v

        def extended(i, v):
            regs[a][state.sel] = np.ascontiguousarray(v).astype(SIGNED_OF[width]).view(raw)

        def resized(i, v):
            regs[a][state.sel] = np.ascontiguousarray(v).view(RAW[size]).astype(raw)

        if ty == "pred" or width == size:
            return same
        return extended if ty in SIGNED and width > size else resized

    def types(self):
        """The types that the instruction names, from the result's on."""
        return [m for m in self.ins.mods if m in DT]

    @property
    def ty(self):
        """The last of its types: that of operands."""
        return self.types()[-1]

    def mode(self):
        """How it rounds."""
        return next((m for m in self.ins.mods if m in ("rn", "rz", "rm", "rp")), "rn")

    def simple(self, fn, ty=None, out=None, src=None):
        """d = fn(operands...) with every operand of one type."""
        ty = ty or self.ty
        a = self.ins.args
        rs = [self.rd(x, t) for x, t in zip(a[1:], src or [ty] * (len(a) - 1), strict=False)]
        w = self.wr(a[0], out or ty)
        if len(rs) == 2:
            r0, r1 = rs
            return lambda i: w(i, fn(r0(i), r1(i)))
        if len(rs) == 1:
            (r0,) = rs
            return lambda i: w(i, fn(r0(i)))
        return lambda i: w(i, fn(*[r(i) for r in rs]))

    def floats(self, fn):
        """fn(dt, *operands) in the computing type; handles ftz, sat, bf16, x2."""
        ty, mods, a = self.ty, self.ins.mods, self.ins.args
        rs, w = [self.rd(x, ty) for x in a[1:]], self.wr(a[0], ty)
        bf, ftz, sat, relu = ty.startswith("bf16"), "ftz" in mods, "sat" in mods, "relu" in mods
        dt = F32 if bf else F16 if ty == "f16x2" else DT[ty]

        def run(i):
            v = [r(i) for r in rs]
            if bf:
                v = [bf16_to_f32(x) for x in v]
            if ftz:
                v = [flush(x) for x in v]
            r = np.asarray(fn(dt, *v)).astype(dt)
            if ftz:
                r = flush(r)
            if sat:
                r = np.where(np.isnan(r), dt(0), np.clip(r, dt(0), dt(1)))
            if relu:
                r = np.where(r > 0, r, dt(0))
            w(i, f32_to_bf16(r) if bf else r)

        return run

    def approx(self, fn):
        """A hardware approximation: computed in double, rounded, maybe jittered."""
        state = self.state

        def f(dt, *v):
            r = np.asarray(fn(*[x.astype(F64) for x in v])).astype(dt)
            if state.launch.approx_ulp and dt is F32:
                most = state.launch.approx_ulp
                ulps = state.launch.rng.integers(-most, most + 1, r.shape).astype(I32)
                ok = np.isfinite(r) & (np.abs(r) > 1e-37)
                r = np.where(ok, (r.view(I32) + ulps).view(F32), r)
            return r

        return self.floats(f)

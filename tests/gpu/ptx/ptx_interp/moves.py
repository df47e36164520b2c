"""Moves and comparisons."""

from types import MappingProxyType

import numpy as np

from .formats import DT, FLOAT, LOCAL_WIN, RAW, SHARED_WIN, SIZE, U64
from .operands import Operands
from .program import split_args
from .rounding import bf16_to_f32, flush

COMPARISONS = MappingProxyType(
    {
        **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater},
        **{"ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal},
    }
)
JOINED = MappingProxyType({"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor})


def float_comparison(name):
    """A comparison of floats by its name in PTX."""
    if name in ("num", "nan"):
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
    if name == "ne":  # ordered
        return lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b)
    if name.endswith("u") and name[:-1] in COMPARISONS:  # unordered: true on NaN
        ordered = COMPARISONS[name[:-1]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    return COMPARISONS[name]


class Moves(Operands):
    """Moves and comparisons."""

    def op_mov(self):
        to, source, ty = *self.ins.args[:2], self.ty
        if to.startswith("{"):
            return self.unpack(split_args(to[1:-1]), source)
        if source.startswith("{"):
            return self.pack(to, split_args(source[1:-1]))
        return self.simple(lambda a: a, ty="b32" if ty in ("f16x2", "bf16x2") else ty)

    def unpack(self, parts, source):
        """mov {a, b, ...}, source"""
        bits = 8 * SIZE[self.ty]
        part = f"b{bits // len(parts)}"
        r, ws = self.rd(source, f"b{bits}"), [self.wr(p, part) for p in parts]

        def run(i):
            v = np.ascontiguousarray(r(i)).view(DT[part]).reshape(-1, len(parts))
            for k, w in enumerate(ws):
                w(i, v[:, k])

        return run

    def pack(self, to, parts):
        """mov to, {a, b, ...}"""
        size = SIZE[self.ty]
        part = f"b{8 * size // len(parts)}"
        rs, w = [self.rd(p, part) for p in parts], self.wr(to, self.ty)

        def run(i):
            v = np.empty((len(i), len(rs)), DT[part])
            for k, r in enumerate(rs):
                v[:, k] = r(i)
            w(i, v.view(RAW[size]).reshape(-1))

        return run

    def op_cvta(self):
        spaces = [m.split("__")[0] for m in self.ins.mods]
        window = U64(SHARED_WIN if "shared" in spaces else LOCAL_WIN if "local" in spaces else 0)
        if "to" in self.ins.mods:
            return self.simple(lambda a: a - window.astype(a.dtype))
        return self.simple(lambda a: a + window.astype(a.dtype))

    def compare(self):
        """The comparison of setp and set, which names it first."""
        name, ty = self.ins.mods[0], self.ty
        if ty in ("f16x2", "bf16x2"):
            raise self.bad()
        if ty not in FLOAT:
            return COMPARISONS[name]
        f = float_comparison(name)
        if ty == "bf16":
            return lambda a, b: f(bf16_to_f32(a), bf16_to_f32(b))
        return (lambda a, b: f(flush(a), flush(b))) if "ftz" in self.ins.mods else f

    def op_setp(self):
        f, a, ty = self.compare(), self.ins.args, self.ty
        join = next((JOINED[m] for m in self.ins.mods if m in JOINED), None)
        ra, rb = self.rd(a[1], ty), self.rd(a[2], ty)
        rc = self.rd(a[3], "pred") if join else None
        ws = [self.wr(x.strip(), "pred") for x in a[0].split("|")]

        def run(i):
            v = f(ra(i), rb(i))
            for w, r in zip(ws, (v, ~v), strict=False):
                w(i, join(r, rc(i)) if join else r)

        return run

    def op_set(self):
        f, t, a = self.compare(), self.types(), self.ins.args
        ra, rb, w = self.rd(a[1], t[1]), self.rd(a[2], t[1]), self.wr(a[0], t[0])
        one = np.array([1.0 if t[0] in FLOAT else -1]).astype(DT[t[0]])
        return lambda i: w(i, np.where(f(ra(i), rb(i)), one, one - one))

    def op_selp(self):
        ty, a = self.ty, self.ins.args
        ty = "b32" if ty in ("f16x2", "bf16x2") else ty
        r1, r2, rp, w = self.rd(a[1], ty), self.rd(a[2], ty), self.rd(a[3], "pred"), self.wr(a[0], ty)
        return lambda i: w(i, np.where(rp(i), r1(i), r2(i)))

    def op_slct(self):
        t, a = self.types(), self.ins.args
        r1, r2, r3, w = self.rd(a[1], t[0]), self.rd(a[2], t[0]), self.rd(a[3], t[1]), self.wr(a[0], t[0])
        return lambda i: w(i, np.where(r3(i) >= 0, r1(i), r2(i)))

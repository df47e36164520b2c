"""Loads, stores and atomics."""

import re
from types import MappingProxyType

import numpy as np

from .formats import DT, F16, I64, RAW, SHARED_WIN, SIZE, U8, U16, U32, U64
from .operands import PAIRS, Operands
from .program import split_args
from .report import PtxFault
from .rounding import bf16_to_f32, f32_to_bf16

ADDRESS = re.compile(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\s*(?:0x[0-9a-fA-F]+|\d+)))?\s*\]")
SPACES = ("global", "shared", "local", "const", "param")
STRONG = frozenset({"relaxed", "acquire", "release", "volatile"})
ATOMICS = MappingProxyType(
    {
        **{"add": lambda o, b, c: o + b, "exch": lambda o, b, c: b, "cas": lambda o, b, c: np.where(o == b, c, o)},
        **{"min": lambda o, b, c: np.minimum(o, b), "max": lambda o, b, c: np.maximum(o, b)},
        **{"and": lambda o, b, c: o & b, "or": lambda o, b, c: o | b, "xor": lambda o, b, c: o ^ b},
        "inc": lambda o, b, c: np.where(o >= b, 0, o + 1),
        "dec": lambda o, b, c: np.where((o == 0) | (o > b), b, o - 1),
    }
)


class Accesses(Operands):
    """Loads, stores and atomics."""

    def space(self):
        """The state space that the instruction names."""
        space = next((m.split("__")[0] for m in self.ins.mods if m.split("__")[0] in SPACES), "generic")
        if space == "param":  # of a call: memory of a thread
            base = re.search(r"\[\s*([^\s+\]]+)", " ".join(self.ins.args)).group(1)
            return "local" if self.state.symbols.get(base, ("",))[0] == "local" else "param"
        return space

    def address(self, a):
        """Reader of an address '[register+immediate]': f(lanes) -> uint64, one for each lane."""
        m = ADDRESS.fullmatch(a)
        if not m:
            raise self.bad("address")
        base, off = m.group(1), U64(int((m.group(2) or "0").replace(" ", ""), 0) % (1 << 64))
        state, regs = self.state, self.state.regs
        if base in regs:
            short = off.astype(U32)
            if regs[base].dtype.itemsize == 4:  # 32-bit shared addresses wrap
                return lambda i: (regs[base][state.sel] + short).astype(U64)
            return lambda i: regs[base][state.sel] + off
        if base in state.symbols:
            window = U64(SHARED_WIN) if self.space() == "generic" and state.symbols[base][0] == "shared" else U64(0)
            return lambda i: np.full(len(i), U64(state.symbols[base][1]) + off + window, U64)
        fixed = U64(int(base, 0)) + off
        return lambda i: np.full(len(i), fixed, U64)

    def vec(self, a):
        """The registers of a vector operand."""
        return split_args(a[1:-1]) if a.startswith("{") else [a]

    def op_ld(self):
        state, ins, ty, space = self.state, self.ins, self.ty, self.space()
        addr, ws = self.address(ins.args[1]), [self.wr(to, ty) for to in self.vec(ins.args[0])]
        size, dt = SIZE[ty] * len(ws), RAW[SIZE[ty]] if ty in PAIRS else DT[ty]
        strong = bool(STRONG & set(ins.mods))

        def parameter(i):
            at = addr(i).astype(I64)
            at = at[:1] if (at == at[0]).all() else at
            return state.launch.param[at[:, None] + np.arange(size)]

        def memory(i):
            return state.load(ins, space, addr(i), size, i, strong)

        read = parameter if space == "param" else memory

        def run(i):
            v = np.ascontiguousarray(read(i)).view(dt)
            for k, w in enumerate(ws):
                w(i, v[:, k])

        return run

    op_ldu = op_ld

    def op_st(self):
        state, ins, space = self.state, self.ins, self.space()
        ty = "b32" if self.ty in PAIRS else self.ty
        addr, rs = self.address(ins.args[0]), [self.rd(source, ty) for source in self.vec(ins.args[1])]
        strong = bool(STRONG & set(ins.mods))

        def run(i):
            v = np.empty((len(i), len(rs)), DT[ty])
            for k, r in enumerate(rs):
                v[:, k] = r(i)
            state.store(ins, space, addr(i), v.view(U8), i, strong)

        return run

    def op_atom(self):
        return self.atomic(self.ins.args[0], self.ins.args[1:])

    def op_red(self):
        return self.atomic("_", self.ins.args)

    def atomic(self, to, a):
        """Read-modify-write, one lane after the other, in rounds of different addresses, each a vector operation."""
        state, ins, mods, space, ty = self.state, self.ins, self.ins.mods, self.space(), self.ty
        if any(m in ("v2", "v4", "v8") for m in mods):
            raise self.bad()
        name = next(m for m in mods if m in ATOMICS)
        addr, rs, w, size = self.address(a[0]), [self.rd(x, ty) for x in a[1:]], self.wr(to, ty), SIZE[ty]
        row = (2,) if ty in PAIRS else ()
        dt = {"f16x2": F16, "bf16x2": U16}.get(ty, DT[ty])

        def combine(old, b, c):
            if ty.startswith("bf16") and name == "add":
                return f32_to_bf16(bf16_to_f32(old) + bf16_to_f32(b))
            return np.ascontiguousarray(ATOMICS[name](old, b, c)).astype(dt)

        def run(i):
            at, given = addr(i), [np.broadcast_to(r(i), (len(i), *row)) for r in rs]
            found = np.empty((len(i), *row), dt)
            lockstep = state.launch.schedule == "lockstep"
            order = np.arange(len(i)) if lockstep else state.launch.rng.permutation(len(i))
            while len(order):
                first = np.sort(np.unique(at[order], return_index=True)[1])
                turn = order[first]
                old = np.ascontiguousarray(state.load(ins, space, at[turn], size, i[turn], True)).view(dt)
                old = old.reshape(-1, *row)
                new = combine(old, *([v[turn] for v in given] + [None])[:2])
                data = np.ascontiguousarray(new).view(U8).reshape(len(turn), size)
                state.store(ins, space, at[turn], data, i[turn], True, changed=True)
                found[turn] = old
                order = np.delete(order, first)
            w(i, found)

        return run

    def op_cp(self):
        """cp.async, done at once (so a missing wait is not noticed)."""
        state, ins, a = self.state, self.ins, self.ins.args
        if "async" not in ins.mods or "bulk" in ins.mods:
            raise self.bad()
        if "commit_group" in ins.mods or "wait_group" in ins.mods or "wait_all" in ins.mods:
            return lambda i: None
        if "mbarrier" in ins.mods:
            raise self.bad()
        dst, src, n = self.address(a[0]), self.address(a[1]), int(a[2], 0)
        rn = self.rd(a[3], "u32") if len(a) > 3 else None

        def run(i):
            data, at = np.zeros((len(i), n), U8), src(i)
            k = rn(i) + np.zeros(len(i), U32) if rn else np.full(len(i), n, U32)
            for size in np.unique(k):
                if size:
                    m = np.flatnonzero(k == size)
                    data[m, :size] = state.load(ins, "global", at[m], int(size), i[m])
            state.store(ins, "shared", dst(i), data, i)

        return run

    def nop(self):
        return lambda i: None

    op_membar = op_fence = op_prefetch = op_prefetchu = op_griddepcontrol = op_nanosleep = op_pmevent = nop
    op_discard = op_applypriority = op_bra = op_ret = op_exit = op_brx = nop

    def op_createpolicy(self):
        w = self.wr(self.ins.args[0], "b64")
        return lambda i: w(i, np.zeros(1, U64))

    def op_trap(self):
        def run(i):
            raise PtxFault(f"trap: {self.ins.where()}")

        return run

    op_brkpt = nop

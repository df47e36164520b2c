"""Exchange between the lanes of a warp."""

import numpy as np

from .formats import DT, FLOAT, I64, U32
from .operands import Operands


class Warps(Operands):
    """Exchange between the lanes of a warp."""

    def op_bar(self):  # only bar.warp.sync comes here
        state = self.state

        def run(i):
            state.warp_epoch[i] += 1

        return run

    op_barrier = op_bar

    def lanes(self, i):
        """A table of the positions in i of each (warp, lane), -1 where there is none, and the warps of i."""
        state = self.state
        tab = np.full((state.warp[-1] + 1, 32), -1)
        tab[state.warp[i], state.laneid[i]] = np.arange(len(i))
        return tab, state.warp[i]

    def op_shfl(self):
        state, ins, a = self.state, self.ins, self.ins.args
        mode = next(m for m in ins.mods if m in ("up", "down", "bfly", "idx"))
        d, _, p = a[0].partition("|")
        w, wp = self.wr(d.strip(), "b32"), self.wr(p.strip(), "pred") if p else None
        rv, rb, rc = self.rd(a[1], "b32"), self.rd(a[2], "u32"), self.rd(a[3], "u32")

        def run(i):
            v = rv(i) + np.zeros(len(i), U32)
            b, c = rb(i).astype(I64) & 31, rc(i).astype(I64)
            lane, clamp, seg = state.laneid[i], c & 31, (c >> 8) & 31
            mx, mn = (lane & seg) | (clamp & ~seg & 31), lane & seg
            if mode == "up":
                j = lane - b
                ok = j >= mx
            elif mode == "down":
                j = lane + b
                ok = j <= mx
            elif mode == "bfly":
                j = lane ^ b
                ok = j <= mx
            else:
                j = mn | (b & ~seg & 31)
                ok = j <= mx
            j = np.where(ok, j, lane)
            tab, wp_ = self.lanes(i)
            src = tab[wp_, j]
            if (src < 0).any():
                state.launch.report.add("warpsync", ins, "shfl reads from a thread that is not active")
                src = np.where(src < 0, np.arange(len(i)), src)
            w(i, v[src])
            if wp:
                wp(i, ok + np.zeros(len(i), np.bool_))

        return run

    def op_vote(self):
        state, ins, a = self.state, self.ins, self.ins.args
        kind = next(m for m in ins.mods if m in ("all", "any", "uni", "ballot"))
        r, w = self.rd(a[1], "pred"), self.wr(a[0], "b32" if kind == "ballot" else "pred")

        def run(i):
            p = r(i) + np.zeros(len(i), np.bool_)
            m = np.zeros(state.warp[-1] + 1, U32)
            np.bitwise_or.at(m, state.warp[i], np.where(p, np.left_shift(U32(1), state.laneid[i].astype(U32)), U32(0)))
            ball, act = m[state.warp[i]], state.active_mask(i)
            w(i, {"ballot": ball, "any": ball != 0, "all": ball == act, "uni": (ball == 0) | (ball == act)}[kind])

        return run

    def op_activemask(self):
        w = self.wr(self.ins.args[0], "b32")
        return lambda i: w(i, self.state.active_mask(i))

    def op_elect(self):
        state, a = self.state, self.ins.args
        d, _, p = a[0].partition("|")
        w, wp = self.wr(d.strip(), "b32"), self.wr(p.strip(), "pred")

        def run(i):
            first = np.full(state.warp[-1] + 1, 32)
            np.minimum.at(first, state.warp[i], state.laneid[i])
            w(i, first[state.warp[i]].astype(U32))
            wp(i, first[state.warp[i]] == state.laneid[i])

        return run

    def op_redux(self):
        state, ins, a, ty = self.state, self.ins, self.ins.args, self.ty
        op = next(m for m in ins.mods if m in ("add", "min", "max", "and", "or", "xor"))
        if ty in FLOAT:
            raise self.bad()
        f = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[op]
        r, w = self.rd(a[1], ty), self.wr(a[0], ty)
        info = np.iinfo(DT[ty])
        init = {"min": info.max, "max": info.min, "and": -1}.get(op, 0)

        def run(i):
            acc = np.full(state.warp[-1] + 1, init, I64).astype(DT[ty])
            f.at(acc, state.warp[i], r(i) + np.zeros(len(i), DT[ty]))
            w(i, acc[state.warp[i]])

        return run

"""Matrices in the registers of a warp."""

import numpy as np

from .accesses import Accesses
from .formats import U8, U16, U32


class Matrices(Accesses):
    """Matrices in the registers of a warp."""

    def matrix(self, store):
        state, ins, a = self.state, self.ins, self.ins.args
        if "m8n8" not in ins.mods or "b16" not in ins.mods:
            raise self.bad()
        regs = self.vec(a[1] if store else a[0])
        addr, tr = self.address(a[0] if store else a[1]), "trans" in ins.mods
        rs = [self.rd(x, "b32") if store else self.wr(x, "b32") for x in regs]

        def run(i):
            if len(i) % 32:
                raise self.bad("partial warp")
            at = addr(i).reshape(-1, 32)
            lane = i.reshape(-1, 32)
            for q, reg in enumerate(rs):
                # lane 8q+row holds the address of that row of matrix q
                rows, who = at[:, 8 * q : 8 * q + 8].ravel(), lane[:, 8 * q : 8 * q + 8].ravel()
                if store:
                    m = np.ascontiguousarray(reg(i)).view(U16).reshape(-1, 8, 8)
                    m = np.ascontiguousarray(m.transpose(0, 2, 1) if tr else m)
                    state.store(ins, "shared", rows, m.view(U8).reshape(len(rows), 16), who)
                else:
                    m = np.ascontiguousarray(state.load(ins, "shared", rows, 16, who)).view(U16).reshape(-1, 8, 8)
                    m = np.ascontiguousarray(m.transpose(0, 2, 1) if tr else m)
                    reg(i, m.view(U32).reshape(-1))

        return run

    def op_stmatrix(self):
        return self.matrix(True)

    def op_ldmatrix(self):
        return self.matrix(False)

"""Matrices of 8 x 8 halves between shared memory and the registers of a warp."""

import numpy as np

from .accesses import Accesses
from .formats import U8, U16, U32


class Matrices(Accesses):
    """Matrices of 8 x 8 halves between shared memory and the registers of a warp: lane 8 q + row holds the address of a
    row of matrix q; of each, lane 4 row + pair holds two neighbours."""

    def op_ldmatrix(self):
        state, ins = self.state, self.ins
        to, source = self.ins.args
        addr, registers, space = self.address(source), self._registers(to), self.space()
        turned, count = self._turned(), len(registers)

        def run(i):
            at, who = self._rows(i, addr(i), count)
            rows = np.ascontiguousarray(state.load(ins, space, at, 16, who)).view(U16).reshape(-1, count, 8, 8)
            words = turned(rows).view(U32).reshape(-1, count, 32)
            state.set_words(registers, words.transpose(1, 0, 2).reshape(count, -1))

        return run

    def op_stmatrix(self):
        state, ins = self.state, self.ins
        to, source = self.ins.args
        addr, registers, space = self.address(to), self._registers(source), self.space()
        turned, count = self._turned(), len(registers)

        def run(i):
            at, who = self._rows(i, addr(i), count)
            words = state.words(registers).reshape(count, -1, 32).transpose(1, 0, 2)
            rows = turned(np.ascontiguousarray(words).view(U16).reshape(-1, count, 8, 8))
            state.store(ins, space, at, rows.view(U8).reshape(len(at), 16), who)

        return run

    def _registers(self, operand):
        """The rows of registers in their table."""
        return np.array([self.state.kernel.rows[x] for x in self.vec(operand)])

    def _turned(self):
        """What makes rows of matrices as they are in memory those that lanes hold, and back."""
        if "m8n8" not in self.ins.mods or "b16" not in self.ins.mods:
            raise self.bad()
        if "trans" in self.ins.mods:
            return lambda rows: np.ascontiguousarray(rows.transpose(0, 1, 3, 2))
        return lambda rows: rows

    def _rows(self, i, addresses, matrices):
        """The addresses of the rows of so many matrices, and the lanes that give them."""
        self.state.check_whole_warps(self.ins, i)
        return tuple(np.ascontiguousarray(x.reshape(-1, 32)[:, : 8 * matrices]).ravel() for x in (addresses, i))

"""Traffic of a launch: wavefronts of shared memory, by a model of its banks, and sectors of global memory."""

import numpy as np

BANKS, WORD, SECTOR = 32, 4, 32  # bytes of a bank's word, and of a sector
APART = 40  # bits of a key for an address


class Traffic:
    """Counts by instruction what warps ask memory for; an atomic counts in rounds of different addresses.

    Shared memory: a warp's accesses of up to 4 bytes go together, those of 8 bytes by halves, those of 16 (and the rows
    of ldmatrix) by quarters; such a group takes as many wavefronts as the fullest bank has different words. Global
    memory: the different sectors that a warp touches.
    """

    def __init__(self, instructions):
        self.wavefronts, self.without_conflicts, self.sectors = (np.zeros(instructions, np.int64) for _ in range(3))

    def count(self, state, pc, space, off, size, lanes):
        """Counts an access of `size` bytes a lane at these offsets."""
        warp = state.warp[lanes]
        if space == "shared":
            together = BANKS * WORD // max(size, WORD)  # lanes
            group = warp * (32 // together) + state.laneid[lanes] // together
            at = np.unique(self._keys(group, off, size, WORD))
            words = np.bincount((at >> APART) * BANKS + (at & (BANKS - 1)), minlength=BANKS * (int(group.max()) + 1))
            fullest = words.reshape(-1, BANKS).max(1)
            self.wavefronts[pc] += fullest.sum()
            self.without_conflicts[pc] += np.count_nonzero(fullest)
        elif space == "global":
            self.sectors[pc] += len(np.unique(self._keys(warp, off, size, SECTOR)))

    @staticmethod
    def _keys(group, off, size, unit):
        """The units of memory that accesses of groups touch: one number for each group and unit."""
        units = off[:, None] // unit + np.arange(max(1, size // unit))
        return (group[:, None] << APART) + units

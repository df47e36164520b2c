"""Race detection: who touched each grain of a memory last."""

import numpy as np

from .formats import I32


class Shadow:
    """Last writer and reader(s) of each grain of one memory, for race detection.

    A thread's position in time is (CTA barrier epoch, warp barrier epoch). Two accesses of different threads are
    ordered when they are of one CTA with a bar.sync between them, or of one warp with a bar.warp.sync between them. A
    grain is as many bytes as the smallest access so far: accesses are aligned to their size, so each takes whole
    grains.
    """

    NONE, MANY = -1, -2
    LANE, CE, WE, ATOMIC, WARP, CTA = range(6)  # columns; of writes the first four

    def __init__(self, size):
        self.grain = 16
        self.w = np.full((-(-size // self.grain), 4), self.NONE, I32)
        self.r = np.full((len(self.w), 6), self.NONE, I32)

    def grains(self, off, size, lanes):
        """The grains of accesses and the lane of each: [n, k], k to an access."""
        part = size & -size
        if part < self.grain:
            self.w, self.r = (np.repeat(x, self.grain // part, 0) for x in (self.w, self.r))
            self.grain = part
        at = (off // self.grain)[:, None]
        if size > self.grain:
            at = at + np.arange(size // self.grain)
            lanes = np.repeat(lanes, size // self.grain)
        return at, lanes

    def unwritten(self, at):
        """Whether any of these grains was never written."""
        return bool((self.w[at, self.LANE] == self.NONE).any())

    def written(self, at):
        """Notes that these grains are, whoever wrote them."""
        self.w[at, self.LANE] = 0

    def read(self, state, ins, at, lanes, atomic, space):
        """Notes that these lanes read these grains, and reports races."""
        writes, reads = self.w.take(at, 0), self.r.take(at, 0)
        who = np.empty((len(at), 6), I32)
        columns = (state.glane[lanes], state.cta_epoch[lanes], state.warp_epoch[lanes], atomic)
        for column, value in enumerate((*columns, state.gwarp[lanes], state.gcta[lanes])):
            who[:, column] = value
        self._report(state, ins, at, who, self._against_write(state, writes, who), writes, reads, f"{space} read")
        fresh = (reads[:, self.LANE] == self.NONE) | (
            (reads[:, self.CTA] == who[:, self.CTA]) & (reads[:, self.CE] != who[:, self.CE])
        )
        lane, warp, cta = (who[:, column].copy() for column in (self.LANE, self.WARP, self.CTA))
        if not fresh.all():
            for column in (self.LANE, self.WARP, self.CTA):
                mine = who[:, column]
                mine[~fresh & (reads[:, column] != mine)] = self.MANY
            who[:, self.ATOMIC] &= fresh | (reads[:, self.ATOMIC] > 0)
        self.r[at, self.LANE] = lane
        several = (self.r[at, self.LANE] != lane).any()  # lanes of this one instruction read one grain
        self.r[at] = who
        if several:
            _, first, inverse = np.unique(at, return_index=True, return_inverse=True)
            for column, value in ((self.LANE, lane), (self.WARP, warp), (self.CTA, cta)):
                other = np.flatnonzero(value != value[first][inverse])
                self.r[at[other], column] = self.MANY

    def write(self, state, ins, at, lanes, atomic, changed, space):
        """Notes that these lanes write these grains, and reports races; what is not changed is raced for by none."""
        writes, reads = self.w.take(at, 0), self.r.take(at, 0)
        who = np.empty((len(at), 6), I32)
        columns = (state.glane[lanes], state.cta_epoch[lanes], state.warp_epoch[lanes], atomic)
        for column, value in enumerate((*columns, state.gwarp[lanes], state.gcta[lanes])):
            who[:, column] = value
        bad = (self._against_write(state, writes, who) | self._against_reads(reads, who)) & changed
        self._report(state, ins, at, who, bad, writes, reads, f"{space} write")
        self.w[at] = who[:, :4]
        self.r[at, self.LANE] = self.NONE

    def _against_write(self, state, writes, who):
        """Whether each access is not ordered with the last write of its grain."""
        writer, lane = writes[:, self.LANE], who[:, self.LANE]
        bad = (writer >= 0) & (writer != lane)
        if bad.any():
            threads = state.threads
            same_cta = (writer // threads) == who[:, self.CTA]
            same_warp = same_cta & ((writer % threads) // 32 == (lane % threads) // 32)
            bad &= self._unordered(writes, who, same_cta, same_warp)
        return bad

    def _against_reads(self, reads, who):
        """Whether each access is not ordered with the last reads of its grain."""
        bad = (reads[:, self.LANE] != self.NONE) & (reads[:, self.LANE] != who[:, self.LANE])
        if bad.any():
            same_cta, same_warp = (reads[:, column] == who[:, column] for column in (self.CTA, self.WARP))
            bad &= self._unordered(reads, who, same_cta, same_warp)
        return bad

    def _unordered(self, before, who, same_cta, same_warp):
        """Whether no barrier stands between two accesses, of which not both are atomic."""
        same_time = before[:, self.WE] == who[:, self.WE]
        unordered = ~same_cta | ((before[:, self.CE] == who[:, self.CE]) & (~same_warp | same_time))
        return unordered & ~((before[:, self.ATOMIC] > 0) & (who[:, self.ATOMIC] > 0))

    def _report(self, state, ins, at, who, bad, writes, reads, what):
        """Reports the first of the bad accesses."""
        if not bad.any():
            return
        k = int(np.flatnonzero(bad)[0])
        lane, writer, reader = (int(table[k, self.LANE]) for table in (who, writes, reads))
        other = writer if writer >= 0 and writer != lane else reader
        threads = state.threads
        by = f"cta {other // threads} thread {other % threads}" if other >= 0 else "several threads"
        space, kind = what.split()
        state.launch.report.add(
            "race",
            ins,
            f"{space} byte {int(at[k]) * self.grain}: {kind} by cta {int(who[k, self.CTA])} thread {lane % threads} "
            f"is not ordered with an access by {by} ({int(bad.sum()) * self.grain} bytes)",
        )

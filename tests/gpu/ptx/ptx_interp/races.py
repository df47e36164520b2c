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
    LANE, CE, WE, ATOMIC, WARP, CTA = range(6)  # of an access; of writes the first four are kept

    def __init__(self, size):
        self.grain = 16
        grains = -(-size // self.grain)
        self.w, self.r = (np.full((columns, grains), self.NONE, I32) for columns in (4, 6))

    def grains(self, off, size, lanes):
        """The grains of accesses and the lane of each: [n, k], k to an access."""
        part = size & -size
        if part < self.grain:
            self.w, self.r = (np.repeat(x, self.grain // part, 1) for x in (self.w, self.r))
            self.grain = part
        at = (off // self.grain)[:, None]
        if size > self.grain:
            at = at + np.arange(size // self.grain)
            lanes = np.repeat(lanes, size // self.grain)
        return at, lanes

    def unwritten(self, at):
        """Whether any of these grains was never written."""
        return bool((self.w[self.LANE].take(at) == self.NONE).any())

    def written(self, at):
        """Notes that these grains are, whoever wrote them."""
        self.w[self.LANE, at] = 0

    def read(self, state, ins, at, lanes, atomic, space):
        """Notes that these lanes read these grains, and reports races."""
        who = self._accesses(state, lanes, atomic)
        bad = self._against_write(state, at, who, space)
        if bad is not None:
            self._report(state, ins, at, who, bad, f"{space} read")
        before = self.r.take(at, 1)
        fresh = (before[self.LANE] == self.NONE) | (
            (before[self.CTA] == who[self.CTA]) & (before[self.CE] != who[self.CE])
        )
        marked = who
        if not fresh.all():
            marked = who.copy()
            for column in (self.LANE, self.WARP, self.CTA):
                marked[column, ~fresh & (before[column] != who[column])] = self.MANY
            marked[self.ATOMIC] &= fresh | (before[self.ATOMIC] > 0)
        self.r[self.LANE, at] = who[self.LANE]
        several = (self.r[self.LANE].take(at) != who[self.LANE]).any()  # lanes of this instruction read one grain
        self.r[:, at] = marked
        if several:
            _, first, inverse = np.unique(at, return_index=True, return_inverse=True)
            for column in (self.LANE, self.WARP, self.CTA):
                other = np.flatnonzero(who[column] != who[column, first][inverse])
                self.r[column, at[other]] = self.MANY

    def write(self, state, ins, at, lanes, atomic, changed, space):
        """Notes that these lanes write these grains, and reports races; what is not changed is raced for by none."""
        who = self._accesses(state, lanes, atomic)
        for bad in (self._against_write(state, at, who, space), self._against_reads(at, who)):
            if bad is not None:
                self._report(state, ins, at, who, bad & changed, f"{space} write")
        self.w[:, at] = who[:4]
        self.r[self.LANE, at] = self.NONE

    @staticmethod
    def _accesses(state, lanes, atomic):
        """Who accesses, [6, n]."""
        who = state.who.take(lanes, 1)
        who[Shadow.ATOMIC] = atomic
        return who

    def _against_write(self, state, at, who, space):
        """Whether each access is not ordered with the last write of its grain; None if all are."""
        now = self.w[self.CE].take(at) == who[self.CE]
        if space == "shared" and not now.any():  # a barrier of the CTA lies in between
            return None
        writes = self.w.take(at, 1)
        bad = (writes[self.LANE] >= 0) & (writes[self.LANE] != who[self.LANE])
        if not bad.any():
            return None
        threads, writer, lane = state.threads, writes[self.LANE], who[self.LANE]
        same_cta = writer // threads == who[self.CTA]
        same_warp = same_cta & (writer % threads // 32 == lane % threads // 32)
        return bad & self._unordered(writes, who, same_cta, same_warp)

    def _against_reads(self, at, who):
        """Whether each access is not ordered with the last reads of its grain; None if all are."""
        reads = self.r.take(at, 1)
        bad = (reads[self.LANE] != self.NONE) & (reads[self.LANE] != who[self.LANE])
        if not bad.any():
            return None
        same_cta, same_warp = (reads[column] == who[column] for column in (self.CTA, self.WARP))
        return bad & self._unordered(reads, who, same_cta, same_warp)

    def _unordered(self, before, who, same_cta, same_warp):
        """Whether no barrier stands between two accesses, of which not both are atomic."""
        same_time = before[self.WE] == who[self.WE]
        unordered = ~same_cta | ((before[self.CE] == who[self.CE]) & (~same_warp | same_time))
        return unordered & ~((before[self.ATOMIC] > 0) & (who[self.ATOMIC] > 0))

    def _report(self, state, ins, at, who, bad, what):
        """Reports the first of the bad accesses."""
        if not bad.any():
            return
        k, threads = int(np.flatnonzero(bad)[0]), state.threads
        lane, writer, reader = int(who[self.LANE, k]), int(self.w[self.LANE, at[k]]), int(self.r[self.LANE, at[k]])
        other = writer if writer >= 0 and writer != lane else reader
        by = f"cta {other // threads} thread {other % threads}" if other >= 0 else "several threads"
        space, kind = what.split()
        state.launch.report.add(
            "race",
            ins,
            f"{space} byte {int(at[k]) * self.grain}: {kind} by cta {int(who[self.CTA, k])} thread {lane % threads} "
            f"is not ordered with an access by {by} ({int(bad.sum()) * self.grain} bytes)",
        )

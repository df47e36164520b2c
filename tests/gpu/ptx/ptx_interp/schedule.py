"""Order of execution: which threads go on next, and who waits for whom."""

import numpy as np

from .program import BARRIER, BRANCH, EXIT, PLAIN, WARP
from .report import PtxFault, Unsupported

PARTIES = 8  # one for each warp shows no more, and takes five times as long
FOREVER = 1 << 60


class Schedule:
    """The positions of the threads of a chunk.

    Each unit (the chunk, or a party of warps drawn by lot) has groups {pc: lanes}. The one of the lowest pc runs until
    it meets another, branches, waits, or has had its turn.
    """

    def __init__(self, state):
        self.state, self.code, self.report = state, state.kernel.code, state.launch.report
        self.units, self.rng = [state.all], state.launch.rng
        self.lockstep = state.launch.schedule == "lockstep"
        if not self.lockstep:
            party = self.rng.permutation(state.warp[-1] + 1) % PARTIES
            self.units = [np.flatnonzero(party[state.warp] == p) for p in np.unique(party)]
        self.groups = [{0: unit} for unit in self.units]
        self.unit_of = np.empty(state.n, np.int64)
        for number, unit in enumerate(self.units):
            self.unit_of[unit] = number
        self.at_bar, self.bar_pc = np.full(state.n, -1), np.full(state.n, -1)  # barrier id, and where
        self.parked = {}  # pc -> lanes waiting for their warp
        self.steps, self.changed = 0, False  # changed: since the last look at barriers, a thread came or ended

    def run(self):
        """Runs until all threads have ended."""
        while True:
            live = [number for number, groups in enumerate(self.groups) if groups]
            if live:
                self._advance(live[0] if len(live) == 1 else live[self.rng.integers(len(live))])
                if self.changed and (not self.lockstep or not any(self.groups)):
                    self._open_barriers()
                    self.changed = False
            elif not self._open_barriers() and not self._unpark():
                if (self.at_bar >= 0).any():
                    raise PtxFault("deadlock at a barrier")
                return

    def _put(self, lanes, pc, unit):
        """Has lanes of one unit go on at pc."""
        groups = self.groups[unit]
        groups[pc] = np.sort(np.concatenate((groups[pc], lanes))) if pc in groups else lanes

    def _put_all(self, lanes, pc):
        if len(self.units) == 1:
            self._put(lanes, pc, 0)
            return
        for unit in np.unique(self.unit_of[lanes]):
            self._put(lanes[self.unit_of[lanes] == unit], pc, unit)

    def _advance(self, unit):
        """Runs the group of a unit whose pc is the lowest."""
        groups, state, code, runs = self.groups[unit], self.state, self.code, self.state.runs
        report, counts, regs = self.report, self.report.counts, self.state.regs
        pc = min(groups)
        lanes = state.select(groups.pop(pc))
        whole, meeting, warps = state.sel, min(groups) if groups else len(code), state.warps_of(lanes)
        turn = FOREVER if len(self.units) == 1 else int(self.rng.integers(1, 200))
        while pc < len(code):
            ins = code[pc]
            self.steps += 1
            if self.steps > state.launch.max_steps:
                raise PtxFault(f"more than {state.launch.max_steps} steps (endless loop?) at {ins.where()}")
            active, rest, state.sel = lanes, None, whole
            if ins.pred is not None:
                active, rest = state.split(lanes, ~regs[ins.pred][whole] if ins.neg else regs[ins.pred][whole])
            size, kind = len(active), ins.kind
            counts[pc] += size
            report.warps[pc] += warps if rest is None else state.warps_of(active) if size else 0
            report.issued += 1
            report.thread_instrs += size
            if kind != PLAIN and (size or kind in (BRANCH, EXIT)):
                if rest is not None:
                    self._put(rest, pc + 1, unit)
                self._leave(ins, active, unit)
                return
            if size:
                runs[pc](active)
            pc += 1
            turn -= 1
            if pc >= meeting or turn <= 0:
                self._put(lanes, pc, unit)
                return
        self._end(lanes)

    def _leave(self, ins, lanes, unit):
        """Takes an instruction after which lanes of a unit need not stay together."""
        if ins.kind == WARP:
            self._meet(ins, lanes)
        elif ins.kind == BARRIER:
            if ins.mods[0] not in ("sync", "cta") or len(ins.args) > 1 or "red" in ins.mods:
                raise Unsupported(ins.where())
            self.at_bar[lanes], self.bar_pc[lanes] = int(ins.args[0], 0) if ins.args else 0, ins.pc
            self.changed = True
        elif ins.kind == EXIT:
            self._end(lanes)
        elif len(lanes) and ins.op == "bra":
            self._put(lanes, self.state.kernel.labels[ins.args[0]], unit)
        elif len(lanes):
            chosen = self.state.regs[ins.args[0]][lanes]
            for index, label in enumerate(self.state.kernel.tables[ins.args[1]]):
                if (chosen == index).any():
                    self._put(lanes[chosen == index], self.state.kernel.labels[label], unit)

    def _end(self, lanes):
        self.state.alive[lanes] = False
        self.changed = True

    def _meet(self, ins, lanes):
        """Executes an instruction of whole warps for those that are there; the others wait."""
        if ins.pc in self.parked:  # meet those who came earlier
            lanes = self.state.select(np.union1d(self.parked.pop(ins.pc), lanes))
        ready = self.state.converged(ins, lanes)
        if not ready.all():
            self.parked[ins.pc] = lanes[~ready]
            lanes = lanes[ready]
        if len(lanes):
            self.state.runs[ins.pc](self.state.select(lanes))
            self._put_all(lanes, ins.pc + 1)

    def _unpark(self):
        """Lets those go on whose warp never came; returns whether there were any."""
        if not self.parked:
            return False
        pc = min(self.parked)
        lanes = self.parked.pop(pc)
        self.report.add("warpsync", self.code[pc], "the member mask names threads that do not arrive here")
        self.state.runs[pc](self.state.select(lanes))
        self._put_all(lanes, pc + 1)
        return True

    def _open_barriers(self):
        """Lets those go on whose CTA is all at a barrier; returns whether there were any."""
        state, waiting, opened = self.state, self.at_bar >= 0, False
        for cta in np.unique(state.cta[waiting]):
            lanes = np.flatnonzero((state.cta == cta) & state.alive)
            if waiting[lanes].all():
                self._open_barrier(lanes)
                opened = True
        return opened

    def _open_barrier(self, lanes):
        """Lets the live threads of a CTA pass the barrier that they have reached."""
        state, report = self.state, self.report
        ids, places = np.unique(self.at_bar[lanes]), np.unique(self.bar_pc[lanes])
        ins = self.code[places[0]]
        if len(ids) > 1:
            raise PtxFault(f"deadlock: CTA {state.gcta[lanes[0]]} waits at barriers {ids} ({ins.where()})")
        if len(places) > 1:
            other = self.code[places[1]].where()
            report.add("barrier", ins, f"threads of one CTA wait at different bar.sync: also {other}")
        if len(lanes) < state.threads:
            gone = state.threads - len(lanes)
            report.add("barrier", ins, f"{gone} of {state.threads} threads had exited before this barrier")
        state.cta_epoch[lanes] += 1
        self.at_bar[lanes] = -1
        for pc in places:
            self._put_all(lanes[self.bar_pc[lanes] == pc], int(pc) + 1)

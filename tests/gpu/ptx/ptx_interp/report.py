"""Findings and counts of a launch, and the errors."""

from collections import Counter, namedtuple

import numpy as np


class PtxFault(Exception):  # noqa: N818
    """An invalid access or a deadlock: what would be an error on the device."""


class Unsupported(Exception):  # noqa: N818
    """PTX outside the supported subset."""


Finding = namedtuple("Finding", "kind where detail")


class Report:
    """Findings and execution counts of one launch.

    Attributes:
        counts: for each instruction, threads that executed it.
        warps: for each instruction, how often a warp issued it.
        issued, thread_instrs: instructions, and threads that executed one, in all.
        traffic: what memory was asked for, if it was to be counted.
    """

    def __init__(self, kernel, traffic=None):
        self.traffic = traffic
        self.kernel, self.findings, self.issued, self.thread_instrs = kernel, [], 0, 0
        self._seen = Counter()
        self.counts, self.warps = [0] * len(kernel.code), [0] * len(kernel.code)

    def finish(self):
        """Turns the counts of a launch that is done into arrays."""
        self.counts, self.warps = np.array(self.counts, np.int64), np.array(self.warps, np.int64)
        return self

    def sum_of(self, counts, *ops):
        """The sum of counts over the instructions of these operations."""
        return sum(int(count) for ins, count in zip(self.kernel.code, counts, strict=True) if ins.op in ops)

    def add(self, kind, ins, detail):
        """Notes a finding, the first of its kind at its place."""
        self._seen[(kind, ins.pc)] += 1
        if self._seen[(kind, ins.pc)] == 1:
            self.findings.append(Finding(kind, ins.where(), detail))

    def check(self):
        """Raises PtxFault if there are findings."""
        if self.findings:
            raise PtxFault("\n".join(f"{f.kind}: {f.where}: {f.detail}" for f in self.findings))
        return self

    def not_executed(self):
        """Instructions that no thread executed (PTX coverage of this launch)."""
        return [ins.where() for ins, count in zip(self.kernel.code, self.counts, strict=True) if count == 0]

"""A kernel as lists of instructions, registers and variables."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .formats import RAW, SIZE, U8
from .report import Unsupported

PLAIN, BRANCH, EXIT, BARRIER, WARP = range(5)  # kinds of instructions
QUALIFIER = r"(?:\.(?:visible|extern|weak|common)\s+)*"
DECLARED = re.compile(
    r"\.([bsuf]\d+)\s+(?:\.ptr[^%$\w]*(?:\.\w+\s+)*(?:\.align\s+\d+\s+)?)?([%$\w.]+)\s*((?:\[\s*\d*\s*\]\s*)*)\s*$"
)


@dataclass
class Instr:
    """An instruction: `op.mods args`, executed where its predicate is true (false, if `neg`)."""

    op: str
    mods: list
    args: list
    pred: str | None = None
    neg: bool = False
    text: str = ""
    loc: tuple | None = None  # of the source: file and line
    pc: int = 0

    @cached_property
    def kind(self):
        """How the schedule takes it."""
        op, mods = self.op, self.mods
        if op in ("bra", "brx"):
            return BRANCH
        if op in ("ret", "exit"):
            return EXIT
        if op in ("bar", "barrier") and mods[0] != "warp":
            return BARRIER
        return WARP if "sync" in mods and op in ("shfl", "vote", "redux", "match", "bar", "elect") else PLAIN

    def where(self):
        """The name of its place, in PTX and in the source."""
        file, line = self.loc or ("?", 0)
        return f"pc {self.pc} `{self.text}` ({file}:{line})"


def split_args(text):
    """Splits at top-level commas, keeping {...} and [...] together."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [*parts, current.strip()] if current.strip() else parts


class Var:
    """A declared variable: its state space, type, name, size, alignment and first value."""

    def __init__(self, text):
        self.space, rest = re.match(QUALIFIER + r"\.(\w+)\s+(.*)", text, re.DOTALL).groups()
        rest, _, init = rest.partition("=")
        m = DECLARED.search(rest)
        if not m:
            raise Unsupported(f"declaration: {text}")
        self.type, self.name = m.group(1), m.group(2)
        extents = re.findall(r"\[\s*(\d*)\s*\]", m.group(3))
        vector, align = re.search(r"\.v([24])\b", rest), re.search(r"\.align\s+(\d+)", rest)
        self.dynamic = "" in extents
        self.size = SIZE[self.type] * (int(vector.group(1)) if vector else 1)
        for extent in extents:
            self.size *= int(extent or 0)
        self.align = max(int(align.group(1)) if align else 0, SIZE[self.type])
        self.init = self._initial(init) if init.strip() else None

    def _initial(self, text):
        """The bytes of an initialiser."""
        values = [v for v in re.split(r"[{},\s]+", text) if v]
        if any(re.match(r"0[fd]", v) for v in values):
            raise Unsupported(f"initialiser: {text[:80]}")
        size = SIZE[self.type]
        return np.array([int(v, 0) % (1 << 8 * size) for v in values], RAW[size]).view(U8)


class Kernel:
    """The code of a kernel and the names in it."""

    def __init__(self, name, params):
        self.name, self.params, self.reqntid = name, params, None
        self.regs, self.code, self.labels, self.tables = {}, [], {}, {}
        self.shared, self.local, self.calls = [], [], 0
        self.state = None  # of its launches, which compile the code

    @cached_property
    def register_tables(self):
        """The names of the registers by bytes (0: predicates), once the kernel is decoded; they make tables,
        of which each is a row."""
        found = {}
        for name, type_ in self.regs.items():
            found.setdefault(0 if type_ == "pred" else SIZE[type_], []).append(name)
        return found

    @cached_property
    def rows(self):
        """The row of each register of 4 bytes in its table."""
        return {name: row for row, name in enumerate(self.register_tables.get(4, ()))}

"""The state of threads that run side by side: registers, memory, special registers."""

import numpy as np

from .compiler import Compiler
from .formats import GLOBAL_BASE, I32, I64, LOCAL_WIN, RAW, SHARED_WIN, U8, U32, U64
from .memory import Memory, whole
from .races import Shadow
from .report import PtxFault, Unsupported
from .special import Special

WINDOWS = np.array([SHARED_WIN, LOCAL_WIN, 1 << 32], U64)
GARBAGE = 0xA5A5A5A5A5A5A5A5  # in unwritten registers


class State:
    """The state of one chunk of CTAs: registers, shared memory, positions.

    One of each kernel, which begins anew with every chunk; what its instructions are compiled to looks everything up
    in it when it runs.
    """

    def __init__(self, kernel):
        self.kernel, self.regs, self.special = kernel, {}, Special(self)
        self.runs, self.readers, self.writers = None, {}, {}  # the code, compiled, and its operands by type

    def begin(self, launch, ctas):
        """Puts the threads of these CTAs at the beginning."""
        self.launch, self.symbols = launch, launch.symbols
        self.threads = threads = int(np.prod(launch.block))
        self.n = n = threads * len(ctas)
        self.tid, self.cta = np.arange(n) % threads, np.arange(n) // threads  # in the chunk
        self.gcta_wide = gcta = np.asarray(ctas)[self.cta]
        self.warps_per_cta = -(-threads // 32)
        self.warp = self.cta * self.warps_per_cta + self.tid // 32
        self.laneid = self.tid % 32
        self.special.clear()
        zeros, lane, warp = np.zeros(n, I32), gcta * threads + self.tid, gcta * self.warps_per_cta + self.tid // 32
        # Who accesses memory, and when; see Shadow.
        self.who = np.stack([lane, zeros, zeros, zeros, warp, gcta]).astype(I32)
        self.glane, self.cta_epoch, self.warp_epoch, _, _, self.gcta = self.who
        self.alive, self.cc, self.all, self.sel = np.ones(n, np.bool_), np.zeros(n, U64), np.arange(n), slice(0, n)
        self._fill(len(ctas))
        if self.runs is None:
            self.runs = [Compiler(self, ins).build() for ins in self.kernel.code]

    def _fill(self, ctas):
        """Unwritten memory and registers hold garbage, not zeros."""
        launch = self.launch
        self.shared = launch.rng.integers(0, 256, whole(launch.shared) * ctas, dtype=U8)
        self.sshadow = Shadow(len(self.shared)) if launch.shadow is not None or launch.uninit else None
        self.local = launch.rng.integers(0, 256, whole(launch.local) * self.n, dtype=U8)
        self.tables = {}
        for size, names in self.kernel.register_tables.items():
            dtype, value = (RAW[size], GARBAGE % (1 << 8 * size)) if size else (np.bool_, False)
            self.tables[size] = np.full((len(names), self.n), value, dtype)
            self.regs.update(zip(names, self.tables[size], strict=True))

    def select(self, lanes):
        """Makes these lanes those of the next instruction; where they are neighbours, nothing is copied."""
        first, end = int(lanes[0]), int(lanes[-1]) + 1
        self.sel = slice(first, end) if end - first == len(lanes) else lanes
        return lanes

    def words(self, rows):
        """What lanes hold in registers of 4 bytes: [registers, lanes]."""
        return (
            self.tables[4][rows, self.sel] if isinstance(self.sel, slice) else self.tables[4][rows[:, None], self.sel]
        )

    def set_words(self, rows, values):
        """Writes what lanes hold in registers of 4 bytes."""
        if isinstance(self.sel, slice):
            self.tables[4][rows, self.sel] = values
        else:
            self.tables[4][rows[:, None], self.sel] = values

    def split(self, lanes, chosen):
        """Selects the lanes that are chosen; returns them and the others, None if there are none."""
        on = np.count_nonzero(chosen)
        if on == len(lanes):
            return lanes, None
        if on == 0:
            return lanes[:0], lanes
        return self.select(lanes[chosen]), lanes[~chosen]

    # -- warps
    def mask_of(self, ins, lanes):
        """The member mask operand of a .sync warp instruction, per lane."""
        operand = ins.args[0] if ins.op == "bar" else ins.args[-1]
        return Compiler(self, ins).rd(operand, "u32")(lanes) + np.zeros(len(lanes), U32)

    def active_mask(self, lanes):
        """For each of these lanes, the mask of those of its warp."""
        masks = np.zeros(self.warp[-1] + 1, U32)
        np.bitwise_or.at(masks, self.warp[lanes], np.left_shift(U32(1), self.laneid[lanes].astype(U32)))
        return masks[self.warp[lanes]]

    def warps_of(self, lanes):
        """Number of the warps that these lanes, in order, are of."""
        if len(lanes) == self.n:
            return int(self.warp[-1]) + 1
        warp = self.warp[self.sel]
        return 1 + np.count_nonzero(warp[1:] != warp[:-1])

    def check_whole_warps(self, ins, lanes):
        """Raises unless all lanes of each warp are here."""
        if len(lanes) == self.n and self.threads % 32 == 0:
            return
        first, last = lanes[::32], lanes[31::32]
        whole = len(first) == len(last) and (last - first == 31).all()
        if not whole or self.laneid[first].any() or (self.laneid[last] != 31).any():
            raise PtxFault(f"executed by a part of a warp: {ins.where()}")

    def converged(self, ins, lanes):
        """For each of these lanes, whether all that the member mask names are here."""
        want = self.mask_of(ins, lanes)
        left = self.threads - (self.glane[lanes] % self.threads - self.laneid[lanes])  # a last, partial warp
        there = np.where(left < 32, (U64(1) << left.astype(U64)) - U64(1), U64(0xFFFFFFFF)).astype(U32)
        missing = (want & there & ~self.active_mask(lanes)) != 0
        good = np.ones(self.warp[-1] + 1, np.bool_)
        good[self.warp[lanes[missing]]] = False
        return good[self.warp[lanes]]

    # -- memory
    def resolve(self, ins, space, addr, size, lanes, write):
        """Turns addresses into (memory array, flat byte offsets, shadow, name), and checks them."""
        if (addr % U64(size)).any():
            at = int(addr[addr % U64(size) != 0][0])
            raise PtxFault(f"align: {size}-byte access at {at:#x}: {ins.where()}")
        if space == "generic":
            which = np.searchsorted(WINDOWS, addr, "right")
            if (which != which[0]).any():
                raise Unsupported(f"one generic access to several state spaces: {ins.where()}")
            space = ("global", "shared", "local", "global")[which[0]]
            addr = addr - U64({"shared": SHARED_WIN, "local": LOCAL_WIN, "global": 0}[space])
        if space in ("global", "const"):
            return self._resolve_global(ins, addr, size, lanes, write)
        limit = self.launch.shared if space == "shared" else self.launch.local
        off = addr.astype(I64)
        bad = (off < 0) | (off + size > limit)
        if bad.any():
            k = int(np.flatnonzero(bad)[0])
            thread = int(self.glane[lanes[k]] % self.threads)
            raise PtxFault(f"oob: {space} offset {int(off[k])}+{size} of {limit} by thread {thread}: {ins.where()}")
        if space == "shared":
            return self.shared, off + self.cta[lanes] * whole(self.launch.shared), self.sshadow, "shared"
        return self.local, off + lanes * whole(self.launch.local), None, "local"

    def _resolve_global(self, ins, addr, size, lanes, write):
        mem = self.launch.mem
        off = addr.astype(I64) - GLOBAL_BASE
        bad = (off < 0) | (off + size > len(mem.bytes))
        need = Memory.VALID | (Memory.WRITABLE if write else 0)
        first = np.where(bad, 0, off)
        held = mem.state[first] & mem.state[first + size - 1]
        bad |= (held & need) != need
        if bad.any():
            k = int(np.flatnonzero(bad)[0])
            kind = "readonly" if held[k] & Memory.VALID else "oob"
            raise PtxFault(
                f"{kind}: {size}-byte {'write' if write else 'read'} at {int(addr[k]):#x} by cta "
                f"{int(self.gcta[lanes[k]])} thread {int(self.glane[lanes[k]] % self.threads)} "
                f"({int(bad.sum())} threads): {ins.where()}"
            )
        # What no thread may write is raced for by none.
        shadow = self.launch.shadow if write or (held & Memory.WRITABLE).any() else None
        return mem.bytes, off, shadow, "global"

    def load(self, ins, space, addr, size, lanes, atomic=False):
        """Reads `size` bytes a lane: a uint8 array [lanes, size]."""
        mem, off, shadow, name = self.resolve(ins, space, addr, size, lanes, False)
        if self.launch.traffic is not None:
            self.launch.traffic.count(self, ins.pc, name, off, size, lanes)
        if shadow is not None and len(lanes):
            at, lane = shadow.grains(off, size, lanes)
            if name == "shared" and self.launch.uninit and shadow.unwritten(at):
                self.launch.report.add("uninit", ins, "shared memory read before it was written")
            if self.launch.shadow is not None:
                shadow.read(self, ins, at.ravel(), lane, atomic, name)
        return self.units(mem, off, size)[0]

    @staticmethod
    def units(mem, off, size):
        """The bytes [n, size] at these offsets, and what they are a copy of: memory as words, and their places in it.

        Accesses are aligned to their size, so words serve that NumPy copies at once."""
        word = min(size & -size, 8)
        words = mem[: len(mem) // word * word].view(RAW[word])
        at = off // word
        if size > word:
            at = at[:, None] + np.arange(size // word)
        got = words[at]
        return got.view(U8).reshape(len(off), size), words, at

    def store(self, ins, space, addr, data, lanes, atomic=False, changed=False):
        """Writes the bytes [lanes, size] of each lane; `changed`: counts as a change where the value is the same."""
        size = data.shape[1]
        mem, off, shadow, name = self.resolve(ins, space, addr, size, lanes, True)
        if self.launch.traffic is not None:
            self.launch.traffic.count(self, ins.pc, name, off, size, lanes)
        old, words, place = self.units(mem, off, size)
        if shadow is not None and len(lanes):
            at, lane = shadow.grains(off, size, lanes)
            if self.launch.shadow is not None:
                differs = np.ones(at.size, np.bool_)
                if not changed and not self.launch.same_value:
                    differs = (old != data).reshape(at.size, shadow.grain).any(1)
                shadow.write(self, ins, at.ravel(), lane, atomic, differs, name)
                if not atomic:
                    self._check_one_writer(ins, shadow, at.ravel(), lane, data, name)
            else:
                shadow.written(at)
        words[place] = np.ascontiguousarray(data).view(words.dtype).reshape(place.shape)

    def _check_one_writer(self, ins, shadow, at, lane, data, name):
        """Reports two lanes of one instruction that write different values to one place."""
        if (shadow.w[shadow.LANE].take(at) != self.glane[lane]).any():
            _, first, inverse = np.unique(at, return_index=True, return_inverse=True)
            values = data.reshape(at.size, shadow.grain)
            if self.launch.same_value or (values != values[first][inverse]).any():
                self.launch.report.add("race", ins, f"{name}: several threads write one byte in one instruction")

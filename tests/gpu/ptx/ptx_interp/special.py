"""Special registers: where a thread is, and in what."""

import numpy as np

from .formats import U32, U64

AXES = "xyz"


class Special(dict):
    """The special registers of a chunk of CTAs, each computed when it is first read."""

    PLACES = ("tid", "ctaid", "ntid", "nctaid")
    NAMES = frozenset(
        {
            *("%laneid", "%warpid", "%nwarpid", "WARP_SZ", "%smid", "%nsmid", "%gridid"),
            *("%clock", "%clock_hi", "%clock64", "%globaltimer"),
            *(f"%lanemask_{which}" for which in ("eq", "lt", "le", "ge", "gt")),
            *(f"%{place}.{axis}" for place in PLACES for axis in AXES),
        }
    )

    def __init__(self, state):
        super().__init__()
        self.state = state

    def __missing__(self, name):
        if name in ("%clock64", "%globaltimer"):
            value = np.zeros(self.state.n, U64)
        else:
            value = np.broadcast_to(np.asarray(self._value(name.lstrip("%")), U32), (self.state.n,)).copy()
        self[name] = value
        return value

    def _value(self, name):
        state = self.state
        if name[:-2] in self.PLACES:
            return self._place(name[:-2], AXES.index(name[-1]))
        if name.startswith("lanemask"):
            eq = np.left_shift(U32(1), state.laneid.astype(U32))
            lt = eq - U32(1)
            return {"eq": eq, "lt": lt, "le": eq | lt, "ge": ~lt, "gt": ~(eq | lt)}[name[-2:]]
        known = {"laneid": state.laneid, "warpid": state.tid // 32, "nwarpid": state.warps_per_cta}
        return {**known, "WARP_SZ": 32, "nsmid": 1}.get(name, 0)

    def _place(self, name, axis):
        """The position of a thread or CTA along an axis, or how many there are."""
        grid, block = self.state.launch.grid, self.state.launch.block
        if name[0] == "n":
            return (block if name == "ntid" else grid)[axis]
        extents, flat = (block, self.state.tid) if name == "tid" else (grid, self.state.gcta_wide)
        return flat // int(np.prod(extents[:axis])) % extents[axis]

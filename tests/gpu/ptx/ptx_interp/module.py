"""Launches of the kernels of a PTX text."""

from dataclasses import dataclass

import numpy as np

from .decoder import Program
from .formats import DT, RAW, SIZE, U8
from .memory import Buffer, Memory
from .races import Shadow
from .report import PtxFault, Report
from .schedule import Schedule
from .state import State
from .traffic import Traffic


def triple(extent):
    """The extents of a grid or block along x, y and z."""
    return (*extent, 1, 1)[:3] if isinstance(extent, tuple | list) else (int(extent), 1, 1)


def parameters(kernel, args):
    """The bytes of the parameters of a launch, and where each begins."""
    if len(args) != len(kernel.params):
        raise PtxFault(f"{kernel.name} takes {len(kernel.params)} parameters, got {len(args)}")
    held, offsets = bytearray(), {}
    for param, arg in zip(kernel.params, args, strict=True):
        held.extend(bytes(-len(held) % param.align))
        offsets[param.name] = len(held)
        value = arg.addr if isinstance(arg, Buffer) else arg
        if not isinstance(value, bytes):
            number = np.array([value], DT[param.type]) if param.type[0] == "f" else None
            size = SIZE[param.type]
            value = (np.array([int(value) % (1 << 8 * size)], RAW[size]) if number is None else number).tobytes()
        held.extend(value.ljust(param.size, b"\0"))
    return np.frombuffer(bytes(held) + bytes(16), U8), offsets


def lay_out(variables, at, space, symbols):
    """Gives each variable a place in its space from `at` on; returns where the last one ends."""
    for variable in variables:
        at = -(-at // variable.align) * variable.align
        symbols[variable.name] = (space, at)
        at += variable.size
    return at


@dataclass
class Launch:
    """What all threads of one launch share. See `Module.launch`."""

    grid: tuple
    block: tuple
    mem: Memory
    param: np.ndarray
    symbols: dict
    shared: int  # bytes of a CTA
    local: int  # bytes of a thread
    report: Report
    shadow: Shadow | None  # of global memory, if races are looked for
    schedule: str
    rng: np.random.Generator
    uninit: bool
    approx_ulp: int
    same_value: bool
    max_steps: int
    truncated: bool
    traffic: Traffic | None


class Module(Program):
    """A parsed PTX module. launch() runs one of its kernels."""

    def launch(
        self,
        name,
        grid,
        block,
        args,
        mem,
        shared=0,
        schedule="lockstep",
        seed=0,
        races=True,
        uninit=False,
        approx_ulp=0,
        same_value=False,
        max_lanes=1 << 15,
        max_steps=10_000_000,
        truncated=False,
        traffic=False,
    ):
        """Runs kernel `name`; returns a Report. args: Buffers, numbers, bytes (structs).

        same_value=True also reports conflicting stores that do not change the value (Triton's reductions do this on
        purpose: 32 lanes, one address). truncated=True cuts the sums of mma in floats off, as devices may. traffic=True
        counts wavefronts of shared memory and sectors of global memory."""
        kernel = self.kernel(name)
        grid, block = triple(grid), triple(block)
        threads, ctas = int(np.prod(block)), int(np.prod(grid))
        if kernel.reqntid and int(np.prod(kernel.reqntid)) != threads:
            raise PtxFault(f".reqntid {kernel.reqntid} but block {block}")
        param, offsets = parameters(kernel, args)
        symbols = self._globals_of(mem)
        dynamic = [v for v in self.globals if v.space == "shared" and v.dynamic]  # goes last
        shared += lay_out([*kernel.shared, *dynamic], 0, "shared", symbols)
        local = lay_out(kernel.local, 0, "local", symbols)
        symbols.update({name: ("param", at) for name, at in offsets.items()})
        rng = np.random.default_rng(seed)
        counted = Traffic(len(kernel.code)) if traffic else None
        launch = Launch(
            grid, block, mem, param, symbols, shared, local, Report(kernel, counted),
            Shadow(len(mem.bytes)) if races else None, schedule, rng, uninit, approx_ulp, same_value, max_steps,
            truncated, counted,
        )  # fmt: skip
        order = np.arange(ctas) if schedule == "lockstep" else rng.permutation(ctas)
        kernel.state = kernel.state or State(kernel)  # its code is compiled once
        at_once = max(1, max_lanes // threads)
        with np.errstate(all="ignore"):
            for first in range(0, ctas, at_once):
                kernel.state.begin(launch, order[first : first + at_once])
                Schedule(kernel.state).run()
        return launch.report.finish()

    def _globals_of(self, mem):
        """The places of the module's variables, which live in global memory for this launch."""
        symbols = {}
        for variable in self.globals:
            if variable.space in ("global", "const"):
                init = np.zeros(max(variable.size, 1), U8)
                if variable.init is not None:
                    init[: len(variable.init)] = variable.init
                symbols[variable.name] = ("global", mem.alloc(init, readonly=variable.space == "const").addr)
        return symbols

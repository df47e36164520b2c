"""An interpreter that runs the PTX that nvcc or Triton produced on the CPU, with NumPy.

It executes the *compiled* PTX text (not a re-compilation of the source) for the subset of integers, floats, shared
memory, shuffles, atomics and matrix products that ordinary kernels use. Every PTX register is a NumPy array with one
element per thread ("lane"); many CTAs run side by side in one chunk. It is a verification tool, not a simulator of
timing. Own work, written from the public PTX ISA manual.

    mem = Memory()
    x, y = mem.alloc(np_in), mem.alloc(np.zeros(n, "f4"))
    mod = Module(open("k.ptx").read())
    rep = mod.launch("kernel", grid=4, block=256, args=[x, y, n], mem=mem)
    rep.check()                # raises if a race/barrier/... finding was made
    y.get()                    # the result as a NumPy array

What is checked while running (each becomes a Finding with the .loc line)
  oob / align / readonly   every access, against the allocations + guard zones (these raise at once: PtxFault)
  race        same byte, two threads, >=1 write, not both atomic, no barrier between them (bar.sync epochs per CTA,
              bar.warp.sync per warp; different CTAs are never ordered within a launch)
  barrier     bar.sync reached by a part of the CTA, or at different places, or after other threads have exited
  warpsync    shfl/vote/redux .sync whose member mask names threads not there
  uninit      shared memory read before it was written (opt-in: uninit=True)
What is counted: how often threads and warps execute each instruction; opt-in (traffic=True) wavefronts of shared
memory, and so bank conflicts, and sectors of global memory.
Schedules: schedule="lockstep" (fast; all lanes, lowest pc first) or schedule="warp" with seed=k (parties of warps
interleaved at random: different seeds give different parties, legal interleavings and atomic orders).

Fidelity: IEEE ops (.rn add/mul/fma/div/sqrt/cvt, and .rz/.rm/.rp of f32) are exact; .ftz is honoured; .approx ops are
computed in double and rounded, i.e. within the hardware's error bound but not bit-equal to it (approx_ulp=k adds a
random error of up to k ulp, to see whether a test depends on that). Fences are no-ops: weak-memory reordering between
CTAs is not modelled. Not supported (raise Unsupported, with the instruction, when reached): recursion and indirect
calls, textures, wgmma/TMA/mbarrier, clusters, f8. Device printf does nothing; device assert and trap raise
PtxFault.

Text takes one way: `decoder` makes a `program` of it, `compiler` (with `operands` and a module for each kind of
instruction) functions of lanes, `state` holds what they act on, `schedule` calls them, `module` launches.
"""

from .formats import GLOBAL_BASE
from .memory import Buffer, Memory
from .module import Module
from .report import Finding, PtxFault, Report, Unsupported

__all__ = ["GLOBAL_BASE", "Buffer", "Finding", "Memory", "Module", "PtxFault", "Report", "Unsupported"]

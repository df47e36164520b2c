"""Instructions as functions of the lanes that execute them."""

from .arithmetic import Arithmetic
from .bits import Bits
from .conversions import Conversions
from .matrices import Matrices
from .moves import Moves
from .products import Products
from .report import Unsupported
from .warps import Warps


class Compiler(Arithmetic, Bits, Moves, Conversions, Matrices, Products, Warps):
    """One instruction, which `op_NAME` turns into a function of the active lanes."""

    def build(self):
        """That function; for what is not supported, one that says so if it is reached."""
        make = getattr(self, "op_" + self.ins.op, None)
        try:
            if make is None:
                raise self.bad()
            return make()
        except (Unsupported, KeyError, IndexError, ValueError, StopIteration) as e:
            message = str(e) if isinstance(e, Unsupported) else f"{self.ins.where()} {e!r}"

        def run(lanes):
            raise Unsupported(message)

        return run

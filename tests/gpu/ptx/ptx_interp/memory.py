"""Global memory: buffers with guard zones between them."""

import numpy as np

from .formats import GLOBAL_BASE, U8

GUARD = 512  # bytes that belong to no buffer


def whole(size):
    """Bytes from one CTA's or thread's memory to the next one's, so that all are aligned alike."""
    return -(-size // 16) * 16


class Buffer:
    """An array in device memory."""

    def __init__(self, mem, addr, dtype, shape):
        self.mem, self.addr, self.dtype, self.shape = mem, addr, np.dtype(dtype), shape
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize

    def get(self):
        """What it holds now."""
        at = self.addr - GLOBAL_BASE
        return self.mem.bytes[at : at + self.nbytes].copy().view(self.dtype).reshape(self.shape)


class Memory:
    """Global memory: an arena with guard zones between the allocations."""

    VALID, WRITABLE = 1, 2

    def __init__(self):
        self.bytes = np.zeros(GUARD, U8)
        self.state = np.zeros(GUARD, U8)

    def alloc(self, array, readonly=False, offset=0, align=256):
        """Copies an array into device memory; `offset` bytes make it misaligned."""
        array = np.ascontiguousarray(array)
        start = -(-len(self.bytes) // align) * align + offset
        end = start + array.nbytes
        grown, state = np.zeros(end + GUARD, U8), np.zeros(end + GUARD, U8)
        grown[: len(self.bytes)], state[: len(self.state)] = self.bytes, self.state
        grown[start:end] = array.reshape(-1).view(U8)
        state[start:end] = self.VALID if readonly else self.VALID | self.WRITABLE
        self.bytes, self.state = grown, state
        return Buffer(self, GLOBAL_BASE + start, array.dtype, array.shape)

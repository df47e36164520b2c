"""Number formats of PTX as those of NumPy, and the windows of generic addresses."""

import numpy as np

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
I8, I16, I32, I64 = np.int8, np.int16, np.int32, np.int64
F16, F32, F64 = np.float16, np.float32, np.float64
RAW = {1: U8, 2: U16, 4: U32, 8: U64}  # bits of a register
DT = {
    **{"pred": np.bool_, "bf16": U16, "f16x2": U32, "bf16x2": U32, "f16": F16, "f32": F32, "f64": F64},
    **{"u8": U8, "u16": U16, "u32": U32, "u64": U64, "b8": U8, "b16": U16, "b32": U32, "b64": U64},
    **{"s8": I8, "s16": I16, "s32": I32, "s64": I64},
}
SIZE = {name: np.dtype(dtype).itemsize for name, dtype in DT.items()}
SIGNED = frozenset({"s8", "s16", "s32", "s64"})
FLOAT = frozenset({"f16", "bf16", "f32", "f64", "f16x2", "bf16x2"})
# Global addresses lie above 2**32 on purpose: 32-bit address arithmetic in a kernel then faults instead of passing.
SHARED_WIN, LOCAL_WIN, GLOBAL_BASE = 0x0100_0000, 0x0200_0000, 0x7F00_0000_0000

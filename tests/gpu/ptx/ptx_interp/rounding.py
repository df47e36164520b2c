"""Exact float arithmetic: sums, products and conversions rounded once, in any direction."""

import ctypes

import numpy as np

from .formats import F32, F64, I64, U16, U32


def f64_odd(hi, lo):
    """hi + lo (|lo| <= ulp(hi)/2, the exact error) rounded to odd in double."""
    bits = hi.view(I64)
    adj = (lo != 0) & ((bits & 1) == 0) & np.isfinite(hi)
    toward = np.where((lo > 0) == (hi > 0), 1, -1)
    toward = np.where(hi == 0, 0, toward)
    return np.where(adj, bits + toward, bits).view(F64)


def two_sum(a, b):
    """The rounded sum of two floats, and its error, exactly."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def narrow(hi, lo, dt, mode):
    """The exact value hi + lo rounded once, to f32 (any mode) or f16/f64 (rn)."""
    hi, lo = np.broadcast_arrays(np.asarray(hi, F64), np.asarray(lo, F64))
    hi, lo = np.ascontiguousarray(hi), np.ascontiguousarray(lo)
    lo = np.where(np.isfinite(lo), lo, 0.0)
    odd = f64_odd(hi, lo)
    r = odd.astype(dt)
    if mode == "rn":
        return r
    back = r.astype(F64)
    up, down = back > odd, back < odd  # direction r was moved
    inf = dt(np.inf)
    if mode == "rz":
        fix_dn, fix_up = up & (odd > 0), down & (odd < 0)
    elif mode == "rm":
        fix_dn, fix_up = up, np.zeros_like(up)
    else:
        fix_dn, fix_up = np.zeros_like(up), down
    r = np.where(fix_dn, np.nextafter(r, -inf), r)
    return np.where(fix_up, np.nextafter(r, inf), r)


_libm = ctypes.CDLL(None)
try:
    _fma64 = _libm.fma
except AttributeError:  # musl, macOS: libm apart
    _fma64 = ctypes.CDLL("libm.so.6").fma
_fma64.restype, _fma64.argtypes = ctypes.c_double, [ctypes.c_double] * 3
_vfma64 = np.frompyfunc(lambda a, b, c: _fma64(a, b, c), 3, 1)


def fma(a, b, c, dt, mode):
    """The product of two floats plus a third, rounded once."""
    if dt is F64:
        return _vfma64(a, b, c).astype(F64)
    p = a.astype(F64) * b.astype(F64)  # exact for f32 and f16
    s, e = two_sum(p, c.astype(F64))
    return narrow(s, e, dt, mode)


def add(a, b, dt, mode):
    """The sum of two floats, rounded as the mode says."""
    if mode == "rn" or dt is F64:
        return a + b
    return narrow(*two_sum(a.astype(F64), b.astype(F64)), dt, mode)


def mul(a, b, dt, mode):
    """The product of two floats, rounded as the mode says."""
    if mode == "rn" or dt is F64:
        return a * b
    return narrow(a.astype(F64) * b.astype(F64), 0.0, dt, mode)


def bf16_to_f32(u):
    """The values of bfloat16 bits."""
    return (u.astype(U32) << U32(16)).view(F32)


def f32_to_bf16(f):
    """The bits of the nearest bfloat16, ties to even."""
    u = np.ascontiguousarray(f, F32).view(U32)
    r = ((u + U32(0x7FFF) + ((u >> U32(16)) & U32(1))) >> U32(16)).astype(U16)
    return np.where(np.isnan(f), U16(0x7FFF), r)


def flush(x):
    """Values with zeros for what is subnormal in float32."""
    return np.where(np.abs(x) < np.finfo(F32).tiny, np.copysign(F32(0), x), x) if x.dtype == F32 else x

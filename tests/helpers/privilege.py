"""A process that may write only where it is allowed to, also where root runs the tests."""

from __future__ import annotations

import ctypes
import os

import pytest

VERSION = 0x20080522  # of the interface of capset(2)


def give_up() -> None:
    """Gives up every capability of this process, and with them the right of root to write in read-only folders."""
    header, nothing = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def require_privilege_to_give_up() -> None:
    """Skips a test where root could not become less."""
    if os.geteuid() == 0 and not hasattr(ctypes.CDLL(None), "capset"):
        pytest.skip("root writes everywhere, and this system has no capset")

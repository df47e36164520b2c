"""Interrupts that wait, in a process of their own: pytest has a handler too."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, threading
from smoothfast.interrupts import held_back

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
done = []
try:
    with held_back():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("work")
        if "twice" in sys.argv:
            os.kill(os.getpid(), signal.SIGINT)
            done.append("more")
    done.append("after")
except KeyboardInterrupt:
    done.append("interrupt")
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    done.append("as before")
other = threading.Thread(target=lambda: held_back().__enter__())
other.start(); other.join()
print(" ".join(done))
"""


@pytest.mark.parametrize("times", ["once", "twice"])
def test_the_first_waits_for_the_end(times: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, times], capture_output=True, text=True, check=True)
    assert done.stdout == "work interrupt as before\n"
    assert done.stderr == ""

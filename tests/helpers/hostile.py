"""Files and texts of somebody who means no good, and what readers may do with them: answer, or refuse in words."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# Orders to a terminal: escape sequences, the title of a window, bell, return, backspace, a turn of direction, a line.
ORDERS = "\x1b[31m\x1b]0;owned\x07\r\b\x9b2J\u202e\u2066\u2028"


def obeyed(text: str) -> set[str]:
    """The characters of a text that a terminal would take for orders."""
    return {char for char in text if not char.isprintable() and char not in "\n\t"}


def refused_or_read(act: Callable[[], Any], *named: object) -> bool:
    """Reads; tells whether it went. Anything but an answer, or an error of usage or of the system that names one of
    these things, goes through."""
    try:
        act()
    except (ValueError, OSError) as error:
        if not any(str(name) in str(error) for name in named):
            raise AssertionError(f"{error!r} names none of {', '.join(map(str, named))}") from error
        return False
    return True


@st.composite
def spoiled(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file that was whole: bytes changed, lost, doubled, brought in from elsewhere or cut off at the end."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["change", "lose", "double", "bring", "number", "cut"])):
            case "change":
                data[start : start + 1] = draw(st.binary(max_size=2))
            case "lose":
                del data[start:end]
            case "double":
                data[start:start] = data[start:end]
            case "bring":
                data[start:start] = draw(st.one_of(st.binary(max_size=20), st.sampled_from(NASTY)))
            case "number":
                data[start : start + 8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, draw(st.sampled_from(ENDS)))
            case "cut":
                del data[start:]
    return bytes(data)


ENDS = ("little", "big")
NASTY = [
    text.encode() for text in (ORDERS, "1e999", "9" * 5000, "-1", "NaN", "Infinity", "null", "{}", "\\ud800", "\t")
]
NASTY += [b"\xff\xfe", b"\0" * 8, b"[" * 2000, b'{"settings":', b"\r\n", b"\xe2\x80\xa8"]


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to have so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    made = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        made += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return made

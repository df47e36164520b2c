"""Parts of files, and changes of one of them, after which lengths and checksums are right again."""

from __future__ import annotations

import io
import json
import pickletools
import random
import warnings
import zipfile
import zlib
from collections.abc import Callable
from struct import pack

from helpers.hostile import NASTY

PNG = b"\x89PNG\r\n\x1a\n"
VALUES = [b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 400, b"0", b"[]", b"{}", b'""', b"[[1]]", b'"x"', b"0.5"]


def of_zip(data: bytes) -> list[bytes]:
    """Names and contents."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [part for name in file.namelist() for part in (name.encode(), file.read(name))]


def to_zip(parts: list[bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, content in zip(parts[::2], parts[1::2], strict=False):
            file.writestr(name.decode(errors="replace").replace("\0", "") or "x", content)
    return made.getvalue()


def of_png(data: bytes) -> list[bytes]:
    """Chunks, inflated."""
    assert data.startswith(PNG)
    chunks, place = [], len(PNG)
    while place < len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        kind, content = data[place + 4 : place + 8], data[place + 8 : end]
        chunks.append(kind + (zlib.decompress(content) if kind == b"IDAT" else content))
        place = end + 4
    return chunks


def to_png(chunks: list[bytes]) -> bytes:
    made = [chunk[:4] + (zlib.compress(chunk[4:], 1) if chunk[:4] == b"IDAT" else chunk[4:]) for chunk in chunks]
    return PNG + b"".join(pack(">I", len(chunk[4:])) + chunk + pack(">I", zlib.crc32(chunk)) for chunk in made)


def of_safetensors(data: bytes) -> list[bytes]:
    """The header, and the tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    assert data[8:9] == b"{"
    assert end <= len(data)
    return [data[8:end], data[end:]]


def to_safetensors(parts: list[bytes]) -> bytes:
    return pack("<Q", len(parts[0])) + b"".join(parts)


def of_json(data: bytes) -> list[bytes]:
    """The bracket, and what is within: keys as text, values as JSON; the text of a string."""
    match json.loads(data):
        case dict(value):
            return [b"{", *(text.encode() for pair in value.items() for text in (pair[0], json.dumps(pair[1])))]
        case [*value]:
            return [b"[", *(json.dumps(each).encode() for each in value)]
        case str(value):
            return [b'"', value.encode()]
    raise ValueError


def to_json(parts: list[bytes]) -> bytes:
    bracket, *values = parts or [b"["]
    if bracket == b"{":
        keys = [json.dumps(key.decode(errors="replace")).encode() for key in values[::2]]
        return b"{" + b", ".join(map(b": ".join, zip(keys, values[1::2], strict=False))) + b"}"
    if bracket == b"[":
        return b"[" + b", ".join(values) + b"]"
    return json.dumps(b"".join(values).decode(errors="replace")).encode()


def of_pickle(data: bytes) -> list[bytes]:
    """Operations."""
    assert data.startswith(b"\x80")
    places = [place for _, _, place in pickletools.genops(data)]
    return [data[start:end] for start, end in zip(places, [*places[1:], len(data)], strict=True)]


def of_text(data: bytes) -> list[bytes]:
    """Lines, cells, or names of a path."""
    assert all(char.isprintable() or char in "\r\n\t" for char in data.decode())
    by = next(by for by in (b"\n", b"\t", b",", b"/", b":", b"+") if by in data)
    return [part + by for part in data.split(by)]


def to_text(parts: list[bytes]) -> bytes:
    return b"".join(parts)[:-1]


WAYS: list[tuple[Callable[[bytes], list[bytes]], Callable[[list[bytes]], bytes]]] = [
    (of_zip, to_zip), (of_png, to_png), (of_safetensors, to_safetensors), (of_json, to_json), (of_pickle, b"".join),
    (of_text, to_text),
]  # fmt: skip


def changed(data: bytes, chance: random.Random, mutate: Callable[[bytes], bytes]) -> bytes:
    """Data with a change in one of its parts, or of one; or by `mutate`."""
    for parts_of, whole_of in WAYS if chance.random() < 0.9 else []:
        try:
            parts = parts_of(data)
            place = chance.randrange(len(parts))
        except Exception:  # it is of another kind, or has no parts
            continue
        match chance.randrange(8):
            case 0:
                del parts[place]
            case 1:
                parts.insert(place, chance.choice(parts))
            case 2:
                parts[place] = chance.choice(parts)
            case _:
                parts[place] = changed(parts[place], chance, mutate)
        return whole_of(parts)
    return chance.choice(VALUES + NASTY) if chance.random() < 0.3 else mutate(data)

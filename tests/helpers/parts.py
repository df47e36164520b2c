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
from typing import Any

import torch
from helpers.hostile import NASTY

PNG = b"\x89PNG\r\n\x1a\n"
# What may stand in the place of a part: of JSON, of what torch has saved, of the operations of a pickle.
VALUES = [b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 400, b"0", b"[]", b"{}", b'""', b"[[1]]", b'"x"', b"0.5"]
ODD = [None, True, -1, 9, 2**63, 10**400, 0.5, float("nan"), "", "a", [], {}, (), [[1]]]
ODD += [torch.zeros(2), torch.tensor(1)]
OPERATIONS = [
    b"N", b"\x88", b"K\0", b"K\5", b"J\xff\xff\xff\xff", b"\x8a\x09" + bytes(7) + b"\x80\0", b"G\x7f\xf8" + bytes(6),
    b"X\1\0\0\0a", b"X\0\0\0\0", b"]", b"}", b")", b"\x8f", b"\x85", b"q\0h\0\x86", b"R", b"b", b"s", b"a",
]  # fmt: skip


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


def of_torch(data: bytes) -> list[bytes]:
    """The bracket, and what is within, each as a torch file of its own."""
    match torch.load(io.BytesIO(data), weights_only=True):
        case dict(value):
            return [b"{", *(saved(part) for pair in value.items() for part in pair)]
        case [*value] as held:
            return [b"(" if isinstance(held, tuple) else b"[", *map(saved, value)]
    raise ValueError


def to_torch(parts: list[bytes]) -> bytes:
    bracket, *values = parts or [b"["]
    found = [_loaded(part) for part in values]
    if bracket == b"{":
        pairs = zip(found[::2], found[1::2], strict=False)
        return saved({key: value for key, value in pairs if isinstance(key, (str, int))})
    return saved(tuple(found) if bracket == b"(" else found)


def saved(value: Any) -> bytes:
    made = io.BytesIO()
    torch.save(value, made)
    return made.getvalue()


def _loaded(part: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(part), weights_only=True)
    except Exception:  # it was changed elsewhere than in its parts
        return part.decode(errors="replace")


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
        return b"{" + b", ".join(map(b": ".join, zip(keys, map(_as_json, values[1::2]), strict=False))) + b"}"
    if bracket == b"[":
        return b"[" + b", ".join(map(_as_json, values)) + b"]"
    return json.dumps(b"".join(values).decode(errors="replace")).encode()


def _as_json(part: bytes) -> bytes:
    try:
        json.loads(part)
    except Exception:  # it was changed elsewhere than in its parts
        return json.dumps(part.decode(errors="replace")).encode()
    return part


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


# Parts of a file, the file of parts, and what may stand in the place of one.
WAYS: list[tuple[Callable[[bytes], list[bytes]], Callable[[list[bytes]], bytes], list[bytes]]] = [
    (of_torch, to_torch, [*map(saved, ODD)]), (of_zip, to_zip, [b""]), (of_png, to_png, [b"IDAT", b"IEND"]),
    (of_safetensors, to_safetensors, [b"{}"]), (of_json, to_json, VALUES), (of_pickle, b"".join, OPERATIONS),
    (of_text, to_text, NASTY),
]  # fmt: skip


def changed(data: bytes, chance: random.Random, mutate: Callable[[bytes], bytes]) -> bytes:
    """Data with a change in one of its parts, large ones above all, or of one; or by `mutate`."""
    for parts_of, whole_of, values in WAYS:
        try:
            if chance.random() < 0.1:
                continue
            parts = parts_of(data)
            place = chance.choices(range(len(parts)), [1 + len(part) for part in parts])[0]
        except Exception:  # it is of another kind, or has no parts
            continue
        match chance.randrange(16):
            case 0:
                del parts[place]
            case 1:
                parts.insert(place, chance.choice(parts))
            case 2:
                parts[place] = chance.choice(parts)
            case 3:
                parts[chance.randrange(len(parts))] = chance.choice(values)
            case _:
                parts[place] = changed(parts[place], chance, mutate)
        return whole_of(parts)
    return chance.choice(VALUES + NASTY) if chance.random() < 0.3 else mutate(data)

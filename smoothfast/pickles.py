"""Pickles of others, gone through before they are read: how large and deep what they make would be, and by what calls.

`weights_only=True` runs no code, but 50 bytes are enough to fill the memory or to compute for ever: tuples that hold
one another twice, thirty times over, and are hashed or shown in an error; or a call that makes many values of one.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

MOST_EACH, LEAST = 20, 100_000  # values that a pickle may make, written out: so many for an operation, or these
MOST_LEVELS = 100  # of values within each other
WORDS = (
    "NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
    "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
)  # fmt: skip
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}  # of so many values
ADDITIONS = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}  # of so many values to the one below
UNFOLDING = ("OrderedDict", "Counter", "set", "Size", "_rebuild_from_type_v2")  # go through what they are given
LARGE = (  # take as much memory as a number tells, and no state dict is made of them
    "bytearray", "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_nested_tensor", "_rebuild_sparse_tensor",
)  # fmt: skip
DTYPES = {"b1", "f2", "f4", "f8", "i4", "i8"}  # of NumPy's numbers; others have any length


@dataclass(eq=False)
class Value:
    """A value that a pickle would make.

    Attributes:
        name: of a function or class.
        made: it is what a call returns.
        size: number of values that it is made of, written out.
        levels: of values within each other.
        shared: it stands in several places.
        text: itself, where it is one.
        parts: the values that stand in it at once.
    """

    name: str = ""
    made: bool = False
    size: int = 1
    levels: int = 1
    shared: bool = False
    text: str = ""
    parts: list[Value] = field(default_factory=list)

    def take(self, parts: Sequence[Value]) -> Value:
        """Takes in parts; ValueError where that would change what stands elsewhere, or hand on a class."""
        if self.shared:
            raise ValueError("it changes a value that stands in several places")
        if any(part.name in UNFOLDING for part in parts):
            raise ValueError("it hands on what makes many values of one")
        self.size += sum(part.size for part in parts)
        self.levels = max([self.levels, *(1 + part.levels for part in parts)])
        self.parts += parts
        return self


class Outline:
    """The values that a pickle would make, as far as it is gone through."""

    def __init__(self) -> None:
        self._stack: list[Value] = []
        self._below: list[list[Value]] = []  # stacks below marks
        self._memo: dict[Any, Value] = {}

    def step(self, operation: str, argument: Any) -> Value | None:
        """Takes an operation; returns the value that it leaves on the stack, None where it leaves none.

        Raises:
            ValueError: the value would take more than its operations tell.
            LookupError: torch does not take it, at this place.
        """
        if operation == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif operation not in ("PROTO", "STOP"):
            value = self._left(operation, argument)  # which may go on with the stack below a mark
            self._stack.append(value)
            return value
        return None

    def _left(self, operation: str, argument: Any) -> Value:
        if operation in WORDS:
            return Value(text=argument if isinstance(argument, str) else "")
        if operation == "GLOBAL":
            return _named(argument.rpartition(" ")[2])
        if operation in ("BINGET", "LONG_BINGET"):
            self._memo[argument].shared = True
            return self._memo[argument]
        if operation == "TUPLE":
            return Value().take(self._marked())
        if operation in ("APPENDS", "SETITEMS"):
            parts = self._marked()
            return self._stack.pop().take(parts)
        if operation in TUPLES:
            return Value().take(self._popped(TUPLES[operation]))
        if operation in ADDITIONS:
            parts = self._popped(ADDITIONS[operation])
            if operation == "BUILD" and parts[0].made:
                raise ValueError("it unfolds what a call returns")
            return self._stack.pop().take(parts)
        if operation in ("REDUCE", "NEWOBJ"):
            return _called(*self._popped(2))
        if operation == "BINPERSID":
            return Value(made=True).take(self._popped(1))
        raise LookupError(operation)

    def _popped(self, count: int) -> list[Value]:
        return [self._stack.pop() for _ in range(count)][::-1]

    def _marked(self) -> list[Value]:
        parts, self._stack = self._stack, self._below.pop()
        return parts


def _named(name: str) -> Value:
    if name in LARGE:
        raise ValueError(f"it calls {name}, which takes memory by a number")
    return Value(name)


def _called(function: Value, arguments: Value) -> Value:
    if arguments.made or (function.name in UNFOLDING and any(part.made for part in arguments.parts)):
        raise ValueError("it unfolds what a call returns")
    if function.name == "dtype" and (arguments.levels > 2 or {part.text for part in arguments.parts} - {"", *DTYPES}):
        raise ValueError("it makes numbers of any length")
    return Value(made=True, size=1 + function.size, levels=function.levels).take([arguments])


def require_modest(file: IO[bytes]) -> bool:
    """Goes through the pickle at the position of a file; tells whether it came to its end, and not to what torch does
    not take either.

    Raises:
        ValueError: it would make values that hold one another without end, or many of one by a call.
    """
    outline, operation = Outline(), ""
    try:
        for count, (operation, argument) in enumerate(_operations(file), start=1):
            value = outline.step(operation, argument)
            if value is not None and (value.size > max(LEAST, MOST_EACH * count) or value.levels > MOST_LEVELS):
                raise ValueError("its values hold one another without end")
    except LookupError:
        return False
    return operation == "STOP"


def _operations(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """The operations of a pickle and their arguments, as far as it is one."""
    with suppress(Exception):  # of a parser that meets noise
        for operation, argument, _ in pickletools.genops(file):
            yield operation.name, argument

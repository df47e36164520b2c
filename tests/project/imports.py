"""Draws the imports of the package: rooms, floors, arrows, and what should not be there.

    python tests/project/imports.py [FOLDER] [--folders]

A room is a file; with `--folders`, a folder or a file beside them. An arrow leads from a room to one that it imports;
who imports a name from a package, imports the file that it stands in. A room stands on the floor above the highest that
it imports. A circle is a set of rooms each of which leads to all others. What is imported within a function, or for
types alone, and closes a circle does not count for the floors: it runs upwards.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "smoothfast"


class Arrow(NamedTuple):
    """An import of a room by another."""

    source: str
    target: str


@dataclass(frozen=True)
class House:
    """Rooms and the arrows between them.

    Attributes:
        rooms: names.
        arrows: imports that are made as a room is.
        deferred: imports within functions and for types alone.
    """

    rooms: frozenset[str]
    arrows: frozenset[Arrow]
    deferred: frozenset[Arrow]

    @cached_property
    def floors(self) -> dict[str, int]:
        """The floor of each room; the ground is 1."""
        circles = self.circles()
        tied = {arrow for arrow in self.deferred if any(circle >= set(arrow) for circle in circles)}
        counted = (self.arrows | self.deferred) - tied
        below = {room: {arrow.target for arrow in counted if arrow.source == room} for room in self.rooms}
        floors: dict[str, int] = {}

        def floor(room: str, above: tuple[str, ...] = ()) -> int:
            if room not in floors:
                floors[room] = 1 + max((floor(it, (*above, room)) for it in below[room] if it not in above), default=0)
            return floors[room]

        for room in sorted(self.rooms):
            floor(room)
        return floors

    def upwards(self) -> list[Arrow]:
        """The arrows that lead to the same floor or a higher one."""
        both = sorted(self.arrows | self.deferred)
        return [arrow for arrow in both if self.floors[arrow.target] >= self.floors[arrow.source]]

    def circles(self) -> list[set[str]]:
        """The circles, deferred imports among their arrows."""
        reached = {room: {room} for room in self.rooms}
        both = self.arrows | self.deferred
        for _ in self.rooms:
            for source, target in both:
                reached[source] |= reached[target]
        found = []
        for room in sorted(self.rooms):
            circle = {other for other in reached[room] if room in reached[other]}
            if len(circle) > 1 and circle not in found:
                found.append(circle)
        return found

    def by_folder(self) -> House:
        """The same house with folders as rooms."""

        def gathered(arrows: frozenset[Arrow]) -> frozenset[Arrow]:
            moved = {Arrow(*(room.split("/")[0] for room in arrow)) for arrow in arrows}
            return frozenset(arrow for arrow in moved if arrow.source != arrow.target)

        return House(
            frozenset(room.split("/")[0] for room in self.rooms), gathered(self.arrows), gathered(self.deferred)
        )

    def __str__(self) -> str:
        told = [
            f"{len(self.rooms)} rooms on {max(self.floors.values())} floors, "
            f"{len(self.arrows | self.deferred)} arrows, {len(self.upwards())} upwards, {len(self.circles())} circles"
        ]
        for number in range(max(self.floors.values()), 0, -1):
            told.append(f"{number:3}  {'  '.join(sorted(room for room in self.rooms if self.floors[room] == number))}")
        told += [f"upwards: {source} -> {target}" for source, target in self.upwards()]
        told += [f"circle: {', '.join(sorted(circle))}" for circle in self.circles()]
        return "\n".join(told)


def house(package: Path = PACKAGE) -> House:
    """Reads the imports of a package."""
    files = {room_of(path, package): path for path in package.rglob("*.py")}
    trees = {room: ast.parse(path.read_text()) for room, path in files.items()}
    faces = {room: face(room, tree, files.keys()) for room, tree in trees.items() if room.endswith("__init__")}
    arrows, deferred = set(), set()
    for room, tree in trees.items():
        direct = {id(node) for node in top_level(tree)}
        for node in ast.walk(tree):
            for target in imported(room, node, files.keys(), faces):
                if target != room:
                    (arrows if id(node) in direct else deferred).add(Arrow(room, target))
    hollow = {room for room in faces if not defines(trees[room])}
    kept = [frozenset(arrow for arrow in them if not hollow & set(arrow)) for them in (arrows, deferred - arrows)]
    return House(frozenset(files.keys() - hollow), *kept)


def room_of(path: Path, package: Path) -> str:
    """The name of a file, as `engine/votes`."""
    return path.relative_to(package).with_suffix("").as_posix()


def defines(tree: ast.Module) -> bool:
    """Whether a package's own file does more than hand names on."""
    return any(isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_" for node in tree.body)


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """The imports that are made as the file is imported."""
    for node in tree.body:
        if isinstance(node, ast.Try | ast.With):
            yield from node.body
        yield node


def face(room: str, tree: ast.Module, rooms: object) -> dict[str, str]:
    """By name that a package hands on, the room that it stands in."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                for target in imported(room, node, rooms, {}, alias.name):
                    found[alias.asname or alias.name] = target
    return found


def imported(
    room: str, node: ast.AST, rooms: object, faces: dict[str, dict[str, str]], only: str | None = None
) -> Iterator[str]:
    """The rooms that an import statement of a room leads to."""
    if not isinstance(node, ast.ImportFrom):
        return
    if node.level:
        folders = room.split("/")[:-1]
        base = [*folders[: len(folders) - node.level + 1], *(node.module or "").split(".")]
    elif (node.module or "").split(".")[0] == PACKAGE.name:
        base = (node.module or "").split(".")[1:]
    else:
        return
    place = "/".join(part for part in base if part)
    for alias in node.names:
        if only in (None, alias.name):
            yield from target_of(place, alias.name, rooms, faces)


def target_of(place: str, name: str, rooms: object, faces: dict[str, dict[str, str]]) -> Iterator[str]:
    """The room of a name that is imported from a place: a module there, or where the package has it from."""
    inside = f"{place}/{name}".lstrip("/")
    for candidate in (inside, f"{inside}/__init__", place):
        if candidate in rooms:  # type: ignore[operator]
            yield candidate
            return
    package = f"{place}/__init__".lstrip("/")
    if package in rooms:  # type: ignore[operator]
        yield faces.get(package, {}).get(name, package)


if __name__ == "__main__":
    folders = [Path(word) for word in sys.argv[1:] if word != "--folders"]
    drawn = house(*folders)
    print(drawn.by_folder() if "--folders" in sys.argv else drawn)

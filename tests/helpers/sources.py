"""The Python sources of the package, as trees that tests of the project read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for folder in ("smoothfast", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | Function


def rooms() -> dict[str, list[Path]]:
    """The modules, by the folder that they are in."""
    found: dict[str, list[Path]] = {}
    for path in MODULES:
        found.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append(path)
    return found


def definitions(node: ast.AST, outer: str = "") -> Iterator[tuple[str, Definition]]:
    """Classes and functions in a tree, at any depth, with their dotted names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            name = f"{outer}.{child.name}" if outer else child.name
            yield name, child
            yield from definitions(child, name)
        else:
            yield from definitions(child, outer)


def place(path: Path, line: int) -> str:
    """The name of a line, as editors take it."""
    return f"{path.relative_to(ROOT)}:{line}"

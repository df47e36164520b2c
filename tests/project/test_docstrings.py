"""Docstrings begin with a verb or a noun that names their subject: nobody has to guess it. Public names have one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.sources import MODULES, Definition, Function, definitions, place, rooms

PREPOSITIONS = """about above across after against along among around as at because before behind below beneath beside
besides between beyond but by despite down during except for from if in inside into like near of off on onto out outside
over per since so than through to toward towards under unless until up upon via while with within without"""
PRONOUNS = """he her here his i it its likewise my our she such that their theirs them there these they this those we
what whatever whichever who whoever whom whose you your"""
QUESTIONS = """are can could did do does had has have how is may might must shall should was were when where wherever
which why will would"""
DTYPES = "bfloat16 bool float16 float32 float64 int16 int32 int64 int8 uint16 uint32 uint64 uint8"
VAGUE = frozenset(" ".join((PREPOSITIONS, PRONOUNS, QUESTIONS, DTYPES)).split())
# Of two words: the subject is that of another docstring, or still to come.
PHRASES = frozenset({"the same", "so many", "so much", "all but", "each returns", "not by", "not only"})


def begins_vaguely(docstring: str) -> bool:
    """Whether the first words name no subject: a preposition, pronoun or question word, a dtype or a shape."""
    words = re.findall(r"[^\s.,:;()]+", docstring.lower())[:2]
    return not words or words[0] in VAGUE or " ".join(words) in PHRASES or docstring.startswith("[")


def docstrings(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines and texts of all docstrings: of the module, of classes and functions, and those below assignments."""
    for node in (module, *(definition for _, definition in definitions(module))):
        text = ast.get_docstring(node)
        if text is not None:
            yield node.body[0].lineno, text
        if not isinstance(node, Function):
            for before, after in zip(node.body, node.body[1:], strict=False):
                match before, after:
                    case ((ast.Assign() | ast.AnnAssign()), ast.Expr(ast.Constant(str(text)))):
                        yield after.lineno, text


@cache
def classes() -> dict[str, ast.ClassDef]:
    """The classes of all modules, by name."""
    trees = [ast.parse(path.read_text()) for path in MODULES]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def inherited(node: ast.ClassDef, known: dict[str, ast.ClassDef]) -> set[str]:
    """The names of what the classes that a class is made from define, and so describe."""
    bases = [known[name] for base in node.bases if (name := ast.unparse(base)) in known]
    own = {part.name for base in bases for part in base.body if isinstance(part, Definition)}
    return own.union(*(inherited(base, known) for base in bases))


def public(module: ast.Module, known: dict[str, ast.ClassDef]) -> Iterator[tuple[str, Definition]]:
    """Classes, functions and methods whose names have no underscore in front, with their dotted names; but for methods
    that stand in for one of another class."""
    for node in module.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                described = inherited(node, known)
                for part in node.body:
                    if isinstance(part, Definition) and not part.name.startswith("_") and part.name not in described:
                        yield f"{node.name}.{part.name}", part


of_each_room = pytest.mark.parametrize("modules", rooms().values(), ids=rooms().keys())


@of_each_room
def test_docstrings_name_their_subject(modules: list[Path]) -> None:
    vague = [
        f"{place(path, line)}: {text.splitlines()[0]}"
        for path in modules
        for line, text in docstrings(ast.parse(path.read_text()))
        if begins_vaguely(text)
    ]
    assert not vague, "begin with a verb or a noun that names the subject:\n" + "\n".join(vague)


@of_each_room
def test_what_is_public_has_a_docstring(modules: list[Path]) -> None:
    known = classes()
    bare = [
        f"{place(path, node.lineno)}: {name}"
        for path in modules
        for name, node in public(ast.parse(path.read_text()), known)
        if ast.get_docstring(node) is None
    ]
    assert not bare, "without a docstring:\n" + "\n".join(bare)


@pytest.mark.parametrize(
    "text",
    [
        "Of a run that is done.",
        "Those of a preset but for those given.",
        "What a recipe needs.",
        "By rank: the weights.",
        "In float64.",
        "Where a test stops.",
        "The same on the host.",
        "float32 [B, C, H, W] of members.",
        "[J] the least counts.",
        "Is the radius at least r?",
        "How many votes to draw.",
        "",
    ],
)
def test_vague_beginnings_are_found(text: str) -> None:
    assert begins_vaguely(text)


@pytest.mark.parametrize(
    "text",
    [
        "The seed of a run.",
        "Draws noise.",
        "Whether a network draws noise.",
        "Number of samples.",
        "`peak` counts from here on.",
        "PGD in L2 from the image.",
        "In-place steps of an attack.",
        "W + V z, with covariance V^T V.",
    ],
)
def test_other_beginnings_pass(text: str) -> None:
    assert not begins_vaguely(text)

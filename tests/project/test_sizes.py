"""Modules and functions are short, and nobody counts arguments: what is longer, or takes more of them, says why."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from helpers.sources import MODULES, ROOT, Function, definitions, place, rooms

MODULE_LINES, FUNCTION_LINES, POSITIONAL = 400, 60, 7

SCHEMA = "takes its arguments in the order of the schema of its op, as torch.library passes them"
KERNEL = "is launched by position, as Triton does"
# Functions that take more arguments by position, by module and dotted name, and why.
MANY_ARGUMENTS = {
    "smoothfast/ops/__init__.py:noisy_replicas": SCHEMA,
    "smoothfast/ops/__init__.py:attack_step": SCHEMA,
    "smoothfast/ops/__init__.py:fused_pack_integers": SCHEMA,
    "smoothfast/ops/arguments.py:check_noisy_replicas": SCHEMA,
    "smoothfast/ops/arguments.py:check_attack_step": SCHEMA,
    "smoothfast/ops/reference.py:noisy_replicas": SCHEMA,
    "smoothfast/ops/reference.py:attack_step": SCHEMA,
    "smoothfast/ops/registration.py:_noisy_replicas_fake": SCHEMA,
    "smoothfast/ops/registration.py:_attack_step_fake": SCHEMA,
    "smoothfast/ops/registration.py:_fused_votes_fake": SCHEMA,
    "smoothfast/smoothing/classifier.py:SmoothedClassifier.__init__": "has the order that users know since version 0.1",
    "smoothfast/runners/gradient.py:_convolution_backward": "is called as aten.convolution_backward is",
    "kernels/attack_step.py:attack_step": SCHEMA,
    "kernels/attack_step.py:linf_step": KERNEL,
    "kernels/attack_step.py:l2_step": KERNEL,
    "kernels/noisy_replicas.py:noisy_replicas": SCHEMA,
    "kernels/noisy_replicas.py:lattice_replicas": KERNEL,
    "kernels/noisy_replicas.py:gaussian_replicas": KERNEL,
    "kernels/noisy_replicas.py:store": "is part of a kernel, which has no objects to put strides in",
    "kernels/perturb_weights.py:perturb_tiles": KERNEL,
    "kernels/replica_sum.py:sum_rows": KERNEL,
    "kernels/tally.py:tally_rows": KERNEL,
    "kernels/tally.py:best_of": "is part of a kernel, which has no objects to put strides in",
}


def functions(path: Path) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The functions of a module, nested ones included, with their dotted names."""
    return [(name, node) for name, node in definitions(ast.parse(path.read_text())) if isinstance(node, Function)]


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of arguments that may be given by position, `self` and `cls` apart."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def key(path: Path, name: str) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{name}"


of_each_room = pytest.mark.parametrize("modules", rooms().values(), ids=rooms().keys())


@of_each_room
def test_modules_are_short(modules: list[Path]) -> None:
    lengths = {place(path, 1): len(path.read_text().splitlines()) for path in modules}
    assert {where: lines for where, lines in lengths.items() if lines > MODULE_LINES} == {}


@of_each_room
def test_functions_are_short(modules: list[Path]) -> None:
    lengths = {
        f"{place(path, node.lineno)}: {name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in modules
        for name, node in functions(path)
    }
    assert {where: lines for where, lines in lengths.items() if lines > FUNCTION_LINES} == {}


@of_each_room
def test_functions_take_few_arguments_by_position(modules: list[Path]) -> None:
    counts = {
        f"{place(path, node.lineno)}: {name}": positional(node)
        for path in modules
        for name, node in functions(path)
        if key(path, name) not in MANY_ARGUMENTS
    }
    assert {where: count for where, count in counts.items() if count > POSITIONAL} == {}


def test_exceptions_are_needed() -> None:
    many = {key(path, name) for path in MODULES for name, node in functions(path) if positional(node) > POSITIONAL}
    assert MANY_ARGUMENTS.keys() <= many

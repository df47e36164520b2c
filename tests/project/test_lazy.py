"""Packages that import their names when these are first asked for: none is lost by it, and nothing comes too early."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

LAZY = ["smoothfast", "smoothfast.training"]
of_each_package = pytest.mark.parametrize("package", LAZY)


def imported_by(*modules: str) -> set[str]:
    """All modules that importing some brings into a new process."""
    script = f"import sys, {', '.join(modules)}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_settings_and_presets_come_without_torch() -> None:
    found = imported_by("smoothfast.training.settings", "smoothfast.training.presets")
    assert "smoothfast.training.presets" in found
    assert not {"torch", "numpy", "scipy"} & found


@of_each_package
def test_every_public_name_is_there(package: str) -> None:
    module = import_module(package)
    assert dir(module) == sorted(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@of_each_package
@pytest.mark.parametrize("name", ["nothing", "_nothing", "__path_hooks__"])
def test_other_names_are_not(package: str, name: str) -> None:
    with pytest.raises(AttributeError, match=rf"^module '{package}' has no attribute '{name}'$"):
        getattr(import_module(package), name)


@of_each_package
def test_submodules_are_attributes(package: str) -> None:
    script = f"import {package}; print({package}.{'trainer' if package.endswith('training') else 'engine'}.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(package)


@of_each_package
def test_a_name_is_looked_up_once(package: str) -> None:
    module = import_module(package)
    name = module.__all__[0]
    assert getattr(module, name) is vars(module)[name]

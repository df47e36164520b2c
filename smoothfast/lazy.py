"""Packages that import their names when these are first asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy(
    package: str, public: list[str], origins: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        public: its `__all__`.
        origins: the names that come from a submodule, by submodule. Other names are submodules themselves.
    """
    home_of = {name: submodule for submodule, names in origins.items() for name in names}

    def get(name: str) -> Any:
        home = f"{package}.{home_of.get(name, name)}"
        if name.startswith("_") or find_spec(home) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(home)
        found = getattr(module, name) if name in home_of else module
        setattr(sys.modules[package], name, found)  # asked once
        return found

    return get, lambda: public

"""Doing something to a module as soon as it is imported, so that nobody imports it for our sake."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class AfterImport(MetaPathFinder):
    """Waits for one module."""

    def __init__(self, name: str, act: Callable[[Any], None]) -> None:
        self.name, self.act = name, act

    @classmethod
    def install(cls, name: str, act: Callable[[Any], None]) -> None:
        """Have `act` called with the module called `name` when it is imported; at once if it is there."""
        if name in sys.modules:
            act(sys.modules[name])
        else:
            sys.meta_path.insert(0, cls(name, act))

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Acting(spec.loader, self.act)
        return spec


class _Acting(Loader):
    def __init__(self, inner: Loader, act: Callable[[Any], None]) -> None:
        self.inner, self.act = inner, act

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        self.act(module)

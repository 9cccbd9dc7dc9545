"""How something of vLLM's is hooked or replaced."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from .problems import guarded

#: Attribute of whatever has been hooked already.
MARK = "_vllm_eagle_plugin"


def named(path: str) -> Any:
    """What "module:name" names, imported now."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def when_imported(name: str, hook: Callable[[ModuleType], None]) -> None:
    """Run `hook(module)` when module `name` is imported, or now if it has been.

    So that `install`, which runs in every vLLM process, imports nothing that the process would not.
    """
    module = sys.modules.get(name)
    if module is None:
        sys.meta_path.insert(0, _ImportHook(name, hook))
    else:
        guarded(hook, module)


class _ImportHook(importlib.abc.MetaPathFinder):
    """Stays until the module has run: others may ask for its spec without importing it."""

    def __init__(self, name: str, hook: Callable[[ModuleType], None]) -> None:
        self.name, self.hook = name, hook
        self._asking = False

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                guarded(self.hook, module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """A module's attribute replaced for a while: where vLLM builds a class by name and asks nobody."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)

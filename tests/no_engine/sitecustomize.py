"""Keeps a process from building a vLLM engine. In the path of what tests start that are not marked `engine`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any, NoReturn

CORE = "vllm.v1.engine.core"


def refuse(*_: Any, **__: Any) -> NoReturn:
    """In place of an engine core's `__init__`."""
    raise RuntimeError("an engine starts in a test without @pytest.mark.engine")


def forbid(module: Any) -> None:
    """Let nobody build a core of this module."""
    module.EngineCore.__init__ = refuse


class NoEngine(MetaPathFinder):
    """Forbids engine cores as soon as their module is imported."""

    def __init__(self, forbid: Callable[[Any], None]) -> None:
        self.forbid = forbid

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != CORE:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, NoEngine))
        spec: Any = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), self.forbid(module))[0]
        return spec


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, NoEngine(forbid))

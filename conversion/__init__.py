"""Reads trained heads of any layout and writes what vLLM serves. Works without vLLM."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .converter import Conversion, convert
    from .inspection import Inspection, inspect_head

__all__ = ["Conversion", "Inspection", "convert", "inspect_head"]
_MODULES = {
    "Conversion": ".converter",
    "convert": ".converter",
    "Inspection": ".inspection",
    "inspect_head": ".inspection",
}


def __getattr__(name: str) -> Any:
    """Late, so that the command line can list its verbs without importing torch."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Reads trained heads of any layout and writes what vLLM serves. Works without vLLM."""

from .convert import Conversion, convert
from .inspect import Inspection, inspect_head

__all__ = ["Conversion", "Inspection", "convert", "inspect_head"]

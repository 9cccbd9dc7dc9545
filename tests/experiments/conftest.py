"""The benchmarks' language, for what is run in whole."""

from ..bench.conftest import language

__all__ = ["language"]

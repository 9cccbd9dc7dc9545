"""Tensors that a head's own files say it has."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import HeadError
from .renaming import LEFT_OUT
from .source import Source


def given_up(source: Source, name: str) -> bool:
    """Whether the user leaves a tensor out on purpose."""
    return any(why == LEFT_OUT and (n == name or n.endswith(f".{name}")) for n, why in source.dropped.items())


def demand(source: Source, names: Iterable[str], because: str) -> None:
    """Refuse a head that lost one of `names`, which it has according to `because`, unless it is left out on purpose.

    Raises:
        HeadError: one of them is missing. Without it the head would load and accept next to nothing.
    """
    missing = [name for name in names if not source.has(name) and not given_up(source, name)]
    if missing:
        raise HeadError(
            f"tensor {missing[0]} is missing, and {because}",
            "Every tensor that its files speak of was expected",
            "Export the head again, whole",
        )

"""A head under other names: how one producer's layout becomes another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..errors import HeadError
from ..targets.stored import Stored
from .source import Source

#: Why a tensor that the user leaves out is not there.
LEFT_OUT = "left out with --drop"


def renamed(source: Source, names: Mapping[str, str] | Callable[[str], str]) -> Source:
    """`source` with tensors renamed; names that a mapping does not list stay."""
    rename = names if callable(names) else lambda name: names.get(name, name)
    tensors: dict[str, Stored] = {}
    stored_names: dict[str, str] = {}
    for name, tensor in source.tensors.items():
        new = rename(name)
        if new in tensors:
            raise HeadError(
                f"tensors {source.stored_names.get(name, name)} and {stored_names.get(new, new)} mean the same",
                "One of them was expected",
                "Export the head again, or leave one out with --drop",
            )
        tensors[new] = tensor
        stored = source.stored_names.get(name, name)
        if stored != new:
            stored_names[new] = stored
    return replace(source, tensors=tensors, stored_names=stored_names)


def without(source: Source, names: tuple[str, ...]) -> Source:
    """`source` without the tensors that the user wants left out (`--drop`), by their names in the files."""
    by_stored = {source.stored_names.get(name, name): name for name in source.tensors}
    unknown = [name for name in names if name not in by_stored and name not in source.tensors]
    if unknown:
        raise HeadError(
            f"--drop {unknown[0]} names no tensor of this head",
            f"It has {', '.join(list(source.tensors)[:12])}",
            "Correct the name",
        )
    gone = {by_stored.get(name, name) for name in names}
    dropped = dict.fromkeys((source.stored_names.get(n, n) for n in gone), LEFT_OUT)
    tensors = {n: t for n, t in source.tensors.items() if n not in gone}
    return replace(source, tensors=tensors, dropped={**source.dropped, **dropped})

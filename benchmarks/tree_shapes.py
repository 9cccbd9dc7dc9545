"""Shapes of draft trees as they are said on a command line."""

from __future__ import annotations

import re
from typing import Any

from ..errors import UsageError
from ..tree import SECTION
from .methods import Method, drafting_of

#: Most nodes of an `auto` tree that says nothing of them.
AUTO_NODES = 16


def tree_method(head: Method, text: str) -> Method:
    """`head` drafting the trees that `text` asks for.

    `4,2,1`: so many continuations of every node, level by level. `4x5`: EAGLE-2's, beams x levels. `auto`. A `/` and
    a number behind it say how many nodes a tree may have; left out, as many as the shape needs.

    Raises:
        UsageError: no shape, one that does not fit its nodes, or a way to draft that has no head.
    """
    if head.head is None:
        raise UsageError(f"--tree {text} without a head", "Trees are drafted by one", "Pass --head HEAD")
    shape, cut, limit = text.partition("/")
    tree, least = _shape(text, shape)
    if cut and not re.fullmatch("[1-9][0-9]*", limit):
        raise _unknown(text)
    nodes = int(limit) if limit else least
    config = {**(head.speculative or {}), "num_speculative_tokens": nodes, SECTION: {"tree": tree}}
    drafting_of(config)
    return Method(f"tree {shape}, at most {nodes} nodes", config)


def _shape(text: str, shape: str) -> tuple[dict[str, Any], int]:
    """A tree as the additional config has it, and how many nodes it needs."""
    if shape == "auto":
        return {"kind": "auto"}, AUTO_NODES
    if re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", shape):
        branches = [int(n) for n in shape.split(",")]
        widths = [branches[0]]
        for n in branches[1:]:
            widths.append(widths[-1] * n)
        return {"kind": "static", "branches": branches}, sum(widths)
    if found := re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", shape):
        top_k, depth = map(int, found.groups())
        return {"kind": "dynamic", "top_k": top_k, "depth": depth}, top_k * max(1, depth - 1)
    raise _unknown(text)


def _unknown(text: str) -> UsageError:
    return UsageError(
        f"--tree {text}",
        "Expected: 4,2,1 (continuations by level), 4x5 (beams x levels) or auto, and /16 behind it for at most 16 nodes",
    )

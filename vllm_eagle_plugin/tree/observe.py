"""For those who want to watch: each tree as it was drafted, and the target's word at each of its nodes.

`observers` is empty in service, and nothing here runs then: who drafts and who verifies asks first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .old_grow import Candidates
from .tree import Tree


class Observer(Protocol):
    """Is told of every request of every step."""

    def drafted(self, request: str, tree: Tree, claims: list[float]) -> None:
        """A request's next tree, and the head's probability of each node's token, its parent given."""

    def verified(self, request: str, tree: Tree, logits: Tensor) -> None:
        """The target's logits [n + 1, V] at the root and at each node of what a step verified: the tree as the
        scheduler left it, without nodes where nothing was drafted. To be read at once, not kept."""


observers: list[Observer] = []


def drafted(requests: Sequence[str], trees: Sequence[Tree], candidates: Candidates) -> None:
    """Tell of `trees` [B], chosen from `candidates`."""
    for index, (request, tree) in enumerate(zip(requests, trees, strict=True)):
        claims = _claims(tree, candidates, index)
        for observer in observers:
            observer.drafted(request, tree, claims)


def verified(requests: Sequence[str], trees: Sequence[Tree | None], logits: Tensor) -> None:
    """Tell of `trees` [B] that were verified by `logits` [sum of n + 1, V]."""
    start = 0
    for request, drafted_tree in zip(requests, trees, strict=True):
        tree = drafted_tree if drafted_tree is not None else Tree((), ())
        rows = logits[start : start + len(tree) + 1]
        start += len(tree) + 1
        for observer in observers:
            observer.verified(request, tree, rows)


def _claims(tree: Tree, candidates: Candidates, index: int) -> list[float]:
    parents, tokens = candidates.parents[index].tolist(), candidates.tokens[index].tolist()
    found = {(parent, token): i for i, (parent, token) in enumerate(zip(parents, tokens, strict=True))}
    at = [-1]  # where each node is among the candidates; the root is none
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        at.append(found[at[parent], token])
    return candidates.logprobs[index][at[1:]].exp().tolist()

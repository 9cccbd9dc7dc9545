"""For those who want to watch: each tree as it was drafted, and the target's word at each of its nodes.

`observers` is empty in service, and nothing here runs then: who drafts and who verifies asks first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from .grow import Grown
from .trees import Trees

if TYPE_CHECKING:
    from .walk_v1 import Step


class Tree(NamedTuple):
    """One request's tree: drafted tokens, and the node that each continues, counted from 1; 0: the root."""

    tokens: list[int]
    parents: list[int]


class Observer(Protocol):
    """Is told of every request of every step."""

    def drafted(self, request: str, tree: Tree, claims: list[float]) -> None:
        """A request's next tree, and the head's probability of each node's token, its parent given."""

    def verified(self, request: str, tree: Tree, logits: Tensor) -> None:
        """The target's logits [n + 1, V] at the root and at each node of what a step verified: the tree as the
        scheduler left it, without nodes where nothing was drafted. To be read at once, not kept."""


observers: list[Observer] = []


def drafted(requests: Sequence[str], grown: Grown) -> None:
    """Tell of the trees that were drafted for requests [B]."""
    claims = grown.logprobs.exp().tolist()
    for request, tree, claimed in zip(requests, _each(grown.trees), claims, strict=True):
        for observer in observers:
            observer.drafted(request, tree, claimed[: len(tree.tokens)])


def verified(requests: Sequence[str], step: Step | None, logits: Tensor) -> None:
    """Tell of the trees of requests [B] that a step verified (None: there were no drafts), by its logits."""
    trees = [Tree([], []) for _ in requests] if step is None else _each(step.trees)
    start = 0
    for request, tree in zip(requests, trees, strict=True):
        end = start + len(tree.tokens) + 1
        for observer in observers:
            observer.verified(request, tree, logits[start:end])
        start = end


def _each(trees: Trees) -> list[Tree]:
    columns = (t.tolist() for t in (trees.tokens, trees.parents, trees.counts))
    return [Tree(tokens[:n], parents[:n]) for tokens, parents, n in zip(*columns, strict=True)]

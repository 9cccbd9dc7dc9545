"""A draft tree: what one request proposes in one step. Free of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Tree:
    """Drafted tokens that share prefixes.

    Node 0 is the last verified token and carries no draft; node i (1 to n) drafts `tokens[i - 1]` as a
    continuation of node `parents[i - 1]`. Parents come before their children, so the first m nodes of a tree are
    a tree: what is left when the scheduler cuts a proposal short.

    Raises:
        ValueError: a node that stands before its parent.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or any(not 0 <= p <= i for i, p in enumerate(self.parents)):
            raise ValueError(f"no tree: {len(self.tokens)} tokens, parents {self.parents}")

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> Tree:
        """The tree whose every node continues the one before."""
        return cls(tuple(tokens), tuple(range(len(tokens))))

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, nodes: int) -> Tree:
        """The tree of the first `nodes` nodes."""
        return self if nodes == len(self) else Tree(self.tokens[:nodes], self.parents[:nodes])

    @cached_property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(len(self.parents)))

    @property
    def branches(self) -> int:
        """Nodes that are not their parent's first child: leaves beside the first."""
        return len(self) - len(set(self.parents))

    @cached_property
    def depths(self) -> np.ndarray:
        """[n + 1] edges between the root and each node."""
        depths = np.zeros(len(self) + 1, dtype=np.int64)
        for node, parent in enumerate(self.parents, 1):
            depths[node] = depths[parent] + 1
        return depths

    @cached_property
    def ancestors(self) -> np.ndarray:
        """[n + 1, n + 1] bool; row i is true at i and at each node that i continues."""
        seen = np.eye(len(self) + 1, dtype=bool)
        for node, parent in enumerate(self.parents, 1):
            seen[node] |= seen[parent]
        return seen

    @cached_property
    def children(self) -> dict[tuple[int, int], int]:
        """(node, token) to the child of the node that drafts the token."""
        return {(p, t): i for i, (p, t) in enumerate(zip(self.parents, self.tokens, strict=True), 1)}

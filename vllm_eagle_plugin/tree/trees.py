"""Draft trees of a whole batch as tensors of a fixed shape: what is grown, verified and compacted.

A tree's root is the request's last token, which drafts nothing. Node i (1 to N) drafts a token as a continuation
of its parent; node 0 is the root. Parents come before their children, so the first m nodes of a tree are a tree.
Nothing here asks the host for a value, so all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Trees(NamedTuple):
    """The trees of B requests, at most N <= 63 drafted nodes each; column i - 1 is node i.

    Columns behind `counts` are unused: token 0, a child of the root that nobody continues.
    """

    #: [B, N] int64 token ids.
    tokens: Tensor
    #: [B, N] int64 the node that each continues: 0 the root, else less than the node itself.
    parents: Tensor
    #: [B, N] int64 edges between the root and each node.
    depths: Tensor
    #: [B, N] int64 bitmask: bit j - 1 is set where node j is the node itself or one that it continues, directly or
    #: through others. The root, which every node continues, has no bit.
    ancestors: Tensor
    #: [B] int64 nodes in use.
    counts: Tensor

    @classmethod
    def of(cls, tokens: Tensor, parents: Tensor, counts: Tensor, depth: int | None = None) -> Trees:
        """Trees from tokens, parents [B, N] and counts [B]. depth: a bound on the nodes' depths; by default N."""
        batch, nodes = tokens.shape
        used = columns(tokens) < counts[:, None]
        tokens, parents = tokens.where(used, 0), parents.where(used, 0)
        # Column 0 is the root here. Each round doubles the path that a node knows.
        jump = pad(parents, (1, 0))
        seen = pad(own_bits(tokens), (1, 0)).expand(batch, -1)
        edges = (jump.new_ones(nodes + 1).cumsum(0) > 1).long().expand(batch, -1)
        for _ in range(((depth or nodes) - 1).bit_length()):
            seen, edges = seen | seen.gather(1, jump), edges + edges.gather(1, jump)
            jump = jump.gather(1, jump)
        return cls(tokens, parents, edges[:, 1:], seen[:, 1:], counts)

    @classmethod
    def chain(cls, tokens: Tensor, counts: Tensor | None = None) -> Trees:
        """Trees whose every node continues the one before, from tokens [B, N]; of the first counts [B] of them."""
        parents = columns(tokens).expand_as(tokens)
        return cls.of(tokens, parents, parents[:, -1] + 1 if counts is None else counts)

    @property
    def used(self) -> Tensor:
        """[B, N] bool: the nodes in use."""
        return columns(self.tokens) < self.counts[:, None]

    @property
    def chains(self) -> Tensor:
        """[B] bool: whether every node continues the one before."""
        return ((self.parents == columns(self.tokens)) | ~self.used).all(-1)

    def first(self, counts: Tensor) -> Trees:
        """The trees of the first counts [B] nodes of each, or of as many as there are."""
        cut = self._replace(counts=counts.minimum(self.counts))
        kept, own = cut.used, own_bits(self.tokens)
        return Trees(
            self.tokens.where(kept, 0),
            self.parents.where(kept, 0),
            self.depths.where(kept, 1),
            self.ancestors.where(kept, own),
            cut.counts,
        )

    def positions(self, base: Tensor) -> Tensor:
        """[B, N + 1] position of the root, which is base [B], and of each node."""
        return base[:, None] + pad(self.depths, (1, 0))


def columns(like: Tensor) -> Tensor:
    """[N] int64: 0 to N - 1 for a tensor [..., N], on its device."""
    return torch.arange(like.shape[-1], device=like.device)


def own_bits(like: Tensor) -> Tensor:
    """[N] int64 for a tensor [..., N], on its device: bit i set in number i."""
    return torch.ones_like(columns(like)) << columns(like)


def visible(seen: Tensor, keys: int) -> Tensor:
    """[..., keys] bool of bitmasks [...]: whether bit j is set."""
    return (seen[..., None] >> torch.arange(keys, device=seen.device)) & 1 == 1

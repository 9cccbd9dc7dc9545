"""Verifying trees: which path the target's own samples take, for a whole batch.

At every node of its path a request samples the target as plain decoding would; where a child drafts the sampled
token, the path goes on from that child. What comes out is thus the target's own sample at every place, whatever was
drafted: temperature, truncation, penalties, logprobs and seeds behave as without speculation.
Nothing here asks the host for a value, but for what a caller's own functions ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .trees import Trees, columns


class Paths(NamedTuple):
    """Where requests went, and what they sampled there. D: most levels of their trees."""

    #: [B, D + 1] int64 the token sampled at each node of the path, root first; -1 behind its end.
    tokens: Tensor
    #: [B, D + 1] int64 those nodes: 0, the root, then the accepted ones; 0 behind the path's end.
    nodes: Tensor
    #: [B] int64 tokens sampled: one more than were accepted.
    counts: Tensor


def greedy(trees: Trees, sampled: Tensor, depth: int) -> Paths:
    """The paths where one sample at every node decides: the argmax, or anything that no earlier token touches.

    sampled: [B, N + 1] the target's token at the root and at each node. depth: a bound D on the trees' depths.
    """
    agrees = trees.used & (trees.tokens == sampled.gather(1, trees.parents))
    # A node is accepted if it and all it continues agree.
    lacking = trees.ancestors & ~packed(agrees)[:, None]
    accepted = agrees & (lacking == 0)
    at = trees.depths.where(accepted, 0)
    # Where siblings draft the same token both are on it: the first of them, as everything below either agrees.
    nodes = torch.full((len(at), depth + 1), at.shape[1] + 1, device=at.device)
    nodes = nodes.scatter_reduce(1, at, (columns(at) + 1).expand_as(at), "amin")
    counts = at.amax(-1) + 1
    inside = columns(nodes) < counts[:, None]
    nodes = nodes.where(inside & (columns(nodes) > 0), 0)
    return Paths(sampled.gather(1, nodes).where(inside, -1), nodes, counts)


def drawn(
    trees: Trees,
    sample: Callable[[Tensor, Paths], Tensor],
    depth: int,
    goes_on: Callable[[Tensor], bool] | None = None,
) -> Paths:
    """The paths where a token is sampled level by level, since what a request sampled before has a say in it.

    sample: of the node [B] that each request is at and the paths so far [B, d], the tokens [B] drawn there; what it
    draws for a request that has ended, whose node is its last, is left out. depth: a bound D on the trees' depths.
    goes_on: asked after each level with the requests [B] bool that are still on a path; False ends the walk.
    """
    batch = len(trees.counts)
    node = trees.counts.new_zeros(batch)
    alive = torch.ones_like(node, dtype=torch.bool)
    path = Paths(node.new_empty(batch, 0), node.new_empty(batch, 0), node)
    for _ in range(depth + 1):
        token = sample(node, path).long()
        path = Paths(
            torch.cat([path.tokens, token.where(alive, -1)[:, None]], 1),
            torch.cat([path.nodes, node.where(alive, 0)[:, None]], 1),
            path.counts + alive,
        )
        continues = trees.used & (trees.parents == node[:, None]) & (trees.tokens == token[:, None])
        alive = alive & continues.any(-1)
        node = (continues.long().argmax(-1) + 1).where(alive, node)
        if goes_on is not None and not goes_on(alive):
            break
    missing = depth + 1 - path.tokens.shape[1]
    return Paths(pad(path.tokens, (0, missing), value=-1), pad(path.nodes, (0, missing)), path.counts)


def packed(flags: Tensor) -> Tensor:
    """[...] int64 bitmask of flags [..., N]: bit i is flag i."""
    return (flags.long() << columns(flags)).sum(-1)

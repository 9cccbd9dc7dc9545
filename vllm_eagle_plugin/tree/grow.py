"""Growing trees out of a head's logits, level by level, for a whole batch. Free of vLLM.

Dynamic trees are EAGLE-2's (Li et al. 2024, arXiv 2406.16858): the likeliest nodes of a level, its beams, are
drafted from, and of all candidates the likeliest are kept. Static ones give every node of a level equally many
children. The greedy chain, the head's first choice after its first choice, is always among the beams: with a flat
head, beams by score alone would be many short branches, accepted less often than the one chain.
Shapes follow from the `Shape` alone, and nothing asks the host for a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .config import Shape
from .topk import best
from .trees import Trees, columns, own_bits


class Beams(NamedTuple):
    """Rows that the head drafts from next, k a request."""

    #: [B, k] target token ids to feed. Of the root: 0.
    tokens: Tensor
    #: [B, k] which beam of the level before each continues, so whose output state it feeds on.
    sources: Tensor
    #: [B, k] int64 bitmask over the step's beams, level by level and these last: the ones that each beam continues,
    #: and itself. The keys of exactly those, behind the request's own, are what its attention sees.
    seen: Tensor
    #: [B, k] which candidate each is, counted from 1; the root: 0.
    numbers: Tensor
    #: [B, k] scores of their paths.
    scores: Tensor
    #: Edges between the root and these beams.
    depth: int
    #: Beams of a request so far, the root left out and these included: the keys that `seen` is about.
    drafted: int
    #: Candidates that there are: the children of these beams come behind them.
    known: int


class Candidates(NamedTuple):
    """[B, C] every node that a growth came across: level by level, the children of a beam together, best first.

    Of a level, the first candidate is on the greedy chain.
    """

    #: int64 target token ids.
    tokens: Tensor
    #: int64 which candidate each continues, counted from 1; 0: the root.
    parents: Tensor
    #: The head's log-probability of each, its parent given.
    logprobs: Tensor
    #: What candidates are ranked by: the log-probability of the path. Never higher than the parent's; -inf: not to be
    #: drafted.
    scores: Tensor
    #: int64 edges between the root and each.
    depths: Tensor
    #: bool: on the greedy chain.
    on_chain: Tensor


class Grown(NamedTuple):
    """Trees, and what is known of their nodes [B, N]; unused columns hold nothing in particular."""

    trees: Trees
    #: The head's log-probability of each node, its parent given.
    logprobs: Tensor
    #: As in `Candidates`.
    scores: Tensor


def grow(
    logits: Tensor,
    level: Callable[[Beams], Tensor],
    shape: Shape,
    ids: Tensor | None = None,
) -> Candidates:
    """The candidates of a batch's trees.

    logits: [B, Vd] the head's at the root. level: runs the head on beams, returns its logits [B, k, Vd]. ids [Vd]:
    the target's id of each token that logits are of; None: its own.
    """
    start = root(logits)
    found = expand(None, start, logits[:, None], shape, ids)
    beams = next_beams(found, start, shape)
    while beams is not None:
        found = expand(found, beams, level(beams), shape, ids)
        beams = next_beams(found, beams, shape)
    return found


def root(like: Tensor) -> Beams:
    """The beam that a growth starts with, for requests [B, ...] on the device of `like`."""
    nothing = torch.zeros(len(like), 1, dtype=torch.int64, device=like.device)
    return Beams(nothing, nothing, nothing, nothing, nothing.float(), 0, 0, 0)


def expand(
    found: Candidates | None,
    beams: Beams,
    logits: Tensor,
    shape: Shape,
    ids: Tensor | None = None,
) -> Candidates:
    """The candidates so far (None: none) and the children of these beams, of which the head says logits [B, k, Vd]."""
    logits = logits.float()
    claims, tokens = best(logits, min(children(shape, beams.depth), logits.shape[-1]))
    claims = claims - logits.logsumexp(-1, keepdim=True)
    # A head that says NaN says nothing: its node gets no children.
    claims = claims.nan_to_num(nan=-torch.inf, neginf=-torch.inf).clamp(max=0)
    on_chain = torch.zeros_like(tokens, dtype=torch.bool)
    on_chain[:, 0, 0] = True
    level = Candidates(
        tokens if ids is None else ids[tokens],
        beams.numbers[..., None].expand_as(tokens),
        claims,
        beams.scores[..., None] + claims,
        torch.full_like(tokens, beams.depth + 1),
        on_chain,
    )
    flat = Candidates(*(t.flatten(1) for t in level))
    return flat if found is None else Candidates(*(torch.cat(pair, 1) for pair in zip(found, flat, strict=True)))


def next_beams(found: Candidates, beams: Beams, shape: Shape) -> Beams | None:
    """What to draft from after `expand` made `found` out of `beams`, best first but for the greedy chain, which leads.
    None: the last level is there."""
    depth = beams.depth + 1
    if depth >= shape.depth:
        return None
    tokens, on_chain, scores = (t[:, beams.known :] for t in (found.tokens, found.on_chain, found.scores))
    k = width(shape, tokens.shape[1], depth, beams.drafted)
    picked = scores.masked_fill(on_chain, torch.inf).topk(k, -1).indices
    sources = picked // (tokens.shape[1] // beams.tokens.shape[1])
    return Beams(
        tokens.gather(1, picked),
        sources,
        beams.seen.gather(1, sources) | own_bits(picked) << beams.drafted,
        picked + beams.known + 1,
        scores.gather(1, picked),
        depth,
        beams.drafted + k,
        found.tokens.shape[1],
    )


def select(
    found: Candidates,
    nodes: int,
    counts: Tensor | None = None,
    levels: Tensor | None = None,
    chains: Tensor | None = None,
    keep_chain: bool = True,
) -> Grown:
    """Each request's `nodes` best candidates as its tree: best first, parents before their children.

    counts [B]: fewer nodes. levels [B]: no deeper ones. chains [B] bool: only those on the greedy chain. keep_chain
    puts that chain in front, so that no tree drafts less than the chain it replaces, and where the chain is accepted
    nothing needs to be moved.
    """
    ranks = drawable(found, levels, chains)
    usable = ranks.isfinite()
    if keep_chain:
        ranks = ranks.masked_fill(found.on_chain & usable, torch.inf)
    # Stable: of equal scores the earlier candidate first, and parents stand before their children.
    order = ranks.sort(dim=-1, descending=True, stable=True).indices[:, :nodes]
    count = usable.sum(-1).clamp(max=nodes)
    count = count if counts is None else count.minimum(counts)
    # The node that each candidate became, the root's number in front.
    became = torch.zeros(len(order), usable.shape[1] + 1, dtype=torch.int64, device=order.device)
    became = became.scatter(1, order + 1, (columns(order) + 1).expand_as(order))
    gathered = [t.gather(1, order) for t in (found.tokens, found.parents, found.logprobs, found.scores)]
    gathered[1] = became.gather(1, gathered[1])
    tokens, parents, logprobs, scores = (pad(t, (0, nodes - t.shape[1])) for t in gathered)
    return Grown(Trees.of(tokens, parents, count), logprobs, scores)


def drawable(found: Candidates, levels: Tensor | None = None, chains: Tensor | None = None) -> Tensor:
    """[B, C] scores, -inf for candidates deeper than a request's levels [B], or off the chain of one that may draft
    only a chain [B]."""
    scores = found.scores
    if levels is not None:
        scores = scores.masked_fill(found.depths > levels[:, None], -torch.inf)
    if chains is not None:
        scores = scores.masked_fill(chains[:, None] & ~found.on_chain, -torch.inf)
    return scores


def children(shape: Shape, depth: int) -> int:
    """How many continuations a node at `depth` may be given."""
    return shape.branches[depth] if shape.kind == "static" else max(shape.top_k, shape.considered)


def width(shape: Shape, found: int, depth: int, before: int) -> int:
    """Beams to draft from at `depth`, of `found` nodes there, `before` beams having been drafted from."""
    # Each beam leaves a key in one of the slots that vLLM grants, one a node; each later level needs one too.
    return min(found, shape.top_k, shape.nodes - before - (shape.depth - 1 - depth))


def extent(shape: Shape) -> tuple[list[int], list[int]]:
    """For 0 to all levels, how many nodes a tree has that is cut there; for each level but the last, its beams."""
    sizes, k = [0], 1
    widths: list[int] = []
    for depth in range(shape.depth):
        found = k * children(shape, depth)
        sizes.append(min(shape.nodes, sizes[-1] + found))
        if depth + 1 < shape.depth:
            k = width(shape, found, depth + 1, sum(widths))
            widths.append(k)
    return sizes, widths

"""Growing trees out of a head's distributions, level by level. Free of vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from .config import Shape
from .topk import best
from .tree import Tree

#: (log-probabilities [..., n] that the head gives the n best continuations of a node, best first; their depth) to
#: what to score them by; never above 0, so that no node outscores the one it continues.
Scorer = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Beams:
    """Rows to draft from at the next level; every request has equally many."""

    #: [B, k] target token ids fed to the head.
    tokens: Tensor
    #: [B, k] which beam of the level before each feeds on: its parent, whose output state it takes. Level 1
    #: continues the root: 0.
    sources: Tensor
    #: [B, k, tail] bool: which of the rows drafted in this step, level by level and these k last, each beam's
    #: attention sees: its ancestors and itself.
    visible: Tensor
    #: Edges between the root and these beams.
    depth: int
    #: [B, k] scores of their paths, as in `Candidates`.
    scores: Tensor


@dataclass(frozen=True)
class Candidates:
    """Every node that a growth came across, level by level, the children of a beam together and best first.

    Of a level, the first candidate is on the greedy chain: the head's first choice, its first choice after that,
    and so on.
    """

    #: [B, C] target token ids.
    tokens: Tensor
    #: [B, C] which candidate each continues; -1: the root.
    parents: Tensor
    #: [B, C] the head's log-probability of each, its parent given.
    logprobs: Tensor
    #: [B, C] what candidates are ranked by: the sum along the path of the log-probabilities, or of what a scorer
    #: made of them. Never higher than the parent's; -inf: not to be drafted.
    scores: Tensor
    #: [B, C] edges between the root and each.
    depths: Tensor
    #: [B, C] bool: on the greedy chain.
    on_chain: Tensor


class Drawn(NamedTuple):
    """A tree, and what the head claimed for each of its nodes."""

    tree: Tree
    #: Probability of each node, its parent given.
    claims: tuple[float, ...]
    #: Score of each node as a probability: that it is accepted, if the scorer is right.
    reached: tuple[float, ...]


class Growth:
    """The tree candidates of a batch while they are being drafted.

    `start` with the head's output at the root; then, as long as `beams` says what to draft from, `extend` with the
    output there. `candidates` and `select` work after any level.

    The greedy chain's node is always the first beam, however low it scores: with a flat head, beams by score alone
    would be many short branches, accepted less often than the one chain.
    """

    def __init__(
        self,
        shape: Shape,
        batch: int,
        levels: int | None = None,
        scorer: Scorer | None = None,
        ids: Tensor | None = None,
    ):
        """levels: fewer than the shape's, where nobody would use more. ids [V]: the target's id of each token that
        log-probabilities are of; None: its own."""
        self.shape = shape
        self.batch = batch
        self.levels = min(shape.depth, levels or shape.depth)
        self.scorer = scorer
        self.ids = ids
        #: Beams of a request that each level so far was drafted from, behind the root; most for the next.
        self.widths: list[int] = []
        self.narrow: int | None = None
        self._levels: list[Candidates] = []
        self._all: Candidates | None = None
        self._total = 0
        #: Of the beams drafted from last: their place among all candidates, their scores and what they see.
        self._at = self._scores = self._visible = torch.empty(0)
        self._beams: Beams | None = None

    @property
    def depth(self) -> int:
        """Levels that have candidates."""
        return len(self._levels)

    def start(self, logprobs: Tensor) -> None:
        """Takes the head's log-probabilities [B, V] at the root."""
        device = logprobs.device
        self._at = torch.full((self.batch, 1), -1, device=device)
        self._scores = torch.zeros(self.batch, 1, device=device)
        self._visible = torch.zeros(self.batch, 1, 0, dtype=torch.bool, device=device)
        self._add(logprobs[:, None])

    def extend(self, logprobs: Tensor) -> None:
        """Takes the head's log-probabilities [B, k, V] at the beams."""
        self.widths.append(logprobs.shape[1])
        self._add(logprobs)
        self._beams = None

    def beams(self) -> Beams | None:
        """What to draft from next, or None: the last level's candidates are there."""
        if self._beams is None and self.depth < self.levels:
            self._beams = self._next_beams()
        return self._beams

    def widest(self) -> int:
        """Most beams that the next level can be drafted from; 0: the last level's candidates are there."""
        if self.depth >= self.levels:
            return 0
        return width(self.shape, self._levels[-1].tokens.shape[1], self.depth, sum(self.widths))

    def candidates(self) -> Candidates:
        """Everything so far."""
        if self._all is None:
            names = [f.name for f in fields(Candidates)]
            self._all = Candidates(*(torch.cat([getattr(level, n) for level in self._levels], 1) for n in names))
        return self._all

    def _add(self, logprobs: Tensor) -> None:
        """Adds the children of the beams [B, k], whose log-probabilities are [B, k, V]."""
        shape = self.shape
        claims, tokens = best(logprobs, min(children(shape, self.depth), logprobs.shape[-1]))
        tokens = tokens if self.ids is None else self.ids[tokens]
        # A head that says NaN says nothing: its node gets no children.
        claims = claims.float().nan_to_num(nan=-torch.inf, neginf=-torch.inf).clamp(max=0)
        scores = self._scores[..., None] + (self.scorer(claims, self.depth + 1) if self.scorer else claims)
        on_chain = torch.zeros_like(tokens, dtype=torch.bool)
        on_chain[:, 0, 0] = True
        parents = self._at[..., None].expand_as(tokens)
        depths = torch.full_like(tokens, self.depth + 1)
        level = Candidates(*(t.flatten(1) for t in (tokens, parents, claims, scores, depths, on_chain)))
        self._levels.append(level)
        self._all = level if len(self._levels) == 1 else None
        self._total += level.tokens.shape[1]

    def _next_beams(self) -> Beams:
        level, before = self._levels[-1], sum(self.widths)
        found = level.tokens.shape[1]
        k = min(self.widest(), self.narrow or found)
        picked = level.scores.masked_fill(level.on_chain, torch.inf).topk(k, -1).indices
        sources = picked // (found // self._visible.shape[1])
        above = self._visible.gather(1, sources[..., None].expand(-1, -1, before))
        itself = torch.eye(k, dtype=torch.bool, device=picked.device).expand(self.batch, k, k)
        self._at = picked + self._total - found
        self._scores = level.scores.gather(1, picked)
        self._visible = torch.cat([above, itself], -1)
        return Beams(level.tokens.gather(1, picked), sources, self._visible, self.depth, self._scores)


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


def drawable(
    candidates: Candidates, levels: Sequence[int] | None = None, chains: Sequence[bool] | None = None
) -> Tensor:
    """The candidates' scores [B, C], -inf for those deeper than a request's levels or off the chain of one that
    may draft only a chain."""
    scores = candidates.scores
    if levels is not None and min(levels) < int(candidates.depths[0, -1]):
        limits = torch.tensor(list(levels), device=scores.device)[:, None]
        scores = scores.masked_fill(candidates.depths > limits, -torch.inf)
    if chains is not None and any(chains):
        only = torch.tensor(list(chains), device=scores.device)[:, None]
        scores = scores.masked_fill(only & ~candidates.on_chain, -torch.inf)
    return scores


def select(
    candidates: Candidates,
    budgets: Sequence[int],
    levels: Sequence[int] | None = None,
    chains: Sequence[bool] | None = None,
    keep_chain: bool = True,
) -> list[Drawn]:
    """The tree of each request: its `budgets[b]` best candidates of those `drawable`.

    `keep_chain` puts the greedy chain in, as far as it is scored and if it fits as a whole, so that no tree drafts
    less than the chain it replaces. Nodes stand depth first, better children first: the greedy chain at the front,
    where accepting it moves no keys, and the rows of each branch together.
    """
    # Stable: of equal scores the earlier candidate first, and parents stand before their children.
    ranked = drawable(candidates, levels, chains).sort(dim=-1, descending=True, stable=True)
    on_chain = candidates.on_chain.gather(1, ranked.indices)
    ordered = [t.gather(1, ranked.indices).tolist() for t in (candidates.tokens, candidates.parents)]
    claims = candidates.logprobs.exp().gather(1, ranked.indices).tolist()
    columns = zip(
        budgets,
        ranked.indices.tolist(),
        ranked.values.isfinite().sum(-1).tolist(),
        on_chain.tolist(),
        *ordered,
        claims,
        ranked.values.exp().tolist(),
        strict=True,
    )
    drawn = []
    for budget, order, usable, chain, tokens, parents, claimed, reached in columns:
        kept = _kept(budget, usable, chain if keep_chain else [])
        kept = _depth_first(kept, order, parents)
        node = {-1: 0, **{order[i]: n for n, i in enumerate(kept, 1)}}
        tree = Tree(tuple(tokens[i] for i in kept), tuple(node[parents[i]] for i in kept))
        drawn.append(Drawn(tree, tuple(claimed[i] for i in kept), tuple(reached[i] for i in kept)))
    return drawn


def _kept(budget: int, usable: int, chain: list[bool]) -> list[int]:
    """Which ranks to keep: the first `budget` of the usable ones, the last making room for what the chain lacks."""
    kept = list(range(min(budget, usable)))
    missing = [i for i in range(len(kept), usable) if i < len(chain) and chain[i]]
    inside = sum(chain[: len(kept)])
    if not missing or inside + len(missing) > budget:
        return kept
    others = [i for i in kept if not chain[i]]
    gone = set(others[len(others) - len(missing) :])
    return [i for i in kept if i not in gone] + missing


def _depth_first(ranks: list[int], order: list[int], parents: list[int]) -> list[int]:
    """These ranks, each followed by all below it; order and parents: the candidate and its parent at each rank."""
    children: dict[int, list[int]] = {}
    for rank in ranks:
        children.setdefault(parents[rank], []).append(rank)
    found: list[int] = []
    left = children.get(-1, [])[::-1]
    while left:
        found.append(left.pop())
        left += children.get(order[found[-1]], [])[::-1]
    return found

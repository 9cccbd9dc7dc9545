"""How deep to draft and how many nodes to verify: what gives the most expected tokens per millisecond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .cost_model import CostModel
from .old_grow import Candidates, Growth, drawable

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """What the requests of a batch may draft."""

    #: [B] most nodes and most levels of each.
    nodes: Sequence[int]
    levels: Sequence[int]
    #: [B] whether it may draft only a chain.
    chains: Sequence[bool]
    #: [B] nodes that each drafts whether that pays or not: trials, to learn whether it would.
    trials: Sequence[int] = ()


class Pool(NamedTuple):
    """Drafts to choose among."""

    #: [B, C] or, likeliest first, [n]: probability that each is accepted; -1: not to be drafted.
    reached: Array
    #: Alike, bool: whether it opens a branch, not being its parent's first continuation.
    opens: NDArray[np.bool_]

    def likeliest(self, nodes: Sequence[int]) -> Pool:
        """[n] all drafts that requests may have, likeliest first."""
        if len(nodes) == 1:  # the same in half the time, and asked for several times a step
            order = np.argsort(-self.reached[0], kind="stable")[: nodes[0]]
            reached = self.reached[0, order]
            known = np.count_nonzero(reached > 0)
            return Pool(reached[:known], self.opens[0, order[:known]])
        ranked = self.ranked(nodes)
        reached, opens = ranked.reached.ravel(), ranked.opens.ravel()
        order = np.argsort(-reached, kind="stable")
        order = order[reached[order] > 0]
        return Pool(reached[order], opens[order])

    def ranked(self, nodes: Sequence[int]) -> Pool:
        """[B, n] each request's likeliest drafts, as many as it may have, -1 for those it may not."""
        order = np.argsort(-self.reached, axis=1, kind="stable")[:, : max(nodes)]
        rows = np.arange(len(order))[:, None]
        reached, opens = self.reached[rows, order], self.opens[rows, order]
        reached[np.arange(reached.shape[1]) >= np.array(nodes)[:, None]] = -1
        return Pool(reached, opens)

    def beside(self, reached: Array, opens: NDArray[np.bool_]) -> Pool:
        """These and more, [B, m] each."""
        return Pool(np.concatenate([self.reached, reached], 1), np.concatenate([self.opens, opens], 1))


class Chosen(NamedTuple):
    """Nodes of each request [B], and whether these are to be chains."""

    nodes: list[int]
    chains: bool


def best_size(pool: Pool, requests: int, spent: float, costs: CostModel) -> tuple[int, float]:
    """How many of the likeliest drafts [n] to verify, and the tokens per millisecond expected of that.

    A step yields one token a request besides. spent: milliseconds that drafting took.
    """
    tokens = np.full(1 + len(pool.reached), float(requests))
    tokens[1:] += pool.reached.cumsum()
    ms = spent + costs.verify.onwards(requests, len(tokens))
    if branch := costs.branch:
        ms[1:] += branch * pool.opens.cumsum()
    rates = tokens / ms
    size = int(rates.argmax())
    return size, float(rates[size])


class Best(NamedTuple):
    """A pool, how many of its likeliest drafts to verify, and the tokens per millisecond expected of that."""

    pool: Pool
    size: int
    rate: float


class Rated(NamedTuple):
    """The candidates of a growth at some depth, the chains among them (None: no better than trees), and the best."""

    trees: Pool
    chains: Pool | None
    best: Best


@dataclass
class _Step:
    """What has been worked out for a growth, by depth."""

    growth: Growth
    limits: Limits
    follow: dict[int, Array] = field(default_factory=dict)
    rated: dict[int, Rated] = field(default_factory=dict)


class Chooser:
    """Chooses for a batch whose candidates are scored by the probability that they are accepted."""

    #: Weight of one step in what is expected of a level that is not drafted yet, and how fast it is forgotten what
    #: one that is no longer drafted was like.
    RATE, FORGETTING = 0.05, 0.01

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        #: By depth: how likely a node's continuations are accepted, likeliest first.
        self._typical: dict[int, Array] = {}
        self._step: _Step | None = None
        #: Of the last choice: expected tokens per millisecond, relative to drafting nothing.
        self.gain = 1.0

    def goes_on(self, growth: Growth, limits: Limits) -> bool:
        """Whether to draft another level, because one is expected to pay for itself; if so, from how many beams.

        A beam's continuations are not known yet. They are taken to be as likely, given the beam, as those of
        this request a level higher and as those of this depth in earlier steps: the mean of both. Narrows the
        growth to the beams that pay, so it has to be asked before `growth.beams`.
        """
        widest = growth.widest()
        if not widest:
            return False
        step, depth, batch = self._of(growth, limits), growth.depth, growth.batch
        now = self._follow(step, depth)
        usual = self._typical.get(depth + 1, now)
        likely = min(now.shape[-1], usual.shape[-1])
        given = (now[:, :likely] + usual[..., :likely]) / 2
        found, chains, so_far = self._rated(step)
        latest = np.maximum(found.reached[:, growth.candidates().depths[0].cpu().numpy() == depth], 0)
        beams = np.concatenate([latest[:, :1], -np.sort(-latest[:, 1:], 1)], 1)[:, :widest]  # the chain's comes first
        beams[np.array(limits.levels) <= depth] = 0
        ahead = beams[:, :, None] * given[:, None, :]
        ahead[np.array(limits.chains), :, 1:] = 0
        opens = np.broadcast_to(np.arange(likely) > 0, ahead.shape)
        # Larger sizes may be cheaper to verify, so that more drafts spare time.
        larger = self.costs.verify.onwards(batch + so_far.size, batch * max(limits.nodes) + 1 - so_far.size)
        spared = float(larger[0] - larger.min())
        spent, best, goes_on = self._spent(growth), so_far.rate, False
        for k in sorted({1, 2, widest // 2, widest} - {0}):
            if k > widest:
                continue
            more, level = ahead[:, :k].reshape(batch, -1), float(self.costs.level(batch * k))
            if more.sum() <= best * (level - spared):
                continue  # not even if verifying them cost nothing
            trees = found.beside(more, opens[:, :k].reshape(batch, -1))
            longer = chains.beside(ahead[:, 0, :1], opens[:, 0, :1]) if chains and k == 1 else None
            rate = self._better(trees, longer, limits, batch, spent + level).rate
            if rate > best:
                best, goes_on, growth.narrow = rate, True, k
        return goes_on

    def budgets(self, growth: Growth, limits: Limits) -> Chosen:
        """Nodes of each request: together those that are expected to pay, likeliest first; maybe none."""
        step, self._step = self._of(growth, limits), None
        self._remember(step)
        found, _, (pool, size, rate) = self._rated(step)
        self.gain = rate / self.costs.plain(growth.batch)
        # Of equally likely ones those of earlier requests are taken, so that exactly `size` are.
        ranked = pool.ranked(limits.nodes).reached
        owners = np.repeat(np.arange(growth.batch), ranked.shape[1])
        taken = owners[np.argsort(-ranked.ravel(), kind="stable")[:size]]
        chosen = np.bincount(taken, minlength=growth.batch).tolist()
        if limits.trials:
            there = (pool.reached >= 0).sum(1).tolist()
            chosen = [max(n, min(t, a)) for n, t, a in zip(chosen, limits.trials, there, strict=True)]
        return Chosen(chosen, pool is not found)

    def _of(self, growth: Growth, limits: Limits) -> _Step:
        if self._step is None or self._step.growth is not growth or self._step.limits is not limits:
            self._step = _Step(growth, limits)
        return self._step

    def _rated(self, step: _Step) -> Rated:
        """What the candidates so far are worth."""
        growth, depth = step.growth, step.growth.depth
        if depth not in step.rated:
            found = _pool(growth.candidates(), step.limits)
            chains = self._chains(growth.candidates(), found)
            best = self._better(found, chains, step.limits, growth.batch, self._spent(growth))
            step.rated[depth] = Rated(found, chains, best)
        return step.rated[depth]

    def _follow(self, step: _Step, depth: int) -> Array:
        if depth not in step.follow:
            step.follow[depth] = _follow(step.growth.candidates(), depth)
        return step.follow[depth]

    def _chains(self, candidates: Candidates, found: Pool) -> Pool | None:
        """The chain of each request; None while branches cost nothing: then it is never better than the tree."""
        if not self.costs.branch:
            return None
        return Pool(np.where(candidates.on_chain.cpu().numpy(), found.reached, -1), found.opens)

    def _better(self, trees: Pool, chains: Pool | None, limits: Limits, requests: int, spent: float) -> Best:
        """That of the two which is expected to yield more tokens per millisecond."""
        rated = [
            Best(pool, *best_size(pool.likeliest(limits.nodes), requests, spent, self.costs))
            for pool in (trees, chains)
            if pool is not None
        ]
        return max(rated, key=lambda best: best.rate)

    def _spent(self, growth: Growth) -> float:
        rows = growth.batch * np.array(growth.widths, dtype=np.float64)
        return float(self.costs.first(growth.batch)) + float(self.costs.level(rows).sum())

    def _remember(self, step: _Step) -> None:
        depth = step.growth.depth
        for level in range(1, depth + 1):
            found = self._follow(step, level).mean(0)
            usual = self._typical.get(level)
            if usual is None or len(usual) != len(found):
                self._typical[level] = found
            else:
                usual += self.RATE * (found - usual)
        beyond = self._typical.get(depth + 1)
        if beyond is not None and len(beyond) == len(found):
            beyond += self.FORGETTING * (found - beyond)


def _pool(candidates: Candidates, limits: Limits) -> Pool:
    """[B, C] the candidates that may be drafted."""
    scores = drawable(candidates, limits.levels, limits.chains)
    reached = torch.where(scores.isfinite(), scores.exp(), -1).cpu().double().numpy()
    # The continuations of a beam stand together, the first one first.
    parents, opens = candidates.parents.cpu().numpy(), np.zeros(reached.shape, dtype=bool)
    opens[:, 1:] = parents[:, 1:] == parents[:, :-1]
    return Pool(reached, opens)


def _follow(candidates: Candidates, depth: int) -> Array:
    """[B, c] how likely the continuations at `depth` are, given the node that they continue, likeliest first: the
    mean over the nodes continued, each weighing as much as it is likely itself."""
    at = candidates.depths[0] == depth
    reached, parents = candidates.scores.exp().cpu().double().numpy(), candidates.parents[:, at].cpu().numpy()
    at = at.cpu().numpy()
    # -1, the root, is certain.
    above = np.concatenate([reached, np.ones_like(reached[:, :1])], 1)
    above = above[np.arange(len(above))[:, None], parents]
    beams = len(set(parents[0].tolist()))
    below, above = (a.reshape(len(a), beams, -1) for a in (reached[:, at], above))
    return np.asarray(below.sum(1) / np.maximum(above.sum(1), 1e-9))

"""How deep to draft and how many nodes to verify: what gives the most expected tokens per millisecond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .cost import CostModel
from .grow import Candidates, Growth, drawable

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


def best_size(reached: Array, requests: int, spent: float, costs: CostModel) -> tuple[int, float]:
    """How many of the likeliest drafts to verify, and the tokens per millisecond expected of that.

    reached: probability that each draft of the batch is accepted, likeliest first. A step yields one token a
    request besides. spent: milliseconds that drafting took.
    """
    tokens = requests + np.concatenate([[0.0], np.cumsum(reached)])
    rates = tokens / (spent + costs.verify(requests + np.arange(len(tokens))))
    size = int(rates.argmax())
    return size, float(rates[size])


class Chooser:
    """Chooses for a batch whose candidates are scored by the probability that they are accepted."""

    #: Weight of one step in what is expected of a level that is not drafted yet, and how fast it is forgotten what
    #: one that is no longer drafted was like.
    RATE, FORGETTING = 0.05, 0.01

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        #: By depth: how likely a node's continuations are accepted, likeliest first.
        self._typical: dict[int, Array] = {}
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
        candidates, depth, batch = growth.candidates(), growth.depth, growth.batch
        now = _follow(candidates, depth)
        usual = self._typical.get(depth + 1, now)
        likely = min(now.shape[-1], usual.shape[-1])
        given = (now[:, :likely] + usual[..., :likely]) / 2
        found, only = _reached(candidates, limits), np.array(limits.chains)
        latest = np.maximum(found[:, candidates.depths[0].cpu().numpy() == depth], 0)
        beams = np.concatenate([latest[:, :1], -np.sort(-latest[:, 1:], 1)], 1)[:, :widest]  # the chain's comes first
        beams[np.array(limits.levels) <= depth] = 0
        ahead = beams[:, :, None] * given[:, None, :]
        ahead[only, :, 1:] = 0
        spent = self._spent(growth)
        _, best = best_size(_likeliest(found, limits.nodes), batch, spent, self.costs)
        goes_on = False
        for k in sorted({1, 2, widest // 2, widest} - {0}):
            if k > widest:
                continue
            pool = _likeliest(np.concatenate([found, ahead[:, :k].reshape(batch, -1)], 1), limits.nodes)
            _, rate = best_size(pool, batch, spent + float(self.costs.level(batch * k)), self.costs)
            if rate > best:
                best, goes_on, growth.narrow = rate, True, k
        return goes_on

    def budgets(self, growth: Growth, limits: Limits) -> list[int]:
        """Nodes of each request [B]: together those that are expected to pay, likeliest first; maybe none."""
        candidates = growth.candidates()
        self._remember(candidates, growth.depth)
        reached = _reached(candidates, limits)
        pool = _likeliest(reached, limits.nodes)
        size, rate = best_size(pool, growth.batch, self._spent(growth), self.costs)
        self.gain = rate / self.costs.plain(growth.batch)
        # Of equally likely ones those of earlier requests are taken, so that exactly `size` are.
        ranked = _ranked(reached, limits.nodes)
        owners = np.repeat(np.arange(growth.batch), ranked.shape[1])
        taken = owners[np.argsort(-ranked.ravel(), kind="stable")[:size]]
        chosen = np.bincount(taken, minlength=growth.batch).tolist()
        if not limits.trials:
            return chosen
        there = (reached >= 0).sum(1).tolist()
        return [max(n, min(t, a)) for n, t, a in zip(chosen, limits.trials, there, strict=True)]

    def _spent(self, growth: Growth) -> float:
        rows = growth.batch * np.array(growth.widths, dtype=np.float64)
        return float(self.costs.first(growth.batch)) + float(self.costs.level(rows).sum())

    def _remember(self, candidates: Candidates, depth: int) -> None:
        for level in range(1, depth + 1):
            found = _follow(candidates, level).mean(0)
            usual = self._typical.get(level)
            if usual is None or len(usual) != len(found):
                self._typical[level] = found
            else:
                usual += self.RATE * (found - usual)
        beyond = self._typical.get(depth + 1)
        if beyond is not None and len(beyond) == len(found):
            beyond += self.FORGETTING * (found - beyond)


def _reached(candidates: Candidates, limits: Limits) -> Array:
    """[B, C] probability that each candidate is accepted; -1: not to be drafted."""
    scores = drawable(candidates, limits.levels, limits.chains)
    return torch.where(scores.isfinite(), scores.exp(), -1).cpu().double().numpy()


def _follow(candidates: Candidates, depth: int) -> Array:
    """[B, c] how likely the continuations at `depth` are, given the node that they continue, likeliest first: the
    mean over the nodes continued, each weighing as much as it is likely itself."""
    at = candidates.depths[0] == depth
    reached, parents = candidates.scores.exp().cpu().double().numpy(), candidates.parents[:, at].cpu().numpy()
    at = at.cpu().numpy()
    # -1, the root, is certain.
    above = np.concatenate([reached, np.ones_like(reached[:, :1])], 1)
    above = np.take_along_axis(above, parents, 1)
    beams = len(set(parents[0].tolist()))
    below, above = (a.reshape(len(a), beams, -1) for a in (reached[:, at], above))
    return np.asarray(below.sum(1) / np.maximum(above.sum(1), 1e-9))


def _ranked(reached: Array, nodes: Sequence[int]) -> Array:
    """[B, n] each request's likeliest drafts, as many as it may have, -1 for those it may not."""
    most = max(nodes)
    ranked = -np.sort(-reached, axis=1)[:, :most]
    ranked[np.arange(ranked.shape[1])[None] >= np.array(nodes)[:, None]] = -1
    return ranked


def _likeliest(reached: Array, nodes: Sequence[int]) -> Array:
    """Probabilities of all drafts that requests may have, likeliest first."""
    flat = _ranked(reached, nodes).ravel()
    return -np.sort(-flat[flat > 0])

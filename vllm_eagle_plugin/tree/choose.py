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
        """Whether to draft from the growth's beams: whether the level behind them is expected to pay for itself.

        A beam's continuations are not known yet. They are taken to be as likely, given the beam, as those of
        this request a level higher and as those of this depth in earlier steps: the mean of both.
        """
        beams = growth.beams()
        if beams is None:
            return False
        candidates = growth.candidates()
        now = _follow(candidates, growth.depth)
        usual = self._typical.get(growth.depth + 1, now)
        width = min(now.shape[-1], usual.shape[-1])
        given = (now[:, :width] + usual[..., :width]) / 2
        only = np.array(limits.chains)
        reached = beams.scores.exp().cpu().double().numpy()
        reached[np.array(limits.levels) <= growth.depth] = 0
        reached[only, 1:] = 0
        ahead = reached[:, :, None] * given[:, None, :]
        ahead[only, :, 1:] = 0
        rows = growth.batch * beams.tokens.shape[1]
        spent, found = self._spent(growth), _reached(candidates, limits)
        here = best_size(_likeliest(found, limits.nodes), growth.batch, spent, self.costs)[1]
        more = _likeliest(np.concatenate([found, ahead.reshape(growth.batch, -1)], 1), limits.nodes)
        return best_size(more, growth.batch, spent + float(self.costs.level(rows)), self.costs)[1] > here

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

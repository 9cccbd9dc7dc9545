"""How likely a draft is accepted: the head's claim, corrected by what the target has accepted so far.

A correction is a shift in log-odds, learned from counts. Three of them add up, each learning what those before it
leave over: one by the head's claim and whether the draft is its first choice, one by depth, one by request.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .old_grow import Scorer
from .pace import CLOSEST, Pace, Spread
from .tree import Tree

Array = NDArray[np.float64]

#: Bounds of the bins that claims fall into, as log-odds: 0.2%, 1%, 5%, 12%, 27%, 50%, 73%, 88%, 95%, 99%, 99.8%.
EDGES = np.array([-6.0, -4.5, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.5, 6.0])


def log_odds(probability: ArrayLike) -> Array:
    # Not np.clip: on the few numbers of a step it takes longer than all the rest.
    p = np.minimum(np.maximum(np.asarray(probability, dtype=np.float64), CLOSEST), 1 - CLOSEST)
    return np.asarray(np.log(p) - np.log1p(-p))


def shifted(probability: ArrayLike, shift: ArrayLike) -> Array:
    """Probabilities with their log-odds moved by `shift`."""
    return 1 / (1 + np.exp(-log_odds(probability) - np.asarray(shift)))


class Shifts:
    """Shifts in log-odds, one a cell, each from the trials counted in its cell.

    A cell starts as if it had seen `prior` trials that turned out as expected. Counts fade, by half in 0.7
    `memory` steps whether a cell is tried or not: what is never drafted any more is given another chance.
    """

    def __init__(self, shape: tuple[int, ...], prior: float, memory: float):
        self.prior = prior
        self.fading = 1 - 1 / memory
        self.trials, self.hits, self.expected = (np.zeros(shape) for _ in range(3))
        self._values: Array | None = np.zeros(shape)

    def add(self, cells: tuple[NDArray[np.int64], ...], expected: Array, hits: Array) -> None:
        """Count a step's trials: `cells` index this table, `expected` probabilities, `hits` 0 or 1, all [n]."""
        for counts, more in ((self.trials, 1.0), (self.hits, hits), (self.expected, expected)):
            counts *= self.fading
            np.add.at(counts, cells, more)
        self._values = None

    def values(self) -> Array:
        """The shift of every cell."""
        if self._values is None:
            mean = self.expected / np.maximum(self.trials, 1e-9)
            found = (self.hits + self.prior * mean) / (self.trials + self.prior)
            self._values = np.where(self.trials > 0, log_odds(found) - log_odds(mean), 0.0)
        return self._values


class Calibration:
    """P(draft accepted | the one it continues accepted), learned from verified trees."""

    #: Weight of a step's requests in how requests usually do.
    USUAL = 0.01

    def __init__(self, depth: int, prior: float = 6.0, memory: float = 2000.0):
        self._claims = Shifts((2, len(EDGES) + 1), prior, memory)
        self._depths = Shifts((depth + 1, 2), prior, memory)
        self._spread = Spread()
        #: Mean shift of requests: what all of them do is not theirs but a depth's, or a claim's.
        self._usual = 0.0
        self._paces: dict[str, Pace] = {}
        self._seen: list[tuple[Tree, Sequence[float], Sequence[int], str]] = []

    def probability(self, logprobs: Tensor, depth: int, shifts: Array | None = None) -> Tensor:
        """Log-probability that each is accepted.

        logprobs [..., n]: the head's for the n best continuations of a node, best first, at `depth`. shifts: of
        their requests, to be added to log-odds; shaped like logprobs but for trailing 1s.
        """
        self.learn()
        # In numpy, wherever the head runs: many small steps on few numbers, which the caller wants on the host next.
        claims = np.minimum(logprobs.double().cpu().numpy(), -CLOSEST)
        odds = claims - np.log(-np.expm1(claims))
        by_claim, by_depth = self._claims.values(), self._depths.values()[min(depth, len(self._depths.trials) - 1)]
        ranks = np.minimum(np.arange(odds.shape[-1]), 1)
        odds = odds + by_claim[ranks, np.searchsorted(EDGES, odds, side="right")] + by_depth[ranks]
        if shifts is not None:
            odds = odds + shifts
        # No draft is likelier than a better one beside it, and one of them at most is accepted.
        found = np.minimum.accumulate(-np.logaddexp(0, -odds), -1)
        found = found - np.maximum(np.logaddexp.reduce(found, -1, keepdims=True), 0)
        return torch.from_numpy(found).to(logprobs)

    def expected(self, claim: float, depth: int, requests: Sequence[str]) -> Array:
        """[B, depth] probability that a first choice claimed with `claim` is accepted, for each request and depth."""
        self.learn()
        by_claim = self._claims.values()[0, np.searchsorted(EDGES, log_odds(claim), side="right")]
        by_depth = self._depths.values()[np.minimum(np.arange(1, depth + 1), len(self._depths.trials) - 1), 0]
        return shifted(claim, by_claim + by_depth + np.array([[self.shift(r)] for r in requests]))

    def scorer(self, requests: Sequence[str]) -> Scorer:
        """What scores a growth of these requests' trees by the probability that nodes are accepted."""
        self.learn()
        shifts = np.array([self.shift(r) for r in requests])[:, None, None]
        return lambda logprobs, depth: self.probability(logprobs, depth, shifts)

    def shift(self, request: str) -> float:
        """How much likelier (in log-odds) this request's drafts are accepted than others'."""
        return self._paces[request].shift if request in self._paces else 0.0

    def observe(self, claims: Sequence[float], tree: Tree, path: Sequence[int], request: str) -> None:
        """Learn from a verified tree: `claims` are the head's probabilities of its nodes, their parents given,
        `path` the nodes accepted."""
        self._seen.append((tree, claims, path, request))

    def forget(self, request: str) -> None:
        """A request has ended."""
        self.learn()
        if request in self._paces:
            self._paces.pop(request).end()

    def learn(self) -> None:
        """Take in what was observed, a step's trees at once. Whatever asks does this first."""
        if not self._seen:
            return
        seen, self._seen = self._seen, []
        rows = [(*trial, i) for i, (tree, claims, path, _) in enumerate(seen) for trial in _trials(tree, claims, path)]
        if not rows:
            return
        columns = np.array(rows, dtype=np.float64).T
        claims, hits = columns[:2]
        depths, ranks, requests = columns[2:].astype(np.int64)
        odds = log_odds(claims)
        bins = np.searchsorted(EDGES, odds, side="right")
        depths = np.minimum(depths, len(self._depths.trials) - 1)
        odds = odds + self._claims.values()[ranks, bins]
        by_claim = 1 / (1 + np.exp(-odds))
        by_depth = 1 / (1 + np.exp(-odds - self._depths.values()[depths, ranks]))
        self._claims.add((ranks, bins), claims, hits)
        # Deep drafts are mostly those of requests that do well: that is not the depth's doing.
        paces = np.array([self.shift(request) for *_, request in seen])
        self._usual += self.USUAL * (paces.mean() - self._usual)
        self._depths.add((depths, ranks), shifted(by_claim, (paces - self._usual)[requests]), hits)
        # First choices say how a request does; the rest mostly say how many others were tried.
        firsts: dict[int, tuple[list[float], list[float]]] = {}
        rank, row, p, hit = (column.tolist() for column in (ranks, requests, by_depth, hits))
        for i in range(len(rows)):
            if rank[i] == 0:
                of = firsts.setdefault(row[i], ([], []))
                of[0].append(p[i])
                of[1].append(hit[i])
        for i, (expected, came) in firsts.items():
            self._paces.setdefault(seen[i][-1], Pace(self._spread)).add(expected, came)


def _trials(tree: Tree, claims: Sequence[float], path: Sequence[int]) -> list[tuple[float, float, int, int]]:
    """Of every node whose parent was accepted: claim, whether it was too, depth, 0 for the best child and 1 else."""
    at = {node: depth for depth, node in enumerate((0, *path), 1)}
    best: dict[int, int] = {}
    for node, parent in enumerate(tree.parents, 1):
        if parent in at and (parent not in best or claims[node - 1] > claims[best[parent] - 1]):
            best[parent] = node
    return [
        (claims[node - 1], float(node in at), at[parent], int(best[parent] != node))
        for node, parent in enumerate(tree.parents, 1)
        if parent in at
    ]

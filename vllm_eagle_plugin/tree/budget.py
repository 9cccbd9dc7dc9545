"""How much to draft: what gives the most expected tokens per millisecond. Free of vLLM and torch.

A host names the *sizes* that it can draft: a chain's lengths, or nodes and levels of trees. Before each step it asks a
`Budget` for one of them (0: none) for each request (`each`) or for the whole batch (`whole`); after it, it tells what
was accepted (`observe`) and how long it took (`StepTimes`). Where a host learns of a step late, it tells the size of
that step.

    times = StepTimes(verify={1: 8.0, 64: 8.4}, head={1: 0.4, 64: 0.5})     # measured at start-up, by rows
    budget = Budget([Size(n, n) for n in range(1, 5)], times)               # a chain of up to 4
    chosen = budget.each(requests)                                          # [B] numbers; size i is sizes[i - 1]
    ...
    budget.observe(request, chosen[b], accepted)                            # of every request that decoded
    times.observe(rows, milliseconds)                                       # of steps that only decode

What it decides follows from what it is told and nothing else: ranks that are told the same decide the same. Times
differ between ranks, so those that must agree are told the times of one of them, or none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Size(NamedTuple):
    """What a request may draft in a step."""

    #: Drafted nodes, each a row to verify.
    nodes: int
    #: Passes of the head: the most tokens that can be accepted.
    levels: int
    #: Rows of a request in each pass but the first.
    beams: int = 1


class Curve:
    """Milliseconds by rows: a table that steps correct, and one factor for the machine's speed.

    Straight lines between what is known, the last one going on. What steps take beyond what is expected moves the
    factor; it moves a size only as far as that size is run more than of late, so that a machine that slows down is
    not taken for a size that got dear.
    """

    #: How far a step moves the factor, sizes, and what is run of late; and the most (as a logarithm) that one step is
    #: heeded with, since the machine may have been away.
    SPEED, OWN, LATE, MOST = 0.1, 0.1, 0.1, 0.3

    def __init__(self, measured: Mapping[int, float]):
        if not measured:
            raise ValueError("a curve needs at least one measurement")
        self.rows = np.array(sorted(measured), dtype=np.float64)
        self.ms = np.array([max(float(measured[n]), 1e-6) for n in sorted(measured)])
        self.speed = 1.0
        self._table = np.empty(0)
        self._late: Array | None = None

    def __call__(self, rows: ArrayLike) -> Array:
        """Milliseconds for whole numbers of rows."""
        asked = np.asarray(rows, dtype=np.int64)
        most = int(asked.max(initial=0))
        if most >= len(self._table):
            every = np.arange(max(64, 2 * most))
            self._table = np.interp(every, self.rows, self.ms)
            if len(self.rows) > 1:
                slope = max(0.0, self.ms[-1] - self.ms[-2]) / (self.rows[-1] - self.rows[-2])
                self._table += slope * np.maximum(0.0, every - self.rows[-1])
        return np.asarray(self._table[asked] * self.speed)

    def observe(self, rows: int, ms: float) -> None:
        """Learn from a step over so many rows that took so long."""
        error = float(np.clip(np.log(max(ms, 1e-6) / float(self(rows))), -self.MOST, self.MOST))
        self.speed *= float(np.exp(self.SPEED * error))
        share = self._shares(rows)
        late = share if self._late is None else self._late
        if (share != late).any():
            self.ms, self._table = self.ms * np.exp(self.OWN * (share - late) * error), np.empty(0)
        self._late = late + self.LATE * (share - late)

    def _shares(self, rows: int) -> Array:
        """[sizes] how much each known size says of this number of rows."""
        shares = np.zeros(len(self.rows))
        behind = int(np.searchsorted(self.rows, rows))
        if behind == 0 or behind == len(self.rows):
            shares[min(behind, len(self.rows) - 1)] = 1.0
        else:
            first, last = self.rows[behind - 1 : behind + 1]
            shares[behind] = (rows - first) / (last - first)
            shares[behind - 1] = 1 - shares[behind]
        return shares


class StepTimes:
    """What the parts of a step take, in milliseconds.

    verify: everything but drafting, by rows verified (one a request and one a draft). head: a pass of the head, by rows.
    """

    def __init__(self, verify: Mapping[int, float], head: Mapping[int, float]):
        self.verify, self.head = Curve(verify), Curve(head)

    def drafting(self, requests: int, size: Size) -> float:
        """Drafting this size for so many requests."""
        later = float(self.head(requests * size.beams)) * (size.levels - 1)
        return float(self.head(requests)) + later if size.levels else 0.0

    def observe(self, rows: int, ms: float) -> None:
        """All but drafting took `ms` in a step that verified so many rows."""
        self.verify.observe(rows, ms)

    def observe_drafting(self, requests: int, size: Size, ms: float) -> None:
        """Drafting took `ms`."""
        self.head.observe(requests, float(self.head(requests)) * ms / self.drafting(requests, size))


class Acceptance:
    """P(another token is accepted | depth, size, request): online logistic regression, log-odds that add up.

    A draft at some depth is a trial if everything above it was accepted. Each trial moves the log-odds of its depth (of
    trees: in its size; of chains all sizes draft alike) and of its request by the same surprise; what is old fades by that.
    """

    #: How far a surprise moves a depth, once it has moved often; and a request.
    SLOW, REQUEST = 0.03, 0.15
    #: Log-odds before anything is known, and what twice as many nodes a level add to them.
    START, WIDER = 0.0, 0.5

    def __init__(self, sizes: Sequence[Size]):
        nodes, levels = (np.array(column) for column in zip(*[(s.nodes, s.levels) for s in sizes], strict=True))
        self.trees = bool((nodes > levels).any())
        #: [sizes, depths] log-odds; of chains the first row is that of all.
        self.odds = np.repeat(self.START + self.WIDER * np.log2(nodes / levels)[:, None], levels.max(), 1)
        self.request: dict[str, float] = {}
        self._within = np.arange(levels.max()) < levels[:, None]
        self._moved = np.zeros_like(self.odds)

    def expected(self, requests: Sequence[str]) -> Array:
        """[B, 1 + sizes] tokens that each request is expected to have accepted of each size, 0 of none."""
        own = np.array([self.request.get(r, 0.0) for r in requests])
        odds = own[:, None, None] + (self.odds if self.trees else self.odds[:1])
        reached = (self._within / (1 + np.exp(-odds))).cumprod(-1)
        return np.concatenate([np.zeros((len(own), 1)), reached.sum(-1)], 1)

    def observe(self, request: str, size: int, accepted: int) -> None:
        """`accepted` tokens of what a request drafted by sizes[size] were."""
        own, row = self.request.get(request, 0.0), size if self.trees else 0
        for depth in range(min(accepted + 1, int(self._within[size].sum()))):
            surprise = (depth < accepted) - 1 / (1 + math.exp(-float(self.odds[row, depth]) - own))
            own += self.REQUEST * surprise
            self.odds[row, depth] += max(self.SLOW, 4 / (4 + self._moved[row, depth])) * surprise
            self._moved[row, depth] += 1
        self.request[request] = own


class Budget:
    """Chooses sizes by number: 0 is none, i is sizes[i - 1].

    sizes: what can be drafted, by nodes, then levels. minimum: fewest drafted nodes of a request. probe_every: one step
    in so many drafts another size, since what is never tried is never known; one in `SOON` while that may be better.

    A request that nothing pays for sleeps but for trials, with all that sleep: `SOON` steps after the last, then after
    twice as many each time up to `RARE * probe_every`, until none sleeps.
    """

    SOON, RARE = 8, 4
    #: Nothing is drafted only where the best size is expected to yield less than this share of plain decoding.
    WORTH = 0.99

    def __init__(self, sizes: Sequence[Size], times: StepTimes, minimum: int = 0, probe_every: int = 64):
        self.sizes, self.times, self.probe_every = sorted(sizes), times, probe_every
        sizes = self.sizes
        self.acceptance = Acceptance(sizes)
        self._least = next((i for i, s in enumerate(sizes, 1) if s.nodes >= minimum > 0), 0)
        self._nodes, self._levels, self._beams = np.array([Size(0, 0), *sizes]).T
        #: [ladders, 1 + steps] for each number of levels, sizes of at most as many by nodes: of each the deepest.
        ladders = [
            [0, *{s.nodes: i for i, s in enumerate(sizes, 1) if s.levels <= most}.values()]
            for most in sorted({s.levels for s in sizes})
        ]
        longest = max(map(len, ladders))
        self._ladders = np.array([ladder + ladder[-1:] * (longest - len(ladder)) for ladder in ladders])
        self._used = np.zeros(1 + len(sizes), dtype=np.int64)
        self._step, self._tried, self._gap, self._trials = 0, 0, self.SOON, 0

    def number(self, nodes: int, levels: int | None = None) -> int:
        """The number of the largest size that so many nodes, on so many levels, hold; 0 if none."""
        most = self.sizes[-1].levels if levels is None else levels
        return max((i for i, s in enumerate(self.sizes, 1) if s.nodes <= nodes and s.levels <= most), default=0)

    def each(self, requests: Sequence[str]) -> list[int]:
        """The size of each request, of those that may draft, in the next step."""
        if not requests:
            return []
        gains = self.acceptance.expected(requests)
        return self._settle(gains, self._apart(gains) if len(requests) > 1 else [self._alike(gains)])

    def whole(self, requests: Sequence[str]) -> int:
        """One size for the whole batch in the next step."""
        if not requests:
            return 0
        gains = self.acceptance.expected(requests)
        return self._settle(gains, [self._alike(gains)], self._alike(gains, least=1))[0]

    def observe(self, request: str, size: int, accepted: int) -> None:
        """`accepted` tokens were, of what a request drafted by size number `size`; of none there is nothing to tell."""
        if size:
            self.acceptance.observe(request, size - 1, accepted)

    def forget(self, request: str) -> None:
        """A request has ended."""
        self.acceptance.request.pop(request, None)

    def report(self) -> dict[str, Any]:
        """For people: sizes and how often each was chosen ([nodes, levels, times]), trials, what a request like others
        is expected to have accepted of each size, and what is known of times ([rows, milliseconds])."""
        curves = {"verify": self.times.verify, "head": self.times.head}
        sizes = [(0, 0), *((size.nodes, size.levels) for size in self.sizes)]
        return {
            "sizes": [[*size, int(used)] for size, used in zip(sizes, self._used, strict=True)],
            "trials": self._trials,
            "expected": self.acceptance.expected([""])[0].round(3).tolist(),
            "milliseconds": {name: [c.rows.tolist(), c(c.rows).round(4).tolist()] for name, c in curves.items()},
        }

    def _rates(self, gains: Array) -> Array:
        """[1 + sizes] tokens per millisecond if all requests draft the same; gains [B, 1 + sizes]: tokens accepted."""
        batch = len(gains)
        return (batch + gains.sum(0)) / (self._verify(batch, batch * (1 + self._nodes)) + self._drafting(batch))

    def _alike(self, gains: Array, least: int = 0) -> int:
        """The best size for all, `least` or larger."""
        rates = self._rates(gains)
        rates[0] *= self.WORTH
        return least + int(rates[least:].argmax())

    def _promising(self, gains: Array) -> tuple[int, bool]:
        """The size that may be best for all, besides the one that is thought to be, and whether it may be better: what
        has been drafted `n` times may yield more than is expected by a share of 1 / sqrt(n)."""
        rates = self._rates(gains)[1:]
        hopes = rates * (1 + 1 / np.sqrt(1 + self._used[1:]))
        hopes[rates.argmax()] = 0.0
        return 1 + int(hopes.argmax()), bool(hopes.max() > rates.max())

    def _apart(self, gains: Array) -> list[int]:
        """The best size of each: rows go to whoever gains the most by them.

        How many rows pay, and how many passes of the head, decides the time that they take.
        """
        batch, steps = len(gains), self._ladders.shape[1] - 1
        gains, nodes = gains[:, self._ladders], self._nodes[self._ladders]
        # What each row more brings, on the least concave curve above a request's gains: by steps from any i to any k.
        ends = np.maximum(nodes[:, None, 1:] - nodes[:, :-1, None], 1)
        slopes = (gains[:, :, None, 1:] - gains[:, :, :-1, None]) / ends
        slopes = np.where(np.tri(steps, dtype=bool).T, slopes, -np.inf)
        steepest = np.maximum.accumulate(slopes[..., ::-1], axis=3)[..., ::-1]
        worth = np.minimum.accumulate(steepest, axis=2).diagonal(axis1=2, axis2=3)
        worth = worth.swapaxes(0, 1).reshape(len(nodes), -1)
        order = np.argsort(-worth, axis=1, kind="stable")
        more = np.take_along_axis(np.diff(nodes, axis=1), order % steps, 1)
        tokens = batch + (np.take_along_axis(worth, order, 1) * more).cumsum(1)
        rates = tokens / (self._verify(batch, batch + more.cumsum(1)) + self._drafting(batch)[self._ladders[:, -1:]])
        ladder, last = divmod(int(rates.argmax()), rates.shape[1])
        if rates[ladder, last] <= self.WORTH * batch / float(self.times.verify(batch)):
            return [0] * batch
        taken = np.bincount(order[ladder, : last + 1] // steps, minlength=batch)
        return self._ladders[ladder, taken].tolist()

    def _drafting(self, batch: int) -> Array:
        """[1 + sizes] milliseconds of drafting."""
        first, later = self.times.head(batch), self.times.head(batch * self._beams)
        return np.where(self._levels, first + later * (self._levels - 1), 0.0)

    def _verify(self, batch: int, rows: NDArray[np.int64]) -> Array:
        """Milliseconds; never less than without drafts: a table is not so sure of a few rows."""
        return np.maximum(self.times.verify(rows), self.times.verify(batch))

    def _settle(self, gains: Array, chosen: list[int], trial: int = 1) -> list[int]:
        """With what is drafted seldom, trials of size `trial`, and the minimum."""
        self._step += 1
        soon, due = (self._step % often == 0 for often in (self.SOON, self.probe_every))
        if soon or due:
            other, better = self._promising(gains)
            chosen = [other if size and (due or better) else size for size in chosen]
        chosen = [max(size, self._least) for size in chosen]
        if 0 not in chosen:
            self._gap = self.SOON
        elif self._step - self._tried >= self._gap:
            self._tried, self._gap = self._step, min(2 * self._gap, self.RARE * self.probe_every)
            self._trials += 1
            chosen = [size or trial for size in chosen]
        self._used += np.bincount(chosen, minlength=len(self._used))
        return chosen

"""The draft lengths that give the most expected tokens per millisecond, learned from what was accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration
from .config import Shape
from .cost_model import CostModel
from .old_grow import extent
from .tree import Tree

Array = NDArray[np.float64]


@dataclass
class _Request:
    """What the gain controller keeps of a request."""

    limit: int = 0
    #: No step has been observed since its limit was asked for.
    asked: bool = False
    #: Its limit is a trial; trials in a row that had a draft accepted.
    trial: bool = False
    streak: int = 0
    #: Tokens since its last trial, and how many there are to be before the next; a new request is due.
    since: float = float("inf")
    wait: float = 0.0


@dataclass
class GainController:
    """The lengths that give the whole batch the most expected tokens per millisecond.

    How likely the draft at each position is accepted is learned over all requests and for each by itself, as
    confidences are calibrated, from one claim that is the same for all. Where even the best length yields less
    than drafting nothing a request drafts nothing, but for trials: the first soon, as it may have been bad luck,
    each up to `BURST` in a row while they do well, and twice as many tokens until the next where that did not bring
    it back: `probe_every` after a few, then up to `PATIENCE` times that. A trial is one draft and costs the batch a
    pass of the head, so some requests make theirs in the same step, and the steps between two such grow likewise, to
    `probe_every` or until such steps take no more than `SHARE` of the time.
    """

    costs: CostModel
    shape: Shape
    minimum: int
    maximum: int
    probe_every: int = 64
    #: What a draft is taken to be worth before anything is known.
    CLAIM = 0.7
    BURST, PATIENCE, TOGETHER = 4, 16, 4
    #: Of the time, for drafting trials.
    SHARE = 0.003
    #: Share of `probe_every` that is waited at first, and trials that what is taken to be known at first counts for.
    SOON, PRIOR = 1 / 8, 5.0
    #: Drafting that has begun goes on until it is expected to yield less than this share of drafting nothing: near
    #: one, chance decides, and drafting is how to know better.
    WORTH = 0.98
    #: Steps for which lengths stay as they were weighed, if the requests do: little is learned from one. And while
    #: nothing is tried, so that only costs can have changed.
    AGAIN, UNTRIED = 4, 16

    _requests: dict[str, _Request] = field(default_factory=dict)
    _chosen: Counter[int] = field(default_factory=Counter)
    _probes: int = 0
    _step: int = 0
    _tried: int = -1_000_000
    _gap: float = 0.0
    #: The lengths weighed last, of whom, and when.
    _lengths: list[int] = field(default_factory=list)
    _weighed: list[str] = field(default_factory=list)
    _weighed_at: int = 0
    #: Something has been tried since.
    _news: bool = False

    def __post_init__(self) -> None:
        sizes, widths = extent(self.shape)
        #: Nodes and beam rows of a request, by levels drafted. An auto tree has as many nodes as pay: at least one
        #: a level; how many more is left to what chooses them.
        auto = self.shape.kind == "auto"
        self._sizes = np.array(range(self.maximum + 1) if auto else sizes[: self.maximum + 1], dtype=np.float64)
        self._widths = np.array(widths[: self.maximum - 1], dtype=np.float64)
        self._whole = auto
        self._acceptance = Calibration(self.shape.depth, self.PRIOR, memory=2000 / self.AGAIN)

    def limits(self, requests: Sequence[str]) -> list[int]:
        self._step += 1
        states = [self._requests.setdefault(r, _Request()) for r in requests]
        if self._weighed != requests or self._step - self._weighed_at >= (self.AGAIN if self._news else self.UNTRIED):
            self._lengths = self._best(self._acceptance.expected(self.CLAIM, self.maximum, requests)).tolist()
            self._weighed, self._weighed_at, self._news = list(requests), self._step, False
        further = self._step % self.probe_every == 0  # else what is deeper would never be known
        for state, length in zip(states, self._lengths, strict=True):
            length = max(length, self.minimum)
            asleep = length == 0
            if not asleep:
                if state.streak:
                    self._gap = 0.0  # a trial has brought one back
                state.wait, state.streak = self.SOON * self.probe_every, 0
                length = self.maximum if self._whole else min(length + further, self.maximum)
            if not asleep or state.trial or state.limit:
                # It drafts, or has just stopped, or its last trial was never verified.
                state.since = 0
            state.limit, state.asked, state.trial = length, True, False
        self._try([s for s in states if s.limit == 0])
        found = [s.limit for s in states]
        self._chosen.update(found)
        return found

    def trials(self, requests: Sequence[str]) -> list[bool]:
        return [self._requests[r].trial for r in requests]

    def observe(self, request: str, drafted: int, accepted: int, emitted: int) -> None:
        state = self._requests.setdefault(request, _Request())
        state.since += emitted
        # Where a tree may have any number of nodes, none chosen says as much as one rejected.
        declined = self._whole and state.asked and state.limit > 0 and not state.trial
        state.asked = False
        if tried := max(drafted, int(declined)):
            self._news = True
            path = range(1, accepted + 1)
            self._acceptance.observe([self.CLAIM] * tried, Tree.chain([0] * tried), path, request)
        if state.trial and drafted:
            state.streak = state.streak + 1 if accepted else 0
            state.trial, state.limit = False, 0

    def forget(self, request: str) -> None:
        self._requests.pop(request, None)
        self._acceptance.forget(request)

    def state(self) -> dict[str, Any]:
        return {"lengths": dict(self._chosen), "probes": self._probes}

    def _try(self, asleep: list[_Request]) -> None:
        """Give those a trial that are due for one, and those whose last one did well another."""
        trying = [s for s in asleep if 0 < s.streak < self.BURST]
        due = [s for s in asleep if s.since >= s.wait / 2]
        if self._step - self._tried >= self._gap and any(s.since >= s.wait for s in due):
            rare = self.costs.trial / (self.SHARE * float(self.costs.verify(len(asleep))))
            most = min(max(self.probe_every, rare), self.PATIENCE * self.probe_every)
            self._tried, self._gap = self._step, self._longer(self._gap, most)
            # A few say whether the others may hope; where many draft at once each row is dear.
            due = sorted(due, key=lambda s: -s.since)[: max(self.TOGETHER, len(asleep) // 4)]
            for state in due:
                state.streak, state.wait = 0, self._longer(state.wait, self.PATIENCE * self.probe_every)
            trying += due
        for state in trying:
            state.trial, state.since, state.limit = True, 0, 1
        self._probes += len(trying)

    def _longer(self, wait: float, most: float) -> float:
        return min(max(2 * wait, self.SOON * self.probe_every), most)

    def _best(self, accepted: Array) -> NDArray[np.int64]:
        """[B] lengths, out of the probability [B, L] that each position is accepted, those before it given."""
        batch, levels = len(accepted), np.arange(accepted.shape[1] + 1)
        gains = np.concatenate([np.zeros((batch, 1)), accepted.cumprod(1).cumsum(1)], 1)
        drafting = self.costs.level(batch * self._widths).cumsum()
        fixed = np.concatenate([[self.costs.idle(batch)], float(self.costs.first(batch)) + np.r_[0.0, drafting]])
        plain, each = float(self.costs.verify(batch)), np.arange(batch)[:, None]
        # At first all as long as each other; then, at the price that the best so far puts on a row, each by itself.
        chosen = np.broadcast_to(levels, gains.shape)
        best, rate = np.zeros(batch, dtype=np.int64), self.WORTH * self.costs.plain(batch)
        for _ in range(4):
            rows = self._sizes[chosen].sum(0)
            rates = (batch + gains[each, chosen].sum(0)) / (fixed + self._verify(batch, rows))
            most = 1 + int(rates[1:].argmax())
            if rates[most] <= rate:
                break
            best, rate = chosen[:, most], float(rates[most])
            price = rate * max(0.0, float(self._verify(batch, rows[most])) - plain) / max(rows[most], 1.0)
            worth = gains - price * self._sizes
            before = np.maximum.accumulate(np.concatenate([np.full((batch, 1), -np.inf), worth[:, :-1]], 1), 1)
            chosen = np.maximum.accumulate(np.where(worth > before, levels, 0), 1)
        return best

    def _verify(self, batch: int, drafts: Array) -> Array:
        """Milliseconds of verifying `drafts` of the batch, or, where trees may have more, what the cheapest tree of
        so many or more nodes takes: beyond some sizes a step is cheaper. Never less than a step without drafts: what
        is not accepted is not worth drafting for the time of a few rows, which is known to no more than that."""
        plain = float(self.costs.verify(batch))
        if not self._whole:
            return np.maximum(self.costs.verify(batch + drafts), plain)
        any_more = self.costs.verify.onwards(batch, batch * max(self.shape.nodes, self.maximum) + 1)
        cheapest = np.minimum.accumulate(any_more[::-1])[::-1]
        return np.maximum(cheapest[np.asarray(drafts, dtype=np.int64)], plain)

"""How many drafts each request is given, following what became of its earlier ones. Free of vLLM."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .tree.calibration import Calibration
from .tree.config import AdaptiveConfig, Shape
from .tree.cost import CostModel
from .tree.grow import extent
from .tree.tree import Tree

Array = NDArray[np.float64]


class Controller(Protocol):
    """Decides before each step. The same observations make the same decisions, on every rank of a group."""

    def limits(self, requests: Sequence[str]) -> list[int]:
        """Most drafts (of a tree: levels) of each request in the next step; 0: none."""

    def trials(self, requests: Sequence[str]) -> list[bool]:
        """Whether the last limit of each request was a trial: to be drafted even where it is not expected to pay."""

    def observe(self, request: str, drafted: int, accepted: int, emitted: int) -> None:
        """What a step made of a request: drafts (levels) verified, those accepted, tokens that came out."""

    def forget(self, request: str) -> None:
        """A request has ended."""

    def state(self) -> dict[str, Any]:
        """For metrics: how often each length was chosen, and trials."""


def controller(config: AdaptiveConfig, shape: Shape, costs: CostModel) -> Controller:
    """The controller that a config asks for."""
    maximum = min(config.maximum or shape.depth, shape.depth)
    minimum = min(config.minimum, maximum)
    if config.controller == "window":
        return WindowController(
            minimum, maximum, config.window, config.raise_above, config.lower_below, config.probe_every
        )
    return GainController(costs, shape, minimum, maximum, config.probe_every)


class WindowController:
    """One draft more where more than `raise_above` of the last steps' drafts were accepted, one less where fewer
    than `lower_below` were.

    A request starts with the most. Each change starts a new window, judged once it holds `SETTLED` steps. A
    request that is down to none is given one again after `probe_every` tokens.
    """

    SETTLED = 4

    def __init__(
        self,
        minimum: int,
        maximum: int,
        window: int = 16,
        raise_above: float = 0.8,
        lower_below: float = 0.5,
        probe_every: int = 64,
    ):
        self.minimum, self.maximum, self.probe_every = minimum, maximum, probe_every
        self.raise_above, self.lower_below = raise_above, lower_below
        self._settled = min(self.SETTLED, window)
        self._length: dict[str, int] = {}
        self._recent: dict[str, deque[tuple[int, int]]] = {}
        self._waited: Counter[str] = Counter()
        self._window = window
        self._chosen: Counter[int] = Counter()
        self._probes = 0

    def limits(self, requests: Sequence[str]) -> list[int]:
        found = [self._length.setdefault(request, self.maximum) for request in requests]
        self._chosen.update(found)
        return found

    def trials(self, requests: Sequence[str]) -> list[bool]:
        return [False] * len(requests)

    def observe(self, request: str, drafted: int, accepted: int, emitted: int) -> None:
        length = self._length.setdefault(request, self.maximum)
        recent = self._recent.setdefault(request, deque(maxlen=self._window))
        if length == 0:
            self._waited[request] += emitted
            if self._waited[request] >= self.probe_every:
                self._probes += 1
                self._change(request, 1)
        elif drafted:
            recent.append((drafted, accepted))
            if len(recent) >= self._settled:
                rate = sum(a for _, a in recent) / sum(d for d, _ in recent)
                self._change(request, length + (rate > self.raise_above) - (rate < self.lower_below))

    def forget(self, request: str) -> None:
        for kept in (self._length, self._recent, self._waited):
            kept.pop(request, None)

    def state(self) -> dict[str, Any]:
        return {"lengths": dict(self._chosen), "probes": self._probes}

    def _change(self, request: str, length: int) -> None:
        length = min(max(length, self.minimum), self.maximum)
        if length != self._length[request]:
            self._length[request] = length
            self._recent[request].clear()
            self._waited[request] = 0


@dataclass
class _Request:
    """What the gain controller keeps of a request."""

    limit: int = 0
    #: Its limit is a trial; trials in a row that had a draft accepted.
    trial: bool = False
    streak: int = 0
    #: Tokens since its last trial, and how many there are to be before the next; a new request is due.
    since: float = float("inf")
    wait: int = 0


@dataclass
class GainController:
    """The lengths that give the whole batch the most expected tokens per millisecond.

    How likely the draft at each position is accepted is learned over all requests and for each by itself, as
    confidences are calibrated, from one claim that is the same for all. Where even the best length yields less
    than drafting nothing a request drafts nothing, but for trials: one after every `probe_every` tokens, up to
    `BURST` in a row while they do well, and twice as many tokens until the next (up to `PATIENCE` times as many)
    where that did not bring it back. A trial costs the batch a pass of the head, so requests make theirs in the
    same step, and `probe_every` steps lie between two such.
    """

    costs: CostModel
    shape: Shape
    minimum: int
    maximum: int
    probe_every: int = 64
    #: What a draft is taken to be worth before anything is known.
    CLAIM = 0.7
    BURST, PATIENCE = 4, 16
    #: Drafting that has begun goes on until it is expected to yield less than this share of drafting nothing: near
    #: one, chance decides, and drafting is how to know better.
    WORTH = 0.98

    _requests: dict[str, _Request] = field(default_factory=dict)
    _chosen: Counter[int] = field(default_factory=Counter)
    _probes: int = 0
    _step: int = 0
    _tried: int = -1_000_000

    def __post_init__(self) -> None:
        sizes, widths = extent(self.shape)
        #: Nodes and beam rows of a request, by levels drafted. An auto tree has as many nodes as pay: at least one
        #: a level; how many more is left to what chooses them.
        auto = self.shape.kind == "auto"
        self._sizes = np.array(range(self.maximum + 1) if auto else sizes[: self.maximum + 1], dtype=np.float64)
        self._widths = np.array(widths[: self.maximum - 1], dtype=np.float64)
        self._whole = auto
        self._acceptance = Calibration(self.shape.depth)

    def limits(self, requests: Sequence[str]) -> list[int]:
        self._step += 1
        states = [self._requests.setdefault(r, _Request(wait=self.probe_every)) for r in requests]
        best = self._best(self._acceptance.expected(self.CLAIM, self.maximum, requests)).tolist()
        further = self._step % self.probe_every == 0  # else what is deeper would never be known
        for state, length in zip(states, best, strict=True):
            length = max(length, self.minimum)
            asleep = length == 0
            if not asleep:
                state.wait, state.streak = self.probe_every, 0
                length = self.maximum if self._whole else min(length + further, self.maximum)
            if not asleep or state.trial or state.limit:
                # It drafts, or has just stopped, or its last trial was never verified.
                state.since = 0
            state.limit, state.trial = length, False
        self._try([s for s in states if s.limit == 0])
        found = [s.limit for s in states]
        self._chosen.update(found)
        return found

    def trials(self, requests: Sequence[str]) -> list[bool]:
        return [self._requests[r].trial for r in requests]

    def observe(self, request: str, drafted: int, accepted: int, emitted: int) -> None:
        state = self._requests.setdefault(request, _Request(wait=self.probe_every))
        state.since += emitted
        tried = max(drafted, min(1, state.limit))
        # Choosing no node of a tree says as much as a draft that is rejected.
        if tried:
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
        if self._step - self._tried >= self.probe_every and any(s.since >= s.wait for s in due):
            self._tried = self._step
            for state in due:
                state.streak = 0
                state.wait = min(2 * max(state.wait, self.probe_every), self.PATIENCE * self.probe_every)
            trying += due
        for state in trying:
            state.trial, state.since = True, 0
            state.limit = min(1 + state.streak, self.maximum)
        self._probes += len(trying)

    def _best(self, accepted: Array) -> NDArray[np.int64]:
        """[B] lengths, out of the probability [B, L] that each position is accepted, those before it given."""
        batch, levels = len(accepted), np.arange(accepted.shape[1] + 1)
        gains = np.concatenate([np.zeros((batch, 1)), accepted.cumprod(1).cumsum(1)], 1)
        drafting = self.costs.level(batch * self._widths).cumsum()
        fixed = np.concatenate([[self.costs.idle(batch)], float(self.costs.first(batch)) + np.r_[0.0, drafting]])
        plain = float(self.costs.verify(batch))
        # At first all as long as each other; then, at the price that the best so far puts on a row, each by itself.
        chosen = np.broadcast_to(levels, gains.shape)
        best, rate = np.zeros(batch, dtype=np.int64), self.WORTH * self.costs.plain(batch)
        for _ in range(4):
            rows = self._sizes[chosen].sum(0)
            rates = (batch + np.take_along_axis(gains, chosen, 1).sum(0)) / (fixed + self.costs.verify(batch + rows))
            most = 1 + int(rates[1:].argmax())
            if rates[most] <= rate:
                break
            best, rate = chosen[:, most], float(rates[most])
            price = rate * (float(self.costs.verify(batch + rows[most])) - plain) / max(rows[most], 1.0)
            worth = gains - price * self._sizes
            before = np.maximum.accumulate(np.concatenate([np.full((batch, 1), -np.inf), worth[:, :-1]], 1), 1)
            chosen = np.maximum.accumulate(np.where(worth > before, levels, 0), 1)
        return best

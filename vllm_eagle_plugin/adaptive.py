"""How many drafts each request is given, following what became of its earlier ones. Free of vLLM."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Protocol

from .tree.config import AdaptiveConfig, Shape
from .tree.cost_model import CostModel
from .tree.gain import GainController


class Controller(Protocol):
    """Decides before each step. The same observations make the same decisions, on every rank of a group."""

    def limits(self, requests: Sequence[str]) -> list[int]:
        """Most drafts (of a tree: levels) of each request in the next step; 0: none. Asked for requests that may
        draft, once a step."""

    def trials(self, requests: Sequence[str]) -> list[bool]:
        """Whether the last limit of each request was a trial: to be drafted even where it is not expected to pay."""

    def observe(self, request: str, drafted: int, accepted: int, emitted: int) -> None:
        """What a step made of a request, drafting or not: drafts (levels) verified, those accepted, tokens that
        came out."""

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

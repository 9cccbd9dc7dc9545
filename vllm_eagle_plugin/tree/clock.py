"""How long the parts of each step take, for costs to follow."""

from __future__ import annotations

from time import perf_counter

from .cost import Curve
from .cost_model import CostModel


class Clock:
    """Times the parts of steps. Tells nobody where ranks must decide alike."""

    #: Of steps that verified nothing, one in so many is told of: they say how fast the machine is and nothing else,
    #: and where nothing is drafted each of them should cost what it costs without us.
    PLAIN = 4

    def __init__(self, runs: bool) -> None:
        self._plain, self._runs, self._heeded = 0, runs, False
        self._started, self._step_started, self._drafted = 0.0, 0.0, 0.0

    def start_step(self) -> None:
        self._step_started, self._drafted = perf_counter(), 0.0

    def heed(self, decodes: bool) -> None:
        """Whether the step that runs only decodes. One that reads prompts, the head too, tells nothing of those."""
        self._heeded = self._runs and decodes

    def start(self) -> None:
        self._started = perf_counter()

    def observe(self, curve: Curve | None = None, rows: int = 0) -> None:
        """What went by since the start was drafting, from `rows` rows; tell `curve`, if there is one for it."""
        ms = (perf_counter() - self._started) * 1e3
        self._drafted += ms
        if self._heeded and curve:
            curve.observe(rows, ms)

    def observe_chain(self, costs: CostModel, requests: int, levels: int) -> None:
        """What went by since the start was drafting chains, which nobody interrupts to time a level."""
        first, level = float(costs.first(requests)), float(costs.level(requests))
        ms = (perf_counter() - self._started) * 1e3
        self._drafted += ms
        if self._heeded:
            slower = ms / max(first + (levels - 1) * level, 1e-6)
            costs.first.observe(requests, slower * first)
            if levels > 1:
                costs.level.observe(requests, slower * level)

    def observe_trial(self, costs: CostModel) -> None:
        """What the step drafted were trials and nothing else."""
        if self._heeded:
            costs.observe_trial(self._drafted)

    def observe_step(self, costs: CostModel, drafts: int, rows: int, branches: int) -> None:
        """Tell `costs` how long all else of the step took, in which `rows` rows were verified, `drafts` of them drafts."""
        if not self._heeded:
            return
        self._plain = 0 if drafts else (self._plain + 1) % self.PLAIN
        if not self._plain:
            costs.verify.observe(rows, (perf_counter() - self._step_started) * 1e3 - self._drafted, branches)

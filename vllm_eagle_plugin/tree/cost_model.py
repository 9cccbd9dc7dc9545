"""What drafting and verifying cost, in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .cost import Curve
from .step_cost import StepCost

Measured = Mapping[int, float]

#: How many times as long as those before it a trial may have taken to count in full: the machine may have been away.
TRIAL_OUTLIER = 3.0


class CostModel:
    """Milliseconds of the parts of a step, each by rows; see `StepCost` for what steps teach of verifying."""

    def __init__(
        self, verify: Measured, level: Measured, first: Measured, idle: Measured | None = None, branch: float = 0.0
    ):
        """Each maps rows to milliseconds.

        verify: the target over that many rows, one a request and one a draft. level: the head over that many
        beams. first: the head's first pass of a step for that many requests. idle: what the head costs for that
        many requests in a step that drafts nothing (keeping its keys and values up); nothing by default.
        branch: what each branch of a tree adds to verifying it.
        """
        self.verify = StepCost(verify, branch)
        self.level = Curve(level)
        self.first = Curve(first)
        self.idle = Curve(idle or {1: 0.0})
        #: What drafting takes in a step of trials, in which it mostly is to read what the head has missed.
        self.trial = float(self.first(1))
        self._measured = (verify, level, first, idle or {1: 0.0})

    @property
    def branch(self) -> float:
        """Milliseconds that each branch adds to verifying a tree."""
        return self.verify.branch

    def observe_trial(self, ms: float) -> None:
        """Learn from a step whose only drafts were trials, drafting which took `ms`."""
        self.trial = (self.trial + min(ms, TRIAL_OUTLIER * self.trial)) / 2

    def plain(self, requests: int) -> float:
        """Tokens per millisecond of a step that verifies no drafts."""
        return requests / float(self.verify(requests) + self.idle(requests))

    def numbers(self) -> list[float]:
        """What was measured, as plain numbers, so that ranks which must decide alike can be told rank 0's."""
        return [self.branch] + [n for m in self._measured for n in (float(len(m)), *map(float, m), *m.values())]

    @classmethod
    def of(cls, numbers: Iterable[float]) -> CostModel:
        """The model that `numbers` were measured for."""
        branch, *left = numbers
        measured: list[Measured] = []
        while left:
            n = int(left[0])
            measured.append({int(r): ms for r, ms in zip(left[1 : 1 + n], left[1 + n : 1 + 2 * n], strict=True)})
            del left[: 1 + 2 * n]
        verify, level, first, idle = measured
        return cls(verify, level, first, idle, branch)

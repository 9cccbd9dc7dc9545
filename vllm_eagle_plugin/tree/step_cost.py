"""What verifying costs: measured when the engine starts, learned from every step that follows.

What start-up measures is the target alone and without any context, at a few sizes, each of them with an error of
its own. What decides whether drafts pay is not how long a step takes but how much longer one with more rows does. So
steps must tell apart what is the same for all sizes (a machine that slows down) from what is not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .cost import Curve

Array = NDArray[np.float64]

#: What is thought of start-up's word before any step, as standard deviations. Shares of a step of one row: the work
#: around the target that each step has; what each row adds (it attends to a context, it is sampled); each branch.
#: Shares of the step: how fast the machine is, and each size.
OVERHEAD, ROW, BRANCH, SPEED, SIZE = 0.15, 0.01, 0.02, 0.3, 0.03
#: How far a step's time scatters, and from how many times what is expected to scatter on it counts no more.
NOISE, OUTLIER = 0.08, 1.2
#: How far the machine's speed wanders from step to step. Too little, and what a slow moment adds is put down to the
#: size that happened to run, which is then left for another that happened to run when it was over.
WANDER = 0.04
#: Share of what was learned of rows, branches and sizes that each step forgets: what is never run would keep an old
#: word.
FORGETTING = 0.0002
#: Of branches that are not drawn: it would never be found out that they have become cheap.
UNDRAWN = 0.002


class StepCost(Curve):
    """Milliseconds of a step by rows: `(1 + speed + size) * measured + overhead + rows * row`, and so much for each
    branch.

    A Kalman filter over those. The machine's speed wanders, so what lasts is put down to it; what differs between
    sizes that are run in turns is put down to rows, or to the sizes.
    """

    def __init__(self, measured: Mapping[int, float], branch: float = 0.0):
        super().__init__(measured)
        self.measured, sizes = self.ms, len(self.ms)
        one = max(float(self.ms[0]), 1e-6)
        #: overhead, row, branch in milliseconds; speed and one for each size as shares.
        self._state = np.zeros(4 + sizes)
        self._state[2] = branch
        prior = np.square([OVERHEAD * one, ROW * one, BRANCH * one, SPEED, *[SIZE] * sizes])
        self._covariance = np.diag(prior)
        self._kept = np.array([1.0, *[1 - FORGETTING] * 2, 1.0, *[1 - FORGETTING] * sizes])
        forgotten = 1 - (1 - FORGETTING) ** 2
        drift = prior * [0, forgotten, forgotten, 0, *[forgotten] * sizes]
        drift[3] = WANDER**2
        self._drift = np.diag(drift)

    @property
    def branch(self) -> float:
        """Milliseconds that each branch of a tree, a node that is not its parent's first child, costs beside its
        row: its path is attended to apart, and moved if accepted."""
        return max(0.0, float(self._state[2]))

    def observe(self, rows: int, ms: float, branches: int = 0) -> None:
        """Learn from a step that took `ms` for that many rows with that many branches among them."""
        share = self._shares(rows) * self.measured
        reads = np.concatenate([[1.0, float(rows), float(branches), share.sum()], share])
        self._state *= self._kept
        self._state[2] *= 1.0 if branches else 1 - UNDRAWN
        self._covariance = self._covariance * np.outer(self._kept, self._kept) + self._drift
        expected = float(share.sum() + reads @ self._state)
        seen = self._covariance @ reads
        scatter = float(reads @ seen) + (NOISE * max(expected, 1e-6)) ** 2
        error = np.clip(ms - expected, -OUTLIER * scatter**0.5, OUTLIER * scatter**0.5)
        self._state += seen * (error / scatter)
        self._covariance -= np.outer(seen, seen) / scatter
        overhead, row, _, speed = self._state[:4]
        found = self.measured * (1 + speed + self._state[4:]) + overhead + row * self.rows
        self.ms, self._table = np.maximum(found, 1e-6), np.empty(0)

    def _shares(self, rows: int) -> Array:
        """[sizes] the weights by which this many rows lie between measured sizes, or behind the last two."""
        if len(self.rows) == 1:
            return np.ones(1)
        last = len(self.rows) - 2
        at = min(max(int(np.searchsorted(self.rows, rows, "right")) - 1, 0), last)
        behind = max((rows - self.rows[at]) / (self.rows[at + 1] - self.rows[at]), 0.0)
        if self.measured[at + 1] < self.measured[at]:
            behind = min(behind, 1.0)  # as the curve has it: what falls to the last size falls no further
        shares = np.zeros(len(self.rows))
        shares[at], shares[at + 1] = 1 - behind, behind
        return shares

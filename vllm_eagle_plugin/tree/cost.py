"""What drafting and verifying cost, in milliseconds: measured at start-up, corrected by the steps that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Weight of one observed step in a correction, and how far one observation may be from it to count in full.
RATE, OUTLIER = 0.05, 2.0
#: How far the whole of a step, as a share of it, and each branch, as a share of a step of one row, are thought to be
#: off: it decides which of the two a step that took longer than expected is put down to.
SPREAD, BRANCH_SPREAD = 0.1, 0.02
#: What a step without branches takes off their cost: it would never be found out that they have become cheap.
FORGETTING = 0.002


def measure(run: Callable[[int], None], rows: Sequence[int], repeats: int = 4) -> dict[int, float]:
    """Fewest milliseconds of `run(n)` for each n of `rows`. `run` returns when its work is done, not just queued.

    In turns, and the fewest: what else a machine does makes a run longer, never shorter, and must not make one size
    look dear beside the next. How fast the machine is on the whole, steps will show.
    """
    for n in rows:
        run(n)  # whatever is compiled or allocated for this size
    times: dict[int, list[float]] = {n: [] for n in rows}
    for _ in range(repeats):
        for n in rows:
            start = perf_counter()
            run(n)
            times[n].append((perf_counter() - start) * 1e3)
    return {n: min(found) for n, found in times.items()}


class Curve:
    """Milliseconds for any number of rows, out of a few measured numbers of rows.

    Straight lines between what was measured, the last one going on; never falling, as more rows are never less
    work: where a measurement says otherwise it is noise. `correction` is what observed steps make of it.
    """

    def __init__(self, measured: Mapping[int, float], correction: float = 1.0):
        if not measured:
            raise ValueError("a cost needs at least one measurement")
        self.rows = np.array(sorted(measured), dtype=np.float64)
        self.ms = np.maximum.accumulate([max(0.0, float(measured[n])) for n in sorted(measured)])
        self.correction = correction

    def __call__(self, rows: ArrayLike) -> NDArray[np.float64]:
        """Milliseconds for each of `rows`."""
        asked = np.asarray(rows, dtype=np.float64)
        ms = np.interp(asked, self.rows, self.ms)
        if len(self.rows) > 1:
            slope = (self.ms[-1] - self.ms[-2]) / (self.rows[-1] - self.rows[-2])
            ms = ms + slope * np.maximum(0.0, asked - self.rows[-1])
        return ms * self.correction

    def observe(self, rows: int, ms: float) -> None:
        """Move the correction towards what a step took; an outlier moves it no further than twice as slow would."""
        expected = float(self(rows))
        if expected > 0 and ms > 0:
            ratio = min(max(ms / expected, 1 / OUTLIER), OUTLIER)
            self.correction *= 1 + RATE * (ratio - 1)


class CostModel:
    """Milliseconds of the parts of a step.

    One correction for each part, not for each size: contexts grow and machines slow down for all sizes alike, and
    sizes that are never run would keep an old one and look cheap or dear beside those that are.
    """

    def __init__(
        self,
        verify: Mapping[int, float],
        level: Mapping[int, float],
        first: Mapping[int, float],
        idle: Mapping[int, float] | None = None,
    ):
        """Each maps rows to milliseconds.

        verify: the target over that many rows, one a request and one a draft. level: the head over that many
        beams. first: the head's first pass of a step for that many requests. idle: what the head costs for that
        many requests in a step that drafts nothing (keeping its keys and values up); nothing by default.
        """
        self.verify = Curve(verify)
        self.level = Curve(level)
        self.first = Curve(first)
        self.idle = Curve(idle or {1: 0.0})
        #: What each branch of a tree, a node that is not its parent's first child, costs beside its row: its path
        #: is attended to apart, and moved if accepted.
        self.branch = 0.0

    @property
    def _curves(self) -> tuple[Curve, ...]:
        return (self.verify, self.level, self.first, self.idle)

    def plain(self, requests: int) -> float:
        """Tokens per millisecond of a step that verifies no drafts."""
        return requests / float(self.verify(requests) + self.idle(requests))

    def observe_step(self, rows: int, branches: int, ms: float) -> None:
        """Learn from what verifying took, drafting left out: how long it takes as a whole, and each branch."""
        whole = float(self.verify(rows))
        expected = whole + branches * self.branch
        if not branches:
            self.branch *= 1 - FORGETTING
            self.verify.observe(rows, ms)
            return
        error = min(max(ms, expected / OUTLIER), expected * OUTLIER) - expected
        spread, own = (SPREAD * whole) ** 2, (BRANCH_SPREAD * float(self.verify(1)) * branches) ** 2
        self.verify.observe(rows, whole + error * spread / (spread + own))
        self.branch = max(0.0, self.branch + RATE * error * own / (spread + own) / branches)

    def numbers(self) -> list[float]:
        """Everything as plain numbers, so that ranks which must decide alike can be told rank 0's."""
        return [self.branch] + [
            n for c in self._curves for n in (float(len(c.rows)), c.correction, *c.rows.tolist(), *c.ms.tolist())
        ]

    @classmethod
    def of(cls, numbers: Iterable[float]) -> CostModel:
        """What `numbers` were taken from."""
        branch, *left = numbers
        curves = []
        while left:
            n, correction = int(left[0]), left[1]
            rows, ms = left[2 : 2 + n], left[2 + n : 2 + 2 * n]
            curves.append(Curve({int(r): m for r, m in zip(rows, ms, strict=True)}, correction))
            del left[: 2 + 2 * n]
        model = cls.__new__(cls)
        model.verify, model.level, model.first, model.idle = curves
        model.branch = branch
        return model

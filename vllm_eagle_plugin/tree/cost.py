"""What a part of a step costs, in milliseconds, by rows: measured at start-up, corrected by the steps that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Weight of one observed step in a correction, and how far one observation may be from it to count in full.
RATE, OUTLIER = 0.05, 2.0

#: Turns of each size, and of the smallest ones.
REPEATS, MORE_REPEATS = 4, 12


def measure(run: Callable[[int], None], rows: Sequence[int], small: int = 0) -> dict[int, float]:
    """Fewest milliseconds of `run(n)` for each n of `rows`. `run` returns when its work is done, not just queued.

    In turns, and the fewest: what else a machine does makes a run longer, never shorter, and must not make one size
    look dear beside the next. How fast the machine is on the whole, steps will show. Sizes up to `small` take part
    in more turns.
    """
    for n in rows:
        run(n)  # whatever is compiled or allocated for this size
    times: dict[int, list[float]] = {n: [] for n in rows}
    for turn in range(MORE_REPEATS):
        for n in rows if turn < REPEATS else [n for n in rows if n <= small]:
            start = perf_counter()
            run(n)
            times[n].append((perf_counter() - start) * 1e3)
    return {n: min(found) for n, found in times.items()}


class Curve:
    """Milliseconds for any number of rows, out of a few measured numbers of rows.

    Straight lines between what was measured, the last one going on; never falling, as more rows are never less
    work: where a measurement says otherwise it is noise. `correction` is what observed steps make of it.
    """

    def __init__(self, measured: Mapping[int, float]):
        if not measured:
            raise ValueError("a cost needs at least one measurement")
        self.rows = np.array(sorted(measured), dtype=np.float64)
        self.ms = np.maximum.accumulate([max(0.0, float(measured[n])) for n in sorted(measured)])
        self.correction = 1.0
        #: `ms` at every number of rows up to the most asked for: a step asks for many sizes, and for each many times.
        self._table = np.empty(0)

    def __call__(self, rows: ArrayLike) -> NDArray[np.float64]:
        """Milliseconds for each of `rows`, whole numbers."""
        asked = rows if isinstance(rows, int) else np.asarray(rows, dtype=np.int64)
        most = asked if isinstance(asked, int) else int(asked.max(initial=0))
        if most >= len(self._table):
            self._table = self._up_to(max(63, 2 * most))
        return np.asarray(self._table[asked] * self.correction)

    def _up_to(self, most: int) -> NDArray[np.float64]:
        asked = np.arange(most + 1)
        ms = np.interp(asked, self.rows, self.ms)
        if len(self.rows) > 1:
            slope = (self.ms[-1] - self.ms[-2]) / (self.rows[-1] - self.rows[-2])
            ms = ms + slope * np.maximum(0.0, asked - self.rows[-1])
        return ms

    def observe(self, rows: int, ms: float) -> None:
        """Move the correction towards what a step took; an outlier moves it no further than twice as slow would."""
        expected = float(self(rows))
        if expected > 0 and ms > 0:
            ratio = min(max(ms / expected, 1 / OUTLIER), OUTLIER)
            self.correction *= 1 + RATE * (ratio - 1)

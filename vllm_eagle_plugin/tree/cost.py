"""What a part of a step costs, in milliseconds, by rows: measured at start-up, corrected by the steps that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Weight of one observed step in a correction, and how far one observation may be from it to count in full.
RATE, OUTLIER = 0.05, 2.0

#: Turns of all sizes and of small ones; and for how many seconds there may be more than two.
REPEATS, MORE_REPEATS, SECONDS = 4, 16, 6.0


def measure(
    run: Callable[[int], None], rows: Sequence[int], small: int = 0, agree: Callable[[int], int] = int
) -> dict[int, float]:
    """Milliseconds of `run(n)` for each n of `rows`. `run` returns when its work is done, not just queued.

    In turns. A machine that does other things is slow for a while, not for one size: of each size that share of its
    turn is taken which it has in most turns. Sizes up to `small` take part in more turns, and are what a turn is
    measured by. agree: makes ranks that run together take as many turns as each other.
    """
    few = [n for n in rows if n <= small] or list(rows)
    shares: dict[int, list[float]] = {n: [] for n in rows}
    paces: list[float] = []

    def turn(sizes: Sequence[int]) -> None:
        times: dict[int, float] = {}
        for n in sizes:
            start = perf_counter()
            run(n)
            times[n] = (perf_counter() - start) * 1e3
        paces.append(max(sum(times[n] for n in few), 1e-6))
        for n in sizes:
            shares[n].append(times[n] / paces[-1])

    for n in rows:
        run(n)  # whatever is compiled or allocated for this size
    turn(rows)
    for sizes, most in ((rows, REPEATS), (few, MORE_REPEATS if small else REPEATS)):
        seconds = sum(shares[n][0] for n in sizes) * paces[0] / 1e3
        affordable = int(SECONDS / seconds) if seconds > SECONDS / most else most
        for _ in range(agree(max(affordable, 2)) - len(paces)):
            turn(sizes)
    return {n: float(np.median(found) * np.median(paces)) for n, found in shares.items()}


class Curve:
    """Milliseconds for any number of rows, out of a few measured numbers of rows.

    Straight lines between what was measured, the last one going on. More rows may take less time: kernels work in
    blocks of rows, and what fits one is often faster than fewer (AMD EPYC: two rows take longer than six).
    `correction` is what observed steps make of it.
    """

    def __init__(self, measured: Mapping[int, float]):
        if not measured:
            raise ValueError("a cost needs at least one measurement")
        self.rows = np.array(sorted(measured), dtype=np.float64)
        self.ms = np.array([max(0.0, float(measured[n])) for n in sorted(measured)])
        self.correction = 1.0
        #: `ms` at every number of rows up to the most asked for: a step asks for many sizes, and for each many times.
        self._table = np.empty(0)

    def __call__(self, rows: ArrayLike) -> NDArray[np.float64]:
        """Milliseconds for each of `rows`, whole numbers."""
        asked = rows if isinstance(rows, int) else np.asarray(rows, dtype=np.int64)
        most = asked if isinstance(asked, int) else int(asked.max(initial=0))
        return np.asarray(self._up_to(most)[asked] * self.correction)

    def onwards(self, first: int, count: int) -> NDArray[np.float64]:
        """[count] milliseconds for `first` rows, for one more, and so on."""
        return self._up_to(first + count)[first : first + count] * self.correction

    def _up_to(self, most: int) -> NDArray[np.float64]:
        """Uncorrected, for every number of rows up to `most` at least."""
        if most >= len(self._table):
            self._table = self._interpolated(max(63, 2 * most))
        return self._table

    def _interpolated(self, most: int) -> NDArray[np.float64]:
        asked = np.arange(most + 1)
        ms = np.interp(asked, self.rows, self.ms)
        if len(self.rows) > 1:
            slope = max(0.0, self.ms[-1] - self.ms[-2]) / (self.rows[-1] - self.rows[-2])
            ms = ms + slope * np.maximum(0.0, asked - self.rows[-1])
        return ms

    def observe(self, rows: int, ms: float) -> None:
        """Move the correction towards what a step took; an outlier moves it no further than twice as slow would."""
        expected = float(self(rows))
        if expected > 0 and ms > 0:
            ratio = min(max(ms / expected, 1 / OUTLIER), OUTLIER)
            self.correction *= 1 + RATE * (ratio - 1)

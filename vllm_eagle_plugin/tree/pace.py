"""How requests do against what is expected of all: each by itself, and how far they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: No probability is taken to be closer than this to 0 or 1.
CLOSEST = 1e-4


class Spread:
    """How far requests differ, as the trials that what is expected of all counts for against a request's own.

    Where hits scatter no more than chance has them, a request's own few say nothing, and to heed them is to give
    drafting up after bad luck. By the moments of a beta-binomial: hits of n trials scatter by np(1-p)(1 + (n-1)r), and
    what is expected counts for 1/r - 1 trials.
    """

    #: Before anything is known, and as how many windows (of 32 trials, half of them hits) that counts.
    PRIOR, AS = 12.0, 4
    #: Bounds, and the windows after which one counts for a third.
    LEAST, MOST, MEMORY = 4.0, 100.0, 100.0

    def __init__(self) -> None:
        self._pairs = self.AS * 32 * 31 / 4
        self._excess = self._pairs / (self.PRIOR + 1)
        self.prior = self.PRIOR

    def add(self, expected: Sequence[float], hits: Sequence[float]) -> None:
        """Count trials of one request: what was expected of each, and whether it came."""
        variance = sum(p * (1 - p) for p in expected)
        kept = 1 - 1 / self.MEMORY
        self._excess = kept * self._excess + (sum(hits) - sum(expected)) ** 2 - variance
        self._pairs = kept * self._pairs + variance * (len(expected) - 1)
        share = min(max(self._excess / self._pairs, 1 / (self.MOST + 1)), 1 / (self.LEAST + 1))
        self.prior = 1 / share - 1


class Average:
    """Fading counts of one cell, as plain numbers."""

    def __init__(self, memory: float):
        self.fading = 1 - 1 / memory
        self.trials = self.hits = self.expected = 0.0

    def add(self, expected: float, hit: float) -> None:
        self.fade(self.fading)
        self.trials, self.hits, self.expected = self.trials + 1, self.hits + hit, self.expected + expected

    def fade(self, share: float) -> None:
        self.trials, self.hits, self.expected = share * self.trials, share * self.hits, share * self.expected

    def shift(self, prior: float) -> float:
        if not self.trials:
            return 0.0
        mean = self.expected / self.trials
        return _odds((self.hits + prior * mean) / (self.trials + prior)) - _odds(mean)


class Pace:
    """How one request does against what was expected of it, as a shift in log-odds.

    A slow average says it precisely, a fast one says it soon. Where they contradict each other the text has
    changed, and the slow one starts again from the fast one.
    """

    #: Standard deviations apart that are a contradiction, and trials that the fast average needs for one.
    CONTRADICTION, ENOUGH = 3.0, 6.0
    #: Trials that are weighed together against what was expected of them, and the fewest.
    WINDOW, FEWEST = 32, 8
    #: What is expected of a request that has changed counts for no more trials than this.
    CHANGED = 6.0

    def __init__(self, spread: Spread, fast: float = 12.0, slow: float = 100.0):
        self._spread = spread
        self._fast, self._slow = Average(fast), Average(slow)
        self._window: list[tuple[float, float]] = []
        self.shift = 0.0
        self.resets = 0

    def add(self, expected: Sequence[float], hits: Sequence[float]) -> None:
        """Count trials: what was expected without this shift, and whether it came."""
        for p, hit in zip(expected, hits, strict=True):
            self._fast.add(p, hit)
            self._slow.add(p, hit)
            self._window.append((p, hit))
        if len(self._window) >= self.WINDOW:
            self.end()
        self.shift = self._slow.shift(self.prior)
        if self._contradict():
            fast, slow = self._fast, self._slow
            slow.trials, slow.hits, slow.expected = fast.trials, fast.hits, fast.expected
            self.resets += 1
            self.shift = slow.shift(self.prior)

    @property
    def prior(self) -> float:
        return min(self._spread.prior, self.CHANGED) if self.resets else self._spread.prior

    def end(self) -> None:
        """Weigh what has come since the last time."""
        if len(self._window) >= self.FEWEST:
            self._spread.add(*zip(*self._window, strict=True))
        self._window = []

    def _contradict(self) -> bool:
        n = self._fast.trials
        if n < self.ENOUGH:
            return False
        usual = 1 / (1 + math.exp(-_odds(self._fast.expected / n) - self.shift))
        # Of fading counts about half as many trials are independent.
        deviation = math.sqrt(n / 2 * usual * (1 - usual))
        return abs(self._fast.hits - n * usual) > self.CONTRADICTION * deviation


def _odds(probability: float) -> float:
    p = min(max(probability, CLOSEST), 1 - CLOSEST)
    return math.log(p / (1 - p))

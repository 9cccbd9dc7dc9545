"""Turns: an engine works while others stand still, and its clock stands still while they work."""

from __future__ import annotations

import time
from collections.abc import Callable

#: A turn's length in seconds, at least: short beside what a machine does by the way, long beside what changing turns costs.
SECONDS = 0.25


class Turns:
    """This process's share of turns. Whoever never has to wait has all of them."""

    def __init__(self, wait: Callable[[], None] | None = None):
        """wait: passes the turn on, and returns when it is this process's again."""
        self._wait = wait
        self._away = 0.0
        self._ends = float("-inf")

    def now(self) -> float:
        """Seconds on a clock that stands still while it waits."""
        return time.perf_counter() - self._away

    def between_steps(self) -> None:
        """Wait for a turn, unless this one has not lasted long enough; the first is waited for too."""
        if self._wait is None or time.perf_counter() < self._ends:
            return
        left = time.perf_counter()
        self._wait()
        back = time.perf_counter()
        self._away += back - left
        self._ends = back + SECONDS

"""Memory of a server over time, and whether it grows."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil
from scipy.stats import theilslopes

MIB = 2**20
#: Shorter times than this show allocators, not leaks, and are not judged.
JUDGED_MINUTES = 10.0


def resident_mib() -> float:
    """Resident memory of all processes that this one started, and of those that they started."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_info().rss
    return total / MIB


@dataclass(frozen=True)
class Growth:
    """MiB per minute: the median of all pairs' slopes (Theil-Sen) and its 95% interval."""

    mib_per_minute: float
    low: float
    high: float
    minutes: float

    @classmethod
    def of(cls, curve: list[tuple[float, float]], warm_up: float) -> Growth | None:
        """From samples (seconds, MiB), those before `warm_up` seconds left out; None where too few are left."""
        kept = [(seconds / 60, mib) for seconds, mib in curve if seconds >= warm_up]
        if len(kept) < 3:
            return None
        slope, _, low, high = theilslopes([mib for _, mib in kept], [minute for minute, _ in kept])
        return cls(float(slope), float(low), float(high), kept[-1][0] - kept[0][0])

    def __str__(self) -> str:
        return f"{self.mib_per_minute:+.2f} MiB/min (95% {self.low:+.2f} to {self.high:+.2f})"


def leaks(found: Growth | None, control: Growth | None, most: float) -> bool | None:
    """Whether memory grew by more than `most` MiB a minute, beyond what a control grew; None if not judged."""
    if found is None or found.minutes < JUDGED_MINUTES:
        return None
    return found.mib_per_minute - (max(0.0, control.mib_per_minute) if control else 0.0) > most

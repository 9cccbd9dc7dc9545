"""Clients that ask a server everything of a mixed load, for a while, and check each answer and its memory."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil
from scipy.stats import theilslopes

from vllm_eagle_plugin.errors import HeadError

from .clients import Clients, Request
from .load import Difference, Entry, Plain, compare, fault, logprob_error, with_alternatives

#: Greedy tokens whose log-probabilities are closer than this are tied: fp32 sums in another order differ by less.
TIE = 1e-3
#: Log-probabilities may differ by so much from plain decoding's.
LOGPROB_TOLERANCE = 1e-2
#: A seeded draw falls on the boundary between two tokens now and then; more than this share is no accident.
SEEDED_SHARE = 0.01
SAMPLE_SECONDS = 5.0
MIB = 2**20
#: Shorter times than this show allocators, not leaks, and are not judged.
JUDGED_MINUTES = 10.0


@dataclass
class Seen:
    """What the clients saw; filled by all of them."""

    requests: Counter[str] = field(default_factory=Counter)
    hung_up: int = 0
    compared: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    logprob_error: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, *, greedy: bool) -> list[Difference]:
        return [d for d in self.differences if d.kind.startswith("greedy") is greedy]

    def bugs(self) -> list[Difference]:
        """Greedy answers that rounding does not explain, and seeded ones if they are too many."""
        found = [d for d in self.of(greedy=True) if not d.tie(TIE)]
        seeded, asked = self.of(greedy=False), sum(n for kind, n in self.compared.items() if "seeded" in kind)
        return found + (seeded if len(seeded) > max(1, SEEDED_SHARE * asked) else [])


def every_size(clients: Clients, most: int, seed: int = 0) -> None:
    """One prompt of each length up to `most`, one after the other: vLLM keeps what it compiles for a matrix product
    of so many rows, 2 MiB a number for a small model, and a server that has not met them all yet grows.

    Raises:
        HeadError: the server refused one.
    """
    chance = random.Random(seed)
    for length in range(1, most + 1):
        # Of random tokens, so that none begins as another does: what is cached is not computed.
        clients.complete(Request([chance.randrange(1000) for _ in range(length)], 1, {"temperature": 0.0}))


def ask(clients: Clients, entry: Entry, request: Request, plain: Plain | None, seen: Seen) -> bool:
    """One request, and its answer checked; whether the server answered at all."""
    try:
        choice = clients.run(request)
    except (HeadError, OSError, ValueError, LookupError) as error:
        with seen.lock:
            seen.errors.append(f"{entry.kind}: {type(error).__name__}: {error}")
        return False
    with seen.lock:
        seen.requests[entry.kind] += 1
        if choice is None:
            seen.hung_up += 1
            return True
        if wrong := fault(entry, choice, request.max_tokens):
            seen.errors.append(f"{entry.kind}: {wrong}")
        if plain is not None:
            seen.compared[entry.kind] += 1
            if different := compare(entry, plain, choice["token_ids"], request.max_tokens):
                seen.differences.append(different)
            if "logprobs" in entry.settings:
                seen.logprob_error = max(seen.logprob_error, logprob_error(plain, choice))
    return True


def answer_plainly(clients: Clients, entries: list[Entry], longest: int, workers: int) -> dict[int, Plain]:
    """Plain decoding's answers by entry, where they are always the same."""

    def answer(entry: Entry) -> tuple[int, Plain]:
        asked = Request(entry.prompt, longest, with_alternatives(entry.settings))
        return entry.index, Plain.of(clients.complete(asked))

    with ThreadPoolExecutor(workers) as pool:
        return dict(pool.map(answer, [entry for entry in entries if entry.known]))


@dataclass(frozen=True)
class Storm:
    """A load on a server, for a while."""

    entries: list[Entry]
    plain: dict[int, Plain]
    longest: int
    hanging_up: float
    workers: int
    seed: int

    def run(self, clients: Clients, seconds: float) -> tuple[Seen, list[tuple[float, float]]]:
        """What was seen, and the memory curve (seconds, MiB)."""
        seen, curve, started = Seen(), [(0.0, resident_mib())], time.monotonic()
        stopping = threading.Event()

        def client(number: int) -> None:
            chance = random.Random(self.seed * 1000 + number)
            mine = [entry for entry in self.entries if entry.structured is (number == 0)]
            failed = 0
            while not stopping.is_set() and failed < 5:  # a server that is gone needs no more telling
                entry = chance.choice(mine)
                request = entry.request(chance, self.longest, self.hanging_up)
                failed = 0 if ask(clients, entry, request, self.plain.get(entry.index), seen) else failed + 1

        with ThreadPoolExecutor(self.workers) as pool:
            running = [pool.submit(client, number) for number in range(self.workers)]
            while (now := time.monotonic() - started) < seconds and not all(future.done() for future in running):
                time.sleep(min(SAMPLE_SECONDS, seconds - now))
                now = time.monotonic() - started
                curve.append((round(now, 1), round(resident_mib(), 1)))
            stopping.set()
        for future in running:
            future.result()
        return seen, curve


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

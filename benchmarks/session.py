"""What every benchmark drives: something that answers questions and says how it drafted.

An engine in this process (`engine.Engine`), one in a process of its own (`worker.Worker`), and a server
(`remote.Remote`) all look like this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import HeadError
from .prompts import Question
from .records import Record


@dataclass(frozen=True)
class Sampling:
    """How each request is sampled; `seeds` asks every question once per seed."""

    temperature: float = 0.0
    max_tokens: int = 128
    seeds: tuple[int, ...] = (0,)
    ignore_eos: bool = False


@dataclass(frozen=True)
class Counters:
    """vLLM's speculative counters since it started, as /metrics has them."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted: int = 0
    per_position: tuple[int, ...] = ()

    def __sub__(self, other: Counters) -> Counters:
        before = other.per_position or (0,) * len(self.per_position)
        return Counters(
            self.drafts - other.drafts,
            self.draft_tokens - other.draft_tokens,
            self.accepted - other.accepted,
            tuple(a - b for a, b in zip(self.per_position, before, strict=True)),
        )


@dataclass(frozen=True)
class Step:
    """One engine step in which every request decoded; times in milliseconds.

    `total` is the whole of `LLMEngine.step`; `verify` the target's pass and sampling.
    """

    requests: int
    rows: int
    drafted: bool
    total: float
    draft: float
    verify: float
    scheduling: float


#: Called with each finished request, so that what is done is kept whatever happens next.
Done = Callable[[Record], None]


class Session(Protocol):
    """Answers questions."""

    @property
    def k(self) -> int:
        """num_speculative_tokens; 0 without speculation."""

    def run(self, questions: Sequence[Question], sampling: Sampling, concurrency: int, done: Done) -> list[str]:
        """Ask everything, at most `concurrency` at a time; returns the requests that vLLM refused, in words.

        Raises:
            HeadError: the engine or server failed; what was finished has been handed to `done`.
        """

    def counters(self) -> Counters | None:
        """vLLM's own counters now; None if it has none."""

    def take_steps(self) -> list[Step]:
        """Decode steps since the last call; empty where they cannot be seen."""

    def describe(self) -> dict[str, Any]:
        """Engine settings that matter, for the report."""


@contextlib.contextmanager
def nothing_yet(doing: str) -> Iterator[None]:
    """For what comes before the first answer: ctrl-C is an error, since there is nothing to keep."""
    try:
        yield
    except KeyboardInterrupt:
        raise HeadError(f"interrupted while {doing}", "Nothing was measured") from None


def conversations(questions: Sequence[Question], sampling: Sampling) -> list[tuple[Question, int | None]]:
    """Each question once per seed; without randomness the seed does not matter and is left out."""
    if sampling.temperature == 0:
        return [(question, None) for question in questions]
    return [(question, seed) for seed in sampling.seeds for question in questions]

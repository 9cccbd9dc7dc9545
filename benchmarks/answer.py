"""An answer while it arrives, from an engine's steps or a server's stream."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .prompts import Question
from .records import Record


@dataclass
class Answer:
    """One turn of a question. Each piece is what arrived at once: the tokens of a step, as a rule."""

    question: Question
    seed: int | None
    turn: int
    messages: list[dict[str, Any]]
    prompt_tokens: int = 0
    #: The clock that it arrives by.
    now: Callable[[], float] = time.perf_counter
    started: float = field(init=False)
    pieces: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self.started = self.now()

    def add(self, token_ids: list[int], text: str) -> None:
        """Take what arrived; text without tokens belongs to tokens that came before."""
        if token_ids:
            self.pieces.append(len(token_ids))
            self.arrivals.append(self.now())
        self.token_ids += token_ids
        self.text += text

    def next_messages(self) -> list[dict[str, Any]]:
        """The conversation up to the next turn."""
        said = {"role": "assistant", "content": self.text}
        return [*self.messages, said, {"role": "user", "content": self.question.later[self.turn]}]

    @property
    def finished(self) -> bool:
        """Whether this was the last turn."""
        return self.turn == len(self.question.later)

    def record(self, accepted: list[int], drafted: list[int], plain_steps: int | None, trimmed: int | None) -> Record:
        """The whole answer; the arguments are `Record`'s."""
        arrivals = self.arrivals or [self.started]
        return Record(
            question=self.question.index,
            question_id=self.question.id,
            category=self.question.category,
            turn=self.turn,
            seed=self.seed,
            prompt_tokens=self.prompt_tokens,
            output_tokens=len(self.token_ids),
            token_ids=self.token_ids,
            text=self.text,
            finish_reason=self.finish_reason,
            accepted=accepted,
            drafted=drafted,
            plain_steps=plain_steps,
            trimmed=trimmed,
            ttft=arrivals[0] - self.started,
            latency=arrivals[-1] - self.started,
            itl=[b - a for a, b in itertools.pairwise(arrivals)],
        )
